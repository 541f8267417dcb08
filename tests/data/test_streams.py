"""Streams: the same images in the same order, whatever happened in between."""

import json
import os

import numpy as np
import pyarrow.parquet as pq
import pytest

from hf_geossl.data import scene_image
from hf_geossl.data.batches import StreamBatches
from hf_geossl.data.streams import ImageStream, load_stream
from tests.helpers.images import (
    KINDS,
    ROWS,
    all_pixels,
    encoded,
    first,
    make_stream,
    seen,
    write_folder,
    write_one_parquet,
    write_tar,
)


@pytest.mark.parametrize("kind", KINDS)
def test_one_epoch_holds_every_image_once_and_is_the_start_of_the_endless_stream(kind, tmp_path):
    stream = make_stream(kind, tmp_path)
    epoch = [seen(sample) for sample in stream.one_epoch()]
    assert sorted(pixels for _, _, pixels in epoch) == all_pixels()
    assert len({seed for _, seed, _ in epoch}) == ROWS
    assert [seen(sample) for sample in stream.one_epoch(1)] == first(stream, 2 * ROWS)[ROWS:]
    assert epoch == first(stream, ROWS)
    assert [key for key, _, _ in epoch] != sorted(key for key, _, _ in epoch)
    assert not any(os.path.isabs(key) or str(tmp_path) in key for key, _, _ in epoch)


@pytest.mark.parametrize("kind", KINDS)
def test_five_resumes_in_a_row_continue_bit_for_bit(kind, tmp_path):
    undisturbed = first(make_stream(kind, tmp_path), 120)
    got: list[tuple] = []
    state = None
    for count in (1, 7, 12, 30, 41, 29):  # over the epochs' ends at 37 and 74
        stream = make_stream(kind, tmp_path)
        if state is not None:
            stream.load_state_dict(json.loads(state))
            assert json.loads(json.dumps(stream.state_dict())) == json.loads(state)  # before the first sample
        got += first(stream, count)
        state = json.dumps(stream.state_dict())
    assert got == undisturbed
    assert len(state) < 1500


@pytest.mark.parametrize("kind", ["folder", "parquet", "webdataset", "iterable"])
def test_state_after_every_single_sample_continues_with_the_next(kind, tmp_path):
    undisturbed = first(make_stream(kind, tmp_path), 45)
    running = make_stream(kind, tmp_path)
    samples = iter(running)
    for count in range(40):
        resumed = make_stream(kind, tmp_path)
        resumed.load_state_dict(running.state_dict())
        assert first(resumed, 3) == undisturbed[count : count + 3], count
        next(samples)


def test_order_is_the_one_that_a_slow_literal_computation_gives(tmp_path):
    stream = make_stream("parquet", tmp_path, shuffle_block=3)
    files = sorted((tmp_path / "parquet").iterdir())
    rows = [[f"{file.name}:{row}" for row in range(pq.read_metadata(file).num_rows)] for file in files]
    units = [part[start : start + 5] for part in rows for start in range(0, len(part), 5)]  # row groups of 5

    def permuted(entropy: list[int], items: list) -> list:
        numbers = np.random.PCG64(np.random.SeedSequence(entropy)).random_raw(len(items)).tolist()
        return [item for _, item in sorted(zip(numbers, items, strict=True), key=lambda pair: pair[0])]

    expected = []
    for epoch in range(2):
        for unit in permuted([3, 0, epoch], list(range(len(units)))):
            for block, start in enumerate(range(0, len(units[unit]), 3)):
                numbers = list(range(start, min(start + 3, len(units[unit]))))
                for row in permuted([3, 1, epoch, unit, block], numbers):
                    words = np.random.SeedSequence([3, 2, epoch, unit, row]).generate_state(1, np.uint64)
                    expected.append((units[unit][row], int(words[0]) >> 1))
    assert [(key, seed) for key, seed, _ in first(stream, 2 * ROWS)] == expected


