"""Safe decoding: every image of a data set becomes the pixels that a model gets, or one clear error."""

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from hf_geossl.data.pixel_values import in_format, rgb8
from hf_geossl.data.rasters import (
    DEFAULT_MAX_PIXELS,
    BrokenImageError,
    MissingExtraError,
    Raster,
    check_size,
    quiet,
)
from hf_geossl.data.readers import arrays, codecs, dicom, embedded, netpbm, pillow, tiff
from hf_geossl.data.readers.pillow import UPRIGHT, orientation_of
from hf_geossl.modeling.image_format import ImageFormat

try:
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:  # torchvision 0.29 announces that it will go; Pillow decodes the same pixels, slower
    decode_jpeg = None

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "EXTENSIONS",
    "BrokenImageError",
    "ImageSource",
    "Raster",
    "decode_image",
    "decode_pixels",
    "is_plain",
    "read_raster",
]

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif"),
    *(".avif", ".jp2", ".j2k", ".j2c", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".pam", ".pfm"),
    *(".npy", ".npz", ".dcm", ".dicom"),
)

JPEG_START = b"\xff\xd8\xff"
ImageSource = bytes | bytearray | memoryview | str | Path | Image.Image | np.ndarray | torch.Tensor | list
_HEAD = 4096  # bytes from which a format is recognised


def decode_image(
    source: ImageSource, max_pixels: int = DEFAULT_MAX_PIXELS, image_format: ImageFormat | None = None
) -> Image.Image:
    """Decodes an image of a data set to RGB of 8 bits, refusing what is broken or too large before its pixels are touched.

    Read are JPEG (and MPO), PNG, WebP, BMP, GIF, TIFF and GeoTIFF of any layout, AVIF, JPEG 2000, netpbm, DICOM, `.npy`,
    `.npz` and arrays; of several frames or pages the first. The EXIF orientation is applied; one that cannot be read counts
    as upright. Grey, palette and CMYK are converted; of more than three channels the first three, or those called red,
    green and blue, are taken. 16 bits are scaled by 1 / 257 and rounded (0..65535 -> 0..255), or by the bits that the file
    names; floating point values of 0 to 1 by 255. Other floating point and 32-bit pixels have no fixed range and are
    refused. Transparent pixels are laid over white, as a browser shows them. What of this was done is in
    [`hf_geossl.data.notes`]. A string is always the path of a local file: addresses are never followed.

    Args:
        source (`bytes`, `str`, `pathlib.Path`, `PIL.Image.Image`, `numpy.ndarray`, `torch.Tensor` or nested lists):
            The encoded file, its path, or pixels of shape `(height, width)`, `(height, width, channels)` or
            `(channels, height, width)` with 1 to 20 channels.
        max_pixels (`int`, *optional*, defaults to 2**26): the largest width x height that is decoded. GIF and WebP files
            are bounded by twice Pillow's own `PIL.Image.MAX_IMAGE_PIXELS` (2 x 89 million) too.
        image_format (`ImageFormat`, *optional*): of a model; its first three channels, or its one, are shown, clipped to
            the value range. RGB of 8 bits by default.

    Returns:
        `PIL.Image.Image`: mode RGB, at least 1 x 1 pixel.

    Raises:
        BrokenImageError: if the image cannot be used; its `reason` says why.
        TypeError: if `source` is of another kind.
    """
    if image_format is not None and not image_format.is_rgb8:
        return _shown(decode_pixels(source, max_pixels, image_format).numpy())
    if isinstance(source, Image.Image):
        pillow.load(source, max_pixels)
        return pillow.to_rgb(source) if pillow.has_fixed_range(source) else _picture(pillow.to_raster(source))
    if not isinstance(source, (bytes, bytearray, memoryview, str, Path)):
        return _picture(arrays.from_value(source, max_pixels))
    with _opened(source) as file:
        found = _read(file, max_pixels)
        if isinstance(found, Raster):
            return _picture(found)
        if not pillow.has_fixed_range(found):
            return _picture(pillow.to_raster(found))
        rgb = pillow.to_rgb(found)
        pillow.note_frames(found)
        return rgb


