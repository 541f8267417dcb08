"""TIFF and GeoTIFF of any layout: what tifffile wrote comes back, value for value, in any number of bands."""

import io
import itertools
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from hf_geossl.data.images import read_raster
from hf_geossl.data.notes import collect_notes
from hf_geossl.data.rasters import BrokenImageError
from hf_geossl.data.readers.tiff import read_tiff
from tests.helpers.image_files import photo, saved, tiff, values

LIMIT = 10**6
DTYPES = ("uint8", "uint16", "int16", "uint32", "int32", "float16", "float32", "float64", "int8")


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 13, 20])
@pytest.mark.parametrize("compression", [None, "deflate", "lzw", "zstd", "lzma", "packbits"])
def test_every_layout_keeps_every_value(channels: int, compression: str | None) -> None:
    layouts = itertools.product(DTYPES, ("contig", "separate"), (None, (16, 16)), "<>")
    for dtype, planar, tile, order in list(layouts)[channels % 3 :: 3]:  # all of them over the channels
        stored = values(33, 50, channels, dtype=dtype)
        options: dict[str, Any] = {"photometric": "minisblack", "tile": tile, "byteorder": order}
        if channels > 1:
            options["planarconfig"] = planar
        if compression not in (None, "packbits") and stored.dtype.kind != "f":
            options["predictor"] = True
        written = stored[..., 0] if channels == 1 else stored if planar == "contig" else np.moveaxis(stored, 2, 0)
        raster = read_raster(tiff(written, compression=compression, **options))
        assert np.array_equal(raster.pixels, stored), (dtype, planar, tile, order)
        assert raster.dtype == ("int16" if dtype == "int8" else dtype)
        assert not raster.alpha


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_packed_bits_are_counted(bits: int) -> None:
    stored = values(20, 24, dtype=np.uint16) >> (16 - bits)
    raster = read_raster(tiff(stored, bitspersample=bits))
    assert np.array_equal(raster.pixels[..., 0], stored)
    assert raster.bits == bits
    white = read_raster(tiff(stored, bitspersample=bits, photometric="miniswhite"))
    assert np.array_equal(white.pixels[..., 0], 2**bits - 1 - stored)
    named = read_raster(tiff(stored, extratags=[(281, 3, 1, 2**bits - 1, True)]))  # MaxSampleValue
    assert named.bits == bits


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32"])
def test_white_at_the_small_end_is_turned(dtype: str) -> None:
    stored = values(20, 24, dtype=dtype)
    raster = read_raster(tiff(stored, photometric="miniswhite"))
    limits = np.iinfo(dtype)
    assert np.array_equal(raster.pixels[..., 0], limits.max + limits.min - stored.astype(np.int64))


def test_palettes_cmyk_and_orientation() -> None:
    table, index = values(3, 256, dtype=np.uint16), values(20, 24)
    raster = read_raster(tiff(index, photometric="palette", colormap=table))
    assert (
        np.abs(raster.pixels.astype(int) - table[:, index].transpose(1, 2, 0) / 257).max() <= 1
    )  # Pillow's table is cut
    cmyk = np.zeros((1, 4, 4), np.uint16)
    cmyk[0, 1:, :] = [[65535, 0, 0, 0], [0, 0, 0, 65535], [0, 0, 65535, 32768]]
    expected = [[65535, 65535, 65535], [0, 65535, 65535], [0, 0, 0], [32767, 32767, 0]]
    with collect_notes() as notes:
        assert read_raster(tiff(cmyk, photometric="separated")).pixels[0].tolist() == expected
    assert [entry.kind for entry in notes] == ["cmyk"]
    stored = values(20, 24, 5)
    turned = tiff(stored, photometric="minisblack", planarconfig="contig", extratags=[(274, 3, 1, 6, True)])
    assert np.array_equal(read_raster(turned).pixels, np.rot90(stored, -1))


@pytest.mark.parametrize("compression", ["webp", "lerc", "jpeg2000", "jpeg"])
def test_codecs_of_images(compression: str) -> None:
    options = {"webp": {"lossless": True}, "jpeg": {"level": 100}, "jpeg2000": {"level": 0, "reversible": True}}
    content = tiff(photo(), photometric="rgb", compression=compression, compressionargs=options.get(compression))
    difference = np.abs(read_raster(content).pixels.astype(int) - photo())
    assert difference.mean() < (4 if compression == "jpeg" else 0.01)


def five(dtype: Any = np.uint16) -> np.ndarray:
    return values(5, 30, 41, dtype=dtype)


