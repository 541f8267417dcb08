"""Large TIFF and GeoTIFF images read by parts: only the tiles or strips that a window touches are read and decoded."""

import os
from collections import OrderedDict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from hf_geossl.data.rasters import BrokenImageError, Raster, decoding, missing_extra, quiet
from hf_geossl.data.readers.tiff import (
    check_layout,
    page_of,
    raster_of,
    read_segment,
    segment_shape,
    stack_of,
    transparency_of,
)

if TYPE_CHECKING:
    from tifffile import TiffPage

Box = tuple[int, int, int, int]  # top, left, height, width in pixels
MapTag = tuple[int, int, int, object, bool]  # code, type, count, value, once: as tifffile writes them

_MAP_TAGS = (
    33550,
    33922,
    34264,
    34735,
    34736,
    34737,
)  # ModelPixelScale, -Tiepoint, -Transformation, GeoKeys and their values
_CACHED_BYTES, _LARGEST_SEGMENT = 2**29, 2**28
_SAMPLE, _SAMPLES = 64, 8  # side of the windows by which transparency is decided, and how many in a row of them
_LEFT_TO_RIGHT = {  # orientation -> where the upright top left lies in what is stored: transposed, bottom, right
    orientation: (orientation >= 5, orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7))
    for orientation in range(1, 9)
}