def decode_pixels(
    source: ImageSource, max_pixels: int = DEFAULT_MAX_PIXELS, image_format: ImageFormat | None = None
) -> torch.Tensor:
    """`decode_image` for views: the same pixels and errors, a third faster for JPEG files.

    An upright JPEG of three colours goes through torchvision, which writes the pixels once, where Pillow's image and the
    way out of it cost two copies. Whatever else it is, and whatever torchvision refuses, goes through `decode_image`.
    (Of damage that both overlook, such as a few bytes too many, libjpeg writes a line to standard error.)

    Args:
        source (`bytes`, `str`, `pathlib.Path`, `PIL.Image.Image`, `numpy.ndarray`, `torch.Tensor` or nested lists): as
            there.
        max_pixels (`int`, *optional*, defaults to 2**26): the largest width x height that is decoded.
        image_format (`ImageFormat`, *optional*): of the model; RGB of 8 bits by default.

    Returns:
        `torch.Tensor` of shape `(height, width, channels)`: uint8 for formats of 8 bits, else float32 in units, in which
        the format's value range goes from 0 to 1; nothing is clipped.

    Raises:
        BrokenImageError, TypeError: as `decode_image`.
    """
    if image_format is not None and not image_format.is_rgb8:
        return torch.from_numpy(in_format(_raster_for(source, max_pixels, image_format), image_format))
    content = _read_jpeg(source) if isinstance(source, (str, Path)) else source
    if decode_jpeg is not None and isinstance(content, (bytes, bytearray)) and content.startswith(JPEG_START):
        pixels = _decode_plain_jpeg(content, max_pixels)
        if pixels is not None:
            return pixels
    return torch.from_numpy(np.array(decode_image(source, max_pixels)))


def read_raster(
    source: ImageSource, max_pixels: int = DEFAULT_MAX_PIXELS, *, pages_as_channels: bool = False
) -> Raster:
    """Reads the stored values of an image, upright, with black at the small end, and what the file says about them.

    Args:
        source (`bytes`, `str`, `pathlib.Path`, `PIL.Image.Image`, `numpy.ndarray`, `torch.Tensor` or nested lists): as
            for `decode_image`.
        max_pixels (`int`, *optional*, defaults to 2**26): the largest width x height that is decoded.
        pages_as_channels (`bool`, *optional*): whether the pages of a TIFF file are channels of one image, where the file
            does not say so.

    Returns:
        [`Raster`]: palettes are expanded, CMYK is RGB, transparency is kept apart.

    Raises:
        BrokenImageError, TypeError: as `decode_image`.
    """
    if isinstance(source, Image.Image):
        pillow.load(source, max_pixels)
        return pillow.to_raster(source)
    if not isinstance(source, (bytes, bytearray, memoryview, str, Path)):
        return arrays.from_value(source, max_pixels)
    with _opened(source) as file:
        found = _read(file, max_pixels, pages_as_channels)
        if isinstance(found, Raster):
            return found
        raster = pillow.to_raster(found)
        pillow.note_frames(found)
        return raster


def is_plain(source: ImageSource) -> bool:
    """Whether an image has 8 bits and no channels beyond colours and transparency, as its header says, which alone is read.

    Args:
        source (`bytes`, `str`, `pathlib.Path`, `PIL.Image.Image`, `numpy.ndarray`, `torch.Tensor` or nested lists): as
            for `decode_image`.

    Returns:
        `bool`: False where the header does not tell.

    Raises:
        BrokenImageError: if the file cannot be read.
    """
    if isinstance(source, Image.Image):
        return pillow.has_fixed_range(source)
    if not isinstance(source, (bytes, bytearray, memoryview, str, Path)):
        shape: tuple[int, ...] = tuple(getattr(source, "shape", ()))
        dtype = str(getattr(source, "dtype", "")).rpartition(".")[2]
        return dtype == "uint8" and (len(shape) == 2 or (len(shape) == 3 and shape[-1] in (1, 3)))
    with _opened(source) as file:
        head = file.read(_HEAD)
        file.seek(0)
        if head.startswith(tiff.STARTS) and not dicom.is_dicom(head):
            with quiet("PIL.TiffImagePlugin"), suppress(BrokenImageError):
                return tiff.is_plain(pillow.open_image(file))
            return False
        if head.startswith(b"\x89PNG"):
            return not codecs.is_png16(head)
        return head.startswith((JPEG_START, b"GIF8", b"BM")) or embedded.webp_size(head) is not None


def _raster_for(source: ImageSource, max_pixels: int, image_format: ImageFormat) -> Raster:
    """The raster of a file; pages are channels where a channel is asked for that the first page lacks."""
    raster = read_raster(source, max_pixels)
    numbers = image_format.channels
    if isinstance(numbers, tuple) and raster.kind == "TIFF" and max(numbers) > raster.all_channels().shape[2]:
        return read_raster(source, max_pixels, pages_as_channels=True)
    return raster


def _picture(raster: Raster) -> Image.Image:
    return Image.fromarray(rgb8(raster))


def _shown(values: np.ndarray) -> Image.Image:
    if values.dtype != np.uint8:
        values = np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(values[..., :3] if values.shape[2] >= 3 else values[..., [0, 0, 0]]))


