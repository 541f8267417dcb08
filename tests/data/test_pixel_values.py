"""Stored values to pictures and to units: every number from the definition, every change noted."""

from typing import Any

import numpy as np
import pytest

from hf_geossl.data.notes import collect_notes
from hf_geossl.data.pixel_values import in_format, rgb8
from hf_geossl.data.rasters import BrokenImageError, Raster
from hf_geossl.modeling.image_format import ImageFormat


def raster(values: Any, dtype: str, **fields: Any) -> Raster:
    pixels = np.array(values, dtype=dtype)
    return Raster(pixels.reshape(1, -1, 1) if pixels.ndim == 1 else pixels, "test", **fields)


def kinds(function: Any, *arguments: Any) -> tuple[np.ndarray, list[str]]:
    with collect_notes() as notes:
        made = function(*arguments)
    return made, [entry.kind for entry in notes]


@pytest.mark.parametrize(
    ("stored", "expected", "noted"),
    [
        (raster([0, 128, 255], "uint8"), [0, 128, 255], []),
        (raster([0, 128, 129, 65535], "uint16"), [0, 0, 1, 255], ["depth"]),
        (raster([0, 2048, 4095], "uint16", bits=12), [0, 128, 255], ["depth"]),
        (raster([0, 100, 8000], "uint16"), [0, 0, 31], ["depth", "dark"]),
        (raster([0, 16384, 32767], "int16"), [0, 128, 255], ["depth"]),
        (raster([-1024, 0, 3071], "int16", span=(-1024, 3071)), [0, 64, 255], ["depth"]),
        (raster([0, 0.5, 1], "float32"), [0, 128, 255], ["floats"]),
        (raster([0, 0.05, 0.1], "float64"), [0, 13, 26], ["floats", "dark"]),
        (raster([np.nan, 0.5, 1], "float16"), [0, 128, 255], ["nodata", "floats"]),
        (raster([-9999, 0.5, 1], "float32", nodata=-9999), [0, 128, 255], ["nodata", "floats"]),
        (raster([0, 7, 15], "uint8", span=(0, 15)), [0, 119, 255], []),
        (raster([65535, 20000, 40000], "uint16", nodata=65535), [0, 78, 156], ["nodata", "depth"]),
    ],
)
def test_pictures_of_values_with_a_fixed_range(stored: Raster, expected: list[int], noted: list[str]) -> None:
    made, found = kinds(rgb8, stored)
    assert made[0, :, 0].tolist() == expected
    assert np.array_equal(made[..., 0], made[..., 2])
    assert found == noted


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (raster([0, 200], "float32"), "32-bit floating point pixels from 0 to 200 .* --value_range 0,200"),
        (raster([-0.5, 1], "float64"), "64-bit floating point pixels from -0.5 to 1 "),
        (raster([0, 1], "uint32"), "32-bit integer pixels from 0 to 1 "),
        (raster([-5, 1], "int32"), "32-bit integer pixels from -5 to 1 .* --value_range -5,1"),
        (raster([-5, 1], "int16"), "signed 16-bit integer pixels from -5 to 1 "),
    ],
)
def test_values_without_a_fixed_range_are_refused_with_the_argument(stored: Raster, message: str) -> None:
    with pytest.raises(BrokenImageError, match=message):
        rgb8(stored)


def test_colours_are_the_first_three_or_those_that_are_called_so() -> None:
    five = np.arange(5, dtype=np.uint8).reshape(1, 1, 5)
    assert kinds(rgb8, Raster(five, "x"))[0].tolist() == [[[0, 1, 2]]]
    named = Raster(five, "x", names=("coastal", "Blue", "Green", "Red", "nir"))
    made, noted = kinds(rgb8, named)
    assert made.tolist() == [[[3, 2, 1]]]
    assert noted == ["channels"]
    two = Raster(five[..., :2], "x")
    assert kinds(rgb8, two) == (pytest.approx(np.zeros((1, 1, 3))), ["channels"])


def fmt(count: int, **fields: Any) -> ImageFormat:
    given = {"channels": tuple(range(1, count + 1)), "names": [f"c{n}" for n in range(count)]}
    return ImageFormat(**{**given, "mean": (0.5,) * count, "std": (0.25,) * count, **fields})


