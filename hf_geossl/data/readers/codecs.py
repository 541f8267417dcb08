"""PNG of 16 bits, JPEG 2000 and AVIF of more than 8 bits or other channels, by imagecodecs: Pillow reduces them to 8 bits."""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image

from hf_geossl.data.rasters import (
    BrokenImageError,
    Raster,
    check_size,
    decoding,
    is_transparency,
    missing_extra,
    note_band,
    upright,
    usable,
)
from hf_geossl.data.readers.pillow import orientation_of, without_png_metadata

PNG_START = b"\x89PNG\r\n\x1a\n"
JPEG2000_STARTS = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
_PNG_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}


def is_png16(head: bytes) -> bool:
    """Whether the start of a file is a PNG of 16 bits."""
    return head.startswith(PNG_START) and head[12:16] == b"IHDR" and head[24:25] == b"\x10"


def read_png16(file: BinaryIO, max_pixels: int) -> Raster:
    """Reads a PNG of 16 bits, whatever texts and profiles it carries.

    Raises:
        BrokenImageError: if it is damaged or too large.
    """
    content = without_png_metadata(file)
    if len(content) < 33:
        raise BrokenImageError("it is truncated")
    width, height, depth, color = struct.unpack(">IIBB", content[16:26])
    if depth != 16 or color not in _PNG_CHANNELS:
        raise BrokenImageError("its header makes no sense")
    check_size(width, height, max_pixels, _PNG_CHANNELS[color], 2)
    if b"IEND" not in content[-16:]:
        raise BrokenImageError("it is truncated: it has no end")
    with decoding():
        if color == 0:  # Pillow keeps grey of 16 bits
            with Image.open(io.BytesIO(content)) as image:
                orientation, values = orientation_of(image), np.array(image)
        else:
            values, orientation = _decode_png(content), _png_orientation(content)
    if values.shape[:2] != (height, width):
        raise BrokenImageError(f"it holds {values.shape[1]} x {values.shape[0]} pixels instead of {width} x {height}")
    values = usable(upright(values.reshape(height, width, -1), orientation))
    alpha = values.shape[2] in (2, 4)
    return Raster(
        np.ascontiguousarray(values[..., :-1]) if alpha else values,
        "PNG",
        transparency=values[..., -1] if alpha else None,
        color=values.shape[2] > 2,
    )


def _decode_png(content: bytes) -> np.ndarray:
    try:
        import imagecodecs
    except ImportError:
        return _decode_png_by_torchvision(content)
    return imagecodecs.png_decode(content)


def _decode_png_by_torchvision(content: bytes) -> np.ndarray:
    try:
        import torch
        from torchvision.io import ImageReadMode, decode_png
    except ImportError:  # torchvision 0.29 announces that its decoders will go
        raise missing_extra("PNG files of 16 bits in colour", "imagecodecs") from None
    pixels = decode_png(torch.frombuffer(bytearray(content), dtype=torch.uint8), mode=ImageReadMode.UNCHANGED)
    return pixels.permute(1, 2, 0).numpy()


def _png_orientation(content: bytes) -> int:
    try:
        with Image.open(io.BytesIO(content)) as image:
            return orientation_of(image)
    except Exception:  # a damaged EXIF block is no reason to lose the pixels
        return 1


# ------------------------------------------------------------------------------------------------------- JPEG 2000


@dataclass(frozen=True)
class _Codestream:
    width: int
    height: int
    bits: tuple[int, ...]
    signed: bool
    alpha: int | None  # number from 0 of the channel that the file tags as transparency


def read_jpeg2000(file: BinaryIO, max_pixels: int) -> Raster | None:
    """Reads a JPEG 2000 image; None of one that Pillow reads as it is: 8 bits in grey or RGB.

    Raises:
        BrokenImageError: if it is damaged or too large.
    """
    file.seek(0)
    content = file.read()
    with decoding("its header cannot be read"):
        stream = _read_codestream(content)
    channels = len(stream.bits)
    # the decoder holds every value as 32 bits
    check_size(stream.width, stream.height, max_pixels, channels, 4)
    if channels in (1, 3) and max(stream.bits) <= 8 and not stream.signed:
        file.seek(0)
        return None
    try:
        import imagecodecs
    except ImportError:
        raise missing_extra("JPEG 2000 files of this kind", "imagecodecs") from None
    with decoding():
        values = imagecodecs.jpeg2k_decode(content)
        values = usable(values.reshape(stream.height, stream.width, channels))
    bits = max(stream.bits) if max(stream.bits) % 8 and not stream.signed else None
    opaque = float(2 ** max(stream.bits) - 1)
    alpha, at = None, stream.alpha
    if at is not None and at < channels:
        if is_transparency(values[..., at], opaque, b"geo" in content[:4096].lower()):
            alpha, values = values[..., at], np.delete(values, at, axis=2)
        else:
            note_band(values[..., at], opaque, at + 1)
    return Raster(
        values,
        "JPEG2000",
        bits=bits,
        transparency=alpha,
        transparency_at=-1 if at is None else at,
        color=values.shape[2] >= 3,
    )


