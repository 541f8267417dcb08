"""What pictures have in common, and the colours of features and places."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from hf_geossl.training.pictures.base import CropsPicture, PictureBook, save_picture


class Named(CropsPicture):
    file, name, images = "named.png", "named", 2

    def draw(self, model: Any, step: int) -> Image.Image | None:
        stored = self.read()
        return None if stored is None else Image.new("RGB", (step, 3), (int(stored[0]["crops"][0, 0]), 0, 0))


class Failing(Named):
    file = "failing.png"

    def store(self, *args: Any) -> None:
        raise ValueError("no crops")

    def draw(self, model: Any, step: int) -> Image.Image | None:
        raise ValueError("no drawing")


def _batch() -> dict[str, torch.Tensor]:
    return {"crops": torch.arange(12).view(4, 3).to(torch.uint8), "names": ["a"]}  # type: ignore[dict-item]


def test_a_picture_that_fails_costs_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    views: Any = None
    book = PictureBook([Failing(views, tmp_path), Named(views, tmp_path)])
    model: Any = None
    with caplog.at_level(logging.WARNING):
        book.store(_batch(), model, None)
        book.draw(model, 5)
    assert [message.split(":")[0] for message in caplog.messages] == [
        "failing.png for the start could not be made (ValueError",
        "failing.png could not be made (ValueError",
    ]
    with Image.open(tmp_path / "named.png") as picture:
        assert picture.size == (5, 3)
    assert not (tmp_path / "failing.png").exists()


def test_stored_crops_are_the_first_of_the_batch_and_know_whose_they_are(tmp_path: Path) -> None:
    views: Any = SimpleNamespace(
        collate=lambda samples: {"crops": torch.stack(samples)},
    )
    picture, model = Named(views, tmp_path), None
    assert picture.read() is None
    assert picture.draw(model, 1) is None
    picture.store(_batch(), model, None)  # type: ignore[arg-type]
    crops, whose = picture.read() or ({}, "")
    assert crops.keys() == {"crops"}
    assert crops["crops"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert whose == "training"


def test_a_picture_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    class Torn:
        def save(self, path: Path, format: str) -> None:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

    save_picture(Image.new("RGB", (2, 2)), tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    torn: Any = Torn()
    with pytest.raises(OSError, match="No space"):
        save_picture(torn, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == before
