"""Numbers as pictures: confusions, curves, bars."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike
from PIL import Image

from hf_geossl.evaluation.pictures.drawing import (
    INK,
    LINES,
    MARKERS,
    add_legend,
    new_figure,
    remove_frame,
    to_image,
)
from hf_geossl.training.pictures.colors import BLUE


def confusion_matrix(counts: ArrayLike, names: Sequence[str] | None, title: str) -> Image.Image:
    """Which classes are taken for which: every row's shares in per cent, written out up to 25 classes.

    Counts `(classes, classes)` are how often the row's class was called the column's; names are numbers by default.
    """
    counts = np.asarray(counts, dtype=np.float64)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise ValueError(f"counts must have shape (classes, classes), got {counts.shape}")
    size = len(counts)
    labels = [str(index) for index in range(size)] if names is None else [str(name) for name in names]
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    written = size <= 25
    side = min(12.0, 2.4 + 0.42 * size) if written else 8.0
    figure = new_figure(side + 0.9, side, title)
    axes = figure.subplots()
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if written:
        axes.set_xticks(range(size), labels, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
        axes.set_yticks(range(size), labels, fontsize=8)
        for row, column in np.argwhere(shares >= 0.005):
            share = shares[row, column]
            axes.text(
                column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7.5,
                color="white" if share > 0.55 else INK,
            )  # fmt: skip
        axes.set_xticks(np.arange(size) + 0.5, minor=True)
        axes.set_yticks(np.arange(size) + 0.5, minor=True)
        axes.grid(which="minor", color="#EEEEEE", linewidth=0.8)
        axes.tick_params(which="both", length=0)
    axes.set_xlabel("predicted", color=INK)
    axes.set_ylabel("true", color=INK)
    bar = figure.colorbar(shown, ax=axes, shrink=0.7, ticks=[0, 0.5, 1])
    bar.ax.set_yticklabels(["0 %", "50 %", "100 %"], fontsize=8)
    bar.outline.set_visible(False)
    return to_image(figure)


def curves(
    x: ArrayLike,
    series: Mapping[str, ArrayLike],
    *,
    xlabel: str,
    ylabel: str,
    title: str,
    bands: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
) -> Image.Image:
    """Lines over one axis, each with a colour and marker of its own.

    Series are `(points,)` by what the legend calls them, NaN leaves a gap; bands are lower and upper bounds of some of them.
    """
    figure = new_figure(7.2, 4.4, title)
    axes = figure.subplots()
    _draw_lines(axes, x, series, bands)
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel(ylabel, color=INK)
    if len(series) > 1:
        below = len(series) > 4
        axes.legend(
            frameon=False, fontsize=8.5, ncols=min(3, len(series)) if below else 1,
            **({"loc": "upper center", "bbox_to_anchor": (0.5, -0.16)} if below else {"loc": "best"}),
        )  # fmt: skip
    return to_image(figure)


def curve_panels(
    x: ArrayLike, panels: Mapping[str, Mapping[str, ArrayLike]], *, xlabel: str, title: str
) -> Image.Image:
    """Several metrics of the same models over one axis, side by side.

    Panels are the series of `curves` by what is measured, with its unit, of the same names in each. A line has the same
    colour and marker in every panel, and one legend lies below.
    """
    names = list(next(iter(panels.values())))
    figure = new_figure(5.2 * len(panels), 4.4, title)
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (ylabel, series) in zip(grid, panels.items(), strict=True):
        _draw_lines(axes, x, {name: series[name] for name in names})
        axes.set_xlabel(xlabel, color=INK)
        axes.set_ylabel(ylabel, color=INK)
    add_legend(figure, grid[0].get_lines(), min(6, len(names)))
    return to_image(figure)


def bars(
    values: Mapping[str, float],
    *,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    ylabel: str,
    title: str,
) -> Image.Image:
    """Numbers side by side, from the top down, written beside bars that lie, so that names can be read.

    Intervals are lower and upper bounds of some of them; `ylabel` is what is measured, with its unit.
    """
    figure = new_figure(7.2, 1.3 + 0.42 * len(values), title)
    axes = figure.subplots()
    heights = np.array([float(value) for value in values.values()])
    places = np.arange(len(heights))
    axes.barh(places, np.nan_to_num(heights), height=0.62, color=BLUE)
    ends = np.nan_to_num(heights)
    for place, (name, height) in enumerate(zip(values, heights, strict=True)):
        if intervals and name in intervals and np.isfinite(height):
            low, high = (float(bound) for bound in intervals[name])
            axes.errorbar(
                height, place, xerr=[[max(0, height - low)], [max(0, high - height)]],
                color=INK, capsize=3, linewidth=1.3,
            )  # fmt: skip
            ends[place] = high if height >= 0 else low
        axes.annotate(
            f"{height:.3g}" if np.isfinite(height) else "none", (ends[place], place),
            xytext=(5 if height >= 0 else -5, 0), textcoords="offset points", va="center",
            ha="left" if height >= 0 else "right", fontsize=8.5, color=INK,
        )  # fmt: skip
    axes.set_yticks(places, [textwrap.shorten(str(name), 44, placeholder=" …") for name in values], fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.18)
    remove_frame(axes, "x")
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(ylabel, color=INK)
    return to_image(figure)


def _draw_lines(
    axes: Axes,
    x: ArrayLike,
    series: Mapping[str, ArrayLike],
    bands: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
) -> None:
    """The lines of `curves`, and their bands."""
    x = np.asarray(x, dtype=np.float64)
    for index, (name, values) in enumerate(series.items()):
        colour = LINES[index % len(LINES)]
        style = ("-", "--", ":")[index // len(LINES) % 3]
        marker = MARKERS[index % len(MARKERS)] if len(x) <= 40 else None
        line = np.asarray(values, dtype=np.float64)
        axes.plot(x, line, color=colour, linestyle=style, marker=marker, markersize=4.5, linewidth=1.8, label=name)
        if bands and name in bands:
            low, high = (np.asarray(bound, dtype=np.float64) for bound in bands[name])
            axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    remove_frame(axes)