def _boxes(content: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Type, start and end of the boxes of a JP2 file."""
    while start + 8 <= end:
        length, kind = struct.unpack_from(">I4s", content, start)
        head = 8
        if length == 1:
            length, head = struct.unpack_from(">Q", content, start + 8)[0], 16
        stop = end if length == 0 else start + length
        if stop < start + head:
            return
        yield kind, start + head, min(stop, end)
        start = stop


def _read_codestream(content: bytes) -> _Codestream:
    at, alpha = 0, None
    if not content.startswith(JPEG2000_STARTS[1]):
        at = -1
        for kind, start, end in _boxes(content, 0, len(content)):
            if kind == b"jp2c":
                at = start
                break
            if kind == b"jp2h":
                alpha = _tagged_alpha(content, start, end)
    if at < 0 or content[at : at + 4] != JPEG2000_STARTS[1]:
        raise BrokenImageError("it holds no JPEG 2000 codestream")
    x1, y1, x0, y0 = struct.unpack_from(">4I", content, at + 8)
    channels = struct.unpack_from(">H", content, at + 40)[0]
    depths = struct.unpack_from(f">{3 * channels}B", content, at + 42)[::3]
    if not depths:
        raise BrokenImageError("it has no channels")
    return _Codestream(x1 - x0, y1 - y0, tuple((d & 127) + 1 for d in depths), any(d & 128 for d in depths), alpha)


def _tagged_alpha(content: bytes, start: int, end: int) -> int | None:
    for kind, at, stop in _boxes(content, start, end):
        if kind == b"cdef" and stop >= at + 2:
            count = min(struct.unpack_from(">H", content, at)[0], (stop - at - 2) // 6)
            entries = struct.iter_unpack(">3H", content[at + 2 : at + 2 + 6 * count])
            return next((number for number, meaning, _ in entries if meaning in (1, 2)), None)
    return None


# ------------------------------------------------------------------------------------------------------------- AVIF


def avif_bits(head: bytes) -> int:
    """Bits of a value in an AVIF image, from its first 4096 bytes; 8 where they do not say."""
    at = head.find(b"av1C")
    if head[4:8] != b"ftyp" or head[8:12] not in (b"avif", b"avis") or not 0 <= at < len(head) - 7:
        return 8
    flags = head[at + 6]
    return 8 if not flags & 64 else 12 if flags & 32 else 10


def read_avif(file: BinaryIO, image: Image.Image, bits: int, max_pixels: int) -> Raster | None:
    """Reads an AVIF image of more than 8 bits; None where imagecodecs is missing, and Pillow's 8 bits must do.

    Args:
        file (`BinaryIO`): open.
        image (`PIL.Image.Image`): the same, opened by Pillow, for its size and orientation.
        bits (`int`): of a value.
        max_pixels (`int`): the largest width x height.

    Raises:
        BrokenImageError: if it is damaged or too large.
    """
    check_size(image.width, image.height, max_pixels, 4, 2)
    try:
        import imagecodecs
    except ImportError:
        return None
    file.seek(0)
    with decoding():
        values = imagecodecs.avif_decode(file.read(), index=0)
        if values.shape[:2] != (image.height, image.width):
            raise BrokenImageError("its size is not the one of its header")
    values = usable(upright(values.reshape(image.height, image.width, -1), orientation_of(image)))
    alpha = values[..., -1] if values.shape[2] in (2, 4) else None
    values = values if alpha is None else np.ascontiguousarray(values[..., :-1])
    return Raster(values, "AVIF", bits=bits, transparency=alpha, color=values.shape[2] == 3)
