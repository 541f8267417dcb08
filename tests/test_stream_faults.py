"""Streams of data with faults: what is damaged is skipped, counted and named, and nothing else is lost."""

import io
import itertools
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_streams import encoded, first, write_folder

from hf_geossl.training.streams import BrokenStreamError, ImageStream, load_stream


def write_tar(path: Path, rows: int) -> Path:
    with tarfile.open(path, "w") as archive:
        for number in range(rows):
            member = tarfile.TarInfo(f"{number:03d}.png")
            member.size = len(encoded(number))
            archive.addfile(member, io.BytesIO(encoded(number)))
    return path


def write_one_parquet(path: Path, rows: int, group: int | None = None) -> Path:
    values = [{"bytes": encoded(number), "path": None} for number in range(rows)]
    pq.write_table(pa.table({"image": values}), path, row_group_size=group or rows)
    return path


# ------------------------------------------------------------------------------------------------------ whole passes


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


@pytest.mark.parametrize("num_streams", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_an_unreadable_unit_among_good_ones_never_counts_as_a_whole_pass(seed, num_streams, tmp_path):
    write_tar(tmp_path / "0.tar", 40)
    (tmp_path / "1.tar").write_bytes(b"this is no archive" * 100)
    stream = load_stream(str(tmp_path), seed=seed).shard(num_streams, num_streams - 1)
    assert len(first(stream, 400)) == 400
    assert 0 < stream.skipped_images < 40


def reopened(root: Path, num_streams: int, state: dict | None = None) -> ImageStream:
    stream = load_stream(str(root), max_broken_share=1.0, shuffle_block=2).shard(num_streams, num_streams - 1)
    if state is not None:
        stream.load_state_dict(state)
    return stream


@pytest.mark.parametrize("num_streams", [1, 2, 5])
@pytest.mark.parametrize("taken", [0, 3, 7])
def test_data_that_give_no_image_at_all_stop_from_any_position(taken, num_streams, tmp_path):
    write_folder(tmp_path / "photos", 7)
    running = reopened(tmp_path / "photos", num_streams)
    first(running, taken)
    for file in (tmp_path / "photos").rglob("*.png"):
        file.write_bytes(b"x" * file.stat().st_size)
    with pytest.raises(BrokenStreamError, match="a whole pass gave no image"):
        next(iter(reopened(tmp_path / "photos", num_streams, running.state_dict())))


def test_a_few_broken_samples_met_first_are_not_yet_a_share(tmp_path):
    write_folder(tmp_path / "photos", 30)
    (tmp_path / "photos/bad.png").write_bytes(b"x")
    for v in range(31):  # one of the streams meets the broken image first
        assert len(list(itertools.islice(load_stream(str(tmp_path / "photos")).shard(31, v), 3))) == 3
