"""The images of any dataset in its own order: a stable key, what is decoded, and the columns that are carried along."""

import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import datasets
import pyarrow as pa

from hf_geossl.data import SCENES_VERSION, load_scenes, parse_config_name
from hf_geossl.data.blocks import UnitReader
from hf_geossl.data.scenes.stream import scene_features
from hf_geossl.data.sources.base import Source, as_array, check_column, encoded_image, number_type
from hf_geossl.data.sources.files import as_path
from hf_geossl.data.sources.listing import kind_of
from hf_geossl.data.sources.opened import MapDataset
from hf_geossl.data.sources.opening import SCENES, LabelledRows, open_rows, open_source
from hf_geossl.data.wording import as_text, name_of
from hf_geossl.tasks.embedding.arguments import EmbeddingArguments

logger = logging.getLogger(__name__)

_ROWS_TRIED = 5  # of a stream that does not say its columns
_ROWS_AT_ONCE = 32


@dataclass(frozen=True)
class Row:
    """A row of a dataset before its image is decoded.

    Args:
        unit (`int`): The shard of a stream; 0 of rows that can be read in any order.
        number (`int`): Its place in it.
        values (`dict`, *optional*): The row of a stream; others are read by whoever decodes them.
    """

    unit: int
    number: int
    values: Mapping[str, Any] | None = None


