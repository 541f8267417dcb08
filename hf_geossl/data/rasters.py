"""Rasters: the stored values of one image file, with what the file says about them."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident

import numpy as np
from PIL import Image

from hf_geossl.data.notes import note

DEFAULT_MAX_PIXELS = 2**26
# A pixel may have many channels; so many bytes a pixel of `max_pixels` are decoded at most (1 GiB by default)
_BYTES_PER_PIXEL = 16
MAX_CHANNELS = 20  # an axis of so many numbers can be channels
# A channel tagged as transparency is a band if so many of its values are neither clear nor opaque, and differ
_BETWEEN, _BETWEEN_ON_MAPS, _LEVELS = 0.25, 0.02, 16

_WIDENED = {"bool": "uint8", "int8": "int16"}


class BrokenImageError(ValueError):
    """An image that cannot be used: truncated, too large, of an unknown format, or without pixels.

    Args:
        reason (`str`): what is wrong, in one sentence without the place on the machine.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class MissingExtraError(BrokenImageError):
    """An image that needs a library which is not installed; its reason names the extra."""


@dataclass(frozen=True)
class Raster:
    """The stored values of one image, upright, with black at the small end.

    Args:
        pixels (`numpy.ndarray` of shape `(height, width, channels)`): in the stored type, without transparency.
        kind (`str`): the file's format, such as "PNG".
        names (`tuple[str, ...]`): of the channels, where the file has them.
        bits (`int`, *optional*): that are used of each value, where the file says so.
        transparency (`numpy.ndarray` of shape `(height, width)`, *optional*): a channel that says how opaque a pixel is.
        transparency_at (`int`): its place among all channels of the file, from 0.
        color (`bool`): whether the first three channels are known to be red, green and blue.
        span (`tuple[float, float]`, *optional*): smallest and largest value that can be stored, where that is not the
            whole range of the type.
        nodata (`float`, *optional*): value that means "no value", where the file names one.
        frames (`int`): images in the file, of which this is the first; 2 may mean "more than one".
        window (`tuple[float, float]`, *optional*): center and width that the file advises for display.
    """

    pixels: np.ndarray
    kind: str
    names: tuple[str, ...] = ()
    bits: int | None = None
    transparency: np.ndarray | None = None
    transparency_at: int = -1
    color: bool = False
    span: tuple[float, float] | None = None
    nodata: float | None = None
    frames: int = 1
    window: tuple[float, float] | None = None

    @property
    def alpha(self) -> bool:
        """Whether the file has a real transparency channel."""
        return self.transparency is not None

    @property
    def dtype(self) -> str:
        """Type of the stored values, such as "uint16"."""
        return str(self.pixels.dtype)

    @property
    def num_channels(self) -> int:
        """Channels, without transparency."""
        return self.pixels.shape[2]

    @property
    def transparency_place(self) -> int:
        """Place of the transparency among all channels of the file, from 0."""
        return self.transparency_at if self.transparency_at >= 0 else self.num_channels

    def all_channels(self) -> np.ndarray:
        """All channels in the order of the file, transparency among them: `(height, width, channels)`."""
        if self.transparency is None:
            return self.pixels
        return np.insert(self.pixels, self.transparency_place, self.transparency, axis=2)

    def value_span(self) -> tuple[float, float]:
        """Smallest and largest value that can be stored; 0 and 1 for floating point numbers."""
        if self.span is not None:
            return self.span
        if self.pixels.dtype.kind == "f":
            return 0.0, 1.0
        if self.bits is not None and self.pixels.dtype.kind == "u":
            return 0.0, float(2**self.bits - 1)
        limits = np.iinfo(self.pixels.dtype)
        return float(limits.min), float(limits.max)


def check_size(width: int, height: int, max_pixels: int, channels: int = 1, itemsize: int = 1) -> None:
    """Raises a `BrokenImageError` unless an image has pixels, and not too many.

    Args:
        width, height (`int`): of the image.
        max_pixels (`int`): the largest width x height.
        channels (`int`, *optional*): of the image.
        itemsize (`int`, *optional*): bytes of a value.
    """
    if width < 1 or height < 1 or channels < 1:
        raise BrokenImageError(f"it has no pixels ({width} x {height})")
    if width * height > max_pixels:
        raise BrokenImageError(
            f"{width} x {height} is {width * height} pixels, more than max_pixels={max_pixels}; "
            "scale it down, or raise max_pixels"
        )
    size = width * height * channels * itemsize
    if size > max_pixels * _BYTES_PER_PIXEL:
        raise BrokenImageError(
            f"{width} x {height} with {channels} channels is {size} bytes, more than {_BYTES_PER_PIXEL} x "
            f"max_pixels={max_pixels}; scale it down, or raise max_pixels"
        )


