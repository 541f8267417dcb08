"""Images with what was predicted of them: classes, depths, objects, points, features.

Images are uint8, `(n, height, width, 3)`; at most eight are shown.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import ArrayLike
from PIL import Image

from hf_geossl.evaluation.pictures.drawing import (
    CELL,
    IMAGES,
    INK,
    UNKNOWN,
    class_name,
    first_images,
    in_colours,
    new_grid,
    paint,
    show_row,
    to_image,
)
from hf_geossl.training.pictures.colors import BLUE, VERMILION, area_colours, principal_components

Objects = Mapping[str, ArrayLike]  # boxes, labels, scores and masks of an image


def labelled_images(images: ArrayLike, pairs: Sequence[tuple[str, str]], title: str) -> Image.Image:
    """A row of images, each under its true class and the predicted one, which is red where it is another."""
    images = np.asarray(first_images(images)[0])
    figure, grid = new_grid(1, len(images), title)
    show_row(grid[0], "image", images)
    for axes, (truth, predicted) in zip(grid[0], pairs, strict=False):
        right = truth == predicted
        axes.set_title(
            truth if right else f"{truth}\ntaken for {predicted}", fontsize=7, color=INK if right else VERMILION
        )
    return to_image(figure)


def segmentation_samples(
    images: ArrayLike, truths: ArrayLike, predictions: ArrayLike, names: Sequence[str] | None, title: str
) -> Image.Image:
    """Three rows: images, true and predicted classes `(n, height, width)`, 255 without truth; a legend of what occurs."""
    images, truths, predictions = first_images(images, truths, predictions)
    present = np.unique(np.concatenate([truths, predictions]))
    classes = present[present != 255].astype(int)
    colours = area_colours(int(classes.max(initial=0)) + 1)

    def coloured(maps: np.ndarray) -> np.ndarray:
        return np.where((maps == 255)[..., None], UNKNOWN, colours[np.where(maps == 255, 0, maps).astype(int)])

    handles = [
        Patch(facecolor=tuple(colours[index]), edgecolor=INK, linewidth=0.4, label=class_name(names, index))
        for index in classes
    ]
    if 255 in present:
        handles.append(Patch(facecolor=UNKNOWN, edgecolor=INK, linewidth=0.4, label="no truth"))
    figure, grid = new_grid(3, len(images), title, handles=handles)
    rows = (("image", images), ("truth", coloured(truths)), ("predicted", coloured(predictions)))
    for axes, (label, pictures) in zip(grid, rows, strict=True):
        show_row(axes, label, pictures)
    return to_image(figure)


def depth_samples(images: ArrayLike, truths: ArrayLike, predictions: ArrayLike, title: str) -> Image.Image:
    """Four rows: images, true and predicted depths `(n, height, width)` in metres (0 without truth), and their difference.

    Near is bright on a logarithmic scale, and grey is without truth.
    """
    images, truths, predictions = first_images(images, truths, predictions)
    unknown = ~(np.isfinite(truths) & (truths > 0))
    known = truths[~unknown] if not unknown.all() else np.ones(1)
    near, far = float(known.min()), max(float(known.max()), 1.001 * float(known.min()))
    depths = LogNorm(near, far, clip=True)
    errors = np.ma.masked_array(np.abs(predictions - truths), unknown)
    worst = Normalize(0, max(float(np.ma.filled(errors, 0).max()), 1e-6))
    handles = [Patch(facecolor=UNKNOWN, edgecolor=INK, linewidth=0.4, label="no truth")] if unknown.any() else []
    figure, grid = new_grid(4, len(images), title, extra=0.7, handles=handles)
    rows: tuple[tuple[str, Any, Any], ...] = (
        ("image", images, None),
        ("truth", np.ma.masked_array(truths, unknown), ("viridis_r", depths)),
        ("predicted", np.maximum(predictions, near), ("viridis_r", depths)),
        ("error", errors, ("magma", worst)),
    )
    for axes, (label, pictures, scale) in zip(grid, rows, strict=True):
        shown = show_row(axes, label, pictures, scale)
        if label in ("predicted", "error"):
            bar = figure.colorbar(shown, ax=list(grid[1:3].flat) if label == "predicted" else list(axes), pad=0.01)
            bar.set_label("metres", fontsize=8)
            if label == "predicted":
                bar.set_ticks(np.geomspace(near, far, 4).tolist())
                bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda depth, place: f"{depth:.2g}"))
                bar.ax.yaxis.set_minor_formatter(NullFormatter())
            bar.ax.tick_params(labelsize=7.5)
            bar.outline.set_visible(False)
    return to_image(figure)


def strip(images: ArrayLike, masks: ArrayLike, title: str, truths: ArrayLike | None = None) -> Image.Image:
    """Frames of a clip, the first and the last among them, with instances painted on them; an id keeps its colour.

    Masks and truths, which have a row of their own above, are ids `(n, height, width)`, 0 where there is none.
    """
    images, masks = np.asarray(images), np.asarray(masks)
    truths = None if truths is None else np.asarray(truths)
    frames = np.unique(np.linspace(0, len(images) - 1, min(IMAGES, len(images))).round().astype(int))
    ids = np.unique(masks if truths is None else np.concatenate([masks, truths]))
    ids = ids[ids != 0]
    colours = dict(zip(ids.tolist(), area_colours(len(ids)), strict=True))
    rows = [("propagated", masks)] if truths is None else [("truth", truths), ("propagated", masks)]
    figure, grid = new_grid(len(rows), len(frames), title, heads=True)
    for row, (label, ids_of) in enumerate(rows):
        painted = np.stack([paint(images[frame], ids_of[frame], colours) for frame in frames])
        show_row(grid[row], label if truths is not None else "", painted)
    for axes, frame in zip(grid[0], frames, strict=True):
        axes.set_title(f"frame {frame}", fontsize=8.5, color=INK, pad=3)
    return to_image(figure)


def feature_pca(images: ArrayLike, patches: ArrayLike, title: str) -> Image.Image:
    """Images, and the first three principal components of their patch features as red, green and blue.

    Features `(n, rows, columns, channels)` have at least three channels; the components are those of all images together.
    Patches of like features have like colours; the colours themselves mean nothing.
    """
    images, patches = first_images(images, patches)
    colours = principal_components(torch.from_numpy(np.ascontiguousarray(patches, dtype=np.float32))).numpy()
    figure, grid = new_grid(2, len(images), title)
    show_row(grid[0], "image", images)
    show_row(grid[1], "features", colours)
    return to_image(figure)


def detections(
    images: ArrayLike,
    predictions: Sequence[Objects],
    truths: Sequence[Objects],
    names: Sequence[str] | None,
    title: str,
) -> Image.Image:
    """True and predicted objects in two rows, a class in one colour throughout, scores written at the boxes.

    Objects of an image are `boxes` (`(k, 4)`, x1, y1, x2, y2 in pixels), `labels` (`(k,)`), of predictions `scores` (`(k,)`)
    and, if there are, `masks` (`(k, height, width)`, bool).
    """
    images = in_colours(np.asarray(images)[:IMAGES])
    predictions, truths = list(predictions)[: len(images)], list(truths)[: len(images)]
    classes = sorted(
        {int(label) for objects in (*predictions, *truths) for label in np.asarray(objects["labels"]).ravel()}
    )
    colours = dict(zip(classes, area_colours(len(classes)), strict=True))
    handles = [Patch(facecolor=tuple(colours[index]), label=class_name(names, index)) for index in classes]
    figure, grid = new_grid(2, len(images), title, handles=handles)
    for row, (label, every) in enumerate((("truth", truths), ("predicted", predictions))):
        painted = []
        for image, objects in zip(images, every, strict=True):
            masks = objects.get("masks")
            for number, mask in enumerate([] if masks is None else np.asarray(masks)):
                colour = {1: colours[int(np.asarray(objects["labels"])[number])]}
                image = paint(image, mask.astype(int), colour)
            painted.append(image / 255 if image.dtype == np.uint8 else image)
        show_row(grid[row], label, np.stack(painted))
        for axes, objects in zip(grid[row], every, strict=True):
            _draw_boxes(axes, objects, colours)
    return to_image(figure)


def point_samples(
    images: ArrayLike,
    truths: ArrayLike,
    predictions: ArrayLike,
    title: str,
    links: Sequence[tuple[int, int]] | None = None,
) -> Image.Image:
    """True points (rings) and predicted ones (crosses), `(n, points, 2)`, x and y in pixels; NaN where there is none.

    Lines join points that are linked, by their places; where none are, the two of a point.
    """
    images, truths, predictions = first_images(images, truths, predictions)
    ring: dict[str, Any] = {"marker": "o", "color": BLUE, "markerfacecolor": "none", "markeredgewidth": 1.8}
    cross: dict[str, Any] = {"marker": "x", "color": VERMILION, "markeredgewidth": 1.8}
    handles = [
        Line2D([], [], linestyle="", label=label, **look) for label, look in (("true", ring), ("predicted", cross))
    ]
    figure, grid = new_grid(1, len(images), title, handles=handles, cell=1.25 * CELL)
    stroke = [withStroke(linewidth=3, foreground="white", alpha=0.8)]
    show_row(grid[0], "", images)
    for axes, true, predicted in zip(grid[0], truths, predictions, strict=True):
        axes.set_autoscale_on(False)
        for first, second in links or ():
            axes.plot(*true[[first, second]].T, color=BLUE, linewidth=1.4, path_effects=stroke)
            axes.plot(
                *predicted[[first, second]].T, color=VERMILION, linewidth=1.4, linestyle="--", path_effects=stroke
            )
        if not links:
            axes.plot(*np.stack([true, predicted]).transpose(2, 0, 1), color=INK, linewidth=0.9)
        axes.plot(*true.T, linestyle="", markersize=7, path_effects=stroke, **ring)
        axes.plot(*predicted.T, linestyle="", markersize=6, path_effects=stroke, **cross)
    return to_image(figure)


def _draw_boxes(axes: Axes, objects: Objects, colours: Mapping[int, np.ndarray]) -> None:
    labels, scores = np.asarray(objects["labels"]).ravel(), objects.get("scores")
    stroke = [withStroke(linewidth=2.6, foreground="white", alpha=0.85)]
    boxes = np.asarray(objects["boxes"], dtype=float).reshape(-1, 4)
    width, height = np.ptp(axes.get_xlim()), np.ptp(axes.get_ylim())
    written: list[tuple[float, float]] = []  # places of scores, which one that is less sure does not cover
    for number in range(len(boxes)) if scores is None else np.argsort(-np.asarray(scores, dtype=float), kind="stable"):
        left, top, right, bottom = boxes[number]
        colour = tuple(colours[int(labels[number])])
        axes.add_patch(
            Rectangle(
                (left - 0.5, top - 0.5), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=1.5,
                path_effects=stroke,
            )
        )  # fmt: skip
        free = all(abs(left - x) > 0.14 * width or abs(top - y) > 0.09 * height for x, y in written)
        if scores is not None and free:
            written.append((left, top))
            score = f"{float(np.asarray(scores)[number]):.2f}".removeprefix("0")
            axes.text(
                left, max(0.0, top - 1), score, fontsize=7, color=INK, va="bottom" if top > 8 else "top",
                path_effects=[withStroke(linewidth=2, foreground="white")], clip_on=True,
            )  # fmt: skip