@pytest.mark.parametrize(
    ("content", "channels", "frames", "names"),
    [
        (tiff(five()), 5, 1, ()),
        (tiff(five(np.uint8)), 5, 1, ()),
        (tiff(five(), imagej=True, metadata={"axes": "CYX"}), 5, 1, ()),
        (tiff(five(), imagej=True, metadata={"axes": "ZYX"}), 1, 5, ()),
        (tiff(five(), ome=True, metadata={"axes": "CYX", "Channel": {"Name": list("abcde")}}), 5, 1, tuple("abcde")),
        (tiff(five(), ome=True, metadata={"axes": "ZYX"}), 1, 5, ()),
        (tiff(values(3, 2, 30, 41, dtype=np.uint16), ome=True, metadata={"axes": "CZYX"}), 3, 2, ()),
        (tiff(values(2, 3, 30, 41, dtype=np.uint16), ome=True, metadata={"axes": "ZCYX"}), 3, 2, ()),
        (tiff(values(2, 3, 30, 41, dtype=np.uint16), imagej=True, metadata={"axes": "TCYX"}), 3, 2, ()),
    ],
)
def test_pages_are_channels_where_the_file_says_so(content: bytes, channels: int, frames: int, names: tuple) -> None:
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        first, axes = file.series[0].asarray(), file.series[0].axes
    for axis in "TZ":
        if axis in axes:
            first, axes = first.take(0, axes.index(axis)), axes.replace(axis, "")
    with collect_notes() as notes:
        raster = read_raster(content)
    assert np.array_equal(raster.pixels, np.moveaxis(first, 0, 2) if first.ndim == 3 else first[..., None])
    assert (raster.num_channels, raster.frames, raster.names) == (channels, frames, names)
    assert [entry.kind for entry in notes] == ["frames"] * (frames > 1)


@pytest.mark.parametrize("channels", [2, 5, 20])
@pytest.mark.parametrize("options", [{}, {"compression": "deflate", "predictor": True}, {"byteorder": ">"}], ids=str)
def test_an_array_with_channels_last_that_tifffile_wrote_as_a_page_a_row(channels: int, options: dict) -> None:
    """`tifffile.imwrite(path, array)` without more words; it used to be read as its first row, `(width, channels, 1)`."""
    array = np.random.default_rng(0).integers(0, 4096, (24, 32, channels)).astype("uint16")
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    assert len(tifffile.TiffFile(io.BytesIO(file.getvalue())).pages) == 24
    with collect_notes() as noted:
        found = read_raster(file.getvalue())
    assert np.array_equal(found.pixels, array)
    assert (list(noted), found.frames) == ([], 1)
    with pytest.raises(BrokenImageError, match="max_pixels"):
        read_raster(file.getvalue(), max_pixels=700)


def test_pages_become_channels_where_the_reader_says_so() -> None:
    pages = [Image.fromarray(values(30, 41, seed=seed)) for seed in range(4)]
    content = saved(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    raster = read_raster(content, pages_as_channels=True)
    assert np.array_equal(raster.pixels, np.dstack([np.asarray(page) for page in pages]))
    assert read_raster(content).num_channels == 1


def test_names_of_bands_and_missing_values_are_gdals() -> None:
    text = "<GDALMetadata>" + "".join(
        f'<Item name="DESCRIPTION" sample="{band}" role="description">{name}</Item>'
        for band, name in enumerate(("blue", "green", "red", "nir"))
    )
    tags = [(42112, 2, 0, text + "</GDALMetadata>", True), (42113, 2, 0, "-9999", True)]
    stored = values(20, 24, 4, dtype=np.float32)
    raster = read_raster(tiff(stored, photometric="minisblack", planarconfig="contig", extratags=tags))
    assert raster.names == ("blue", "green", "red", "nir")
    assert raster.nodata == -9999


def test_transparency_multiplied_into_the_colours_is_taken_out() -> None:
    alpha = np.where(np.arange(48) < 30, 255, 0).astype(np.uint8) * np.ones((40, 1), np.uint8)
    alpha[:, 28:30] = 128
    multiplied = np.round(photo() * (alpha[..., None] / 255)).astype(np.uint8)
    content = tiff(
        np.dstack([multiplied, alpha]).astype(np.uint16) * 257, photometric="rgb", extrasamples=["assocalpha"]
    )
    raster = read_raster(content)
    assert raster.alpha
    difference = np.abs(raster.pixels / 257 - photo())
    assert difference[:, :28].max() == 0
    assert difference[:, 28:30].max() <= 1.5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tiff(five()[0], photometric="minisblack")[:-100], "truncated|cannot be read"),
        (tiff(photo(), photometric="rgb", compression="jpegxl"), "compression 50002 is not read"),
        (tiff(values(8, 8).astype(np.complex64)), "complex64"),
        (tiff(values(8, 8, 3), photometric="cielab"), "colour space .*CIELAB.* is not read"),
        (b"II*\0\x08\0\0\0\0\0\0\0", "cannot be read|not read"),
        (b"II*\0", "cannot be read"),
    ],
)
def test_what_cannot_be_used_says_why(content: bytes, message: str) -> None:
    with pytest.raises(BrokenImageError, match=message):
        read_tiff(io.BytesIO(content), LIMIT)


def test_sizes_are_checked_before_pixels_are() -> None:
    content = tiff(values(33, 50, 13, dtype=np.float32), photometric="minisblack", planarconfig="contig")
    with pytest.raises(BrokenImageError, match="1650 pixels, more than max_pixels=1649"):
        read_raster(content, 1649)
    with pytest.raises(BrokenImageError, match="with 13 channels is 85800 bytes, more than 16 x max_pixels=2000"):
        read_raster(content, 2000)
    tiled = tiff(photo(), photometric="minisblack", planarconfig="contig", compression="jpeg2000", tile=(48, 48))
    at = tiled.index(b"\xff\x4f\xff\x51") + 8
    grown = tiled[:at] + (60_000).to_bytes(4, "big") * 2 + tiled[at + 8 :]
    with pytest.raises(BrokenImageError, match="60000 x 60000, where 48 x 48 is the most"):
        read_raster(grown)
