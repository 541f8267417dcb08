"""What pictures have in common, and that of features before and after."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hf_geossl.training.pictures.base import GAP, SIDE, CropsPicture, FeaturePicture, PictureBook, save_picture
from tests.helpers.gtsa_run import small_views
from tests.helpers.methods import METHODS


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


def test_features_that_training_did_not_change_keep_their_colours(tmp_path: Path) -> None:
    """And those of a network whose channels are only turned; else both rows differ."""
    model, views = METHODS["gtsa"].model("ForPreTraining", num_hidden_layers=1), small_views()
    pixels = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = views.collate([views(image.permute(1, 2, 0).numpy(), seed=0) for image in pixels])
    picture = FeaturePicture(views, tmp_path)
    assert picture.draw(model, 1) is None
    picture.store(batch, model, None)

    def rows() -> tuple[np.ndarray, np.ndarray]:
        sheet = picture.draw(model, 1)
        assert sheet is not None
        height = SIDE + GAP + 30
        below = [np.asarray(sheet)[GAP + row * height + 30 :][:SIDE].astype(int) for row in (1, 2)]
        return below[0], below[1]

    before, after = rows()
    assert len(np.unique(after.reshape(-1, 3), axis=0)) > 100
    assert abs(before - after).max() <= 1
    with torch.no_grad():
        model.teacher.gtsa.layernorm.weight.mul_(torch.linspace(-2, 2, 32))
    before, after = rows()
    assert abs(before - after).mean() > 5