class DatasetImages:
    """The images of a dataset in its order. Make it with `open_images`; it can be sent to other processes.

    Args:
        name (`str`): What people call the dataset.
        rows: A map-style dataset, or a stream.
        names (`Sequence[str]`): Keys of a map-style dataset's rows; names of a stream's shards. Numbers where it is empty.
        features (`datasets.Features`): Of all columns.
        arguments ([`EmbeddingArguments`]): Which columns, how many rows.
        identity (`dict`): Plain values that say which dataset it is.
        source ([`Source`], *optional*): Of a stream of images alone, whose rows it reads.
    """

    def __init__(
        self,
        name: str,
        rows: MapDataset | datasets.IterableDataset,
        names: Sequence[str],
        features: datasets.Features,
        arguments: EmbeddingArguments,
        identity: Mapping[str, Any],
        source: Source | None = None,
    ) -> None:
        self.name, self.rows, self.names, self.identity, self.source = name, rows, names, identity, source
        self.image_column, self.limit = arguments.image_column, arguments.limit
        if source is None:
            check_column(features, self.image_column, name)
        self._dtype = number_type(features.get(self.image_column))
        self._all_features = features
        self.features = self._carried(arguments.columns)

    def _carried(self, columns: Sequence[str] | None) -> datasets.Features:
        features = {name: kind for name, kind in self._all_features.items() if name != self.image_column}
        if columns is None:
            return datasets.Features({name: kind for name, kind in features.items() if not _is_large(kind)})
        unknown = [name for name in columns if name not in features]
        if unknown:
            raise ValueError(
                f"{self.name} has no column {unknown[0]!r} to carry along; its columns are {', '.join(features) or 'none'}"
            )
        return datasets.Features({name: features[name] for name in columns})

    def without(self, reserved: Sequence[str]) -> None:
        """Leaves out columns whose names the table has for its own, and says so; says too which maps are not carried."""
        taken = [name for name in self.features if name in reserved]
        if taken:
            logger.warning("%s: the column %s left out: the table has one of that name", self.name, ", ".join(taken))
            self.features = datasets.Features({name: kind for name, kind in self.features.items() if name not in taken})

    @property
    def left_out(self) -> list[str]:
        """Columns that are not carried along."""
        return [name for name in self._all_features if name != self.image_column and name not in self.features]

    @property
    def units(self) -> int:
        """Shards of a stream; 1 of rows that can be read in any order, and where only the first are wanted."""
        return self._shards if self.limit is None else 1

    @property
    def _shards(self) -> int:
        if self.source is not None:
            return self.source.units
        return self.rows.num_shards if isinstance(self.rows, datasets.IterableDataset) else 1

    @property
    def count(self) -> int | None:
        """How many images there are; None where they would have to be read to know."""
        if isinstance(self.rows, datasets.IterableDataset):
            return None
        return len(self.rows) if self.limit is None else min(self.limit, len(self.rows))

    def from_place(self, unit: int, start: int) -> Iterator[Row]:
        """The rows of a unit from a place on.

        Raises:
            ValueError: If the rest of it cannot be read.
        """
        if self.count is not None:
            yield from (Row(0, number) for number in range(start, self.count))
            return
        stop = self.limit
        rows = self._streamed(unit) if stop is None else islice(self._first_rows(), stop)
        yield from islice(rows, start, None)

    def _first_rows(self) -> Iterator[Row]:
        for unit in range(self._shards):
            yield from self._streamed(unit)

    def _streamed(self, unit: int) -> Iterator[Row]:
        columns = (self.image_column, *self.features, "__key__")
        own = Source("stream", self.name, self.rows, self._shards, dict, {}, columns)
        reader, number = UnitReader(self.source or own, unit), 0
        try:
            while rows := reader.read(_ROWS_AT_ONCE):
                for row in rows:
                    yield Row(unit, number, row)
                    number += 1
        except pa.ArrowException as error:
            raise ValueError(
                f"{self._shard(unit)} of {self.name} cannot be read beyond row {number} ({str(error).splitlines()[0][:120]}): "
                "mend or remove it"
            ) from error

    def _shard(self, unit: int) -> str:
        return as_text(self.names[unit]) if self.names else f"unit {unit}"

    def read(self, row: Row) -> tuple[str, Mapping[str, Any]]:
        """The key of a row and its values, the image not decoded."""
        if row.values is None:
            key = as_text(self.names[row.number]) if self.names else f"row {row.number}"
            return key, self.rows[row.number]
        if self.source is not None:
            return self.source.label.format(**row.values) or f"unit {row.unit} row {row.number}", row.values
        image, shard = row.values.get(self.image_column), self._shard(row.unit)
        if row.values.get("__key__") is not None:
            return f"{shard}:{row.values['__key__']}", row.values
        path = image.get("path") if isinstance(image, Mapping) else None
        if isinstance(path, str) and path.startswith("hf://") and "@" in path:  # a file of a repository
            return path.partition("@")[2].partition("/")[2], row.values
        return (f"{shard}:{row.number}" if self.names else f"{shard} row {row.number}"), row.values

    def find(self, keys: Collection[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """The rows of some keys, in order; of a stream all rows are read until they have come."""
        if self.count is not None:
            numbers = [number for number, name in enumerate(self.names) if as_text(name) in keys]
            numbers = numbers if self.names else sorted(int(key.removeprefix("row ")) for key in keys)
            yield from (self.read(Row(0, number)) for number in numbers)
            return
        left = set(keys)
        for unit in range(self.units):
            for row in self.from_place(unit, 0):
                key, values = self.read(row)
                if key in left:
                    yield key, values
                    left.remove(key)
                if not left:
                    return

    def image_of(self, values: Mapping[str, Any]) -> Any:
        """What `decode_image` takes, of a row's values.

        Raises:
            BrokenImageError: If there is none.
        """
        if self.source is not None:
            return self.source.read(dict(values))
        return encoded_image(as_array(values.get(self.image_column), self._dtype))

    def carried_of(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The columns that are carried along, of a row's values."""
        return {name: values.get(name) for name in self.features}


def open_images(dataset: str, arguments: EmbeddingArguments) -> DatasetImages:
    """Opens a dataset.

    Args:
        dataset (`str`): What `geossl pretrain` and `geossl evaluate` take, or a single image.
        arguments ([`EmbeddingArguments`]): Which split and columns.

    Raises:
        ValueError, FileNotFoundError, PermissionError, ConnectionError: As `load_stream`.
    """
    split = arguments.split
    if dataset == SCENES:
        mode, size = parse_config_name(arguments.config_name)
        scenes = load_scenes(split, size, mode=mode)
        names = [f"scenes/{split}/{index}" for index in range(len(scenes))]
        identity: dict[str, Any] = {"scenes": SCENES_VERSION, "mode": mode, "size": size}
        return DatasetImages(f"scenes/{split}", scenes, names, scene_features(mode, size), arguments, identity)
    path = as_path(dataset)
    if path is not None and os.path.isfile(path) and kind_of(path) == "folder":
        one = datasets.Dataset.from_list(
            [{arguments.image_column: {"path": path, "bytes": None}}],
            features=datasets.Features({arguments.image_column: datasets.Image(decode=False)}),
        )
        name = name_of(path)
        return DatasetImages(name, one, [name], one.features, arguments, {"size": os.path.getsize(path)})
    revision, column = arguments.dataset_revision, arguments.image_column
    source = open_source(dataset, split, arguments.config_name, column, 1000, revision, None)
    source = source.opened_as(split, arguments.config_name, column)
    try:
        opened = open_rows(
            dataset, split, config_name=arguments.config_name, revision=revision, image_column=arguments.image_column
        )
        features = _features_of(opened)
    except ValueError as error:
        if arguments.columns:
            raise
        logger.warning(
            "%s: images alone are read, no other columns: %s", source.name, " ".join(str(error).split())[:300]
        )
        return DatasetImages(source.name, source.rows, (), datasets.Features(), arguments, source.identity, source)
    return DatasetImages(source.name, opened.rows, opened.names, features, arguments, source.identity)


def _features_of(opened: LabelledRows) -> datasets.Features:
    rows = opened.rows
    if rows.features is not None:
        return rows.features
    first = list(islice(rows, _ROWS_TRIED))
    return datasets.Dataset.from_list(first).features


def _is_large(feature: object) -> bool:
    """Whether a column holds an image or a map."""
    return isinstance(feature, datasets.Image) or number_type(feature) is not None
