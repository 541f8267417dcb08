"""Pictures of an evaluation show what they were given: colours of the classes, lengths of the bars, places of the points."""

from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image

from hf_geossl.evaluation import pictures

NAMES = ("sky", "grass", "sand", "water")


def _images(count: int = 3, side: int = 32) -> np.ndarray:
    return np.full((count, side, side, 3), 90, dtype=np.uint8)


def _pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).reshape(-1, 3).astype(int)


def _share(picture: Image.Image, colour: Any) -> float:
    """The share of pixels in a colour (in [0, 1])."""
    return float((np.abs(_pixels(picture) - np.round(np.asarray(colour) * 255)).max(axis=1) <= 1).mean())


def test_colours_of_classes_are_all_different() -> None:
    colours = pictures.area_colours(150)
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=-1) + np.eye(150)
    assert colours.shape == (150, 3)
    assert colours.min() >= 0
    assert colours.max() <= 1
    assert distances[:21, :21].min() > 0.1
    assert distances.min() > 0.001


def test_segmentation_shows_truth_and_prediction_in_the_colours_of_their_classes() -> None:
    truths = np.zeros((3, 32, 32), dtype=np.uint8)
    predictions = np.ones_like(truths)
    sky, grass, sand, _ = pictures.area_colours(4)
    picture = pictures.segmentation_samples(_images(), truths, predictions, NAMES, "three")
    assert _share(picture, sky) == pytest.approx(_share(picture, grass), rel=0.02)  # as many pixels, and a legend each
    assert _share(picture, sky) > 0.2
    assert _share(picture, sand) == 0
    right = pictures.segmentation_samples(_images(), truths, truths, NAMES, "three")
    assert _share(right, sky) > 1.8 * _share(picture, sky)
    truths[:, :16] = 255
    holes = pictures.segmentation_samples(_images(), truths, predictions, NAMES, "three")
    assert _share(holes, pictures.UNKNOWN) > 0.4 * _share(holes, grass)
    assert _share(picture, pictures.UNKNOWN) < 0.01


def test_a_confusion_matrix_shows_shares_of_rows() -> None:
    few = pictures.confusion_matrix(np.eye(4), NAMES, "all right")
    many = pictures.confusion_matrix(np.eye(4) * [[1], [10], [100], [1000]], NAMES, "all right")
    assert np.array_equal(_pixels(few), _pixels(many))
    wrong = pictures.confusion_matrix(np.eye(4)[::-1], NAMES, "all right")
    assert not np.array_equal(_pixels(few), _pixels(wrong))
    pictures.confusion_matrix(np.diag([1, 0, 3, 4]), None, "a class that never came")
    with pytest.raises(ValueError, match=r"shape \(classes, classes\), got \(2, 3\)"):
        pictures.confusion_matrix(np.zeros((2, 3)), None, "no square")


def test_bars_are_as_long_as_their_values() -> None:
    blue = matplotlib.colors.to_rgb(pictures.BLUE)

    def lengths(values: dict[str, float]) -> list[int]:
        found = np.abs(np.asarray(pictures.bars(values, ylabel="accuracy", title="bars")) / 255 - blue).max(-1) < 0.01
        rows = found.sum(axis=1)
        runs = np.split(rows, np.flatnonzero(np.diff((rows > 3).astype(int))) + 1)
        return [int(run.max()) for run in runs if run.max() > 3]

    first, second = lengths({"trained": 0.8, "random": 0.4})
    assert first == pytest.approx(2 * second, abs=4)
    assert len(lengths({"trained": 0.8, "unknown": float("nan")})) == 1


def test_intervals_and_bands_are_drawn() -> None:
    plain = pictures.bars({"a": 0.5, "b": 0.4}, ylabel="", title="")
    ranged = pictures.bars({"a": 0.5, "b": 0.4}, intervals={"a": (0.45, 0.55)}, ylabel="", title="")
    ink = matplotlib.colors.to_rgb(pictures.INK)
    assert _share(ranged, ink) > _share(plain, ink) + 40 / (ranged.width * ranged.height)  # the line of the interval
    x = np.arange(0, 180, 15)
    lines = {"model": np.cos(x / 100), "floor": 0 * x}
    words = {"xlabel": "angle (degrees)", "ylabel": "R2", "title": "curves"}
    without = pictures.curves(x, lines, **words)
    banded = pictures.curves(x, lines, bands={"model": (lines["model"] - 0.2, lines["model"] + 0.2)}, **words)
    pale = 1 - 0.18 * (1 - np.array(matplotlib.colors.to_rgb(pictures.BLUE)))
    assert _share(without, pale) < 0.001
    assert _share(banded, pale) > 0.05


