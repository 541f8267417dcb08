"""Pieces of work depend on the dataset alone, and come decoded and in order."""

import threading

import pytest
import torch
from PIL import Image

from hf_geossl.tasks.embedding.arguments import EmbeddingArguments
from hf_geossl.tasks.embedding.images import open_images
from hf_geossl.tasks.embedding.inputs import ImageInputs
from hf_geossl.tasks.embedding.loader import Decoder, Shard, decoded_ahead, plan
from tests.helpers.images import write_folder, write_parquet

WRITERS = {"folder": write_folder, "parquet": write_parquet}


def mean_color(picture: Image.Image) -> torch.Tensor:
    return torch.tensor(picture.resize((1, 1)).getpixel((0, 0))).float()[:, None, None]


def planned(images, is_wanted=lambda shard: True, is_finished=lambda unit: False):
    return list(plan(images, 2, 4, is_wanted, is_finished))


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("rows", [1, 8, 11])
def test_shards_cover_each_row_once_and_the_last_says_so(tmp_path, kind, rows):
    if kind == "parquet" and rows == 1:
        rows = 2  # of two files
    images = open_images(str(WRITERS[kind](tmp_path / "data", rows=rows)), EmbeddingArguments())
    works = planned(images)
    assert sum(len(work.rows) for work in works) == rows
    for unit in range(images.units):
        own = [work for work in works if work.shard.unit == unit]
        assert [work.last for work in own] == [False] * (len(own) - 1) + [True]
        ends = [work.shard for work in own if work.ends]
        assert ends == [Shard(unit, number) for number in range(len(ends))]
        sizes = [sum(len(work.rows) for work in own if work.shard == shard) for shard in ends]
        assert sizes[:-1] == [4] * (len(ends) - 1)
    # the shards of two processes, and those that are left after some are there, are the same works
    parts = [planned(images, lambda shard, turn=turn: (shard.unit + shard.number) % 2 == turn) for turn in (0, 1)]
    key = lambda work: (work.shard.unit, work.shard.number, [row.number for row in work.rows])  # noqa: E731
    assert sorted(map(key, parts[0] + parts[1])) == sorted(map(key, works))
    assert planned(images, is_finished=lambda unit: True) == []


def test_workers_decode_in_order_and_say_what_is_broken(tmp_path):
    data = write_folder(tmp_path / "data", rows=9)
    (data / "class_1/004.png").write_bytes(b"")
    images = open_images(str(data), EmbeddingArguments())
    decoder = Decoder(images, ImageInputs(mean_color, 10**6), None, 0)
    results = [list(decoded_ahead(decoder, planned(images), workers, pin_memory=False)) for workers in (0, 2)]
    for one, other in zip(*results, strict=True):
        assert (one.keys, one.sizes, one.broken, one.carried) == (other.keys, other.sizes, other.broken, other.carried)
        assert torch.equal(one.pixel_values, other.pixel_values)
    assert [broken for one in results[0] for broken in one.broken] == [("class_1/004.png", "the file is empty")]


def test_an_error_of_a_worker_keeps_its_type_and_sentence(tmp_path):
    images = open_images(str(write_folder(tmp_path / "data", rows=4)), EmbeddingArguments())
    sizes = iter((1, 2))

    def uneven(picture: Image.Image) -> torch.Tensor:
        return torch.zeros(3, next(sizes), 4)

    decoder = Decoder(images, ImageInputs(uneven, 10**6), None, 0)
    with pytest.raises(ValueError, match="makes images of several sizes, such as 1 x 4 and 2 x 4: give image_size"):
        list(decoded_ahead(decoder, planned(images), 1, pin_memory=False))


def test_an_iteration_that_is_left_ends_its_thread(tmp_path):
    images = open_images(str(write_folder(tmp_path / "data", rows=36)), EmbeddingArguments())
    before = threading.active_count()
    decoded = decoded_ahead(
        Decoder(images, ImageInputs(mean_color, 10**6), None, 0), planned(images), 0, pin_memory=False
    )
    next(decoded)
    decoded.close()
    for _ in range(100):
        if threading.active_count() == before:
            break
        threading.Event().wait(0.05)
    assert threading.active_count() == before
