"""What a stream reads: rows in units, and how a row becomes an image."""

import math
import os
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

import datasets
import numpy as np
from datasets.iterable_dataset import ExamplesIterable

from hf_geossl.data.images import BrokenImageError
from hf_geossl.data.retries import retry
from hf_geossl.data.sources.archives import ADDRESS, read_member

MIN_UNITS = 64
FILE = "file://"
Rows = TypeVar("Rows", datasets.Dataset, datasets.IterableDataset)
_NESTED_SCHEMES = frozenset({"hf", "zip", "tar", "gzip", "xz", "bz2", "zstd", "lz4"})


@dataclass(frozen=True)
class Source:
    """Rows that can be read unit by unit, in parallel and from any position.

    Args:
        kind (`str`): what the rows come from, such as "folder" or "parquet".
        name (`str`): what people call it, for the log; not a place on the machine.
        rows (`datasets.IterableDataset`): one row a sample, undecoded; at least `units` shards.
        units (`int`): number of units; unit u has the shards u, u + units, u + 2 units, ...
        read (`Callable`): row -> what `decode_image` takes; raises `BrokenImageError`.
        identity (`dict`): plain values that name the data; two sources with equal identities give equal rows.
        columns (`tuple[str, ...]`): the columns of a row that a stream needs.
        label (`str`): name of a row, as a format string of its columns; empty for "unit 3 row 17".
        num_images (`int`, *optional*): rows of a pass, where they are counted without reading them.
    """

    kind: str
    name: str
    rows: datasets.IterableDataset = field(repr=False)
    units: int
    read: Callable[[dict], Any] = field(repr=False)
    identity: dict[str, Any]
    columns: tuple[str, ...] = ("key", "value", "error")
    label: str = "{key}"
    num_images: int | None = None

    def opened_as(self, split: str | None, config_name: str | None, image_column: str) -> "Source":
        """Returns the same source, whose identity has what it was opened by too."""
        opened = {"split": split, "config_name": config_name, "image_column": image_column}
        return replace(self, identity={**opened, **self.identity})

    def unit(self, index: int) -> datasets.IterableDataset:
        """Returns unit `index` as a dataset of its own; a copy, since shallow ones share their position."""
        unit = self.rows.shard(self.units, index, contiguous=False)
        # `datasets` refers to the Hub client's cache, which all share and other threads may be changing: not copied
        shared = [value for name, value in vars(unit).items() if name.endswith("__hffs_cache")]
        return deepcopy(unit, {id(value): value for value in shared})


def units_for(rows: int, shuffle_block: int, most: int | None = None) -> int:
    """Number of units for `rows` rows: about one block each, at least 64 where there is enough to split."""
    return max(1, min(most or rows, max(MIN_UNITS, math.ceil(rows / shuffle_block))))


def rows_from(generate: Callable[..., Iterator[tuple[int, dict]]], **shards: object) -> datasets.IterableDataset:
    """Makes a dataset from a module-level generator of `(key, row)`; its list arguments are its shards.

    `IterableDataset.from_generator` would hash the arguments, which takes seconds for a million file names.
    """
    return datasets.IterableDataset(ExamplesIterable(generate, shards))


def check_column(features: datasets.Features, image_column: str, name: str, opened: bool = False) -> None:
    """Raises a `ValueError` unless `image_column` is there and can hold images; `opened` as in [`missing_column`]."""
    if image_column not in features:
        raise missing_column(image_column, list(features), name, opened)
    feature = features[image_column]
    dtype = getattr(feature, "dtype", None)
    if number_type(feature) is not None:
        return
    if not (isinstance(feature, (datasets.Image, dict)) or dtype in ("binary", "large_binary", "null")):
        holders = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
        raise ValueError(
            f"the column {image_column!r} of {name} holds {feature}, not images; "
            f"columns with images: {', '.join(holders) or 'none'}"
        )


def number_type(feature: object) -> str | None:
    """Type of the numbers in a column of arrays, such as "uint16", which Python's lists do not keep; None of any other.

    Args:
        feature (`datasets.Array2D`, `datasets.Array3D`, nested `datasets.List`, or any other): of the column.
    """
    if isinstance(feature, (datasets.Array2D, datasets.Array3D, datasets.Array4D)):
        return feature.dtype
    depth = 0
    while isinstance(feature, (datasets.List, datasets.LargeList)):
        feature, depth = feature.feature, depth + 1
    dtype = str(getattr(feature, "dtype", ""))
    numeric = re.fullmatch(r"u?int(8|16|32|64)|float(16|32|64)|bool", dtype)
    return dtype if depth >= 2 and isinstance(feature, datasets.Value) and numeric else None


def as_array(value: object, dtype: str | None) -> object:
    """Makes an array of nested lists whose numbers were of a type; anything else stays as it is."""
    if dtype is None or not isinstance(value, list):
        return value
    try:
        return np.array(value, dtype=dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise BrokenImageError("its nested lists are no rectangle of numbers") from error


def missing_column(image_column: str, columns: list[str], name: str, opened: bool = False) -> ValueError:
    """The error for a column that is not among the `columns` of the data `name`.

    `opened` says that the caller had opened the dataset, as for a Trainer, which takes no column name.
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


def undecoded(rows: Rows) -> Rows:
    """Leaves the images of all columns encoded, since `decode_image` bounds their size."""
    for name, feature in (rows.features or {}).items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    return rows


def encoded_image(value: object, token: str | bool | None = None) -> Any:
    """Takes what `decode_image` takes out of a row's value.

    Args:
        value (`dict`, `bytes`, `PIL.Image.Image` or an array): a dict holds `bytes`, or else the `path` of a local
            file or of one on the Hub (`hf://...`).
        token (`str` or `bool`, *optional*): for files on the Hub.

    Raises:
        BrokenImageError: if there is no image, or it lies behind an address that is not the Hub's.
    """
    if isinstance(value, dict):
        if value.get("bytes") is not None:
            return value["bytes"]
        value = value.get("path")
        if isinstance(value, str):
            if value.startswith(FILE):  # a name that is no text
                value = os.fsdecode(unquote_to_bytes(value.removeprefix(FILE)))
            if value.startswith(ADDRESS):
                return read_member(value)
            return _read_address(value, token) if re.match(r"[a-z0-9+]+://", value) else value
    if value is None:
        raise BrokenImageError("the row holds no image")
    if isinstance(value, str):
        raise TypeError(
            f"an image must not be a string, such as {value[:40]!r}; give its bytes, or a dict with its path"
        )
    return value


def value_of_row(root: str, row: dict, dtype: str | None = None) -> Any:
    """Takes the image out of a row of files below `root`; a row with an "error" is a broken image.

    Args:
        root (`str`): a folder.
        row (`dict`): with "value".
        dtype (`str`, *optional*): of the numbers in a column of arrays.
    """
    if row.get("error"):
        raise BrokenImageError(row["error"])
    value = encoded_image(as_array(row["value"], dtype))
    return os.path.join(root, value) if isinstance(value, str) else value


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
