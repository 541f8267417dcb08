"""What pictures have in common, and the colours of features and places."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hf_geossl.training.pictures.base import CropsPicture, PictureBook, color_code, principal_components, save_picture


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


def test_colors_are_the_principal_components_between_two_percentiles() -> None:
    tokens = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    flat = tokens.double().flatten(0, 2).numpy()
    _, _, vectors = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
    components = (flat - flat.mean(axis=0)) @ vectors[:3].T * np.where(vectors[:3].sum(axis=1) < 0, -1, 1)
    low, high = np.quantile(components, 0.02, axis=0), np.quantile(components, 0.98, axis=0)
    expected = np.clip((components - low) / (high - low), 0, 1).reshape(2, 3, 4, 3)
    np.testing.assert_allclose(principal_components(tokens), expected, atol=1e-5)


def test_places_are_coloured_from_corner_to_corner() -> None:
    code = color_code(3)
    assert code.dtype == torch.uint8
    assert code[0, 0].tolist() == [235, 64, 52]
    assert code[0, 2].tolist() == [250, 204, 40]
    assert code[2, 0].tolist() == [52, 84, 224]
    assert code[2, 2].tolist() == [40, 190, 120]
    assert (code[1, 1].float() - code[::2, ::2].float().mean((0, 1))).abs().max() <= 0.5


def test_colours_are_the_first_three_components_between_their_percentiles() -> None:
    """By numpy's singular value decomposition; the sign of a component is arbitrary, so each is compared with both."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 4, 5, 7, generator=generator) * torch.tensor([5.0, 4, 3, 0.1, 0.1, 0.1, 0.1])
    colours = principal_components(tokens).reshape(40, 3).numpy()
    flat = tokens.reshape(40, 7).double().numpy()
    flat = flat - flat.mean(axis=0)
    _, _, directions = np.linalg.svd(flat, full_matrices=False)
    for channel, direction in enumerate(directions[:3]):
        values = flat @ (direction if direction.sum() >= 0 else -direction)
        low, high = np.quantile(values, 0.02), np.quantile(values, 0.98)
        np.testing.assert_allclose(colours[:, channel], np.clip((values - low) / (high - low), 0, 1), atol=1e-5)


def test_equal_features_have_one_colour() -> None:
    colours = principal_components(torch.ones(1, 2, 2, 4))
    assert torch.isfinite(colours).all()
    assert len(colours.reshape(4, 3).unique(dim=0)) == 1
