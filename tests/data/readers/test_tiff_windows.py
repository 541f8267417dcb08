"""Windows of TIFF files are parts of what is read of the whole file, and nothing else is read for them."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from hf_geossl.data.images import BrokenImageError, read_raster
from hf_geossl.data.readers.tiff_windows import TiffWindows
from tests.helpers.image_files import values

GEO = [
    (33550, 12, 3, (0.5, 0.5, 0.0), True),
    (33922, 12, 6, (0.0, 0.0, 0.0, 450000.0, 5200000.0, 0.0), True),
    (34735, 3, 8, (1, 1, 0, 1, 3072, 0, 1, 32633), True),
    (34737, 2, 5, "UTM|", True),
]


def compare(path: Path) -> None:
    whole = read_raster(path)
    draw = np.random.default_rng(0)
    with TiffWindows(path) as windows:
        assert (windows.height, windows.width) == whole.pixels.shape[:2]
        for _ in range(4):
            height, width = int(draw.integers(1, windows.height + 1)), int(draw.integers(1, windows.width + 1))
            top, left = (
                int(draw.integers(0, windows.height - height + 1)),
                int(draw.integers(0, windows.width - width + 1)),
            )
            part = windows.read((top, left, height, width))
            assert part.dtype == whole.dtype
            at = (slice(top, top + height), slice(left, left + width))
            np.testing.assert_array_equal(part.pixels, whole.pixels[at])
            assert part.alpha == whole.alpha
            if whole.transparency is not None:
                np.testing.assert_array_equal(part.transparency, whole.transparency[at])


def test_windows_of_every_layout_are_those_of_the_whole(tmp_path: Path) -> None:
    layouts = itertools.product(
        (None, "deflate", "lzw"),
        (None, (32, 48)),
        ("contig", "separate"),
        ("uint8", "uint16", "float32"),
        "<>",
        (1, 3, 6),
    )
    for compression, tile, planar, dtype, order, orientation in list(layouts)[::2]:
        stored = values(70, 101, 3, dtype=dtype)
        options: dict[str, Any] = {"rowsperstrip": 13} if tile is None and compression else {}
        tifffile.imwrite(
            tmp_path / "a.tif",
            stored if planar == "contig" else np.moveaxis(stored, 2, 0),
            compression=compression,
            tile=tile,
            planarconfig=planar,
            byteorder=order,
            photometric="rgb",
            extratags=[(274, 3, 1, orientation, True)],
            metadata=None,
            **options,
        )
        compare(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("stored", "options"),
    [
        (values(64, 70, 3), {"photometric": "rgb", "compression": "jpeg", "tile": (16, 16)}),
        (np.where(values(64, 70, 4) > 90, np.uint8(255), np.uint8(0)), {"photometric": "rgb", "extrasamples": [2]}),
        (values(64, 70) > 100, {"photometric": "minisblack"}),
        (values(64, 70), {"photometric": "miniswhite"}),
        (values(5, 64, 70), {"photometric": "minisblack"}),  # pages that are channels
        (values(64, 70), {"photometric": "palette", "colormap": values(3, 256).astype(np.uint16) * 257}),
    ],
    ids=["jpeg", "transparent", "bits", "white", "pages", "palette"],
)
def test_windows_of_every_kind_are_those_of_the_whole(
    stored: np.ndarray, options: dict[str, Any], tmp_path: Path
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", stored, **options)
    compare(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({"tile": (32, 32), "compression": "deflate"}, 4),  # tiles that a window of 40 x 40 at 20, 20 touches
        ({"rowsperstrip": 8, "compression": "deflate"}, 6),
        ({}, 40),  # rows, of which 40 pixels each are read
    ],
    ids=["tiles", "strips", "plain"],
)
def test_only_what_a_window_touches_is_read(options: dict[str, Any], most: int, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", values(320, 320, 3), photometric="rgb", metadata=None, **options)
    with TiffWindows(tmp_path / "a.tif") as windows:
        windows.read((20, 20, 40, 40))
        assert windows.segments_read == most
        if options:
            windows.read((22, 22, 30, 30))
            assert windows.segments_read == most  # cached


def test_the_place_on_the_earth_is_read_as_it_was_written(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", values(20, 30), photometric="minisblack", metadata=None, extratags=GEO)
    with TiffWindows(tmp_path / "a.tif") as windows:
        tags = windows.map_tags
    tifffile.imwrite(tmp_path / "b.tif", values(20, 30), photometric="minisblack", metadata=None, extratags=tags)
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        for code, _, count, value, _ in GEO:
            assert file.pages.first.tags[code].value == value, code
            assert file.pages.first.tags[code].count == count


def test_what_cannot_be_read_by_parts_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values(64, 64, 3), photometric="rgb", compression="deflate", rowsperstrip=64)
    monkeypatch.setattr("hf_geossl.data.readers.tiff_windows._LARGEST_SEGMENT", 1000)
    with pytest.raises(BrokenImageError, match="stored in parts of 64 x 64, too large .* gdal_translate -co TILED=YES"):
        TiffWindows(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(BrokenImageError):
        TiffWindows(path)
    with pytest.raises(BrokenImageError, match="No such file"):
        TiffWindows(tmp_path / "none.tif")
