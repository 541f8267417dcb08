"""Parts of pictures: colours that differ, eight images at most, no trace left."""

import matplotlib
import numpy as np
import pytest
from PIL import Image

from hf_geossl.evaluation.pictures import images

NAMES = ("sky", "grass", "sand", "water")


def _images(count: int = 3, side: int = 32) -> np.ndarray:
    return np.full((count, side, side, 3), 90, dtype=np.uint8)


def _pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).reshape(-1, 3).astype(int)


def test_eight_images_are_shown_at_most_and_drawing_leaves_no_trace() -> None:
    settings = dict(matplotlib.rcParams)
    truths = np.zeros((40, 32, 32), dtype=np.uint8)
    eight = images.segmentation_samples(_images(8), truths[:8], truths[:8], NAMES, "many")
    assert np.array_equal(
        _pixels(eight), _pixels(images.segmentation_samples(_images(40), truths, truths, NAMES, "many"))
    )
    assert dict(matplotlib.rcParams) == settings
    with pytest.raises(ValueError, match="as many truths and predictions as images"):
        images.segmentation_samples(_images(2), truths, truths, NAMES, "many")