def usable(pixels: np.ndarray) -> np.ndarray:
    """Brings pixels to a type that the rest of the package knows, in native byte order, without changing a value.

    Args:
        pixels (`numpy.ndarray`): of any type; bool becomes 0 and 255.

    Returns:
        `numpy.ndarray`: uint8, uint16, int16, uint32, int32, float16, float32 or float64.

    Raises:
        BrokenImageError: for numbers that fit none of these.
    """
    kind = pixels.dtype.newbyteorder("=")
    if kind.name in _WIDENED:
        widened = pixels.astype(_WIDENED[kind.name])
        return widened * 255 if kind.name == "bool" else widened
    if kind.kind in "iu" and kind.itemsize == 8:  # nested lists, or what NumPy makes of Python's numbers
        low, high = (int(pixels.min()), int(pixels.max())) if pixels.size else (0, 0)
        for name in ("uint8", "uint16", "int16", "uint32", "int32"):
            if np.iinfo(name).min <= low and high <= np.iinfo(name).max:
                return pixels.astype(name)
        raise BrokenImageError(f"its values from {low} to {high} fit no type of 32 bits; scale them down")
    if kind.kind not in "iuf" or kind.itemsize > 8:
        raise BrokenImageError(f"its values are of type {pixels.dtype}, which is no image; store integers or floats")
    return np.ascontiguousarray(pixels, dtype=kind)


def is_transparency(values: np.ndarray, opaque: float, on_map: bool = False) -> bool:
    """Decides whether a channel that is tagged as transparency is one, or a band that a program tagged so.

    Real transparency is mostly clear or opaque. GDAL tags the fourth of four bands of bytes as transparency, whatever it
    is; aerial images have infrared there.

    Args:
        values (`numpy.ndarray` of shape `(height, width)`): of the channel.
        opaque (`float`): the value that means opaque.
        on_map (`bool`, *optional*): whether the file has map coordinates, where soft transparency is rare.

    Returns:
        `bool`: False adds the note `alpha_band` for which the caller gives the number.
    """
    between = values[(values > 0) & (values < opaque)]
    share = between.size / max(1, values.size)
    return share <= (_BETWEEN_ON_MAPS if on_map else _BETWEEN) or np.unique(between).size < _LEVELS


def note_band(values: np.ndarray, opaque: float, number: int) -> None:
    """Notes that channel `number` (from 1) was taken as a band, though it is tagged as transparency."""
    between = values[(values > 0) & (values < opaque)]
    note("alpha_band", number=number, levels=np.unique(values).size, share=between.size / max(1, values.size))


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turns `(height, width, ...)` as an orientation of 1 to 8 says (TIFF 6.0, tag 274)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def describe_error(error: BaseException) -> str:
    """Says in a few words what a library complained about."""
    if isinstance(error, Image.DecompressionBombError):
        return "Pillow refuses so many pixels in a TIFF, GIF or WebP file: raise PIL.Image.MAX_IMAGE_PIXELS, or save it as PNG"
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__


def missing_extra(what: str, libraries: str) -> MissingExtraError:
    """The error for a file that needs a library which is not installed."""
    return MissingExtraError(f'{what} need {libraries}: pip install "hf_geossl[images]"')


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Keeps loggers of libraries silent in this thread: what they say about damage is in the error, or did not matter."""
    thread = get_ident()

    def is_of_another_thread(record: logging.LogRecord) -> bool:
        return record.thread != thread

    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addFilter(is_of_another_thread)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_of_another_thread)


@contextmanager
def decoding(what: str = "its pixels cannot be decoded") -> Iterator[None]:
    """Turns whatever a library raises for a damaged file into a `BrokenImageError` that begins with `what`."""
    try:
        yield
    except BrokenImageError:
        raise
    except Exception as error:  # decoders raise a dozen kinds for damaged files
        raise BrokenImageError(f"{what} ({describe_error(error)})") from error