@contextmanager
def _opened(source: bytes | bytearray | memoryview | str | Path) -> Iterator[BinaryIO]:
    if isinstance(source, (bytes, bytearray, memoryview)):
        if len(source) == 0:
            raise BrokenImageError("the file is empty")
        yield io.BytesIO(source)
        return
    try:
        if not stat.S_ISREG(os.stat(source).st_mode):  # opening a pipe would wait for its other end
            raise BrokenImageError("the file cannot be read (it is no regular file)")
        with open(source, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise BrokenImageError("the file is empty")
            yield file
    except OSError as error:
        raise BrokenImageError(f"the file cannot be read ({error.strerror or type(error).__name__})") from error


def _read(file: BinaryIO, max_pixels: int, pages_as_channels: bool = False) -> Image.Image | Raster:
    """Decodes a file: an image where Pillow reads it as it is stored, else a raster."""
    head = file.read(_HEAD)
    file.seek(0)
    if head.startswith(tiff.STARTS) and not dicom.is_dicom(head):  # a file can be both
        with quiet("PIL.TiffImagePlugin"):
            return _read_tiff(file, max_pixels, pages_as_channels)
    raster = _special_raster(file, head, max_pixels)
    return pillow.load(pillow.open_image(file), max_pixels, file) if raster is None else raster


def _special_raster(file: BinaryIO, head: bytes, max_pixels: int) -> Raster | None:
    """Reads what Pillow does not, or would reduce to 8 bits; None of everything else, with the file at its start."""
    if codecs.is_png16(head):
        return codecs.read_png16(file, max_pixels)
    if head.startswith(codecs.JPEG2000_STARTS):
        return codecs.read_jpeg2000(file, max_pixels)
    if head.startswith(arrays.NPY_START):
        return arrays.read_npy(file, max_pixels)
    if head.startswith(arrays.NPZ_START):
        return arrays.read_npz(file, max_pixels)
    if dicom.is_dicom(head):
        return dicom.read_dicom(file, max_pixels)
    if netpbm.is_beyond_pillow(head):
        return netpbm.read_netpbm(file, max_pixels)
    bits = codecs.avif_bits(head)
    if bits > 8:
        raster = codecs.read_avif(file, pillow.open_image(file), bits, max_pixels)
        file.seek(0)
        return raster
    size = embedded.webp_size(head)
    if size is not None:  # Pillow's reader allocates the canvas when it opens the file
        check_size(*size, max_pixels)
    return None


def _read_tiff(file: BinaryIO, max_pixels: int, pages_as_channels: bool) -> Image.Image | Raster:
    """Leaves to Pillow what it reads as it is stored, so that plain files need no further library."""
    image = None
    if not pages_as_channels:
        with suppress(BrokenImageError):  # of many bands, for instance
            image = pillow.open_image(file)
    if image is None:
        return tiff.read_tiff(file, max_pixels, pages_as_channels)
    check_size(image.width, image.height, max_pixels)
    if tiff.is_plain(image):
        try:
            return pillow.load(image, max_pixels)
        except BrokenImageError:
            with suppress(BrokenImageError):  # compressed in a way that this Pillow lacks
                return tiff.read_tiff(file, max_pixels)
            raise
    if tiff.may_be_transparent(image):
        with suppress(BrokenImageError):
            image = pillow.load(image, max_pixels)
            if tiff.is_transparent(image):
                return image
    try:
        return tiff.read_tiff(file, max_pixels)
    except MissingExtraError:
        if image.mode.startswith("I;16") or image.mode == "F":
            return pillow.load(image, max_pixels)
        raise


def _read_jpeg(path: str | Path) -> bytes | None:
    """The content of a file that begins as a JPEG does; None of any other and of what cannot be read."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for its other end
            return None
        with open(path, "rb") as file:
            start = file.read(len(JPEG_START))
            return start + file.read() if start == JPEG_START else None
    except OSError:  # `decode_image` says what is wrong
        return None


def _decode_plain_jpeg(content: bytes | bytearray, max_pixels: int) -> torch.Tensor | None:
    """Pixels of an upright JPEG of three colours; None if it is not one or there is anything to complain about."""
    try:
        with JpegImageFile(io.BytesIO(content)) as header:
            width, height = header.size
            if header.mode != "RGB" or width * height > max_pixels or orientation_of(header) in UPRIGHT:
                return None
            if "mp" in header.info and not any(b"hdrgm" in content for _, content in header.applist):
                return None  # several images, which is noted there
        # A copy of the file, because torch warns of memory that must not be written.
        pixels = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), mode=ImageReadMode.RGB)
    except Exception:  # `decode_image` decodes it or says what is wrong
        return None
    return pixels.permute(1, 2, 0) if pixels.shape[1:] == (height, width) else None
