"""PGM, PPM, PAM and PFM: values as they are stored, as Pillow reads them where it reads them all."""

import io

import numpy as np
import pytest
from PIL import Image

from hf_geossl.data.rasters import BrokenImageError
from hf_geossl.data.readers.netpbm import is_beyond_pillow, read_netpbm
from tests.helpers.image_files import values

LIMIT = 10**6
GREY, RGB = values(8, 9, 1, dtype=np.uint16), values(8, 9, 3, dtype=np.uint16)


def read(content: bytes) -> np.ndarray:
    assert is_beyond_pillow(content)
    return read_netpbm(io.BytesIO(content), LIMIT).pixels


def test_16_bits_are_kept_whatever_the_header_looks_like() -> None:
    body = GREY.astype(">u2").tobytes()
    for head in (b"P5 9 8 65535\n", b"P5\n# a comment 3 4\n9 8\n#\n65535\n", b"P5\t9\r\n8 65535 "):
        assert np.array_equal(read(head + body), GREY), head
    with Image.open(io.BytesIO(b"P5 9 8 65535\n" + body)) as image:
        assert np.array_equal(np.asarray(image), GREY[..., 0])
    assert np.array_equal(read(b"P6 9 8 65535\n" + RGB.astype(">u2").tobytes()), RGB)
    twelve = RGB >> 4
    raster = read_netpbm(io.BytesIO(b"P6 9 8 4095\n" + twelve.astype(">u2").tobytes()), LIMIT)
    assert np.array_equal(raster.pixels, twelve)
    assert (raster.bits, raster.span, raster.color) == (12, (0, 4095), True)
    text = " ".join(map(str, twelve.ravel())).encode()
    assert np.array_equal(read(b"P3\n9 8\n4095\n" + text), twelve)


def test_floats_begin_at_the_bottom() -> None:
    floats = values(8, 9, 3, dtype=np.float32)
    for head, order in ((b"PF\n9 8\n-1.0\n", "<f4"), (b"PF\n9 8\n1.0\n", ">f4")):
        assert np.array_equal(read(head + floats[::-1].astype(order).tobytes()), floats)


def test_pam_keeps_its_transparency_apart() -> None:
    four = values(8, 9, 4)
    head = b"P7\nWIDTH 9\nHEIGHT 8\n# x\nDEPTH 4\nMAXVAL 255\nTUPLTYPE %s\nENDHDR\n"
    raster = read_netpbm(io.BytesIO(head % b"RGB_ALPHA" + four.tobytes()), LIMIT)
    assert np.array_equal(raster.all_channels(), four)
    assert raster.alpha
    raster = read_netpbm(io.BytesIO(head % b"NRGB" + four.tobytes()), LIMIT)
    assert np.array_equal(raster.pixels, four)
    assert not raster.alpha


def test_eight_bits_are_pillows() -> None:
    for head in (b"P5 9 8 255\n", b"P6 9 8 15\n", b"P1 9 8\n", b"P4 9 8\n", b"P5 9", b"P8 9 8 65535\n", b"PNG"):
        assert not is_beyond_pillow(head + b"0 1 ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"P5 9 8 65535\n" + bytes(143), "truncated: 71 of 72 values|cannot be decoded"),
        (b"P5 2000 2000 65535\n", "more than max_pixels"),
        (b"P5 0 8 65535\n", "no pixels"),
        (b"P5 9 8 70000\n", "largest value 70000 must lie in 1 to 65535"),
        (b"P5 9 x 65535\n", "header cannot be read"),
        (b"P2 2 1 4095\n1 5000\n", "values outside 0 to 4095"),
        (b"P2 2 1 4095\n1 x\n", "cannot be decoded"),
        (b"P7\nWIDTH 9\n", "header ends too early"),
        (b"P7\nWIDTH 9\nENDHDR\n", "header cannot be read"),
    ],
)
def test_damaged_files_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(BrokenImageError, match=message):
        read_netpbm(io.BytesIO(content), LIMIT)
