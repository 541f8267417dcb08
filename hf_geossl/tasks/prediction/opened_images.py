"""Images that are predicted: decoded whole, or TIFF files of any size of which windows are read."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hf_geossl.data.images import BrokenImageError, decode_pixels
from hf_geossl.data.notes import note
from hf_geossl.data.pixel_values import in_format, rgb8
from hf_geossl.data.rasters import Raster
from hf_geossl.data.readers.dicom import is_dicom
from hf_geossl.data.readers.tiff import STARTS
from hf_geossl.data.readers.tiff_windows import Box, MapTag, TiffWindows
from hf_geossl.data.wording import without_arguments
from hf_geossl.modeling.image_format import ImageFormat
from hf_geossl.views.display import to_display

_LARGEST_PREVIEW = 1600  # pixels of the longer side of a picture for people
_ROWS = 512  # that are summed at a time
_HEAD = 4096  # bytes from which a format is recognised
_BEFORE_PIXELS = 2**16  # bytes of JPEG 2000 that are looked through
_GEO_BOXES = (bytes.fromhex("b14bf8bd083d4b43a5ae8cd7d5a6ce03"), b"gml.data")  # of JPEG 2000: GeoJP2, GMLJP2


@dataclass
class OpenedImage(ABC):
    """An image, of which windows are read as a model takes them.

    Args:
        height, width (`int`): upright, in pixels.
        image_format ([`ImageFormat`], *optional*): of the model; RGB of 8 bits by default.
    """

    height: int
    width: int
    image_format: ImageFormat | None

    def __post_init__(self) -> None:
        self.preview = Preview(self.height, self.width)

    def read(self, box: Box) -> np.ndarray:
        """Reads a window `(height, width, channels)`, which is added to the preview.

        Args:
            box (`tuple[int, int, int, int]`): top, left, height and width in pixels.

        Returns:
            `numpy.ndarray`: uint8 for formats of 8 bits, else float32 in units, as `decode_pixels` gives them.

        Raises:
            BrokenImageError: if its pixels are damaged, or lack a channel.
        """
        pixels = self._read(box)
        self.preview.add(box, pixels)
        return pixels

    @abstractmethod
    def _read(self, box: Box) -> np.ndarray:
        """Reads a window."""

    def missing(self, box: Box) -> np.ndarray | None:
        """Which pixels of a window have no value, bool `(height, width)`; None where all have one."""
        return None

    @property
    def map_tags(self) -> list[MapTag]:
        """The tags that say where the image lies on the Earth."""
        return []

    @property
    def has_nodata(self) -> bool:
        """Whether some pixels may have no value."""
        return False

    def picture(self) -> Image.Image:
        """What people see of what was read of the image so far."""
        return self.preview.picture(self.image_format)


class DecodedImage(OpenedImage):
    """An image that was decoded whole.

    Args:
        pixels (`numpy.ndarray` of shape `(height, width, channels)`): of `decode_pixels`.
        image_format ([`ImageFormat`], *optional*): of the model.
    """

    def __init__(self, pixels: np.ndarray, image_format: ImageFormat | None) -> None:
        super().__init__(pixels.shape[0], pixels.shape[1], image_format)
        self.pixels = pixels

    def _read(self, box: Box) -> np.ndarray:
        top, left, height, width = box
        return self.pixels[top : top + height, left : left + width]


class TiffImage(OpenedImage):
    """A TIFF file, of which windows are read.

    Args:
        windows ([`TiffWindows`]): the file.
        image_format ([`ImageFormat`], *optional*): of the model.
    """

    def __init__(self, windows: TiffWindows, image_format: ImageFormat | None) -> None:
        super().__init__(windows.height, windows.width, image_format)
        self.windows = windows
        corner = windows.read((0, 0, 1, 1))
        self._no_value = corner.nodata
        self._transparent = windows.is_map and corner.alpha
        self._last: tuple[Box, Raster] | None = None

    def _raster(self, box: Box) -> Raster:
        if self._last is None or self._last[0] != box:
            self._last = box, self.windows.read(box)
        return self._last[1]

    def _read(self, box: Box) -> np.ndarray:
        raster = self._raster(box)
        return rgb8(raster) if self.image_format is None else in_format(raster, self.image_format)

    def missing(self, box: Box) -> np.ndarray | None:
        """See `OpenedImage.missing`: where all channels are what the file calls no value, or a map is transparent."""
        if not self.has_nodata:
            return None
        raster = self._raster(box)
        missing = np.zeros(raster.pixels.shape[:2], bool)
        if self._no_value is not None:
            same = np.isnan(raster.pixels) if np.isnan(self._no_value) else raster.pixels == self._no_value
            missing |= same.all(axis=2)
        if self._transparent and raster.transparency is not None:
            missing |= raster.transparency == 0
        return missing

    @property
    def map_tags(self) -> list[MapTag]:
        """See `OpenedImage.map_tags`."""
        return self.windows.map_tags

    @property
    def has_nodata(self) -> bool:
        """See `OpenedImage.has_nodata`."""
        return self._no_value is not None or self._transparent


class Preview:
    """A small version of an image, of the means of square blocks of its pixels, made of windows as they come.

    Args:
        height, width (`int`): of the image.
    """

    def __init__(self, height: int, width: int) -> None:
        self.step = -(-max(height, width) // _LARGEST_PREVIEW)
        self.full_height, self.full_width = height, width
        self.height, self.width = -(-height // self.step), -(-width // self.step)
        self._sums: np.ndarray | None = None
        self._counts = np.zeros((self.height, self.width, 1), np.float32)

    def add(self, box: Box, pixels: np.ndarray) -> None:
        """Takes a window in; windows may overlap."""
        if self._sums is None:
            self._sums = np.zeros((self.height, self.width, pixels.shape[2]), np.float32)
        top, left, height, width = box
        columns = self._firsts(left, width)
        for start in range(0, height, _ROWS):
            rows = self._firsts(top + start, min(_ROWS, height - start))
            band = np.nan_to_num(pixels[start : start + _ROWS].astype(np.float32))
            sums = np.add.reduceat(np.add.reduceat(band, rows, axis=0), columns, axis=1)
            counts = np.outer(np.diff([*rows, len(band)]), np.diff([*columns, width]))[..., None]
            first, across = (top + start) // self.step, left // self.step
            at = (slice(first, first + len(rows)), slice(across, across + len(columns)))
            self._sums[at] += sums
            self._counts[at] += counts

    def _firsts(self, start: int, length: int) -> np.ndarray:
        """Where in a range of pixels the blocks begin, the first at 0."""
        blocks = np.arange(start // self.step, -(-(start + length) // self.step))
        return np.maximum(blocks * self.step, start) - start

    def centers(self, start: int, length: int, rows: bool) -> tuple[np.ndarray, np.ndarray]:
        """Which pixels of a range are in the middle of blocks, counted from its start, and the places of these blocks."""
        count, side = (self.height, self.full_height) if rows else (self.width, self.full_width)
        middles = np.minimum(np.arange(count) * self.step + self.step // 2, side - 1)
        inside = np.flatnonzero((middles >= start) & (middles < start + length))
        return middles[inside] - start, inside

    def picture(self, image_format: ImageFormat | None) -> Image.Image:
        """The picture, in false colours where it is not RGB of 8 bits; black where no window came."""
        if self._sums is None:
            return Image.new("RGB", (self.width, self.height))
        means = self._sums / np.maximum(self._counts, 1)
        if image_format is None:
            return Image.fromarray(np.round(means).astype(np.uint8))
        shown = to_display(torch.from_numpy(means).permute(2, 0, 1), image_format)
        return Image.fromarray(shown.permute(1, 2, 0).contiguous().numpy())


@contextmanager
def for_people_who_predict(image_format: ImageFormat | None) -> Iterator[None]:
    """Says what the model takes in place of arguments that other commands have."""
    try:
        yield
    except BrokenImageError as error:
        if "--value_range" not in error.reason and "--channels" not in error.reason:
            raise
        takes = "RGB of 8 bits" if image_format is None else image_format.describe()
        raise BrokenImageError(f"{without_arguments(error.reason)}; the model takes {takes}") from error


@contextmanager
def open_image(path: Path, image_format: ImageFormat | None, max_pixels: int) -> Iterator[OpenedImage]:
    """Opens an image; TIFF files of any size are read by parts.

    Args:
        path (`Path`): the file.
        image_format ([`ImageFormat`], *optional*): of the model; RGB of 8 bits by default.
        max_pixels (`int`): the largest width x height of an image of another format, which is decoded whole.

    Yields:
        [`OpenedImage`]: the image.

    Raises:
        BrokenImageError: if it cannot be used; its reason says why, and what mends it.
    """
    with for_people_who_predict(image_format):
        yield from _open(path, image_format, max_pixels)


def _open(path: Path, image_format: ImageFormat | None, max_pixels: int) -> Iterator[OpenedImage]:
    if _is_tiff(path):
        numbers = image_format.channels if image_format is not None else ()
        with TiffWindows(path) as windows:
            lacking = (
                isinstance(numbers, tuple)
                and numbers
                and max(numbers) > windows.read((0, 0, 1, 1)).all_channels().shape[2]
            )
            if not lacking:
                yield _noted(windows, image_format, path)
                return
        with TiffWindows(path, pages_as_channels=True) as windows:
            yield _noted(windows, image_format, path)
        return
    try:
        pixels = decode_pixels(path, max_pixels, image_format).numpy()
    except BrokenImageError as error:
        if "max_pixels" not in error.reason:
            raise
        raise BrokenImageError(
            f"{error.reason.partition(';')[0]}: raise --max_pixels, or make it a TIFF file in tiles, of which parts are read: "
            "gdal_translate -co TILED=YES -co COMPRESS=DEFLATE IMAGE IMAGE.tif"
        ) from None
    _note_georeference(path)
    yield DecodedImage(pixels, image_format)


def _note_georeference(path: Path) -> None:
    """Notes that a file says where it lies on the Earth: in its boxes, or in a world file beside it."""
    ending = path.suffix[1:]
    short = f".{ending[:1]}{ending[-1:]}"
    beside = [path.with_suffix(one) for one in (f"{short}w", f"{short}W", ".wld")] + [path.with_name(f"{path.name}w")]
    found = next((f"in {place.name}" for place in beside if place.is_file()), None)
    if found is None and ending.lower() in ("jp2", "j2k", "jpx"):
        with open(path, "rb") as file:
            head = file.read(_BEFORE_PIXELS)
        found = "in a box of the file" if any(box in head for box in _GEO_BOXES) else None
    if found is not None:
        note("georeference", where=found)


def _noted(windows: TiffWindows, image_format: ImageFormat | None, path: Path) -> TiffImage:
    if windows.frames > 1:
        note("frames", count=f"{windows.frames} images")
    if not windows.map_tags:
        _note_georeference(path)
    return TiffImage(windows, image_format)


def _is_tiff(path: Path) -> bool:
    if not path.is_file():  # a pipe would be waited for; `decode_pixels` says what is wrong
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
        return head.startswith(STARTS) and not is_dicom(head)  # a file can be both
    except OSError:
        return False