def test_units_follow_each_channels_range_and_are_not_clipped() -> None:
    described = fmt(2, dtype="int16", value_range=((-100, 100), (0, 10)), range_source="given")
    made, noted = kinds(in_format, raster([[[-200, 5], [0, 20]]], "int16"), described)
    assert made.dtype == np.float32
    assert made.tolist() == [[[-0.5, 0.5], [0.5, 2.0]]]
    assert noted == []


def test_files_of_another_type_than_the_models_are_noted() -> None:
    given = fmt(1, dtype="uint16", value_range=((0, 4095),), range_source="bits:12")
    made, noted = kinds(in_format, raster([255], "uint8"), given)
    assert made.item() == 1, "the white of 8 bits is that of 12"
    assert noted == ["type"]
    made, noted = kinds(in_format, raster([255], "int32"), given)
    assert made.item() == pytest.approx(255 / 4095)
    assert noted == ["type"]
    whole = fmt(1, dtype="uint16", value_range=((0, 65535),))
    made, noted = kinds(in_format, raster([255, 51], "uint8"), whole)
    assert made.ravel().tolist() == pytest.approx([1, 0.2])
    assert noted == ["type"]
    assert kinds(in_format, raster([0.5], "float64"), fmt(1, dtype="float32", value_range=((0, 1),)))[1] == []


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (raster([0, 16, 200], "int32"), "32-bit integer pixels from 0 to 200 have no fixed range"),
        (raster([0, 16, 200], "float32"), "32-bit floating point pixels from 0 to 200 have no fixed range"),
        (raster([-5, 16, 200], "int16"), "signed 16-bit integer pixels from -5 to 200 have no fixed range"),
    ],
)
def test_other_types_without_a_range_are_no_image_of_a_model_of_a_whole_type(stored: Raster, message: str) -> None:
    """They used to become one grey, or 200 times the white of the model."""
    sixteen = ImageFormat(
        channels="gray", names=("gray",), dtype="uint16", value_range=((0, 65535),), mean=(0.5,), std=(0.2,)
    )
    with pytest.raises(BrokenImageError, match=message):
        in_format(stored, sixteen)
    units = in_format(raster([0, 32767], "int16"), sixteen)
    assert units[..., 0].tolist() == [[0, 1]]


def test_values_that_are_missing_become_the_low_end() -> None:
    described = fmt(1, dtype="float32", value_range=((10, 20),), range_source="given")
    made, noted = kinds(in_format, raster([np.nan, np.inf, -9999, 15], "float32", nodata=-9999), described)
    assert made.ravel().tolist() == [0, 0, 0, 0.5]
    assert noted == ["nodata"]


def test_transparency_is_laid_over_white_taken_by_number_or_left_out() -> None:
    half = raster([[[0, 0, 0], [100, 100, 100]]], "uint8", transparency=np.array([[0, 255]], np.uint8), color=True)
    gray = {"channels": "gray", "names": ["gray"], "mean": [0], "std": [1]}
    assert kinds(in_format, half, ImageFormat(**gray))[0].ravel().tolist() == [255, 100]
    wide = ImageFormat(**gray, dtype="float32", value_range=((0, 200),), range_source="given")
    assert kinds(in_format, half, wide)[0].ravel().tolist() == [1, 0.5]
    made, noted = kinds(in_format, half, fmt(3))
    assert made[0, 0].tolist() == [0, 0, 0]
    assert noted == ["transparency_ignored"]
    made, noted = kinds(in_format, half, fmt(4))
    assert made[0].tolist() == [[0, 0, 0, 0], [100, 100, 100, 255]]
    assert noted == []


def test_dark_pictures_are_noted_where_the_range_is_the_types() -> None:
    dark = raster([0, 4000], "uint16")
    assert kinds(in_format, dark, fmt(1, dtype="uint16", value_range=((0, 65535),)))[1] == ["dark"]
    assert kinds(in_format, dark, fmt(1, dtype="uint16", value_range=((0, 4095),), range_source="bits:12"))[1] == []
