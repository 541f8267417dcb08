"""PGM, PPM, PAM and PFM images with more than 8 bits or four channels, which Pillow would reduce."""

import re
from typing import BinaryIO

import numpy as np

from hf_geossl.data.rasters import BrokenImageError, Raster, check_size, decoding, usable

_CHANNELS = {b"P2": 1, b"P5": 1, b"P3": 3, b"P6": 3, b"Pf": 1, b"PF": 3}
_HEAD = 2048  # bytes in which a header must end
_DIGITS = 9


def is_beyond_pillow(head: bytes) -> bool:
    """Whether the start of a file is a netpbm image of more than 8 bits, with four channels, or of floats."""
    if head[:2] in (b"P7", b"Pf", b"PF"):
        return head[2:3] in b" \t\r\n#"
    if head[:2] not in _CHANNELS or head[2:3] not in b" \t\r\n#":
        return False
    try:
        return int(_tokens(head, 3)[0][2]) > 255
    except (BrokenImageError, ValueError):
        return False


def read_netpbm(file: BinaryIO, max_pixels: int) -> Raster:
    """Reads a PGM, PPM, PAM or PFM image.

    Raises:
        BrokenImageError: if it is damaged or too large.
    """
    head = file.read(_HEAD)
    kind, top = "", 0.0
    with decoding("its header cannot be read"):
        if head[:2] == b"P7":
            width, height, channels, top, kind, start = _read_pam_header(head)
        else:
            (first, second, third), start = _tokens(head, 3)
            width, height, channels = int(first), int(second), _CHANNELS[head[:2]]
            top = float(third) if head[1:2] in b"fF" else int(third)
    floats = head[:2] in (b"Pf", b"PF")
    if not floats and not 0 < top < 2**16:
        raise BrokenImageError(f"its largest value {top} must lie in 1 to 65535")
    dtype = np.dtype(("<" if top < 0 else ">") + "f4") if floats else np.dtype(">u2" if top > 255 else "u1")
    check_size(width, height, max_pixels, channels, dtype.itemsize)
    count = width * height * channels
    file.seek(start)
    with decoding():
        if head[:2] in (b"P2", b"P3"):
            words = file.read(count * _DIGITS + _HEAD).split(maxsplit=count)[:count]
            values = np.array([int(word) for word in words], dtype=np.int64)
            if values.size and not 0 <= values.min() <= values.max() <= top:
                raise BrokenImageError(f"it holds values outside 0 to {top}")
            values = values.astype(np.uint16)
        else:
            values = np.frombuffer(file.read(count * dtype.itemsize), dtype)
        if values.size < count:
            raise BrokenImageError(f"it is truncated: {values.size} of {count} values")
        pixels = usable(values.reshape(height, width, channels)[:: -1 if floats else 1])  # PFM begins at the bottom
    transparency = None
    if kind.endswith("_ALPHA"):
        pixels, transparency = np.ascontiguousarray(pixels[..., :-1]), pixels[..., -1]
    span = None if floats else (0.0, float(top))
    return Raster(
        pixels, "PPM", transparency=transparency, color=pixels.shape[2] == 3, span=span, bits=_bits(top, floats)
    )


def _bits(top: float, floats: bool) -> int | None:
    return None if floats else int(top).bit_length()


def _tokens(head: bytes, count: int) -> tuple[list[bytes], int]:
    """The first `count` words behind the two letters, and where the pixels start: one blank further."""
    words: list[bytes] = []
    for match in re.finditer(rb"#[^\r\n]*|[^\s#]+", head[2:]):
        if not match[0].startswith(b"#"):
            words.append(match[0])
        if len(words) == count:
            return words, 2 + match.end() + 1
    raise BrokenImageError("its header ends too early")


def _read_pam_header(head: bytes) -> tuple[int, int, int, int, str, int]:
    text, found, rest = head.partition(b"ENDHDR")
    if not found:
        raise BrokenImageError("its header ends too early")
    lines = [line.split(None, 1) for line in text[2:].splitlines() if line.strip() and not line.startswith(b"#")]
    values = {line[0]: line[1].strip() for line in lines if len(line) == 2}
    numbers = (int(values[name]) for name in (b"WIDTH", b"HEIGHT", b"DEPTH", b"MAXVAL"))
    width, height, channels, top = numbers
    start = len(text) + len(found) + (2 if rest.startswith(b"\r\n") else 1)
    return width, height, channels, top, values.get(b"TUPLTYPE", b"").decode("ascii", "replace"), start
