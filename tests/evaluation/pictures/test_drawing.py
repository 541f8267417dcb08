"""Parts of pictures: colours that differ, eight images at most, no trace left."""

import matplotlib
import numpy as np
import pytest
from PIL import Image

from hf_geossl.evaluation.pictures import drawing, images

NAMES = ("sky", "grass", "sand", "water")


def _images(count: int = 3, side: int = 32) -> np.ndarray:
    return np.full((count, side, side, 3), 90, dtype=np.uint8)


def _pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).reshape(-1, 3).astype(int)


def test_colours_of_classes_are_all_different() -> None:
    colours = drawing.area_colours(150)
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=-1) + np.eye(150)
    assert colours.shape == (150, 3)
    assert colours.min() >= 0
    assert colours.max() <= 1
    assert distances[:21, :21].min() > 0.1
    assert distances.min() > 0.001


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
