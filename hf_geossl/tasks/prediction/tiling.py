"""Tiles of a large image: where they lie, and how what was predicted for each becomes one map.

Neighbouring tiles overlap. The outer quarter of an overlap, where a tile lacks the surroundings that its neighbour has, is
the neighbour's alone; in the middle half the share of one falls linearly from 1 to 0 as that of the other rises. So every pixel
outside of the middle halves has exactly what the model gives for one tile as an image of its own, and a model that sees no
farther than a quarter of the overlap gives what it gives for the image as a whole.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

Box = tuple[int, int, int, int]  # top, left, height, width in pixels
LARGEST_OVERLAP = 1 / 3  # of a tile's side; beyond it three tiles would mix


@dataclass(frozen=True)
class Axis:
    """Tiles along one side of an image, equally far from each other.

    Args:
        length (`int`): of the side in pixels.
        tile (`int`): of a tile; a shorter side is one tile.
        overlap (`int`): of neighbouring tiles at least, at most a third of a tile.
    """

    length: int
    tile: int
    overlap: int

    def __post_init__(self) -> None:
        if not 0 <= self.overlap <= self.tile * LARGEST_OVERLAP:
            raise ValueError(
                f"tile_overlap must be 0 to {int(self.tile * LARGEST_OVERLAP)}, a third of the tile of {self.tile} pixels, "
                f"got {self.overlap}"
            )

    @property
    def size(self) -> int:
        """Of a tile, in pixels."""
        return min(self.tile, self.length)

    @property
    def starts(self) -> list[int]:
        """The first pixel of each tile."""
        count = max(1, -(-(self.length - self.overlap) // (self.tile - self.overlap)))
        last = self.length - self.size
        return [last * index // max(1, count - 1) for index in range(count)]

    def spans(self) -> list[tuple[int, int, int, int]]:
        """Of each tile the pixels where its share rises, from `a` to `b`, and where it falls, from `c` to `d`."""
        starts, result = self.starts, []
        rise = (0, 0)
        for index, start in enumerate(starts):
            end = start + self.size
            fall = (end, end)
            if index + 1 < len(starts):
                overlap = end - starts[index + 1]
                fall = (starts[index + 1] + overlap // 4, end - overlap // 4)
            result.append((*rise, *fall))
            rise = fall
        return result

    def shares(self, index: int) -> np.ndarray:
        """The share of a tile in each of its pixels, 0 to 1, float32; those of all tiles add up to 1."""
        rise_from, rise_to, fall_from, fall_to = self.spans()[index]
        places = np.arange(self.size) + self.starts[index] + 0.5
        shares: np.ndarray = (_ramp(places, rise_from, rise_to) - _ramp(places, fall_from, fall_to)).astype(np.float32)
        return shares


def _ramp(places: np.ndarray, start: int, end: int) -> np.ndarray:
    """0 up to a start, 1 from an end on, linear between them."""
    ramp: np.ndarray = np.clip((places - start) / max(end - start, 1e-9), 0, 1)
    return ramp


@dataclass(frozen=True)
class Tiling:
    """The tiles of an image, row by row.

    Args:
        rows, columns ([`Axis`]): along its height and its width.
    """

    rows: Axis
    columns: Axis

    @classmethod
    def of(cls, size: tuple[int, int], tile: tuple[int, int], overlap: int) -> "Tiling":
        """The tiles of `(height, width)` for an image of `(height, width)`."""
        return cls(Axis(size[0], tile[0], overlap), Axis(size[1], tile[1], overlap))

    @property
    def boxes(self) -> list[Box]:
        """Where the tiles lie."""
        return [
            (top, left, self.rows.size, self.columns.size) for top in self.rows.starts for left in self.columns.starts
        ]

    def mixed_values(self) -> int:
        """How many pixels of the map wait for a neighbour at a time, for an estimate of the memory."""
        depth = max(fall_to - fall_from for _, _, fall_from, fall_to in self.rows.spans())
        return depth * self.columns.length + self.rows.size * self.columns.size * 2


def blend(tiling: Tiling, tiles: Iterable[np.ndarray]) -> Iterator[tuple[Box, np.ndarray]]:
    """Joins what was predicted for tiles: gives each part of the map as soon as no other tile adds to it.

    Args:
        tiling ([`Tiling`]): of the image.
        tiles (`Iterable`): for each of `tiling.boxes` its `(channels, height, width)`, float32; taken when needed.

    Yields:
        `tuple`: a box, and its values `(channels, height, width)`. The boxes of a row of tiles follow each other from left
        to right, have the same top and height, and all together cover the image once.
    """
    coming = iter(tiles)
    row_spans, column_spans = tiling.rows.spans(), tiling.columns.spans()
    # what the row above adds below its finished part, (channels, rows, width); as it is taken, this row's takes its place
    waiting: np.ndarray | None = None
    deepest = max(end - fall_from for _, _, fall_from, end in row_spans)
    for row, top in enumerate(tiling.rows.starts):
        first, rise_to, fall_from, end = row_spans[row]
        vertical = tiling.rows.shares(row)[first - top : end - top]
        right: np.ndarray | None = None  # of the finished part of the tile at the left
        for column, left in enumerate(tiling.columns.starts):
            start, _, finished, stop = column_spans[column]
            values = next(coming)
            horizontal = tiling.columns.shares(column)[start - left : stop - left]
            values = values[:, first - top : end - top, start - left : stop - left]
            values = values * (vertical[:, None] * horizontal)
            if right is not None:
                values[:, :, : right.shape[2]] += right
            right = values[:, :, finished - start :].copy()
            values = values[:, :, : finished - start]
            if waiting is not None:
                values[:, : rise_to - first] += waiting[:, : rise_to - first, start:finished]
            if fall_from < end:
                if waiting is None:
                    waiting = np.zeros((values.shape[0], deepest, tiling.columns.length), np.float32)
                waiting[:, : end - fall_from, start:finished] = values[:, fall_from - first :]
            yield (first, start, fall_from - first, finished - start), values[:, : fall_from - first]
