"""Datasets that the caller has opened."""

import datasets
import pytest
from datasets.distributed import split_dataset_by_node

from hf_geossl.data.broken import BrokenStreamError
from hf_geossl.data.images import read_raster
from hf_geossl.data.sources.opened import indexed_source, iterable_source, scenes_source
from hf_geossl.data.streams import ImageStream, load_stream
from tests.helpers.image_files import values
from tests.helpers.images import encoded


def test_datasets_that_cannot_resume_exactly_are_refused():
    dataset = datasets.Dataset.from_dict({"image": [encoded(n) for n in range(4)]}).to_iterable_dataset(num_shards=2)
    with pytest.raises(ValueError, match="shuffled through a buffer"):
        ImageStream.from_dataset(dataset.shuffle(buffer_size=10))
    split = split_dataset_by_node(dataset, rank=0, world_size=2)
    with pytest.raises(ValueError, match="split_dataset_by_node"):
        ImageStream.from_dataset(split)


class Items:
    """A map-style dataset of three items."""

    def __init__(self, *items: object) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> object:
        return self.items[index]


def test_items_are_read_when_they_are_needed_and_by_their_index():
    source = indexed_source(Items({"image": b"a"}, {"image": b"b"}, {"image": b"c"}), "image", shuffle_block=2)
    assert source.units == 3
    rows = [row for unit in range(3) for row in source.unit(unit)]
    assert sorted(row["key"] for row in rows) == ["row 0", "row 1", "row 2"]
    assert {row["key"]: source.read(row) for row in rows} == {"row 0": b"a", "row 1": b"b", "row 2": b"c"}
    assert source.identity == {"rows": 3, "dataset": "Items"}


def test_items_of_another_form_and_no_items_are_refused():
    with pytest.raises(ValueError, match="the dataset is empty .a Items of length 0."):
        indexed_source(Items(), "image", 10)
    source = indexed_source(Items(("image", 3), {"picture": b"x"}), "image", 10)
    with pytest.raises(TypeError, match="an item of the dataset must be a dict .* got tuple; wrap the dataset"):
        source.read({"value": 0})
    with pytest.raises(ValueError, match="the dataset's items has no column 'image'; its columns are picture"):
        source.read({"value": 1})


def test_images_of_a_table_stay_encoded_and_other_columns_unread():
    table = datasets.Dataset.from_dict(
        {"image": [encoded(1), encoded(2)], "label": [0, 1]},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")}),
    )
    source = indexed_source(table, "image", 10)
    assert [source.read({"value": index}) for index in (1, 0)] == [encoded(2), encoded(1)]
    assert source.identity["columns"] == ["image", "label"]
    streamed = iterable_source(table.to_iterable_dataset(num_shards=2), "image")
    assert streamed.units == 2
    assert [streamed.read(row) for row in streamed.rows] == [encoded(1), encoded(2)]
    assert all(set(row) == {"image"} for row in streamed.rows)


def test_scenes_are_rows_of_indices():
    source = scenes_source("test", "16")
    assert source.units == 64
    row = next(iter(source.rows))
    assert row == {"index": 0}
    assert source.label.format(**row) == "scenes/test/0"
    assert source.read(row).size == (16, 16)


@pytest.mark.parametrize("feature", ["array", "lists"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("opened", ["parquet", "dataset", "iterable", "numpy", "torch"])
def test_columns_of_arrays_keep_the_type_of_their_numbers(feature, dtype, opened, tmp_path):
    """Python's lists do not have one: 16 bits with small values would read as 8."""
    stored = [(values(12, 13, 5, seed=seed) // 3).astype(dtype) for seed in range(6)]
    lists = datasets.List(datasets.List(datasets.List(datasets.Value(dtype))))
    kind = datasets.Array3D((12, 13, 5), dtype) if feature == "array" else lists
    columns = datasets.Features({"label": datasets.Value("int32"), "image": kind})
    rows = {"label": list(range(6)), "image": [array.tolist() for array in stored]}
    table = datasets.Dataset.from_dict(rows, features=columns)
    if opened == "parquet":
        table.to_parquet(tmp_path / "train.parquet")
        stream = load_stream(tmp_path)
    elif opened == "iterable":
        stream = ImageStream.from_dataset(table.to_iterable_dataset())
    else:
        stream = ImageStream.from_dataset(table if opened == "dataset" else table.with_format(opened))
    samples = stream.with_decode(lambda source, max_pixels: read_raster(source, max_pixels)).one_epoch()
    found = [sample["image"].pixels for sample in samples]
    assert {array.dtype.name for array in found} == {dtype}
    assert sorted(array.tobytes() for array in found) == sorted(array.tobytes() for array in stored)


def test_other_lists_are_no_images():
    table = datasets.Dataset.from_dict({"image": [[1, 2, 3]]})
    with pytest.raises(ValueError, match="the column 'image' of Dataset holds List"):
        ImageStream.from_dataset(table)
    ragged = datasets.Dataset.from_dict({"image": [[[1, 2], [3]]]})
    with pytest.raises(BrokenStreamError, match="no rectangle of numbers"):
        list(ImageStream.from_dataset(ragged).one_epoch())
