"""DICOM: the values that the files mean, compared with pydicom's own and with what was written."""

import io
import warnings
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.pixels import apply_modality_lut

from hf_geossl.data.images import read_raster
from hf_geossl.data.notes import collect_notes
from hf_geossl.data.rasters import BrokenImageError
from hf_geossl.data.readers.dicom import is_dicom, read_dicom
from tests.helpers.image_files import dicom, photo, values

LIMIT = 10**6
THEIRS = Path(pydicom.__file__).parent / "data" / "test_files"
GREY = np.ascontiguousarray(photo()[..., 0])
TWELVE = (photo()[..., 0].astype(np.uint16) << 4).astype(np.uint16)


@pytest.mark.parametrize(
    "name",
    ["CT_small", "MR_small", "MR_small_bigendian", "MR_small_RLE", "MR_small_implicit", "693_J2KI", "JPEG2000",
     "SC_rgb_dcmtk_+eb+cr", "SC_rgb_rle_16bit_2frame", "SC_rgb_jpeg_dcmtk", "SC_rgb_jpeg", "SC_ybr_full_422_uncompressed",
     "SC_jpeg_no_color_transform", "SC_rgb_small_odd_big_endian", "liver_1frame", "examples_overlay", "examples_ybr_color"],
)  # fmt: skip
def test_files_of_every_kind_give_what_pydicom_gives(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(THEIRS / f"{name}.dcm")
        theirs = dataset.pixel_array
    theirs = theirs[0] if int(dataset.get("NumberOfFrames", None) or 1) > 1 else theirs
    theirs = theirs if theirs.ndim == 3 else apply_modality_lut(theirs, dataset)[..., None]
    found = read_raster(THEIRS / f"{name}.dcm")
    assert found.kind == "DICOM"
    assert np.array_equal(found.pixels, theirs)


@pytest.mark.parametrize(
    ("pixels", "tags", "expected", "dtype", "span"),
    [
        (GREY, {}, GREY, "uint8", (0, 255)),
        (TWELVE, {"bits": 12}, TWELVE, "uint16", (0, 4095)),
        (TWELVE | 0xF000, {"bits": 12}, TWELVE, "uint16", (0, 4095)),  # an overlay above the 12 bits
        (TWELVE, {"bits": 12, "PhotometricInterpretation": "MONOCHROME1"}, 4095 - TWELVE, "uint16", (0, 4095)),
        (TWELVE, {"bits": 12, "RescaleIntercept": -1024, "RescaleSlope": 1}, TWELVE.astype(int) - 1024, "int16", (-1024, 3071)),
        (TWELVE.astype(np.int16) - 500, {}, TWELVE.astype(int) - 500, "int16", (-32768, 32767)),
        (TWELVE, {"RescaleIntercept": 0, "RescaleSlope": 0.5}, TWELVE * 0.5, "float32", (0, 32767.5)),
    ],
)  # fmt: skip
def test_values_are_those_that_the_file_means(
    pixels: np.ndarray, tags: dict, expected: np.ndarray, dtype: str, span: tuple[float, float]
) -> None:
    raster = read_dicom(io.BytesIO(dicom(pixels, **tags)), LIMIT)
    assert np.array_equal(raster.pixels[..., 0], expected)
    assert (raster.dtype, raster.span) == (dtype, span)


@pytest.mark.parametrize(
    ("syntax", "encode"),
    [
        ("1.2.840.10008.1.2.4.90", lambda x: imagecodecs.jpeg2k_encode(x, level=0, reversible=True)),
        ("1.2.840.10008.1.2.4.80", imagecodecs.jpegls_encode),
        ("1.2.840.10008.1.2.4.70", imagecodecs.ljpeg_encode),
    ],
)
@pytest.mark.parametrize("stored", [GREY, TWELVE])
def test_compressed_syntaxes(syntax: str, encode: object, stored: np.ndarray) -> None:
    content = dicom(stored, encoded=encode(stored), syntax=syntax)  # type: ignore[operator]
    assert np.array_equal(read_dicom(io.BytesIO(content), LIMIT).pixels[..., 0], stored)


def test_colour_frames_and_windows_are_told() -> None:
    raster = read_dicom(io.BytesIO(dicom(photo(), WindowCenter="40", WindowWidth=["400", "2000"])), LIMIT)
    assert np.array_equal(raster.pixels, photo())
    assert raster.color
    grey = read_dicom(io.BytesIO(dicom(GREY, WindowCenter="40", WindowWidth=["400", "2000"])), LIMIT)
    assert grey.window == (40, 400)
    with collect_notes() as notes:
        read_raster(THEIRS / "SC_rgb_rle_2frame.dcm")
    assert [str(entry) for entry in notes] == ["only the first of several frames or pages read (2 images in this file)"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("image_dfl", "deflated as a whole"),
        ("MR_truncated", "truncated: 8130 of 8192 bytes"),
        ("test-SR", "DICOM file without an image"),
        ("rtstruct", "DICOM file without an image"),
        ("nested_priv_SQ", "lacks Rows and Columns and BitsAllocated"),
        ("badVR", "cannot be read as DICOM"),
    ],
)
def test_what_is_no_image_or_damaged_says_why(name: str, message: str, recwarn: pytest.WarningsRecorder) -> None:
    with pytest.raises(BrokenImageError, match=message):
        read_raster(THEIRS / f"{name}.dcm")
    assert not recwarn.list
    assert is_dicom((THEIRS / f"{name}.dcm").read_bytes()[:200])


def test_size_and_bits_are_checked_before_pixels_are() -> None:
    with pytest.raises(BrokenImageError, match="1920 pixels, more than max_pixels=1919"):
        read_dicom(io.BytesIO(dicom(GREY)), 1919)
    smaller = dicom(GREY[:20, :24], encoded=imagecodecs.jpegls_encode(GREY), syntax="1.2.840.10008.1.2.4.80")
    with pytest.raises(BrokenImageError, match="48 x 40, where 24 x 20 is the most"):
        read_dicom(io.BytesIO(smaller), LIMIT)
    with pytest.raises(BrokenImageError, match="transfer syntax 1.2.840.10008.1.2.4.100 is not one"):
        read_dicom(io.BytesIO(dicom(GREY, encoded=b"video", syntax="1.2.840.10008.1.2.4.100")), LIMIT)
    with pytest.raises(BrokenImageError, match="no number"):
        read_dicom(io.BytesIO(dicom(values(4, 4), RescaleSlope="nan", RescaleIntercept=0)), LIMIT)
