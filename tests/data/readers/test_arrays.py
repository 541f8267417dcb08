"""Arrays: nothing is executed, sizes are checked against the file first, channels are found at either end."""

import io
import zipfile
from typing import Any

import numpy as np
import pytest
import torch

from hf_geossl.data.notes import collect_notes
from hf_geossl.data.rasters import BrokenImageError
from hf_geossl.data.readers.arrays import channel_axis, from_value, read_npy, read_npz
from tests.helpers.image_files import npy, npz, values

LIMIT = 10**6


@pytest.mark.parametrize(
    "dtype", ["uint8", "uint16", "int16", "uint32", "int32", "float16", "float32", "float64", ">u2"]
)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 13, 20])
@pytest.mark.parametrize("first", [True, False])
def test_every_type_and_number_of_channels_at_either_end(dtype: str, channels: int, first: bool) -> None:
    stored = values(23, 31, channels, dtype=dtype)
    written = np.moveaxis(stored, 2, 0) if first else stored
    for order in ("C", "F"):
        found = read_npy(io.BytesIO(npy(np.array(written, order=order))), LIMIT).pixels
        assert np.array_equal(found, stored)
        assert found.dtype == np.dtype(dtype).newbyteorder("=")


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((9, 8), None), ((9, 8, 3), 2), ((3, 8, 9), 0), ((1, 64, 64), 0), ((3, 3, 3), 2), ((1, 3, 64, 64), 0), ((13, 3, 90), 0),
     ((64, 64, 20), 2), ((4, 64, 20), 0)],
)  # fmt: skip
def test_where_the_channels_are(shape: tuple[int, ...], axis: int | None) -> None:
    assert channel_axis(shape) == axis


@pytest.mark.parametrize("shape", [(9,), (), (30, 30, 30), (2, 3, 64, 64), (2, 2, 2, 2, 2)])
def test_other_shapes_are_no_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(BrokenImageError, match="no image: it must be .height, width."):
        channel_axis(shape)


class Executed:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, ("raise SystemExit('executed')",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(np.array([[Executed()]], dtype=object), allow_pickle=True), "Python objects, which are not read"),
        (npy(np.array([["a", "b"]])), "type <U1, which is no image"),
        (npy(np.zeros((4, 4), [("a", "u1")])), "which is no image"),
        (npy(np.zeros((4, 4), complex)), "type complex128"),
        (npy(np.zeros((40, 40)))[:-1], r"truncated: an array of shape \(40, 40\) has 12800 bytes, the file 12799"),
        (npy(np.zeros((40, 40)))[:40], "header cannot be read"),
        (npy(np.zeros((1001, 1000), "u1")), "1001000 pixels, more than max_pixels"),
        (npy(np.zeros((0, 40), "u1")), "no pixels"),
        (b"\x93NUMPY\x09\x00" + bytes(100), "version"),
        (npy(np.zeros((4, 4), "u1")).replace(b"(4, 4), }", b"(4, 1e9)}"), "header cannot be read"),
        (npy(np.zeros((4, 4), "u1")).replace(b"(4, 4), ", b"(-4, -4)"), "no pixels"),
    ],
)
def test_damaged_and_foreign_arrays_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(BrokenImageError, match=message):
        read_npy(io.BytesIO(content), LIMIT)


def test_the_image_of_an_archive_is_its_one_array_or_that_of_a_usual_name() -> None:
    stored, other = values(20, 30, 5, dtype=np.float32), values(20, 30)
    assert np.array_equal(read_npz(io.BytesIO(npz(anything=stored)), LIMIT).pixels, stored)
    with collect_notes() as notes:
        assert np.array_equal(read_npz(io.BytesIO(npz(mask=other, image=stored)), LIMIT).pixels, stored)
    assert [str(entry) for entry in notes] == ["one of several arrays read ('image', not mask)"]
    with pytest.raises(BrokenImageError, match=r"2 arrays .a, b., none of which is called image.*rename"):
        read_npz(io.BytesIO(npz(a=stored, b=other)), LIMIT)
    with pytest.raises(BrokenImageError, match="Python objects"):
        read_npz(io.BytesIO(npz(image=np.array([[Executed()]], dtype=object))), LIMIT)


def test_an_archive_that_inflates_to_more_than_it_says_costs_nothing() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.npy", npy(np.zeros((4_000, 2_000), np.uint8)))  # 8 MB in 8 kB
    with pytest.raises(BrokenImageError, match="8000000 pixels, more than max_pixels"):
        read_npz(file, LIMIT)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "no array")
    with pytest.raises(BrokenImageError, match="zip archive without arrays"):
        read_npz(file, LIMIT)


@pytest.mark.parametrize("kind", [list, torch.from_numpy, np.asarray, lambda array: [list(row) for row in array]])
def test_values_of_parquet_and_of_libraries(kind: Any) -> None:
    stored = values(21, 30, 5, dtype=np.uint16)
    if kind is list:
        found = from_value(stored.tolist(), LIMIT)
        assert found.dtype == "uint16"  # Python's numbers have no type: the smallest that holds them
    else:
        found = from_value(kind(stored), LIMIT)
    assert np.array_equal(found.pixels, stored)


def test_values_that_are_no_image() -> None:
    for ragged in ([[1, 2], [3]], [["a"]], [[{}]]):
        with pytest.raises(BrokenImageError, match="no rectangle of numbers|no image"):
            from_value(ragged, LIMIT)
    for other in ([1, 2], [], "a", None, {}):
        with pytest.raises(TypeError, match="must be bytes, a path"):
            from_value(other, LIMIT)
    with pytest.raises(BrokenImageError, match="more than max_pixels=99"):
        from_value(np.zeros((10, 10), np.uint8), 99)
