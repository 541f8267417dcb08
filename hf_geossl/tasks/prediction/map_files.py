"""Masks and depths as files: PNG and TIFF, written in parts, so that no map of a large image is in memory."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from hf_geossl.data.rasters import missing_extra
from hf_geossl.data.readers.tiff_windows import Box, MapTag
from hf_geossl.training.pictures.colors import area_colours

PNG_LEVEL = 4  # of compression: a third of the time of Pillow's 6, and 3 % larger
Pixels = tuple[Box, np.ndarray]  # a box, and its values (height, width)

_TILE = 256  # side of the tiles of TIFF files
_NODATA_TAG, _ASCII = 42113, 2


@dataclass(frozen=True)
class MapKind:
    """What a map holds.

    Args:
        dtype (`str`): of its values.
        nodata (`float`): what stands where the image has no value.
        colors (`numpy.ndarray` of shape `(256, 3)`, *optional*): uint8, of each value.
    """

    dtype: str
    nodata: float
    colors: np.ndarray | None = None

    @classmethod
    def of_classes(cls, count: int) -> "MapKind":
        """Class numbers; with a palette where they fit into a byte, whose last value is left for "no value"."""
        if count > 255:
            return cls("uint16", 65535)
        colors = np.zeros((256, 3), np.uint8)
        colors[:count] = class_colors(count)
        return cls("uint8", 255, colors)

    @classmethod
    def of_depths(cls) -> "MapKind":
        """Depths, NaN where there is none."""
        return cls("float32", float("nan"))


def class_colors(count: int) -> np.ndarray:
    """The colours of classes in masks and over images, uint8 `(count, 3)`."""
    colors: np.ndarray = np.round(area_colours(count) * 255).astype(np.uint8)
    return colors


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a path to write to, which becomes `path` when the block ends well and is removed when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_map(parts: Iterable[Pixels], size: tuple[int, int], kind: MapKind, path: Path) -> None:
    """Writes a map of at most some ten million pixels: a `.png` of classes, or a `.tif`.

    Args:
        parts (`Iterable`): boxes and their values, which cover it.
        size (`(int, int)`): height and width.
        kind ([`MapKind`]): what it holds.
        path (`Path`): the file, which is written whole or not at all.
    """
    values = np.empty(size, kind.dtype)
    for (top, left, height, width), part in parts:
        values[top : top + height, left : left + width] = part
    picture = Image.fromarray(values)
    if kind.colors is not None:
        picture.putpalette(kind.colors.tobytes())
    with whole_file(path) as file:
        if path.suffix == ".png":
            picture.save(file, "PNG", compress_level=PNG_LEVEL)
        else:
            picture.save(file, "TIFF")


def write_tiff_map(
    parts: Iterable[Pixels],
    size: tuple[int, int],
    kind: MapKind,
    path: Path,
    map_tags: Sequence[MapTag] = (),
    with_nodata: bool = False,
) -> None:
    """Writes a map of any size as a TIFF file in compressed tiles.

    Args:
        parts (`Iterable`): boxes and their values, in rows of one height, from left to right, which cover it.
        size (`(int, int)`): height and width.
        kind ([`MapKind`]): what it holds.
        path (`Path`): the file, which is written whole or not at all.
        map_tags (`Sequence`): that say where it lies on the Earth.
        with_nodata (`bool`): whether some of its pixels have no value, which the file says then.
    """
    try:
        import tifffile
    except ImportError:
        raise missing_extra("maps of TIFF files", "tifffile and imagecodecs") from None
    tags = [*map_tags]
    if with_nodata:
        text = f"{kind.nodata:g}"
        tags.append((_NODATA_TAG, _ASCII, len(text) + 1, text, True))
    color_map = None if kind.colors is None else kind.colors.T.astype(np.uint16) * 257
    with whole_file(path) as file:
        tifffile.imwrite(
            file,
            _file_tiles(parts, size, kind.dtype),
            shape=size,
            dtype=kind.dtype,
            tile=(_TILE, _TILE),
            compression="deflate",
            photometric="minisblack" if color_map is None else "palette",
            colormap=color_map,
            extratags=tags,
            metadata=None,
            maxworkers=1,
            bigtiff=size[0] * size[1] * np.dtype(kind.dtype).itemsize > 2**31,
        )


def _file_tiles(parts: Iterable[Pixels], size: tuple[int, int], dtype: str) -> Iterator[np.ndarray]:
    """The tiles of a file row by row, the last ones of each filled up with zeros."""
    waiting = np.zeros((0, size[1]), dtype)
    end = 0
    for rows in _whole_rows(parts, size[1], dtype):
        waiting = np.concatenate([waiting, rows])
        end += len(rows)
        while len(waiting) >= _TILE or (end == size[0] and len(waiting)):
            band, waiting = waiting[:_TILE], waiting[_TILE:]
            for left in range(0, size[1], _TILE):
                tile = np.zeros((_TILE, _TILE), dtype)
                part = band[:, left : left + _TILE]
                tile[: part.shape[0], : part.shape[1]] = part
                yield tile


def _whole_rows(parts: Iterable[Pixels], width: int, dtype: str) -> Iterator[np.ndarray]:
    """Joins parts of one height to rows of the whole width."""
    rows = np.empty((0, width), dtype)
    for (_, left, height, wide), part in parts:
        if left == 0:
            rows = np.empty((height, width), dtype)
        rows[:, left : left + wide] = part
        if left + wide == width:
            yield rows
