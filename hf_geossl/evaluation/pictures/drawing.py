"""Parts of pictures: figures, grids of images, colours, legends."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import ArrayLike
from PIL import Image

from hf_geossl.training.pictures.colors import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION

LINES = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
UNKNOWN = (0.55, 0.55, 0.55)  # colour of a pixel without truth
INK, FAINT = "#222222", "#BBBBBB"
DPI, CELL, IMAGES = 110, 1.65, 8  # inches a cell, and at most so many images in a picture


def new_figure(width: float, height: float, title: str) -> Figure:
    """An empty figure of a size in inches, with its title."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    letters = max(24, int(width * 12))
    figure.suptitle("\n".join(textwrap.wrap(title, letters)), fontsize=10.5, color=INK, x=0.01, ha="left")
    return figure


def new_grid(
    rows: int,
    columns: int,
    title: str,
    *,
    extra: float = 0.0,
    heads: bool = False,
    cell: float = CELL,
    handles: Sequence[Artist] = (),
) -> tuple[Figure, np.ndarray]:
    """A figure with square cells for images, with a legend of handles below and room (inches) for a scale at the right."""
    across = max(1, min(len(handles), max(2, int(columns * CELL / 1.15))))
    legend = 0.24 * -(-len(handles) // across) + 0.2 if handles else 0.0
    width = max(3.2, columns * cell + 0.35 + extra)
    lines = len(textwrap.wrap(title, max(24, int(width * 12))))
    head = 0.12 + 0.2 * max(1, lines) + (0.2 if heads else 0)
    figure = new_figure(width, rows * cell + head + legend, title)
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    grid = figure.subplots(rows, columns, squeeze=False)
    add_legend(figure, handles, across)
    return figure, grid


def show_row(
    axes: Sequence[Axes] | np.ndarray,
    label: str,
    pictures: Iterable[ArrayLike],
    scale: tuple[str, Normalize] | None = None,
) -> AxesImage:
    """Puts images, or maps of numbers on a scale (colour map and its range), into the cells of a row."""
    shown: AxesImage
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


def paint(image: np.ndarray, ids: np.ndarray, colours: Mapping[int, np.ndarray]) -> np.ndarray:
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


def add_legend(figure: Figure, handles: Sequence[Artist], columns: int) -> None:
    """Puts a legend below a figure, where there is something to explain."""
    if handles:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5,
            handlelength=1.2, columnspacing=1.2,
        )  # fmt: skip


def remove_frame(axes: Axes, grid: Literal["both", "x", "y"] = "both") -> None:
    """Draws two of four edges, and a faint grid."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.grid(axis=grid, color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5, color=FAINT)


def class_name(names: Sequence[str] | None, index: int) -> str:
    """The name of a class, or its number."""
    return str(names[index]) if names is not None and index < len(names) else f"class {index}"


def in_colours(images: np.ndarray) -> np.ndarray:
    """Images `(n, height, width, channels)` as people can see them, `(n, height, width, 3)`.

    Of more channels the first three, of fewer the first as grey; what is not of 8 bits goes from its 2nd percentile (black) to
    its 98th (white), channel by channel over all images.
    """
    seen = images[..., :3] if images.shape[-1] >= 3 else np.repeat(images[..., :1], 3, axis=-1)
    if seen.dtype == np.uint8:
        return seen
    low, high = np.nanpercentile(seen, (2, 98), axis=(0, 1, 2))
    return np.clip((seen - low) / np.maximum(high - low, 1e-12), 0, 1)


def first_images(images: ArrayLike, *truths: ArrayLike) -> tuple[np.ndarray, ...]:
    """The first images, in colours, and as many of arrays that belong to them, which must have equally many."""
    converted = [np.asarray(array) for array in (images, *truths)]
    if len({len(array) for array in converted}) != 1 or not len(converted[0]):
        raise ValueError(f"a picture needs as many truths and predictions as images, got {[len(a) for a in converted]}")
    return in_colours(converted[0][:IMAGES]), *(array[:IMAGES] for array in converted[1:])


def to_image(figure: Figure) -> Image.Image:
    """Draws a figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
