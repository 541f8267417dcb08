"""What people look at: truths beside predictions, curves with their bands, confusions, and features as colours."""

import colorsys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

try:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LogNorm, Normalize, to_rgb
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import FuncFormatter, NullFormatter
except ImportError as error:
    raise ImportError("pictures need matplotlib: pip install 'hf_geossl[eval]'") from error

from hf_geossl.training.pictures.features import principal_components

# Okabe and Ito's colours (Color Universal Design, 2008), which people with any colour vision tell apart
ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, VERMILION, PURPLE, BLACK = "#0072B2", "#D55E00", "#CC79A7", "#000000"
LINES = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
AREAS = (SKY, ORANGE, GREEN, PURPLE, YELLOW, BLUE, VERMILION)
UNKNOWN = (0.55, 0.55, 0.55)  # a pixel without truth
INK, FAINT = "#222222", "#BBBBBB"
DPI, CELL, IMAGES = 110, 1.65, 8  # inches a cell, and at most so many images in a picture


def area_colours(count: int) -> np.ndarray:
    """Colours of classes and instances.

    Args:
        count (`int`): How many.

    Returns:
        `numpy.ndarray` of shape `(count, 3)`: In [0, 1], no two alike. The first seven are told apart with any colour
        vision, the next fourteen are darker and lighter kinds of them.
    """
    base = np.array([to_rgb(colour) for colour in AREAS])
    colours = [*base, *(base * 0.55), *(base * 0.45 + 0.55)]
    for index in range(len(colours), count):  # golden-ratio hues, at three lightnesses
        colours.append(np.array(colorsys.hls_to_rgb(index * 0.618 % 1, (0.35, 0.5, 0.65)[index % 3], 0.75)))
    return np.array(colours[:count]).reshape(-1, 3)