def test_state_is_right_between_iter_and_the_first_sample(tmp_path):
    stream = make_stream("parquet", tmp_path)
    first(stream, 9)
    state = stream.state_dict()
    beginning = make_stream("parquet", tmp_path).state_dict()
    samples = iter(stream)  # from the beginning again, since nothing was loaded
    assert stream.state_dict() == beginning
    next(samples)
    stream.load_state_dict(state)
    iter(stream)
    assert stream.state_dict() == state
    assert stream.state_dict() is not stream.state_dict()


def test_scenes_resume_and_are_named_by_their_index():
    def scenes() -> ImageStream:
        return load_stream("scenes", "validation", config_name="16", shuffle_block=5)

    undisturbed = first(scenes(), 30)
    stream = scenes()
    begun = first(stream, 12)
    resumed = scenes()
    resumed.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    assert begun + first(resumed, 18) == undisturbed
    name, split, index = undisturbed[0][0].split("/")
    assert (name, split) == ("scenes", "validation")
    assert np.asarray(scene_image("validation", int(index), "16")).tobytes() == undisturbed[0][2]
    with pytest.raises(ValueError, match="split must be one of"):
        load_stream("scenes", "nowhere")


def test_two_iterators_of_one_stream_do_not_disturb_each_other(tmp_path):
    stream = make_stream("iterable", tmp_path)
    undisturbed = first(stream, 50)
    one, two = iter(stream), iter(stream)
    pairs = [(seen(next(one)), seen(next(two))) for _ in range(50)]
    assert pairs == [(sample, sample) for sample in undisturbed]


def test_logical_streams_share_an_epoch_without_overlap(tmp_path):
    stream = make_stream("folder", tmp_path)
    parts = []
    for v in range(5):
        part = stream.shard(5, v)
        for sample in part:
            if part.epoch > 0:
                break
            parts.append(np.asarray(sample["image"]).tobytes())
    assert sorted(parts) == all_pixels()


def test_state_of_another_stream_is_refused_with_what_changed(tmp_path):
    stream = make_stream("folder", tmp_path)
    next(iter(stream))
    state = stream.state_dict()
    for options, name in (({"seed": 4}, "seed was 3 and is 4"), ({"shuffle_block": 5}, "shuffle_block was 4 and is 5")):
        with pytest.raises(ValueError, match=name):
            make_stream("folder", tmp_path, **options).load_state_dict(state)
    with pytest.raises(ValueError, match="kind was 'folder' and is 'parquet'"):
        make_stream("parquet", tmp_path).load_state_dict(state)
    with pytest.raises(ValueError, match="num_streams was 1 and is 2"):
        make_stream("folder", tmp_path).shard(2, 0).load_state_dict(state)
    (tmp_path / "folder/class_0/000.png").write_bytes(encoded(0, side=9))
    with pytest.raises(ValueError, match="digest was"):
        make_stream("folder", tmp_path).load_state_dict(state)
    with pytest.raises(ValueError, match="lacks fingerprint"):
        stream.load_state_dict({"epoch": 1})


@pytest.mark.parametrize("kind", ["parquet", "tar", "folder"])
def test_a_source_of_one_unit_resumes_after_every_sample_of_three_passes(kind, tmp_path):
    if kind == "folder":
        path, rows = write_folder(tmp_path / "photos", 1), 1
    else:
        rows = 8
        path = (write_one_parquet if kind == "parquet" else write_tar)(tmp_path / f"one.{kind}", rows)
    undisturbed = first(load_stream(str(path), shuffle_block=3), 3 * rows + 2)
    running = load_stream(str(path), shuffle_block=3)
    assert running.source.units == 1
    samples = iter(running)
    for count in range(3 * rows + 1):
        resumed = load_stream(str(path), shuffle_block=3)
        resumed.load_state_dict(running.state_dict())
        assert first(resumed, 2) == undisturbed[count : count + 2][:2], count
        next(samples)


def test_what_is_no_state_is_refused(tmp_path):
    write_folder(tmp_path / "photos", 3)
    stream = load_stream(str(tmp_path / "photos"))
    with pytest.raises(ValueError, match=r"state must be what state_dict\(\) returned, got NoneType"):
        stream.load_state_dict(None)
    for state in (None, [None]):
        with pytest.raises(ValueError, match="this is no state of StreamBatches"):
            StreamBatches(stream, None, 2).load_state_dict(state)
