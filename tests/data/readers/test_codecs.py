"""PNG of 16 bits, JPEG 2000 and AVIF: every bit and every channel that the file holds."""

import io
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from hf_geossl.data.images import read_raster
from hf_geossl.data.notes import collect_notes
from hf_geossl.data.rasters import BrokenImageError
from hf_geossl.data.readers import codecs
from tests.helpers.image_files import photo, saved, values

LIMIT = 10**6


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("library", ["imagecodecs", "torchvision"])
def test_png_of_16_bits_keeps_every_bit(channels: int, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = values(21, 30, channels, dtype=np.uint16)
    content = imagecodecs.png_encode(stored[..., 0] if channels == 1 else stored)
    if library == "torchvision":
        monkeypatch.setattr(codecs, "_decode_png", codecs._decode_png_by_torchvision)
    raster = codecs.read_png16(io.BytesIO(content), LIMIT)
    assert np.array_equal(raster.all_channels(), stored)
    assert raster.alpha == (channels in (2, 4))
    assert not codecs.is_png16(saved(photo(), "PNG"))


def test_png_of_16_bits_is_turned_upright_and_bounded() -> None:
    stored = values(21, 30, 3, dtype=np.uint16)
    content = imagecodecs.png_encode(stored)
    exif = Image.Exif()
    exif[274] = 6
    small = saved(photo(), "PNG", exif=exif)
    at = small.index(b"eXIf") - 4
    length = int.from_bytes(small[at : at + 4], "big") + 12
    turned = content[:33] + small[at : at + length] + content[33:]
    assert np.array_equal(codecs.read_png16(io.BytesIO(turned), LIMIT).pixels, np.rot90(stored, -1))
    for end in (20, 40, len(content) // 2, len(content) - 5):
        with pytest.raises(BrokenImageError):
            codecs.read_png16(io.BytesIO(content[:end]), LIMIT)
    with pytest.raises(BrokenImageError, match="630 pixels, more than max_pixels=629"):
        codecs.read_png16(io.BytesIO(content), 629)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 13])
@pytest.mark.parametrize("container", ["jp2", "j2k"])
def test_jpeg_2000_of_any_channels_and_type(dtype: str, channels: int, container: str) -> None:
    stored = values(32, 40, channels, dtype=dtype)
    content = imagecodecs.jpeg2k_encode(
        stored[..., 0] if channels == 1 else stored, level=0, reversible=True, codecformat=container
    )
    raster = read_raster(content)
    assert np.array_equal(raster.all_channels(), stored)
    assert raster.dtype == dtype


def test_jpeg_2000_of_12_bits_says_so() -> None:
    content = imagecodecs.jpeg2k_encode(values(32, 40, dtype=np.uint16) >> 4, level=0, bitspersample=12)
    raster = codecs.read_jpeg2000(io.BytesIO(content), LIMIT)
    assert raster is not None
    assert raster.bits == 12
    assert raster.value_span() == (0, 4095)


def test_transparency_of_jpeg_2000_is_what_the_file_tags() -> None:
    clear = np.where(np.arange(48)[None] < 20, 0, 255) * np.ones((40, 1))
    for fourth, alpha in ((clear, True), (photo()[..., 0], False)):
        pixels = np.dstack([photo(), fourth]).astype(np.uint8)
        with collect_notes() as notes:
            raster = read_raster(saved(Image.fromarray(pixels), "JPEG2000"))
        assert raster.alpha == alpha
        assert np.array_equal(raster.all_channels(), pixels)
        assert [entry.kind for entry in notes] == [] if alpha else ["alpha_band"]


@pytest.mark.parametrize("bits", [10, 12])
def test_avif_of_more_than_8_bits(bits: int) -> None:
    stored = (photo().astype(np.uint16) << (bits - 8)).astype(np.uint16)
    raster = read_raster(imagecodecs.avif_encode(stored, bitspersample=bits, level=98))
    assert raster.bits == bits
    assert raster.color
    assert np.abs(raster.pixels.astype(int) - stored).mean() < 2**bits * 0.02
    assert read_raster(saved(photo(), "AVIF")).dtype == "uint8"


@pytest.mark.parametrize(
    "damage", [lambda c: c[:30], lambda c: c[:60], lambda c: c[:-40], lambda c: c[:50] + b"\xff" * 40]
)
def test_damaged_jpeg_2000_is_refused(damage: Any) -> None:
    content = imagecodecs.jpeg2k_encode(values(32, 40, 5), level=0, codecformat="j2k")
    with pytest.raises(BrokenImageError):
        codecs.read_jpeg2000(io.BytesIO(damage(content)), LIMIT)