class TiffWindows:
    """The first image of a TIFF file, of which windows are read.

    Args:
        path (`Path`): the file.
        pages_as_channels (`bool`, *optional*): as of `read_tiff`.

    Raises:
        BrokenImageError: if it is damaged or of a kind that is not read, or its strips are too large to be read by parts.
    """

    def __init__(self, path: Path, pages_as_channels: bool = False) -> None:
        try:
            import tifffile
        except ImportError:
            raise missing_extra("parts of TIFF files", "tifffile and imagecodecs") from None
        self._cache: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._cached_bytes = 0
        self.segments_read = 0  # tiles or strips that were decoded, and rows that were read as they are
        try:
            self._file = open(path, "rb")  # noqa: SIM115 (closed by `close`)
        except OSError as error:
            raise BrokenImageError(f"the file cannot be read ({error.strerror or type(error).__name__})") from error
        try:
            with quiet("tifffile"), decoding("its header cannot be read"):
                self._tiff = tifffile.TiffFile(self._file)
                first = page_of(self._tiff, 0)
                self._stack = stack_of(self._tiff, first, pages_as_channels)
                self._pages = [first, *(page_of(self._tiff, index) for index in self._stack.pages[1:])]
                size = os.fstat(self._file.fileno()).st_size
                for page in self._pages:
                    check_layout(page, size)
                    self._check_segments(page)
            turned, self._from_bottom, self._from_right = _LEFT_TO_RIGHT.get(
                int(first.tags.valueof(274, 1)), (False,) * 3
            )
            sides = (first.imagelength, first.imagewidth)
            self._turned = turned
            self.height, self.width = sides[::-1] if turned else sides
            self._transparency: tuple[int | None, bool] = (None, False)
            if len(self._pages) == 1 and first.extrasamples:
                self._transparency = transparency_of(first, self._sample())
        except BaseException:
            self._file.close()
            raise

    @property
    def map_tags(self) -> list[MapTag]:
        """The tags that say where on the Earth the image lies, for the writer of a map of the same size; none where it is turned."""
        page = self._pages[0]
        if self._turned or self._from_bottom or self._from_right:
            return []
        tags = [page.tags[code] for code in _MAP_TAGS if code in page.tags]
        return [(tag.code, int(tag.dtype), tag.count, tag.value, True) for tag in tags]

    @property
    def is_map(self) -> bool:
        """Whether it says where it lies."""
        return any(code in self._pages[0].tags for code in _MAP_TAGS)

    @property
    def frames(self) -> int:
        """How many images the file holds."""
        return self._stack.frames

    def read(self, box: Box) -> Raster:
        """Reads a window.

        Args:
            box (`tuple[int, int, int, int]`): top, left, height and width in pixels of the upright image, inside of it.

        Returns:
            [`Raster`]: as `read_tiff` gives the image.

        Raises:
            BrokenImageError: if its pixels are damaged.
        """
        top, left, height, width = box
        if min(top, left) < 0 or min(height, width) < 1 or top + height > self.height or left + width > self.width:
            raise ValueError(f"box must lie inside of {self.height} x {self.width} pixels, got {box}")
        if self._from_bottom:
            top = self.height - top - height
        if self._from_right:
            left = self.width - left - width
        if self._turned:
            top, left, height, width = left, top, width, height
        with quiet("tifffile"), decoding():
            values = self._stored((top, left, height, width))
            return raster_of(self._pages[0], values, self._stack, len(self._pages) > 1, self._transparency)

    def _stored(self, box: Box) -> np.ndarray:
        """Stored values `(height, width, samples)` of a window of what is stored."""
        parts = [self._of_page(number, page, box) for number, page in enumerate(self._pages)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)

    def _of_page(self, number: int, page: "TiffPage", box: Box) -> np.ndarray:
        top, left, height, width = box
        values = np.empty((height, width, page.samplesperpixel), page.dtype)
        rows, columns = segment_shape(page)
        across, down = -(-page.imagewidth // columns), -(-page.imagelength // rows)
        planes = page.samplesperpixel if page.planarconfig == 2 else 1
        plain = _is_plain(page)
        for plane in range(planes):
            samples = slice(plane, plane + 1) if planes > 1 else slice(None)
            for row in range(top // rows, (top + height - 1) // rows + 1):
                for column in range(left // columns, (left + width - 1) // columns + 1):
                    index = (plane * down + row) * across + column
                    y1, y2 = max(top, row * rows), min(top + height, (row + 1) * rows)
                    x1, x2 = max(left, column * columns), min(left + width, (column + 1) * columns)
                    inside = (
                        slice(y1 - row * rows, y2 - row * rows),
                        slice(x1 - column * columns, x2 - column * columns),
                    )
                    if plain:
                        part = self._rows(page, index, inside, 1 if planes > 1 else page.samplesperpixel)
                    else:
                        part = self._segment(number, page, index)[inside]
                    values[y1 - top : y2 - top, x1 - left : x2 - left, samples] = part
        return values

    def _rows(self, page: "TiffPage", index: int, inside: tuple[slice, slice], samples: int) -> np.ndarray:
        """Part of a strip that is stored as it is: nothing else is read."""
        rows, columns = inside
        kind = np.dtype(page.dtype).newbyteorder(page.parent.byteorder)
        width, size = columns.stop - columns.start, kind.itemsize * samples
        part = np.empty((rows.stop - rows.start, width, samples), kind)
        for place, row in enumerate(range(rows.start, rows.stop)):
            self._file.seek(page.dataoffsets[index] + (row * page.imagewidth + columns.start) * size)
            part[place] = np.frombuffer(self._file.read(width * size), kind).reshape(width, samples)
            self.segments_read += 1
        return part

    def _segment(self, number: int, page: "TiffPage", index: int) -> np.ndarray:
        """A decoded tile or strip `(rows, columns, samples)`; those of the last windows are cached."""
        key = (number, index)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        content = read_segment(page, index) if page.databytecounts[index] else None
        decoded, _, shape = page.decode(content, index, jpegtables=page.jpegtables)
        self.segments_read += 1
        values = np.full(shape, page.nodata, page.dtype) if decoded is None else np.asarray(decoded)
        values = values.reshape(values.shape[-3:])
        self._cache[key] = values
        self._cached_bytes += values.nbytes
        while self._cached_bytes > _CACHED_BYTES and len(self._cache) > 1:
            self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return values

    def _sample(self) -> np.ndarray:
        """Stored values of windows that are spread over the image, side by side: `(height, width, samples)`."""
        page = self._pages[0]
        height, width = min(_SAMPLE, page.imagelength), min(_SAMPLE, page.imagewidth)
        tops = sorted({(page.imagelength - height) * part // (_SAMPLES - 1) for part in range(_SAMPLES)})
        lefts = sorted({(page.imagewidth - width) * part // (_SAMPLES - 1) for part in range(_SAMPLES)})
        with quiet("tifffile"), decoding():
            return np.concatenate([self._stored((top, left, height, width)) for top in tops for left in lefts], axis=1)

    def _check_segments(self, page: "TiffPage") -> None:
        rows, columns = segment_shape(page)
        size = rows * columns * np.dtype(page.dtype).itemsize * (1 if page.planarconfig == 2 else page.samplesperpixel)
        if not _is_plain(page) and size > _LARGEST_SEGMENT:
            raise BrokenImageError(
                f"its pixels are stored in parts of {columns} x {rows}, too large to be read one by one; write it in tiles, "
                "such as by: gdal_translate -co TILED=YES -co COMPRESS=DEFLATE"
            )

    def close(self) -> None:
        """Closes the file."""
        self._cache.clear()
        self._tiff.close()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _is_plain(page: "TiffPage") -> bool:
    """Whether the strips of a page hold its values one after the other, as they are."""
    whole = page.dtype is not None and page.bitspersample == np.dtype(page.dtype).itemsize * 8
    return (
        page.compression == 1 and page.predictor == 1 and page.fillorder == 1 and whole
        and not page.is_tiled and not page.is_subsampled
    )  # fmt: skip
