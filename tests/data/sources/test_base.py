"""Sources: units, columns, and values that hold images."""

import datasets
import pytest

from hf_geossl.data.images import BrokenImageError
from hf_geossl.data.sources.base import (
    Source,
    check_column,
    encoded_image,
    missing_column,
    rows_from,
    units_for,
    value_of_row,
)
from hf_geossl.data.sources.files import named_rows


@pytest.mark.parametrize(
    ("rows", "block", "most", "units"),
    [
        (1, 1000, None, 1),
        (30, 1000, None, 30),  # one each
        (5_000, 1000, None, 64),  # at least 64
        (64_001, 1000, None, 65),
        (1_281_167, 1000, None, 1282),
        (1_281_167, 1000, 20, 20),  # no more than row groups
    ],
)
def test_there_is_about_a_unit_a_block_and_at_least_64(rows, block, most, units):
    assert units_for(rows, block, most) == units


def numbers() -> Source:
    names = [[f"{unit}/{row}" for row in range(unit + 1)] for unit in range(5)]
    return Source("folder", "numbers", rows_from(named_rows, units=names), 2, read=lambda row: row, identity={})


def test_a_unit_is_every_nth_shard_and_units_do_not_share_their_position():
    source = numbers()
    assert [row["value"] for row in source.unit(1)] == ["1/0", "1/1", "3/0", "3/1", "3/2", "3/3"]
    first, second = source.unit(0), source.unit(0)
    rows = first.iter(batch_size=1)
    next(rows), next(rows)
    assert next(second.iter(batch_size=1))["value"] == ["0/0"]
    assert next(rows)["value"] == ["2/1"]


def test_the_image_of_a_value_is_taken_without_decoding_it():
    assert encoded_image({"bytes": b"x", "path": "a.jpg"}) == b"x"
    assert encoded_image({"bytes": None, "path": "a.jpg"}) == "a.jpg"
    assert encoded_image(b"x") == b"x"
    for nothing in (None, {"bytes": None, "path": None}):
        with pytest.raises(BrokenImageError, match="the row holds no image"):
            encoded_image(nothing)
    with pytest.raises(
        BrokenImageError, match="names a remote address instead of holding the image; it is not followed"
    ):
        encoded_image({"bytes": None, "path": "https://example.org/a.jpg"})
    with pytest.raises(TypeError, match="an image must not be a string"):
        encoded_image("a.jpg")


def test_paths_of_rows_lie_below_the_root_and_errors_are_broken_images():
    assert value_of_row("root", {"value": {"bytes": None, "path": "a/b.jpg"}}) == "root/a/b.jpg"
    assert value_of_row("root", {"value": b"x"}) == b"x"
    with pytest.raises(BrokenImageError, match="the rest cannot be read"):
        value_of_row("root", {"value": None, "error": "the rest cannot be read"})


def test_columns_must_be_able_to_hold_images():
    features = datasets.Features(
        {"photo": datasets.Image(), "raw": datasets.Value("binary"), "label": datasets.Value("int64")}
    )
    check_column(features, "photo", "data")
    check_column(features, "raw", "data")
    with pytest.raises(ValueError, match=r"the column 'label' of data holds .*int64.*; columns with images: photo"):
        check_column(features, "label", "data")
    with pytest.raises(
        ValueError, match=r"data has no column 'image'; its columns are photo, raw, label: pass the one"
    ):
        check_column(features, "image", "data")
    assert "dataset.rename_column(..., 'image')" in str(missing_column("image", ["a"], "data", opened=True))
