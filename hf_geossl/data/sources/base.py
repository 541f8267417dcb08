"""What a stream reads: rows in units, and how a row becomes an image."""

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import datasets
from datasets.iterable_dataset import ExamplesIterable
from huggingface_hub import HfFileSystem

from hf_geossl.data.images import BrokenImageError
from hf_geossl.data.retries import retry

MIN_UNITS = 64
_NESTED_SCHEMES = frozenset({"hf", "zip", "tar", "gzip", "xz", "bz2", "zstd", "lz4"})


@dataclass(frozen=True)
class Source:
    """Rows that can be read unit by unit, in parallel and from any position.

    Args:
        kind (`str`): what the rows come from, such as "folder" or "parquet".
        name (`str`): what people call it, for the log; not a place on the machine.
        rows (`datasets.IterableDataset`): one row a sample, undecoded; at least `units` shards.
        units (`int`): number of units; unit u holds the shards u, u + units, u + 2 units, ...
        read (`Callable`): row -> what `decode_image` takes; raises `BrokenImageError`.
        identity (`dict`): plain values that name the data; two sources with equal identities give equal rows.
        columns (`tuple[str, ...]`): the columns a stream keeps of each row.
        label (`str`): how a row is called, as a format string of its columns; empty for "unit 3 row 17".
    """

    kind: str
    name: str
    rows: datasets.IterableDataset = field(repr=False)
    units: int
    read: Callable[[dict], Any] = field(repr=False)
    identity: dict[str, Any]
    columns: tuple[str, ...] = ("key", "value", "error")
    label: str = "{key}"

    def unit(self, index: int) -> datasets.IterableDataset:
        """Returns unit `index` as a dataset of its own; a copy, since shallow ones share their position."""
        shared = HfFileSystem._cache  # which datasets refer to, and which other threads may be changing
        return deepcopy(self.rows.shard(self.units, index, contiguous=False), {id(shared): shared})


def units_for(rows: int, shuffle_block: int, most: int | None = None) -> int:
    """Number of units for `rows` rows: about one block each, at least 64 where there is enough to split."""
    return max(1, min(most or rows, max(MIN_UNITS, math.ceil(rows / shuffle_block))))


def rows_from(generate: Callable[..., Iterator[tuple[Any, dict]]], **kwargs: Any) -> datasets.IterableDataset:
    """Makes a dataset from a module-level generator of `(key, row)`; its list arguments are its shards.

    `IterableDataset.from_generator` would hash the arguments, which takes seconds for a million file names.
    """
    return datasets.IterableDataset(ExamplesIterable(generate, kwargs))


def named_rows(units: list[list[str]]) -> Iterator[tuple[int, dict]]:
    """Generates the rows of units that are lists of file names."""
    for names in units:
        for index, name in enumerate(names):
            yield index, {"key": name, "value": name}


# ----------------------------------------------------------------------------------------------------------- indexed


def indexed_source(dataset: Any, image_column: str, shuffle_block: int) -> Source:
    """Opens a map-style dataset: `len(dataset)` items, each a dict with the image under `image_column`.

    Args:
        dataset (`datasets.Dataset` or any object with `__len__` and `__getitem__`): read when a sample is needed.
        image_column (`str`): an item's key that holds a PIL image, encoded bytes, or uint8 of `(height, width, 3)`.
        shuffle_block (`int`): rows that are shuffled together.

    Returns:
        `Source`: rows that hold an index each.

    Raises:
        ValueError: if the dataset is empty or has no such column.
    """
    rows, name = len(dataset), type(dataset).__name__
    if rows == 0:
        raise ValueError(f"the dataset is empty (a {name} of length 0); pass one with images")
    identity: dict[str, Any] = {"rows": rows, "dataset": name}
    if isinstance(dataset, datasets.Dataset):
        check_column(dataset.features, image_column, name, opened=True)
        identity["columns"] = sorted(dataset.column_names)
        if dataset.format["type"] != "custom":
            dataset = dataset.with_format(None).select_columns([image_column])
            if isinstance(dataset.features[image_column], datasets.Image):
                dataset = dataset.cast_column(image_column, datasets.Image(decode=False))
    units = units_for(rows, shuffle_block)
    spans = [(unit, rows, units) for unit in range(units)]
    return Source(
        kind="indexed",
        name=name,
        rows=rows_from(_index_rows, spans=spans),
        units=units,
        read=partial(_read_item, dataset, image_column),
        identity=identity,
    )


def _index_rows(spans: list[tuple[int, int, int]]) -> Iterator[tuple[int, dict]]:
    for span in spans:
        for index in range(*span):
            yield index, {"key": f"row {index}", "value": index}


def _read_item(dataset: Any, image_column: str, row: dict) -> Any:
    item = dataset[row["value"]]
    if not isinstance(item, dict):
        raise TypeError(
            f"an item of the dataset must be a dict with the image under {image_column!r}, got {type(item).__name__}; "
            "wrap the dataset so that it returns a dict"
        )
    if image_column not in item:
        raise missing_column(image_column, list(item), "the dataset's items", opened=True)
    return encoded_image(item[image_column])


# ------------------------------------------------------------------------------------------------------------ scenes


def scenes_source(split: str, config_name: str | None) -> Source:
    """Opens the embedded dataset: rows that hold an index, drawn when a sample is needed."""
    from hf_geossl.data.scenes import SCENES_VERSION, scene_image, stream_scenes

    rows = stream_scenes(split, config_name=config_name, num_shards=MIN_UNITS)
    return Source(
        kind="scenes",
        name=f"scenes/{split}",
        rows=rows,
        units=rows.num_shards,
        read=partial(_draw_scene, scene_image, split, config_name),
        identity={"version": SCENES_VERSION},
        columns=("index",),
        label=f"scenes/{split}/{{index}}",
    )


