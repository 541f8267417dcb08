"""Pictures of images show what they were given: colours of classes, places of points."""

from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image

from hf_geossl.evaluation.pictures import drawing, images
from hf_geossl.training.pictures.colors import area_colours

NAMES = ("sky", "grass", "sand", "water")


def _images(count: int = 3, side: int = 32) -> np.ndarray:
    return np.full((count, side, side, 3), 90, dtype=np.uint8)


def _pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).reshape(-1, 3).astype(int)


def _share(picture: Image.Image, colour: Any) -> float:
    """The share of pixels in a colour (in [0, 1])."""
    return float((np.abs(_pixels(picture) - np.round(np.asarray(colour) * 255)).max(axis=1) <= 1).mean())


def test_segmentation_shows_truth_and_prediction_in_the_colours_of_their_classes() -> None:
    truths = np.zeros((3, 32, 32), dtype=np.uint8)
    predictions = np.ones_like(truths)
    sky, grass, sand, _ = area_colours(4)
    picture = images.segmentation_samples(_images(), truths, predictions, NAMES, "three")
    assert _share(picture, sky) == pytest.approx(_share(picture, grass), rel=0.02)  # as many pixels, and a legend each
    assert _share(picture, sky) > 0.2
    assert _share(picture, sand) == 0
    right = images.segmentation_samples(_images(), truths, truths, NAMES, "three")
    assert _share(right, sky) > 1.8 * _share(picture, sky)
    truths[:, :16] = 255
    holes = images.segmentation_samples(_images(), truths, predictions, NAMES, "three")
    assert _share(holes, drawing.UNKNOWN) > 0.4 * _share(holes, grass)
    assert _share(picture, drawing.UNKNOWN) < 0.01


def test_depths_share_one_scale_and_unknown_ones_are_grey() -> None:
    truths = np.linspace(1, 80, 32 * 32).reshape(1, 32, 32).repeat(3, axis=0)
    exact = images.depth_samples(_images(), truths, truths, "depth")
    far = matplotlib.colormaps["viridis_r"](1.0)[:3]
    constant = images.depth_samples(_images(), truths, np.full_like(truths, 80), "depth")
    assert _share(exact, far) < 0.05
    assert _share(constant, far) > 0.15  # on a scale of its own a constant would not be the farthest
    assert _share(exact, (0, 0, 4 / 255)) > 0.15  # no error: the darkest colour of the map throughout its row
    doubled = images.depth_samples(_images(), truths, 2 * truths, "depth")
    assert _share(doubled, (0, 0, 4 / 255)) < 0.03
    truths[:, :16] = 0
    assert _share(images.depth_samples(_images(), truths, truths + 1, "depth"), drawing.UNKNOWN) > 0.15


def test_a_strip_keeps_the_colour_of_an_instance() -> None:
    masks = np.zeros((12, 32, 32), dtype=int)
    for frame in range(12):
        masks[frame, 4:14, frame : frame + 10] = 7
    picture = images.strip(_images(12), masks, "a clip")
    colour = area_colours(1)[0]
    inside = 0.45 * 90 / 255 + 0.55 * colour
    assert _share(picture, inside) > 0.02
    assert _share(images.strip(_images(12), 0 * masks, "nothing"), inside) == 0
    two = images.strip(_images(12), masks, "a clip", truths=masks)
    assert two.height > 1.6 * picture.height
    assert _share(two, inside) == pytest.approx(_share(picture, inside), rel=0.15)


def test_principal_components_colour_like_features_alike() -> None:
    generator = np.random.default_rng(0)
    halves = np.zeros((2, 8, 8, 16))
    halves[:, :, 4:] = 1
    picture = images.feature_pca(_images(2), halves + generator.normal(0, 1e-3, halves.shape), "halves")
    pixels = np.asarray(picture).astype(int)
    row = pixels[pixels.shape[0] * 3 // 4]
    left, right = row[40 : row.shape[0] // 4], row[row.shape[0] // 4 + 20 : row.shape[0] // 2 - 10]
    assert np.abs(left.mean(axis=0) - right.mean(axis=0)).max() > 120  # one component is low here and high there
    assert picture.width > picture.height * 0.8


def test_objects_and_points_lie_where_they_are() -> None:
    truths = [{"boxes": np.array([[8.0, 8, 24, 24]]), "labels": np.array([2])}] * 2
    found = [{**truths[0], "scores": np.array([0.9])}, {"boxes": np.zeros((0, 4)), "labels": [], "scores": []}]
    colour = area_colours(1)[0]  # the first class that occurs
    picture = images.detections(_images(2), found, truths, NAMES, "objects")
    without = images.detections(_images(2), [found[1]] * 2, truths, NAMES, "objects")
    assert 1.2 < _share(picture, colour) / _share(without, colour) < 1.7  # three boxes and a legend, two and a legend
    masked = [{**item, "masks": np.ones((1, 32, 32), dtype=bool)} for item in truths]
    inside = 0.45 * 90 / 255 + 0.55 * colour
    assert _share(images.detections(_images(2), found, masked, NAMES, "objects"), inside) > 0.15
    corners = np.tile([[6.0, 6], [26, 6], [26, 26], [6, 26]], (2, 1, 1))
    vermilion = matplotlib.colors.to_rgb(drawing.VERMILION)
    points = images.point_samples(_images(2), corners, corners + 3, "points")
    unseen = images.point_samples(_images(2), corners, corners * np.nan, "points")
    assert _share(points, vermilion) > 2 * _share(unseen, vermilion)
    joined = images.point_samples(_images(2), corners, corners + 3, "points", links=[(0, 1), (1, 2), (2, 3), (3, 0)])
    assert _share(joined, vermilion) > 1.3 * _share(points, vermilion)
