"""Datasets that the caller has opened, and the embedded scenes, as sources."""

import os
from collections.abc import Iterator
from functools import partial
from typing import Any, Protocol

import datasets
from PIL import Image

from hf_geossl.data.scenes import DEFAULT_COUNTS, SCENES_VERSION, scene_image, stream_scenes
from hf_geossl.data.sources.base import (
    MIN_UNITS,
    Source,
    as_array,
    check_column,
    encoded_image,
    missing_column,
    number_type,
    rows_from,
    undecoded,
    units_for,
)


class MapDataset(Protocol):
    """A map-style dataset: `datasets.Dataset`, torch's, or any other whose items are dictionaries."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def indexed_source(
    dataset: MapDataset, image_column: str, shuffle_block: int, *, kind: str = "indexed", name: str = ""
) -> Source:
    """Opens a map-style dataset: rows of one index each, whose item is read when a sample is needed."""
    rows, what = len(dataset), type(dataset).__name__
    if rows == 0:
        raise ValueError(f"the dataset is empty (a {what} of length 0); pass one with images")
    identity: dict[str, Any] = {"rows": rows, "dataset": what}
    dtype = None
    if isinstance(dataset, datasets.Dataset):
        check_column(dataset.features, image_column, name or what, opened=not name)
        identity["columns"] = sorted(dataset.column_names)
        if dataset.format["type"] != "custom":
            table = dataset.with_format(None).select_columns([image_column])
            dataset, dtype = undecoded(table), number_type(table.features[image_column])
    units = units_for(rows, shuffle_block)
    spans = [(unit, rows, units) for unit in range(units)]
    return Source(
        kind=kind,
        name=name or what,
        rows=rows_from(_index_rows, spans=spans),
        units=units,
        read=partial(_read_item, dataset, image_column, dtype=dtype),
        identity=identity,
        num_images=rows,
    )


def _index_rows(spans: list[tuple[int, int, int]]) -> Iterator[tuple[int, dict]]:
    for span in spans:
        for index in range(*span):
            yield index, {"key": f"row {index}", "value": index}


def _read_item(dataset: MapDataset, image_column: str, row: dict, dtype: str | None = None) -> Any:
    item = dataset[row["value"]]
    if not isinstance(item, dict):
        raise TypeError(
            f"an item of the dataset must be a dict with the image under {image_column!r}, got {type(item).__name__}; "
            "wrap the dataset so that it returns a dict"
        )
    if image_column not in item:
        raise missing_column(image_column, list(item), "the dataset's items", opened=True)
    return encoded_image(as_array(item[image_column], dtype))


def scenes_source(split: str, config_name: str | None) -> Source:
    """Opens the embedded dataset: rows of an index, rendered when a sample is needed."""
    rows = stream_scenes(split, config_name=config_name, num_shards=MIN_UNITS)
    return Source(
        kind="scenes",
        name=f"scenes/{split}",
        rows=rows,
        units=rows.num_shards,
        read=partial(_render_scene, split, config_name),
        identity={"version": SCENES_VERSION},
        columns=("index",),
        label=f"scenes/{split}/{{index}}",
        num_images=DEFAULT_COUNTS[split],
    )


def _render_scene(split: str, config_name: str | None, row: dict) -> Image.Image:
    return scene_image(split, int(row["index"]), config_name)


def iterable_source(
    dataset: datasets.IterableDataset,
    image_column: str,
    *,
    kind: str = "iterable",
    name: str = "the dataset",
    identity: dict[str, Any] | None = None,
    token: str | bool | None = None,
    num_images: int | None = None,
) -> Source:
    """Opens a `datasets.IterableDataset`; its shards are the units.

    The others are arguments of [`Source`]; `token` is for image files on the Hub that the rows only name.
    """
    _refuse_arranged(dataset)
    dataset, dtype = dataset.with_format(None), None
    if dataset.features is not None:
        check_column(dataset.features, image_column, name, opened=kind == "iterable")
        dtype = number_type(dataset.features[image_column])
        dataset = undecoded(dataset.select_columns([image_column]))
    return Source(
        kind=kind,
        name=name,
        rows=dataset,
        units=dataset.num_shards,
        read=partial(_read_value, image_column, token, dtype=dtype),
        identity={"columns": sorted(dataset.features or [])} if identity is None else identity,
        columns=(image_column,),
        label="",
        num_images=num_images,
    )


def _refuse_arranged(dataset: datasets.IterableDataset) -> None:
    """Refuses a dataset that was divided among nodes or shuffled through a buffer."""
    inner = vars(dataset)  # `datasets` has no public word for either
    if inner.get("_distributed") is not None:
        raise ValueError(
            "the dataset was split by split_dataset_by_node; pass it whole: the batches are split by rank and worker"
        )
    if any(type(link).__name__ == "BufferShuffledExamplesIterable" for link in _links(inner.get("_ex_iterable"))):
        raise ValueError(
            "the dataset was shuffled through a buffer, whose content a checkpoint cannot hold; pass it before "
            ".shuffle(): the stream shuffles by unit and by block (shuffle_block)"
        )


def _links(iterable: object) -> Iterator[object]:
    yield iterable
    for inner in [getattr(iterable, "ex_iterable", None), *getattr(iterable, "ex_iterables", [])]:
        if inner is not None:
            yield from _links(inner)


def _read_value(image_column: str, token: str | bool | None, row: dict, dtype: str | None = None) -> Any:
    return encoded_image(as_array(row[image_column], dtype), token)


def source_of(dataset: object, image_column: str, shuffle_block: int) -> Source:
    """Makes a source of an open dataset; arguments and errors are those of [`ImageStream.from_dataset`]."""
    if isinstance(dataset, (str, bytes, os.PathLike)):
        raise TypeError(f"dataset must be an open dataset, got {dataset!r}; open it by load_stream({dataset!r})")
    if isinstance(dataset, datasets.IterableDataset):
        return iterable_source(dataset, image_column)
    if isinstance(dataset, dict):
        raise TypeError(f"dataset holds the splits {', '.join(map(str, dataset))}; pass one, as dataset['train']")
    if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"):
        return indexed_source(dataset, image_column, shuffle_block)
    raise TypeError(
        "dataset must be a datasets.IterableDataset or have __len__ and __getitem__, got "
        f"{type(dataset).__name__}; for files and Hub datasets use load_stream"
    )
