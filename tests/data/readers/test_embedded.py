"""Sizes in the headers of compressed images are those that the decoders see."""

import io

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from hf_geossl.data.rasters import BrokenImageError
from hf_geossl.data.readers.embedded import embedded_size, refuse_large_segment, webp_size
from tests.helpers.image_files import photo, saved

GREY = np.ascontiguousarray(photo()[..., 0])
ENCODED = {
    "jpeg": saved(photo(), "JPEG"),
    "progressive": saved(photo(), "JPEG", progressive=True, icc_profile=b"\xff\xc0" * 300),
    "jpeg-ls": imagecodecs.jpegls_encode(GREY),
    "lossless": imagecodecs.ljpeg_encode(GREY),
    "jpeg 2000": imagecodecs.jpeg2k_encode(GREY, level=0),
    "jp2": imagecodecs.jpeg2k_encode(GREY, level=0, codecformat="jp2"),
    "webp": saved(photo(), "WEBP"),
    "webp lossless": saved(photo(), "WEBP", lossless=True),
    "webp extended": saved(Image.fromarray(photo()).convert("RGBA"), "WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0"),
    "lerc": imagecodecs.lerc_encode(GREY),
}


@pytest.mark.parametrize("kind", ENCODED)
def test_the_size_stands_in_the_header(kind: str) -> None:
    assert embedded_size(ENCODED[kind]) == (48, 40)
    refuse_large_segment(ENCODED[kind], 48, 40)
    for width, height in ((47, 40), (48, 39)):
        with pytest.raises(BrokenImageError, match=f"48 x 40, where {width} x {height} is the most"):
            refuse_large_segment(ENCODED[kind], width, height)


def test_webp_sizes_are_those_that_pillow_finds() -> None:
    for kind in ("webp", "webp lossless", "webp extended"):
        with Image.open(io.BytesIO(ENCODED[kind])) as image:
            assert webp_size(ENCODED[kind][:30]) == image.size
    assert webp_size(ENCODED["jpeg"]) is None


def test_other_data_and_cut_headers_have_no_size() -> None:
    assert embedded_size(b"") is None
    assert embedded_size(b"\x78\x9c" + bytes(50)) is None
    for content in ENCODED.values():
        for end in range(1, 60):
            embedded_size(content[:end])  # raises nothing
    refuse_large_segment(b"", 1, 1)  # a tile that a map leaves out