def test_panels_stand_side_by_side_with_one_colour_a_line() -> None:
    x, low, high = np.arange(9), np.zeros(9), np.ones(9)
    panels = {"R2": {"model": high, "floor": low}, "error": {"model": low, "floor": high}}
    picture = pictures.curve_panels(x, panels, xlabel="angle (degrees)", title="panels")
    blue, vermilion = (matplotlib.colors.to_rgb(colour) for colour in (pictures.BLUE, pictures.VERMILION))

    def heights(colour: Any) -> list[int]:
        found = np.abs(np.asarray(picture) / 255 - colour).max(axis=-1) < 0.01
        found[-60:] = False  # the legend
        return [int(np.argmax(half.sum(axis=1))) for half in np.split(found, [picture.width // 2], axis=1)]

    (left, right), (other_left, other_right) = heights(blue), heights(vermilion)
    assert left < other_left - 100
    assert right > other_right + 100
    assert picture.width > 2 * picture.height
    without = {ylabel: {"model": series["model"]} for ylabel, series in panels.items()}
    assert _share(pictures.curve_panels(x, without, xlabel="", title=""), vermilion) == 0


def test_depths_share_one_scale_and_unknown_ones_are_grey() -> None:
    truths = np.linspace(1, 80, 32 * 32).reshape(1, 32, 32).repeat(3, axis=0)
    exact = pictures.depth_samples(_images(), truths, truths, "depth")
    far = matplotlib.colormaps["viridis_r"](1.0)[:3]
    constant = pictures.depth_samples(_images(), truths, np.full_like(truths, 80), "depth")
    assert _share(exact, far) < 0.05
    assert _share(constant, far) > 0.15  # on a scale of its own a constant would not be the farthest
    assert _share(exact, (0, 0, 4 / 255)) > 0.15  # no error: the darkest colour of the map throughout its row
    doubled = pictures.depth_samples(_images(), truths, 2 * truths, "depth")
    assert _share(doubled, (0, 0, 4 / 255)) < 0.03
    truths[:, :16] = 0
    assert _share(pictures.depth_samples(_images(), truths, truths + 1, "depth"), pictures.UNKNOWN) > 0.15


def test_a_strip_keeps_the_colour_of_an_instance() -> None:
    masks = np.zeros((12, 32, 32), dtype=int)
    for frame in range(12):
        masks[frame, 4:14, frame : frame + 10] = 7
    picture = pictures.strip(_images(12), masks, "a clip")
    colour = pictures.area_colours(1)[0]
    inside = 0.45 * 90 / 255 + 0.55 * colour
    assert _share(picture, inside) > 0.02
    assert _share(pictures.strip(_images(12), 0 * masks, "nothing"), inside) == 0
    two = pictures.strip(_images(12), masks, "a clip", truths=masks)
    assert two.height > 1.6 * picture.height
    assert _share(two, inside) == pytest.approx(_share(picture, inside), rel=0.15)


def test_principal_components_colour_like_features_alike() -> None:
    generator = np.random.default_rng(0)
    halves = np.zeros((2, 8, 8, 16))
    halves[:, :, 4:] = 1
    picture = pictures.feature_pca(_images(2), halves + generator.normal(0, 1e-3, halves.shape), "halves")
    pixels = np.asarray(picture).astype(int)
    row = pixels[pixels.shape[0] * 3 // 4]
    left, right = row[40 : row.shape[0] // 4], row[row.shape[0] // 4 + 20 : row.shape[0] // 2 - 10]
    assert np.abs(left.mean(axis=0) - right.mean(axis=0)).max() > 120  # one component is low here and high there
    assert picture.width > picture.height * 0.8


def test_objects_and_points_lie_where_they_are() -> None:
    truths = [{"boxes": np.array([[8.0, 8, 24, 24]]), "labels": np.array([2])}] * 2
    found = [{**truths[0], "scores": np.array([0.9])}, {"boxes": np.zeros((0, 4)), "labels": [], "scores": []}]
    colour = pictures.area_colours(1)[0]  # the first class that occurs
    picture = pictures.detections(_images(2), found, truths, NAMES, "objects")
    without = pictures.detections(_images(2), [found[1]] * 2, truths, NAMES, "objects")
    assert 1.2 < _share(picture, colour) / _share(without, colour) < 1.7  # three boxes and a legend, two and a legend
    masked = [{**item, "masks": np.ones((1, 32, 32), dtype=bool)} for item in truths]
    inside = 0.45 * 90 / 255 + 0.55 * colour
    assert _share(pictures.detections(_images(2), found, masked, NAMES, "objects"), inside) > 0.15
    corners = np.tile([[6.0, 6], [26, 6], [26, 26], [6, 26]], (2, 1, 1))
    vermilion = matplotlib.colors.to_rgb(pictures.VERMILION)
    points = pictures.point_samples(_images(2), corners, corners + 3, "points")
    unseen = pictures.point_samples(_images(2), corners, corners * np.nan, "points")
    assert _share(points, vermilion) > 2 * _share(unseen, vermilion)
    joined = pictures.point_samples(_images(2), corners, corners + 3, "points", links=[(0, 1), (1, 2), (2, 3), (3, 0)])
    assert _share(joined, vermilion) > 1.3 * _share(points, vermilion)


def test_eight_images_are_shown_at_most_and_drawing_leaves_no_trace() -> None:
    settings = dict(matplotlib.rcParams)
    truths = np.zeros((40, 32, 32), dtype=np.uint8)
    eight = pictures.segmentation_samples(_images(8), truths[:8], truths[:8], NAMES, "many")
    assert np.array_equal(
        _pixels(eight), _pixels(pictures.segmentation_samples(_images(40), truths, truths, NAMES, "many"))
    )
    assert dict(matplotlib.rcParams) == settings
    with pytest.raises(ValueError, match="as many truths and predictions as images"):
        pictures.segmentation_samples(_images(2), truths, truths, NAMES, "many")