def confusion_matrix(counts: Any, names: Sequence[str] | None, title: str) -> Image.Image:
    """Which classes are taken for which.

    Args:
        counts (`numpy.ndarray` of shape `(classes, classes)`): How often the row's class was called the column's.
        names (`Sequence[str]`, *optional*): Of the classes; their numbers by default.
        title (`str`): Above it.

    Returns:
        `PIL.Image.Image`: Every row's shares in per cent, written out up to 25 classes.
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
    figure = _figure(side + 0.9, side, title)
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
    return _draw(figure)


def segmentation_samples(
    images: Any, truths: Any, predictions: Any, names: Sequence[str] | None, title: str
) -> Image.Image:
    """Images, their true classes and the predicted ones.

    Args:
        images (`numpy.ndarray` of shape `(n, height, width, 3)`): uint8; the first eight are shown.
        truths, predictions (`numpy.ndarray` of shape `(n, height, width)`): Classes, 255 where there is no truth.
        names (`Sequence[str]`, *optional*): Of the classes, for the legend.
        title (`str`): Above it.

    Returns:
        `PIL.Image.Image`: Three rows, and a legend of the classes that occur.
    """
    images, truths, predictions = _first(images, truths, predictions)
    present = np.unique(np.concatenate([truths, predictions]))
    classes = present[present != 255].astype(int)
    colours = area_colours(int(classes.max(initial=0)) + 1)

    def coloured(maps: np.ndarray) -> np.ndarray:
        return np.where((maps == 255)[..., None], UNKNOWN, colours[np.where(maps == 255, 0, maps).astype(int)])

    handles = [
        Patch(facecolor=tuple(colours[index]), edgecolor=INK, linewidth=0.4, label=_name(names, index))
        for index in classes
    ]
    if 255 in present:
        handles.append(Patch(facecolor=UNKNOWN, edgecolor=INK, linewidth=0.4, label="no truth"))
    columns = min(len(handles), max(2, int(len(images) * CELL / 1.15)))
    figure, grid = _grid(3, len(images), title, legend=0.24 * -(-len(handles) // columns) + 0.2)
    rows = (("image", images), ("truth", coloured(truths)), ("predicted", coloured(predictions)))
    for axes, (label, pictures) in zip(grid, rows, strict=True):
        _show_row(axes, label, pictures)
    _legend(figure, handles, columns)
    return _draw(figure)


def depth_samples(images: Any, truths: Any, predictions: Any, title: str) -> Image.Image:
    """Images, their true and their predicted depths on one scale, and how far apart they are.

    Args:
        images (`numpy.ndarray` of shape `(n, height, width, 3)`): uint8; the first eight are shown.
        truths, predictions (`numpy.ndarray` of shape `(n, height, width)`): Metres, 0 where there is no truth.
        title (`str`): Above it.

    Returns:
        `PIL.Image.Image`: Four rows; near is bright on a logarithmic scale, and grey is without truth.
    """
    images, truths, predictions = _first(images, truths, predictions)
    unknown = ~(np.isfinite(truths) & (truths > 0))
    known = truths[~unknown] if not unknown.all() else np.ones(1)
    near, far = float(known.min()), max(float(known.max()), 1.001 * float(known.min()))
    depths = LogNorm(near, far, clip=True)
    errors = np.ma.masked_array(np.abs(predictions - truths), unknown)
    worst = Normalize(0, max(float(np.ma.filled(errors, 0).max()), 1e-6))
    figure, grid = _grid(4, len(images), title, extra=0.7)
    rows: tuple[tuple[str, Any, Any], ...] = (
        ("image", images, None),
        ("truth", np.ma.masked_array(truths, unknown), ("viridis_r", depths)),
        ("predicted", np.maximum(predictions, near), ("viridis_r", depths)),
        ("error", errors, ("magma", worst)),
    )
    for axes, (label, pictures, scale) in zip(grid, rows, strict=True):
        shown = _show_row(axes, label, pictures, scale)
        if label in ("predicted", "error"):
            bar = figure.colorbar(shown, ax=list(grid[1:3].flat) if label == "predicted" else list(axes), pad=0.01)
            bar.set_label("metres", fontsize=8)
            if label == "predicted":
                bar.set_ticks([tick for tick in (0.1, 0.3, 1, 3, 10, 30, 100) if near <= tick <= far])
                bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda depth, place: f"{depth:g}"))
                bar.ax.yaxis.set_minor_formatter(NullFormatter())
            bar.ax.tick_params(labelsize=7.5)
            bar.outline.set_visible(False)
    return _draw(figure)


def curves(
    x: Any,
    series: Mapping[str, Any],
    *,
    xlabel: str,
    ylabel: str,
    title: str,
    bands: Mapping[str, tuple[Any, Any]] | None = None,
) -> Image.Image:
    """Lines over one axis.

    Args:
        x (`numpy.ndarray` of shape `(points,)`): Where.
        series (`dict[str, numpy.ndarray]`): `(points,)` each, by what the legend calls it; NaN leaves a gap.
        xlabel, ylabel, title (`str`): With units.
        bands (`dict[str, tuple]`, *optional*): Lower and upper bounds `(points,)` of some series.

    Returns:
        `PIL.Image.Image`: Each line with a colour and marker of its own.
    """
    figure = _figure(7.2, 4.4, title)
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
    return _draw(figure)


def curve_panels(x: Any, panels: Mapping[str, Mapping[str, Any]], *, xlabel: str, title: str) -> Image.Image:
    """Several numbers of the same contenders over one axis, side by side.

    Args:
        x (`numpy.ndarray` of shape `(points,)`): Where.
        panels (`dict[str, dict[str, numpy.ndarray]]`): By what is measured, with its unit, the series as in `curves`; the
            same names in every panel.
        xlabel, title (`str`): With units.

    Returns:
        `PIL.Image.Image`: A line has the same colour and marker in every panel, and one legend lies below.
    """
    names = list(next(iter(panels.values())))
    figure = _figure(5.2 * len(panels), 4.4, title)
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (ylabel, series) in zip(grid, panels.items(), strict=True):
        _draw_lines(axes, x, {name: series[name] for name in names})
        axes.set_xlabel(xlabel, color=INK)
        axes.set_ylabel(ylabel, color=INK)
    _legend(figure, grid[0].get_lines(), min(6, len(names)))
    return _draw(figure)


def bars(
    values: Mapping[str, float],
    *,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    ylabel: str,
    title: str,
) -> Image.Image:
    """Numbers side by side.

    Args:
        values (`dict[str, float]`): By name, from the top down; the bars lie, so that names can be read.
        intervals (`dict[str, tuple[float, float]]`, *optional*): Lower and upper bound of some values.
        ylabel (`str`): What is measured, with its unit.
        title (`str`): Above it.

    Returns:
        `PIL.Image.Image`: With every value written beside its bar.
    """
    figure = _figure(7.2, 1.3 + 0.42 * len(values), title)
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
    _plain(axes, "x")
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(ylabel, color=INK)
    return _draw(figure)


def strip(images: Any, masks: Any, title: str, truths: Any = None) -> Image.Image:
    """Frames of a clip with instances painted on them.

    Args:
        images (`numpy.ndarray` of shape `(n, height, width, 3)`): uint8; eight of more are shown, the first and the last
            among them.
        masks (`numpy.ndarray` of shape `(n, height, width)`): Ids of instances, 0 where there is none; an id keeps its
            colour.
        title (`str`): Above it.
        truths (`numpy.ndarray`, *optional*): True ids, shown in a row of their own above.

    Returns:
        `PIL.Image.Image`: One row, or two with truths.
    """
    images, masks = np.asarray(images), np.asarray(masks)
    truths = None if truths is None else np.asarray(truths)
    kept = np.unique(np.linspace(0, len(images) - 1, min(IMAGES, len(images))).round().astype(int))
    ids = np.unique(masks if truths is None else np.concatenate([masks, truths]))
    ids = ids[ids != 0]
    colours = dict(zip(ids.tolist(), area_colours(len(ids)), strict=True))
    rows = [("propagated", masks)] if truths is None else [("truth", truths), ("propagated", masks)]
    figure, grid = _grid(len(rows), len(kept), title, heads=True)
    for row, (label, ids_of) in enumerate(rows):
        painted = np.stack([_paint(images[frame], ids_of[frame], colours) for frame in kept])
        _show_row(grid[row], label if truths is not None else "", painted)
    for axes, frame in zip(grid[0], kept, strict=True):
        axes.set_title(f"frame {frame}", fontsize=8.5, color=INK, pad=3)
    return _draw(figure)


def feature_pca(images: Any, patches: Any, title: str) -> Image.Image:
    """Images, and the first three principal components of their patch features as red, green and blue.

    Args:
        images (`numpy.ndarray` of shape `(n, height, width, 3)`): uint8; the first eight are shown.
        patches (`numpy.ndarray` of shape `(n, rows, columns, channels)`): Features, at least three channels; the
            components are those of all images together.
        title (`str`): Above it.

    Returns:
        `PIL.Image.Image`: Two rows. Patches of like features have like colours; the colours themselves mean nothing.
    """
    images, patches = _first(images, patches)
    colours = principal_components(torch.from_numpy(np.ascontiguousarray(patches, dtype=np.float32))).numpy()
    figure, grid = _grid(2, len(images), title)
    _show_row(grid[0], "image", images)
    _show_row(grid[1], "features", colours)
    return _draw(figure)


def detections(
    images: Any,
    found: Sequence[Mapping[str, Any]],
    truths: Sequence[Mapping[str, Any]],
    names: Sequence[str] | None,
    title: str,
) -> Image.Image:
    """True objects, and the found ones.

    Args:
        images (`numpy.ndarray` of shape `(n, height, width, 3)`): uint8; the first eight are shown.
        found (`Sequence[dict]`): An image each: `boxes` (`(k, 4)`, x1, y1, x2, y2 in pixels), `labels` (`(k,)`), `scores`
            (`(k,)`) and, if there are, `masks` (`(k, height, width)`, bool).
        truths (`Sequence[dict]`): The same without scores.
        names (`Sequence[str]`, *optional*): Of the classes.
        title (`str`): Above it.

    Returns:
        `PIL.Image.Image`: Two rows, a class in one colour throughout, scores written at the boxes.
    """
    images = np.asarray(images)[:IMAGES]
    found, truths = list(found)[: len(images)], list(truths)[: len(images)]
    classes = sorted({int(label) for objects in (*found, *truths) for label in np.asarray(objects["labels"]).ravel()})
    colours = dict(zip(classes, area_colours(len(classes)), strict=True))
    handles = [Patch(facecolor=tuple(colours[index]), label=_name(names, index)) for index in classes]
    columns = max(1, min(len(handles), max(2, int(len(images) * CELL / 1.15))))
    figure, grid = _grid(2, len(images), title, legend=0.24 * -(-len(handles) // columns) + 0.2 if handles else 0)
    for row, (label, every) in enumerate((("truth", truths), ("found", found))):
        painted = []
        for image, objects in zip(images, every, strict=True):
            masks = objects.get("masks")
            for number, mask in enumerate([] if masks is None else np.asarray(masks)):
                colour = {1: colours[int(np.asarray(objects["labels"])[number])]}
                image = _paint(image, mask.astype(int), colour)
            painted.append(image / 255 if image.dtype == np.uint8 else image)
        _show_row(grid[row], label, np.stack(painted))
        for axes, objects in zip(grid[row], every, strict=True):
            _draw_boxes(axes, objects, colours)
    _legend(figure, handles, columns)
    return _draw(figure)


def point_samples(
    images: Any, truths: Any, predictions: Any, title: str, links: Sequence[tuple[int, int]] | None = None
) -> Image.Image:
    """True and predicted points.

    Args:
        images (`numpy.ndarray` of shape `(n, height, width, 3)`): uint8; the first eight are shown.
        truths, predictions (`numpy.ndarray` of shape `(n, points, 2)`): x, y in pixels; NaN where there is none.
        title (`str`): Above it.
        links (`Sequence[tuple[int, int]]`, *optional*): Points that a line joins, by their places.

    Returns:
        `PIL.Image.Image`: One row; rings are true, crosses predicted, and a line joins the two of a point where no
        `links` are drawn.
    """
    images, truths, predictions = _first(images, truths, predictions)
    figure, grid = _grid(1, len(images), title, legend=0.44, cell=1.25 * CELL)
    stroke = [withStroke(linewidth=3, foreground="white", alpha=0.8)]
    _show_row(grid[0], "", images)
    for axes, true, predicted in zip(grid[0], truths, predictions, strict=True):
        axes.set_autoscale_on(False)
        for first, second in links or ():
            axes.plot(*true[[first, second]].T, color=BLUE, linewidth=1.4, path_effects=stroke)
            axes.plot(
                *predicted[[first, second]].T, color=VERMILION, linewidth=1.4, linestyle="--", path_effects=stroke
            )
        if not links:
            axes.plot(*np.stack([true, predicted]).transpose(2, 0, 1), color=INK, linewidth=0.9)
        axes.plot(
            *true.T, "o", color=BLUE, markerfacecolor="none", markersize=7, markeredgewidth=1.8, path_effects=stroke
        )
        axes.plot(*predicted.T, "x", color=VERMILION, markersize=6, markeredgewidth=1.8, path_effects=stroke)
    marks = [
        figure.axes[0].plot([], [], "o", color=BLUE, markerfacecolor="none", markeredgewidth=1.8, label="true")[0],
        figure.axes[0].plot([], [], "x", color=VERMILION, markeredgewidth=1.8, label="predicted")[0],
    ]
    _legend(figure, marks, 2)
    return _draw(figure)


# ---- parts ----


def _figure(width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    letters = max(24, int(width * 12))
    figure.suptitle("\n".join(textwrap.wrap(title, letters)), fontsize=10.5, color=INK, x=0.01, ha="left")
    return figure


def _grid(
    rows: int,
    columns: int,
    title: str,
    *,
    legend: float = 0.0,
    extra: float = 0.0,
    heads: bool = False,
    cell: float = CELL,
) -> tuple[Figure, np.ndarray]:
    """Square cells for images, with room for a legend (inches) below and a scale at the right."""
    width = max(3.2, columns * cell + 0.35 + extra)
    lines = len(textwrap.wrap(title, max(24, int(width * 12))))
    head = 0.12 + 0.2 * max(1, lines) + (0.2 if heads else 0)
    figure = _figure(width, rows * cell + head + legend, title)
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _show_row(axes: Any, label: str, pictures: Any, scale: tuple[str, Normalize] | None = None) -> Any:
    """Puts images, or maps of numbers on a scale (colour map and its range), into the cells of a row."""
    shown: Any = None
    for cell, picture in zip(axes, pictures, strict=True):
        if scale is None:
            shown = cell.imshow(picture, interpolation="nearest")
        else:
            shown = cell.imshow(picture, cmap=scale[0], norm=scale[1], interpolation="nearest")
            cell.set_facecolor(UNKNOWN)
        cell.set_xticks([])
        cell.set_yticks([])
        for spine in cell.spines.values():
            spine.set_visible(False)
    axes[0].set_ylabel(label, fontsize=9, color=INK)
    return shown


def _paint(image: np.ndarray, ids: np.ndarray, colours: Mapping[int, np.ndarray]) -> np.ndarray:
    """An image in [0, 1] with areas laid over it, their borders opaque."""
    painted = image.astype(np.float64) / (255 if image.dtype == np.uint8 else 1)
    for identity, colour in colours.items():
        area = ids == identity
        inner = area.copy()
        inner[1:] &= area[:-1]
        inner[:-1] &= area[1:]
        inner[:, 1:] &= area[:, :-1]
        inner[:, :-1] &= area[:, 1:]
        painted[inner] = 0.45 * painted[inner] + 0.55 * colour
        painted[area & ~inner] = colour
    return painted


def _draw_boxes(axes: Any, objects: Mapping[str, Any], colours: Mapping[int, np.ndarray]) -> None:
    labels, scores = np.asarray(objects["labels"]).ravel(), objects.get("scores")
    stroke = [withStroke(linewidth=2.6, foreground="white", alpha=0.85)]
    for number, (left, top, right, bottom) in enumerate(np.asarray(objects["boxes"], dtype=float).reshape(-1, 4)):
        colour = tuple(colours[int(labels[number])])
        axes.add_patch(
            Rectangle(
                (left - 0.5, top - 0.5),
                right - left,
                bottom - top,
                fill=False,
                edgecolor=colour,
                linewidth=1.5,
                path_effects=stroke,
            )
        )
        if scores is not None:
            score = f"{float(np.asarray(scores)[number]):.2f}".removeprefix("0")
            axes.text(
                left, max(0.0, top - 1), score, fontsize=7, color=INK, va="bottom" if top > 8 else "top",
                path_effects=[withStroke(linewidth=2, foreground="white")], clip_on=True,
            )  # fmt: skip


def _draw_lines(
    axes: Any, x: Any, series: Mapping[str, Any], bands: Mapping[str, tuple[Any, Any]] | None = None
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
    _plain(axes)


def _legend(figure: Figure, handles: list[Any], columns: int) -> None:
    if handles:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5,
            handlelength=1.2, columnspacing=1.2,
        )  # fmt: skip


def _plain(axes: Any, grid: str = "both") -> None:
    """Only the lines that are needed."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.grid(axis=grid, color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5, color=FAINT)


def _name(names: Sequence[str] | None, index: int) -> str:
    return str(names[index]) if names is not None and index < len(names) else f"class {index}"


def _first(*arrays: Any) -> tuple[np.ndarray, ...]:
    """The first images of arrays that must tell of as many."""
    found = [np.asarray(array) for array in arrays]
    if len({len(array) for array in found}) != 1 or not len(found[0]):
        raise ValueError(f"a picture needs as many truths and predictions as images, got {[len(a) for a in found]}")
    return tuple(array[:IMAGES] for array in found)


def _draw(figure: Figure) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
