"""Arrays: `.npy` and `.npz` files (without pickle: nothing is executed), nested lists, NumPy arrays and tensors."""

import io
import math
import zipfile
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from hf_geossl.data.notes import note
from hf_geossl.data.rasters import MAX_CHANNELS, BrokenImageError, Raster, check_size, decoding, usable

NPY_START = b"\x93NUMPY"
NPZ_START = b"PK\x03\x04"
_USUAL_NAMES = ("image", "images", "img", "x", "data", "arr_0")


def read_npy(file: BinaryIO, max_pixels: int) -> Raster:
    """Reads a `.npy` file; its header is compared with the limits and with the size of the file first.

    Raises:
        BrokenImageError: if it is damaged, too large, or no image.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    return Raster(channels_last(_read_array(file, max_pixels, size)), "NPY")


def read_npz(file: BinaryIO, max_pixels: int) -> Raster:
    """Reads the image of a `.npz` file: its one array, or the one of a usual name, such as `image`.

    Raises:
        BrokenImageError: if it is damaged, too large, or no image.
    """
    with decoding("it cannot be read as a .npz file"):
        archive = zipfile.ZipFile(file)
        names = {name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}
    if not names:
        raise BrokenImageError("it is a zip archive without arrays, not an image")
    usual = [name for name in _USUAL_NAMES if name in names]
    if len(names) > 1 and not usual:
        raise BrokenImageError(
            f"it holds {len(names)} arrays ({', '.join(list(names)[:5])}), none of which is called "
            f"{', '.join(_USUAL_NAMES)}; rename the one with the image"
        )
    chosen = usual[0] if usual else next(iter(names))
    if len(names) > 1:
        note("array", name=chosen, others=", ".join(name for name in list(names)[:5] if name != chosen))
    with decoding("it cannot be read as a .npz file"):
        info = archive.getinfo(names[chosen])
        with archive.open(info) as member:
            return Raster(channels_last(_read_array(member, max_pixels, info.file_size)), "NPZ")  # type: ignore[arg-type]


def _read_array(file: BinaryIO, max_pixels: int, size: int) -> np.ndarray:
    with decoding("its header cannot be read"):
        version = npy.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise BrokenImageError(f"its .npy version {version} is not that of plain numbers")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise BrokenImageError(
            "it holds Python objects, which are not read because that would execute code; store numbers"
        )
    if dtype.kind not in "biuf":
        raise BrokenImageError(f"its values are of type {dtype}, which is no image")
    check_shape(shape, dtype, max_pixels)
    wanted = math.prod(shape) * dtype.itemsize
    left = size - file.tell()
    if wanted > left:
        raise BrokenImageError(f"it is truncated: an array of shape {shape} has {wanted} bytes, the file {left}")
    with decoding():
        content = file.read(wanted)
        return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def check_shape(shape: tuple[int, ...], dtype: np.dtype, max_pixels: int) -> None:
    """Raises a `BrokenImageError` unless an array can be an image within the limits."""
    axis = channel_axis(shape)
    sides = [side for index, side in enumerate(_squeezed(shape)) if index != axis]
    channels = 1 if axis is None else _squeezed(shape)[axis]
    check_size(sides[1], sides[0], max_pixels, channels, dtype.itemsize)


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 3 and shape[0] == 1:  # a batch of one
        shape = shape[1:]
    return shape


def channel_axis(shape: tuple[int, ...]) -> int | None:
    """Which axis of an array holds the channels: the first or the last of three; None for two.

    1 to 4 channels are taken where they stand, before 5 to 20; where both ends could be channels, the last ones are.

    Raises:
        BrokenImageError: if the shape is no image's.
    """
    sides = _squeezed(shape)
    if len(sides) == 2:
        return None
    if len(sides) == 3:
        for most in (4, MAX_CHANNELS):
            for axis in (2, 0):
                if sides[axis] <= most:
                    return axis
    raise BrokenImageError(
        f"an array of shape {tuple(shape)} is no image: it must be (height, width), (height, width, channels) or "
        f"(channels, height, width) with 1 to {MAX_CHANNELS} channels"
    )


def channels_last(values: np.ndarray) -> np.ndarray:
    """Brings an array to `(height, width, channels)`, in a type that is known."""
    values = values.reshape(_squeezed(values.shape))
    axis = channel_axis(values.shape)
    return usable(values[:, :, None] if axis is None else np.moveaxis(values, axis, 2))


def from_value(source: Any, max_pixels: int) -> Raster:
    """Makes a raster of an array, a tensor, or nested lists of numbers as parquet files hold them.

    Raises:
        BrokenImageError: if it is too large, or of a shape or type that is no image.
        TypeError: if it is something else.
    """
    if isinstance(source, list) and source and isinstance(source[0], (list, np.ndarray)):
        with decoding("its nested lists are no rectangle of numbers"):
            source = np.array([np.asarray(row) for row in source])
            if source.dtype == object:
                raise BrokenImageError("its nested lists are no rectangle of numbers")
    if not isinstance(source, np.ndarray):
        if not hasattr(source, "__array__"):
            raise TypeError(
                "an image must be bytes, a path, a PIL image, a numpy array, a tensor or nested lists of numbers, got "
                f"{type(source).__name__}"
            )
        source = np.asarray(source.detach().cpu() if hasattr(source, "detach") else source)
    check_shape(source.shape, source.dtype, max_pixels)
    return Raster(channels_last(source), "array")
