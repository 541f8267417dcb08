"""Measuring images of folders of every kind, against NumPy over all their pixels."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from hf_geossl.data.measurement import measure_images
from hf_geossl.data.streams import load_stream

DRAW = np.random.default_rng(0)


def folder_of(root: Path, shape: tuple[int, ...], dtype: str, count: int = 12) -> tuple[str, np.ndarray]:
    """A folder of TIFF files, and all their pixels."""
    kind = np.dtype(dtype)
    pixels = DRAW.normal(0.5, 0.2, (count, *shape)) if kind.kind == "f" else DRAW.integers(3, 250, (count, *shape))
    pixels = pixels.astype(kind)
    for index, image in enumerate(pixels):
        tifffile.imwrite(
            root / f"{index:03}.tif",
            image,
            photometric="minisblack",
            planarconfig="contig" if image.ndim == 3 else None,
        )
    return str(root), pixels if pixels.ndim == 4 else pixels[..., None]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("channels", [1, 3, 5, 13])
def test_statistics_are_those_of_all_pixels(tmp_path, channels, dtype):
    folder, pixels = folder_of(tmp_path, (16, 20) if channels == 1 else (16, 20, channels), dtype)
    measured = measure_images(load_stream(folder))
    assert (measured.images, dict(measured.channels), dict(measured.dtypes)) == (12, {channels: 12}, {dtype: 12})
    assert dict(measured.sizes) == {(16, 20): 12}
    assert dict(measured.kinds) == {"TIFF": 12}
    for number, one in enumerate(measured.values[dtype]):
        values = pixels[..., number].astype(np.float64)
        assert (one.count, one.low, one.high) == (values.size, values.min(), values.max())
        assert one.mean == pytest.approx(values.mean(), rel=1e-9)
        assert one.std == pytest.approx(values.std(), rel=1e-9)
        assert one.percentile(99) == pytest.approx(np.percentile(values, 99), rel=1e-3)


def test_images_are_taken_from_all_over_the_dataset(tmp_path):
    for index in range(300):
        Image.fromarray(np.full((4, 4), index // 2, np.uint8)).save(tmp_path / f"{index:03}.png")
    stream = load_stream(str(tmp_path))
    measured = measure_images(stream, limit=60)
    assert measured.images == 60
    gray = measured.values["uint8"][0]
    assert gray.low < 8
    assert gray.high > 141
    assert gray.mean == pytest.approx(74.5, abs=5)
    again = measure_images(stream, limit=60)
    assert gray.state_dict() == again.values["uint8"][0].state_dict()
    assert measure_images(stream, limit=10**6).images == 300


def test_broken_images_are_counted_with_their_reason(tmp_path):
    folder_of(tmp_path, (8, 8), "uint16", count=3)
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_bytes(b"no image at all")
    Image.new("RGB", (64, 64)).save(tmp_path / "large.png")
    measured = measure_images(load_stream(str(tmp_path), max_pixels=1000))
    assert (measured.images, measured.num_broken) == (3, 3)
    assert {name for names in measured.broken_examples.values() for name in names} == {
        "empty.png",
        "text.png",
        "large.png",
    }
    assert measured.broken["the file is empty"] == 1


def test_of_large_images_fewer_are_taken(tmp_path, monkeypatch):
    folder, pixels = folder_of(tmp_path, (16, 20), "uint16", count=30)
    monkeypatch.setattr("hf_geossl.data.measurement._ENOUGH_VALUES", 320 * 4)
    assert measure_images(load_stream(folder)).images == 16
    monkeypatch.setattr("hf_geossl.data.measuring.image_statistics._VALUES_AT_ONCE", 10)
    one = measure_images(load_stream(folder)).values["uint16"][0]
    assert one.count == 16 * 10
    assert one.high <= pixels.max()


def test_pages_are_channels_where_they_are_needed(tmp_path):
    for index in range(4):
        with tifffile.TiffWriter(tmp_path / f"{index}.tif") as file:
            for page in range(3):
                file.write(np.full((8, 9), 10 * page + index, np.uint8), photometric="minisblack")
    stream = load_stream(str(tmp_path))
    assert dict(measure_images(stream).channels) == {1: 4}
    measured = measure_images(stream, channels=2)
    assert [one.mean for one in measured.values["uint8"]] == [1.5, 11.5, 21.5]
