"""Charts show what they were given: lengths of bars, bands, colours of lines."""

from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image

from hf_geossl.evaluation.pictures import charts, drawing

NAMES = ("sky", "grass", "sand", "water")


def _pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).reshape(-1, 3).astype(int)


def _share(picture: Image.Image, colour: Any) -> float:
    """The share of pixels in a colour (in [0, 1])."""
    return float((np.abs(_pixels(picture) - np.round(np.asarray(colour) * 255)).max(axis=1) <= 1).mean())


def test_a_confusion_matrix_shows_shares_of_rows() -> None:
    few = charts.confusion_matrix(np.eye(4), NAMES, "all right")
    many = charts.confusion_matrix(np.eye(4) * [[1], [10], [100], [1000]], NAMES, "all right")
    assert np.array_equal(_pixels(few), _pixels(many))
    wrong = charts.confusion_matrix(np.eye(4)[::-1], NAMES, "all right")
    assert not np.array_equal(_pixels(few), _pixels(wrong))
    charts.confusion_matrix(np.diag([1, 0, 3, 4]), None, "a class that never came")
    with pytest.raises(ValueError, match=r"shape \(classes, classes\), got \(2, 3\)"):
        charts.confusion_matrix(np.zeros((2, 3)), None, "no square")


def test_bars_are_as_long_as_their_values() -> None:
    blue = matplotlib.colors.to_rgb(drawing.BLUE)

    def lengths(values: dict[str, float]) -> list[int]:
        found = np.abs(np.asarray(charts.bars(values, ylabel="accuracy", title="bars")) / 255 - blue).max(-1) < 0.01
        rows = found.sum(axis=1)
        runs = np.split(rows, np.flatnonzero(np.diff((rows > 3).astype(int))) + 1)
        return [int(run.max()) for run in runs if run.max() > 3]

    first, second = lengths({"trained": 0.8, "random": 0.4})
    assert first == pytest.approx(2 * second, abs=4)
    assert len(lengths({"trained": 0.8, "unknown": float("nan")})) == 1


def test_intervals_and_bands_are_drawn() -> None:
    plain = charts.bars({"a": 0.5, "b": 0.4}, ylabel="", title="")
    ranged = charts.bars({"a": 0.5, "b": 0.4}, intervals={"a": (0.45, 0.55)}, ylabel="", title="")
    ink = matplotlib.colors.to_rgb(drawing.INK)
    assert _share(ranged, ink) > _share(plain, ink) + 40 / (ranged.width * ranged.height)  # the line of the interval
    x = np.arange(0, 180, 15)
    lines = {"model": np.cos(x / 100), "floor": 0 * x}
    words = {"xlabel": "angle (degrees)", "ylabel": "R2", "title": "curves"}
    without = charts.curves(x, lines, **words)
    banded = charts.curves(x, lines, bands={"model": (lines["model"] - 0.2, lines["model"] + 0.2)}, **words)
    pale = 1 - 0.18 * (1 - np.array(matplotlib.colors.to_rgb(drawing.BLUE)))
    assert _share(without, pale) < 0.001
    assert _share(banded, pale) > 0.05


def test_panels_stand_side_by_side_with_one_colour_a_line() -> None:
    x, low, high = np.arange(9), np.zeros(9), np.ones(9)
    panels = {"R2": {"model": high, "floor": low}, "error": {"model": low, "floor": high}}
    picture = charts.curve_panels(x, panels, xlabel="angle (degrees)", title="panels")
    blue, vermilion = (matplotlib.colors.to_rgb(colour) for colour in (drawing.BLUE, drawing.VERMILION))

    def heights(colour: Any) -> list[int]:
        found = np.abs(np.asarray(picture) / 255 - colour).max(axis=-1) < 0.01
        found[-60:] = False  # the legend
        return [int(np.argmax(half.sum(axis=1))) for half in np.split(found, [picture.width // 2], axis=1)]

    (left, right), (other_left, other_right) = heights(blue), heights(vermilion)
    assert left < other_left - 100
    assert right > other_right + 100
    assert picture.width > 2 * picture.height
    without = {ylabel: {"model": series["model"]} for ylabel, series in panels.items()}
    assert _share(charts.curve_panels(x, without, xlabel="", title=""), vermilion) == 0
