"""Settings decide which images are predicted in tiles, and refuse what makes no sense in one sentence."""

from typing import Any

import numpy as np
import pytest

from hf_geossl.data.images import BrokenImageError
from hf_geossl.tasks.prediction.opened_images import DecodedImage
from hf_geossl.tasks.prediction.settings import PredictionSettings
from tests.helpers.task_folders import local_model


def image(height: int, width: int) -> DecodedImage:
    return DecodedImage(np.zeros((height, width, 3), np.uint8), None)


def test_large_images_are_predicted_in_tiles() -> None:
    model = local_model()  # of 32 x 32 pixels
    assert PredictionSettings().tiling(model, image(500, 700)) is None
    found = PredictionSettings(max_pixels=1000).tiling(model, image(100, 50))
    assert found is not None
    assert (found.rows.size, found.columns.size, found.rows.overlap) == (32, 32, 8)
    settings = PredictionSettings(tile_size=64, tile_overlap=10)
    assert settings.tiling(model, image(64, 60)) is None
    assert settings.tiling(model, image(64, 65)).rows.starts == [0]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tile_size": 8}, "tile_size must be at least 16, got 8"),
        ({"tile_overlap": -1}, "tile_overlap must be at least 0, got -1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"score_threshold": 1.5}, "score_threshold must be 0 to 1, got 1.5"),
    ],
)
def test_values_without_sense_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PredictionSettings(**given)


def test_an_overlap_beyond_a_third_and_too_many_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="tile_overlap must be at most 21, a third of the tiles of 64 x 64"):
        PredictionSettings(tile_size=64, tile_overlap=22).tiling(local_model(), image(100, 100))
    many = local_model(30000)
    with pytest.raises(BrokenImageError, match="the seams of its tiles of 512 x 512 with 30000 classes take .* GiB"):
        PredictionSettings(tile_size=512).tiling(many, image(1000, 1000))
    many.kind = "classification"
    with pytest.raises(BrokenImageError, match="images are classified whole"):
        PredictionSettings(max_pixels=100).tiling(many, image(20, 20))