def _draw_scene(draw: Callable[..., Any], split: str, config_name: str | None, row: dict) -> Any:
    return draw(split, int(row["index"]), config_name)


# ---------------------------------------------------------------------------------------------------------- iterable


def iterable_source(
    dataset: datasets.IterableDataset,
    image_column: str,
    *,
    kind: str = "iterable",
    name: str = "the dataset",
    identity: dict[str, Any] | None = None,
    token: str | bool | None = None,
) -> Source:
    """Opens a `datasets.IterableDataset`; its shards are the units.

    Args:
        dataset (`datasets.IterableDataset`): whole, unshuffled: the stream shuffles and splits it.
        image_column (`str`): the column with the images.
        kind (`str`), name (`str`), identity (`dict`, *optional*): as in [`Source`].
        token (`str` or `bool`, *optional*): for image files on the Hub that the rows only name.

    Returns:
        `Source`: rows that hold the image column, undecoded.

    Raises:
        ValueError: if the column is missing, or the dataset was shuffled through a buffer or split by node.
    """
    if dataset._distributed is not None:
        raise ValueError(
            "the dataset was split by split_dataset_by_node; pass it whole: the batches are split by rank and worker"
        )
    if any(type(link).__name__ == "BufferShuffledExamplesIterable" for link in _links(dataset._ex_iterable)):
        raise ValueError(
            "the dataset was shuffled through a buffer, whose content a checkpoint cannot hold; pass it before "
            ".shuffle(): the stream shuffles by unit and by block (shuffle_block)"
        )
    dataset = dataset.with_format(None)
    if dataset.features is not None:
        check_column(dataset.features, image_column, name, opened=kind == "iterable")
        dataset = dataset.select_columns([image_column])
        if isinstance(dataset.features[image_column], datasets.Image):
            dataset = dataset.cast_column(image_column, datasets.Image(decode=False))
    return Source(
        kind=kind,
        name=name,
        rows=dataset,
        units=dataset.num_shards,
        read=partial(_read_value, image_column, token),
        identity={"columns": sorted(dataset.features or [])} if identity is None else identity,
        columns=(image_column,),
        label="",
    )


def _links(iterable: Any) -> Iterator[Any]:
    yield iterable
    for inner in [getattr(iterable, "ex_iterable", None), *getattr(iterable, "ex_iterables", [])]:
        if inner is not None:
            yield from _links(inner)


def _read_value(image_column: str, token: str | bool | None, row: dict) -> Any:
    return encoded_image(row[image_column], token)


# ------------------------------------------------------------------------------------------------------------ values


def check_column(features: datasets.Features, image_column: str, name: str, opened: bool = False) -> None:
    """Raises a `ValueError` unless `image_column` is there and can hold images; `opened` as in [`missing_column`]."""
    if image_column not in features:
        raise missing_column(image_column, list(features), name, opened)
    feature = features[image_column]
    dtype = getattr(feature, "dtype", None)
    if not (isinstance(feature, (datasets.Image, dict)) or dtype in ("binary", "large_binary", "null")):
        holders = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
        raise ValueError(
            f"the column {image_column!r} of {name} holds {feature}, not images; "
            f"columns with images: {', '.join(holders) or 'none'}"
        )


def missing_column(image_column: str, columns: list[str], name: str, opened: bool = False) -> ValueError:
    """The error for a column that is not there; it names those that are.

    Args:
        image_column (`str`): the column that was wanted.
        columns (`list[str]`): those that are there.
        name (`str`): of the data.
        opened (`bool`, *optional*): whether the caller had opened the dataset, as for a Trainer, which takes no column.

    Returns:
        `ValueError`: to be raised.
    """
    if opened:
        advice = (
            "name the one with the images by ImageStream.from_dataset(dataset, image_column=...), or rename it by "
            f"dataset.rename_column(..., {image_column!r})"
        )
    else:
        advice = "pass the one with the images as image_column= (--image_column)"
    return ValueError(
        f"{name} has no column {image_column!r}; its columns are {', '.join(columns) or 'none'}: {advice}"
    )


def encoded_image(value: Any, token: str | bool | None = None) -> Any:
    """Takes the image out of a row's value without decoding it.

    Args:
        value (`dict`, `bytes`, `PIL.Image.Image` or an array): a dict holds `bytes`, or else the `path` of a local
            file or of one on the Hub (`hf://...`).
        token (`str` or `bool`, *optional*): for files on the Hub.

    Returns:
        What `decode_image` takes.

    Raises:
        BrokenImageError: if there is no image, or it lies behind an address that is not the Hub's.
    """
    if isinstance(value, dict):
        if value.get("bytes") is not None:
            return value["bytes"]
        value = value.get("path")
        if isinstance(value, str):
            return _read_address(value, token) if "://" in value else value
    if value is None:
        raise BrokenImageError("the row holds no image")
    if isinstance(value, str):
        raise TypeError("an image must not be a string; give its bytes, or a dict with its path")
    return value


def _read_address(address: str, token: str | bool | None) -> bytes:
    from datasets.download.download_config import DownloadConfig
    from datasets.utils.file_utils import xopen

    schemes = {part.split("://")[0] for part in address.split("::") if "://" in part}
    if not schemes <= _NESTED_SCHEMES:
        raise BrokenImageError("the row names a remote address instead of holding the image; it is not followed")

    def read() -> bytes:
        with xopen(address, "rb", download_config=DownloadConfig(token=token)) as file:
            return file.read()

    try:
        return retry("reading an image file from the Hub", read)
    except FileNotFoundError as error:
        raise BrokenImageError("the file that the row names does not exist") from error
