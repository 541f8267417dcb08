"""Sizes that compressed images say of themselves: compared with what is expected before a decoder allocates it."""

import struct

from hf_geossl.data.rasters import BrokenImageError

_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers that begin with the size of the image
_JPEG_LS_FRAME = 0xF7


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG or JPEG-LS image; None if its header holds none."""
    at = 2
    while at + 9 <= len(data):
        if data[at] != 0xFF:
            at += 1
            continue
        marker = data[at + 1]
        if marker in _JPEG_FRAMES or marker == _JPEG_LS_FRAME:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        if marker == 0xFF or marker in (0, 1, *range(0xD0, 0xDA)):  # fill bytes, and markers without a length
            at += 1 if marker == 0xFF else 2
            continue
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return None


def webp_size(head: bytes) -> tuple[int, int] | None:
    """Width and height of a WebP image from its first 30 bytes; None of anything else."""
    if len(head) < 30 or head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return None
    kind, number = head[12:16], int.from_bytes(head[21:30], "little")
    if kind == b"VP8X":  # canvas - 1, twice 24 bits from byte 24
        return (number >> 24 & 0xFFFFFF) + 1, (number >> 48 & 0xFFFFFF) + 1
    if kind == b"VP8L":  # size - 1, twice 14 bits from byte 21
        return (number & 0x3FFF) + 1, (number >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":  # twice 14 bits, each in two bytes, from byte 26
        return number >> 40 & 0x3FFF, number >> 56 & 0x3FFF
    return None


def embedded_size(data: bytes) -> tuple[int, int] | None:
    """Width and height that the start of a JPEG, JPEG-LS, JPEG 2000, WebP or LERC image gives; None if there is none."""
    if data.startswith(b"\xff\xd8"):
        return jpeg_size(data)
    start = data.find(b"\xff\x4f\xff\x51", 0, 4096)  # JPEG 2000, with or without boxes around it
    if start >= 0 and len(data) >= start + 24:
        x1, y1, x0, y0 = struct.unpack_from(">4I", data, start + 8)
        return x1 - x0, y1 - y0
    if data[8:12] == b"WEBP":
        return webp_size(data)
    if data.startswith(b"Lerc2 ") and len(data) >= 22:
        version = struct.unpack_from("<i", data, 6)[0]
        rows, columns = struct.unpack_from("<2i", data, 14 if version >= 3 else 10)
        return columns, rows
    return None


def refuse_large_segment(data: bytes, width: int, height: int) -> None:
    """Raises a `BrokenImageError` if a compressed tile or strip says that it is larger than the file's header does.

    Args:
        data (`bytes`): its start.
        width, height (`int`): that it can have; a last tile or strip may have less.
    """
    if not data:  # an empty tile of a map
        return
    size = embedded_size(data)
    if size is not None and not (0 < size[0] <= width and 0 < size[1] <= height):
        raise BrokenImageError(
            f"a part of it says that it is {size[0]} x {size[1]}, where {width} x {height} is the most"
        )
