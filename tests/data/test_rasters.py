"""Rasters: limits before memory, types that are known, transparency told from bands."""

import logging

import numpy as np
import pytest

from hf_geossl.data.rasters import (
    BrokenImageError,
    Raster,
    check_size,
    decoding,
    is_transparency,
    quiet,
    upright,
    usable,
)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((0, 5, 100), r"no pixels \(0 x 5\)"),
        ((5, 5, 100, 0), "no pixels"),
        ((11, 10, 100), "11 x 10 is 110 pixels, more than max_pixels=100; scale it down, or raise max_pixels"),
        ((10, 10, 100, 20, 4), "10 x 10 with 20 channels is 8000 bytes, more than 16 x max_pixels=100"),
    ],
)
def test_what_is_too_large_is_refused_by_numbers(size: tuple[int, ...], message: str) -> None:
    with pytest.raises(BrokenImageError, match=message):
        check_size(*size)
    check_size(10, 10, 100, 4, 4)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (np.array([True, False]), "uint8"),
        (np.array([-128, 127], np.int8), "int16"),
        (np.array([0, 255]), "uint8"),
        (np.array([0, 256]), "uint16"),
        (np.array([-1, 256]), "int16"),
        (np.array([0, 2**31]), "uint32"),
        (np.array([-1, 2**17]), "int32"),
        (np.array([1.5, 2], ">f4"), "float32"),
        (np.array([1, 2], ">u2"), "uint16"),
    ],
)
def test_numbers_keep_their_values_in_a_type_that_is_known(stored: np.ndarray, expected: str) -> None:
    found = usable(stored)
    assert found.dtype.name == expected
    assert found.dtype.isnative
    assert found.tolist() == ([255, 0] if stored.dtype == bool else stored.tolist())


@pytest.mark.parametrize(
    "stored", [np.array([0, 2**40]), np.array([1j]), np.array(["a"]), np.array([1], dtype="M8[s]")]
)
def test_other_numbers_are_refused(stored: np.ndarray) -> None:
    with pytest.raises(BrokenImageError, match="fit no type of 32 bits|which is no image"):
        usable(stored)


def test_transparency_is_mostly_clear_or_opaque_and_bands_are_not() -> None:
    draw = np.random.default_rng(0)
    soft = np.clip(np.hypot(*np.mgrid[-50:50, -50:50]) * 40 - 1400, 0, 255)  # a disc with a soft edge
    glass = np.full((10, 10), 128)
    infrared = draw.integers(0, 128, (100, 100))
    mostly_water = np.where(draw.random((100, 100)) < 0.9, 0, infrared)
    assert is_transparency(soft, 255)
    assert is_transparency(glass, 255)
    assert is_transparency(mostly_water, 255)
    assert not is_transparency(mostly_water, 255, on_map=True)
    assert not is_transparency(infrared, 255)
    assert not is_transparency(infrared * 257, 65535)


def test_all_channels_stand_in_the_order_of_the_file() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    alpha = np.full((2, 2), 99, np.uint8)
    assert Raster(pixels, "x", transparency=alpha).all_channels()[0, 0].tolist() == [0, 1, 2, 99]
    assert Raster(pixels, "x", transparency=alpha, transparency_at=1).all_channels()[0, 0].tolist() == [0, 99, 1, 2]
    assert Raster(pixels, "x").all_channels() is pixels


def test_the_span_of_values_is_the_files_or_the_types() -> None:
    pixels = np.zeros((1, 1, 1), np.uint16)
    assert Raster(pixels, "x").value_span() == (0, 65535)
    assert Raster(pixels, "x", bits=12).value_span() == (0, 4095)
    assert Raster(pixels.astype(np.int16), "x", span=(-1024, 3071)).value_span() == (-1024, 3071)
    assert Raster(pixels.astype(np.int16), "x").value_span() == (-32768, 32767)
    assert Raster(pixels.astype(np.float32), "x").value_span() == (0, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_are_those_of_pillow(orientation: int) -> None:
    from PIL import Image, ImageOps

    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6)
    image = Image.fromarray(pixels)
    image.getexif()[274] = orientation
    assert np.array_equal(upright(pixels, orientation), np.asarray(ImageOps.exif_transpose(image)))


def test_errors_of_libraries_become_one_kind_and_their_logs_stay_silent(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(BrokenImageError, match=r"its header .KeyError: 'width'."), decoding("its header"):
        raise KeyError("width")
    with pytest.raises(BrokenImageError, match="^as it is$"), decoding("its header"):
        raise BrokenImageError("as it is")
    with quiet("somebodys"):
        logging.getLogger("somebodys").error("noise")
    logging.getLogger("somebodys").error("signal")
    assert [record.message for record in caplog.records] == ["signal"]
