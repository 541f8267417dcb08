"""Notes of a stream: the first of each kind told with its file, all counted exactly, across workers and resumes."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hf_geossl.data.batches import StreamBatches
from hf_geossl.data.blocks import Position
from hf_geossl.data.images import decode_pixels
from hf_geossl.data.noted import NotedImages
from hf_geossl.data.notes import Note
from hf_geossl.data.streams import load_stream
from tests.helpers.image_files import photo


def test_a_kind_counts_once_an_image_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    noted, at = NotedImages(), Position()
    noted.count(
        at, "a.tif", [Note("frames", "3 images in this file"), Note("frames", "again"), Note("cmyk", "plainly")]
    )
    noted.count(at, "b.tif", [Note("frames", "2 images in this file")])
    noted.count(at, "c.tif", [])
    assert at.notes == {"frames": 2, "cmyk": 1}
    assert sorted(record.message.partition(";")[0] for record in caplog.records) == [
        "a.tif: CMYK converted to RGB (plainly)",
        "a.tif: only the first of several frames or pages read (3 images in this file)",
    ]


class Means:
    accepts_pixels = True

    def __call__(self, image: torch.Tensor, *, seed: int) -> dict[str, torch.Tensor]:
        return {"mean": image.float().mean()}

    def collate(self, samples: Any) -> dict[str, torch.Tensor]:
        return {"mean": torch.stack([sample["mean"] for sample in samples])}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("mixed")
    for number in range(24):
        image = Image.fromarray(photo(16, 16))
        if number % 3 == 0:
            image.putalpha(Image.fromarray(np.full((16, 16), 99, np.uint8)))
        elif number % 3 == 1:
            image = image.convert("CMYK")
        image.save(place / f"{number:02}.{'png' if number % 3 == 0 else 'tif'}")
    (place / "broken.png").write_bytes(b"\x89PNG")
    return place


@pytest.mark.parametrize("workers", [0, 2])
def test_every_image_is_counted_also_in_workers_and_after_a_resume(
    folder: Path, workers: int, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    def batches() -> StreamBatches:
        return StreamBatches(load_stream(folder, max_broken_share=0.5), Means(), 3, num_streams=2, num_workers=workers)

    first = batches()
    loader = iter(first.loader())
    for _ in range(8):  # a whole pass
        first.advance(next(loader))
    saved = json.loads(json.dumps(first.state_dict()))
    del loader
    again = batches()
    again.load_state_dict(saved)
    loader = iter(again.loader())
    for _ in range(8):
        again.advance(next(loader))
    caplog.clear()
    again.log_notes("in the whole run")
    del loader
    lines = [record.message for record in caplog.records]
    rows = {
        key: sum(at["notes"].get(key, 0) for at in again.state_dict()["streams"]) for key in ("transparency", "cmyk")
    }
    images = sum(at["rows"] - at["broken"] for at in again.state_dict()["streams"])
    assert images == 48
    assert rows == {"transparency": 16, "cmyk": 16}  # 8 of 24 in each of two passes
    assert sorted(lines) == [
        "in the whole run: 16 of 48 images: CMYK converted to RGB",
        "in the whole run: 16 of 48 images: transparency laid over white",
    ]


def test_plain_images_have_nothing_to_say(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(4):
        Image.fromarray(photo(16, 16)).save(tmp_path / f"{number}.jpg")
    stream = load_stream(tmp_path).with_decode(decode_pixels)
    samples = iter(stream)
    for _ in range(9):
        next(samples)
    assert stream.state_dict()["notes"] == {}
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []
