"""Safe decoding: every image of a data set becomes 8-bit RGB, or one clear error."""

import io
import os
import stat
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image
from PIL.JpegImagePlugin import JpegImageFile

try:
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:  # torchvision 0.29 announces that it will go; Pillow decodes the same pixels, slower
    decode_jpeg = None

DEFAULT_MAX_PIXELS = 2**26
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF")
EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif")

JPEG_START = b"\xff\xd8\xff"
ImageSource = bytes | bytearray | memoryview | str | Path | Image.Image | np.ndarray | torch.Tensor

# EXIF orientation -> what brings the pixels upright (TIFF 6.0, tag 274)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BrokenImageError(ValueError):
    """An image that cannot be used: truncated, too large, of an unknown format, or without pixels.

    Args:
        reason (`str`): what is wrong, in one sentence without the place on the machine.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def decode_image(source: ImageSource, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
    """Decodes an image of a data set to RGB, refusing what is broken or too large before its pixels are touched.

    Encoded images are opened with Pillow's readers for JPEG, PNG, WebP, BMP, TIFF and GIF (of which the first frame is
    taken) and no others. The EXIF orientation is applied; one that cannot be read counts as upright. Grey, palette and
    CMYK are converted, 16-bit grey is scaled by 1 / 257 and rounded (0..65535 -> 0..255), transparent pixels are laid
    over white, as a browser shows them. 32-bit integer and floating point pixels have no fixed range and are refused.
    A string is always the path of a local file: addresses are never followed.

    Args:
        source (`bytes`, `str`, `pathlib.Path`, `PIL.Image.Image`, `numpy.ndarray` or `torch.Tensor`):
            The encoded file, its path, or pixels: an image or uint8 of shape `(height, width)` or
            `(height, width, channels)` with 1, 3 or 4 channels.
        max_pixels (`int`, *optional*, defaults to 2**26): the largest width x height that is decoded. TIFF, GIF and WebP
            files are bounded by twice Pillow's own `PIL.Image.MAX_IMAGE_PIXELS` (2 x 89 million) too.

    Returns:
        `PIL.Image.Image`: mode RGB, at least 1 x 1 pixel.

    Raises:
        BrokenImageError: if the image cannot be used; its `reason` says why.
        TypeError: if `source` is of another kind.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        if len(source) == 0:
            raise BrokenImageError("the file is empty")
        return _decode_file(io.BytesIO(source), max_pixels)
    if isinstance(source, (str, Path)):
        try:
            if not stat.S_ISREG(os.stat(source).st_mode):  # opening a pipe would wait for its other end
                raise BrokenImageError("the file cannot be read (it is no regular file)")
            with open(source, "rb") as file:
                if os.fstat(file.fileno()).st_size == 0:
                    raise BrokenImageError("the file is empty")
                return _decode_file(file, max_pixels)
        except OSError as error:
            raise BrokenImageError(f"the file cannot be read ({error.strerror or type(error).__name__})") from error
    if not isinstance(source, Image.Image):
        source = _from_array(source)
    return _convert(source, max_pixels)


def decode_pixels(source: ImageSource, max_pixels: int = DEFAULT_MAX_PIXELS) -> torch.Tensor:
    """`decode_image` for views: the same pixels and errors, a third faster for JPEG files.

    An upright JPEG of three colours goes through torchvision, which writes the pixels once, where Pillow's image and the
    way out of it cost two copies. Whatever else it is, and whatever torchvision refuses, goes through `decode_image`.
    (Of damage that both overlook, such as a few bytes too many, libjpeg writes a line to standard error.)

    Args:
        source (`bytes`, `str`, `pathlib.Path`, `PIL.Image.Image`, `numpy.ndarray` or `torch.Tensor`): as there.
        max_pixels (`int`, *optional*, defaults to 2**26): the largest width x height that is decoded.

    Returns:
        `torch.Tensor` of shape `(height, width, 3)`: uint8, RGB.

    Raises:
        BrokenImageError, TypeError: as `decode_image`.
    """
    content = _read_jpeg(source) if isinstance(source, (str, Path)) else source
    if decode_jpeg is not None and isinstance(content, (bytes, bytearray)) and content.startswith(JPEG_START):
        pixels = _decode_plain_jpeg(content, max_pixels)
        if pixels is not None:
            return pixels
    return torch.from_numpy(np.array(decode_image(source, max_pixels)))


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
            if header.mode != "RGB" or width * height > max_pixels or _orientation(header) in _UPRIGHT:
                return None
        # A copy of the file, because torch warns of memory that must not be written.
        pixels = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), mode=ImageReadMode.RGB)
    except Exception:  # `decode_image` decodes it or says what is wrong
        return None
    return pixels.permute(1, 2, 0) if pixels.shape[1:] == (height, width) else None


def _decode_file(file: BinaryIO, max_pixels: int) -> Image.Image:
    _refuse_large_webp(file, max_pixels)
    try:
        image = _open(file)
    except Exception as error:
        raise BrokenImageError(f"its header cannot be read ({_describe(error)})") from error
    if image is None:
        raise BrokenImageError(f"not an image of a known format ({', '.join(FORMATS)})")
    with image:
        return _convert(image, max_pixels)


def _open(file: BinaryIO) -> Image.Image | None:
    """`Image.open` without its check of the size, which warns or refuses before `max_pixels` is compared."""
    start = file.read(16)
    for name in FORMATS:
        if name not in Image.OPEN:
            Image.init()
        reader, accepts = Image.OPEN[name]
        if accepts is None or accepts(start) is True:
            file.seek(0)
            try:
                return reader(file, "")
            except (SyntaxError, IndexError, TypeError, struct.error):  # how a reader says that it is another format
                continue
    return None


def _convert(image: Image.Image, max_pixels: int) -> Image.Image:
    _check_size(image.width, image.height, max_pixels)
    try:
        image.load()
    except Exception as error:  # Pillow's readers raise a dozen kinds for damaged files
        raise BrokenImageError(f"its pixels cannot be decoded ({_describe(error)})") from error
    transpose = _UPRIGHT.get(_orientation(image))
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        kind = "integer" if image.mode == "I" else "floating point"
        raise BrokenImageError(f"32-bit {kind} pixels have no fixed range; convert them to 8 or 16 bits first")
    try:
        image = _to_rgb(image)
    except Exception as error:
        raise BrokenImageError(f"mode {image.mode} cannot be converted to RGB ({_describe(error)})") from error
    image = image if transpose is None else image.transpose(transpose)
    image.info.clear()  # of this copy: the orientation has been applied and must not be again
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()  # detached from the file and from the owner's image
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged EXIF block is no reason to lose the pixels
        return 1


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise BrokenImageError(f"it has no pixels ({width} x {height})")
    if width * height > max_pixels:
        raise BrokenImageError(
            f"{width} x {height} is {width * height} pixels, more than max_pixels={max_pixels}; "
            "scale it down, or raise max_pixels"
        )


def _refuse_large_webp(file: BinaryIO, max_pixels: int) -> None:
    """Pillow's WebP reader allocates the canvas when it opens the file; the size is read from the container first."""
    head = file.read(30)
    file.seek(0)
    if len(head) < 30 or head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return
    kind, number = head[12:16], int.from_bytes(head[21:30], "little")
    if kind == b"VP8X":  # canvas - 1, twice 24 bits from byte 24
        size = (number >> 24 & 0xFFFFFF) + 1, (number >> 48 & 0xFFFFFF) + 1
    elif kind == b"VP8L":  # size - 1, twice 14 bits from byte 21
        size = (number & 0x3FFF) + 1, (number >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":  # twice 14 bits, each in two bytes, from byte 26
        size = number >> 40 & 0x3FFF, number >> 56 & 0x3FFF
    else:
        return
    _check_size(*size, max_pixels)


def _from_array(source: object) -> Image.Image:
    if not isinstance(source, np.ndarray):
        if not hasattr(source, "__array__"):
            raise TypeError(
                f"an image must be bytes, a path, a PIL image, a numpy array or a tensor, got {type(source).__name__}"
            )
        source = np.asarray(source.detach().cpu() if hasattr(source, "detach") else source)
    if source.ndim == 3 and source.shape[2] == 1:
        source = source[:, :, 0]
    if source.dtype != np.uint8 or not (source.ndim == 2 or (source.ndim == 3 and source.shape[2] in (3, 4))):
        raise TypeError(
            "an image given as an array must be uint8 of shape (height, width) or (height, width, channels) "
            f"with 1, 3 or 4 channels, got {source.dtype} of shape {source.shape}; turn the data set's tensors off"
        )
    return Image.fromarray(np.ascontiguousarray(source))


def _describe(error: BaseException) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return "Pillow refuses so many pixels in a TIFF, GIF or WebP file: raise PIL.Image.MAX_IMAGE_PIXELS, or save it as PNG"
    text = str(error).split("\n")[0]
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__
