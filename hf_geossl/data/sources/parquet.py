"""Local parquet files, read by row group: a stream's images, or labelled rows."""

import os
from collections.abc import Collection, Iterator
from functools import partial

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.iterable_dataset import ArrowExamplesIterable
from datasets.table import table_cast

from hf_geossl.data.sources.archives import check_regular
from hf_geossl.data.sources.base import Source, missing_column, number_type, rows_from, units_for, value_of_row
from hf_geossl.data.sources.files import Files

_ROWS_AT_ONCE = 32
_RowGroup = tuple[str, int, int, int]  # file, row group, its first row in the file, its end


def parquet_source(files: Files, name: str, image_column: str, shuffle_block: int) -> Source:
    """Opens parquet files by row group, reading the image column only (bytes, a struct of bytes and path, or arrays)."""
    groups: list[_RowGroup] = []
    total, dtype = 0, None
    for file in files.names:
        metadata = _metadata(os.path.join(files.root, file), file, name)
        dtype = _check_column(metadata, image_column, file, name)
        before = 0
        for group in range(metadata.num_row_groups):
            end = before + metadata.row_group(group).num_rows
            groups.append((file, group, before, end))
            before = end
        total += before
    if total == 0:
        raise ValueError(f"{name} holds no rows; pass parquet files with images")
    return Source(
        kind="parquet",
        name=name,
        rows=rows_from(_parquet_rows, groups=groups, root=files.root, column=image_column),
        units=units_for(total, shuffle_block, most=len(groups)),
        read=partial(value_of_row, files.root, dtype=dtype),
        identity={**files.identity(), "rows": total},
        num_images=total,
    )


def parquet_rows(files: Files, name: str, columns: Collection[str] | None = None) -> datasets.IterableDataset:
    """Opens parquet files with all their columns, or those of some names, as a stream.

    Raises:
        ValueError: if one cannot be read, or has other columns than the others.
    """
    schemas = {
        file: _metadata(os.path.join(files.root, file), file, name).schema.to_arrow_schema() for file in files.names
    }
    first = files.names[0]
    for file, schema in schemas.items():
        if set(schema.names) != set(schemas[first].names):
            raise ValueError(
                f"{name} mixes parquet files of several columns: {first} has {', '.join(schemas[first].names)}, {file} has "
                f"{', '.join(schema.names)}; name a folder or glob of files that are alike"
            )
    features = datasets.Features.from_arrow_schema(schemas[first])
    if columns is not None:
        features = datasets.Features({key: kind for key, kind in features.items() if key in columns})
    shards = {"paths": [os.path.join(files.root, file) for file in files.names], "schema": features.arrow_schema}
    return datasets.IterableDataset(
        ArrowExamplesIterable(_tables, shards), info=datasets.DatasetInfo(features=features)
    )


def _tables(paths: list[str], schema: pa.Schema) -> Iterator[tuple[str, pa.Table]]:
    for path in paths:
        with pq.ParquetFile(path) as file:
            for number, batch in enumerate(file.iter_batches(_ROWS_AT_ONCE, columns=schema.names)):
                yield f"{path}:{number}", table_cast(pa.Table.from_batches([batch]), schema)


def _metadata(path: str, file: str, name: str) -> pq.FileMetaData:
    try:
        check_regular(path)
        return pq.read_metadata(path)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{file} in {name} is no readable parquet file: mend or remove it") from error


def _check_column(metadata: pq.FileMetaData, image_column: str, file: str, name: str) -> str | None:
    """Raises a `ValueError` unless the column can hold images; returns the type of the numbers in one of arrays."""
    schema = metadata.schema.to_arrow_schema()
    if image_column not in schema.names:
        raise missing_column(image_column, schema.names, f"{file} in {name}")
    kind = schema.field(image_column).type
    dtype = number_type(datasets.Features.from_arrow_schema(pa.schema([schema.field(image_column)]))[image_column])
    if dtype is not None:
        return dtype
    struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") + kind.get_field_index("path") > -2
    if not (struct or pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)):
        raise ValueError(
            f"the column {image_column!r} of {file} in {name} holds {kind}, not images; pass as image_column one "
            f"of encoded bytes, of a struct with bytes and path, or of arrays, among: {', '.join(schema.names)}"
        )
    return None


def _parquet_rows(groups: list[_RowGroup], root: str, column: str) -> Iterator[tuple[int, dict]]:
    # a local name: at the interpreter's end, pa may be gone before the stream
    unreadable = (OSError, pa.ArrowException)
    for name, group, row, end in groups:
        try:
            with pq.ParquetFile(os.path.join(root, name)) as file:
                for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=[column]):
                    for value in batch.column(0).to_pylist():
                        yield row, {"key": f"{name}:{row}", "value": value}
                        row += 1
        except unreadable as error:
            reason = f"the rest of row group {group} cannot be read ({type(error).__name__})"
            for lost in range(row, end):  # each counts: the share of broken rows is the share of lost ones
                yield lost, {"key": f"{name}:{lost}", "error": reason}
