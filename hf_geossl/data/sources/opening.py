"""Opens a dataset from anywhere by one name: the images of a stream, or labelled rows with all their columns."""

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import datasets
import pyarrow as pa

from hf_geossl.data.photographs import PHOTOGRAPHS, Photographs
from hf_geossl.data.sources.base import FILE, Source, undecoded
from hf_geossl.data.sources.box_files import read_boxes
from hf_geossl.data.sources.files import Files, as_path, divide_glob, find_files, folder_source
from hf_geossl.data.sources.hub import hub_rows, hub_source, hub_texts, pinned_revision
from hf_geossl.data.sources.listing import kind_of
from hf_geossl.data.sources.opened import indexed_source, scenes_source
from hf_geossl.data.sources.parquet import parquet_rows, parquet_source
from hf_geossl.data.sources.split_names import canonical
from hf_geossl.data.sources.webdataset import webdataset_rows, webdataset_source
from hf_geossl.data.wording import Place, as_text, name_of

SCENES = "scenes"
ReadColumns = Callable[[Collection[str]], datasets.Dataset | None]
CLIP_FOLDERS = ("JPEGImages", "Annotations")  # of DAVIS


def open_source(
    path_or_id: str | os.PathLike[str],
    split: str,
    config_name: str | None,
    image_column: str,
    shuffle_block: int,
    revision: str | None,
    token: str | bool | None,
) -> Source:
    """Opens the images of a dataset; arguments and errors are those of [`load_stream`]."""
    if path_or_id == SCENES:
        _refuse_unused("scenes", image_column=(image_column, "image"), revision=(revision, None))
        return scenes_source(split, config_name)
    if path_or_id == PHOTOGRAPHS:
        _refuse_unused(
            PHOTOGRAPHS,
            config_name=(config_name, None),
            image_column=(image_column, "image"),
            revision=(revision, None),
        )
        return indexed_source(Photographs(split), image_column, shuffle_block, name=f"{PHOTOGRAPHS}/{split}")
    path = as_path(str(path_or_id))
    if path is None:
        return hub_source(str(path_or_id), split, config_name, image_column, shuffle_block, revision, token)
    _refuse_unused("local files", config_name=(config_name, None), revision=(revision, None))
    if saved := _saved(Path(path), split):
        return indexed_source(saved, image_column, shuffle_block, kind="saved", name=name_of(path))
    files = find_files(path, split, image_column)
    if files.kind == "parquet":
        return parquet_source(files, name_of(path), image_column, shuffle_block)
    if files.kind == "webdataset":
        return webdataset_source(files, name_of(path), image_column)
    if os.path.isdir(path) or kind_of(path):  # no list
        _refuse_unused("a folder of images", image_column=(image_column, "image"))
    return folder_source(files, name_of(path), shuffle_block)


@dataclass(frozen=True)
class LabelledRows:
    """The rows of a labelled dataset, with all columns, and what is known of where they come from."""

    rows: datasets.Dataset | datasets.IterableDataset
    folder: Path | None = None  # on this machine
    revision: str | None = None  # the commit, on the Hub
    read_columns: ReadColumns | None = None  # of a stream: some columns of all rows, without reading the others
    names: Sequence[str] = ()  # of files on this machine: the image of each row, or the file of each shard of a stream

    def columns(self, names: Collection[str]) -> datasets.Dataset | None:
        """Some columns of all rows, where that costs no reading of the others; None of another stream."""
        if isinstance(self.rows, datasets.Dataset):
            return self.rows
        return None if self.read_columns is None else self.read_columns(names)


def open_rows(
    path_or_id: str,
    split: str,
    *,
    config_name: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    image_column: str = "image",
) -> LabelledRows:
    """Opens the labelled rows of a dataset.

    Args:
        path_or_id (`str`): what [`load_stream`] takes, but no single image.
        split (`str`): which part.
        config_name, revision (`str`, *optional*), token (`str` or `bool`, *optional*): of a dataset on the Hub.
        image_column (`str`, *optional*): of a list, the column with the paths.

    Returns:
        `LabelledRows`: a `datasets.Dataset` of a folder of images or a saved dataset, a stream of anything else, which on
        the Hub is pinned to its present commit.

    Raises:
        ValueError: if there is no such dataset or split; it names both.
        ConnectionError: if the Hub cannot be reached.
    """
    if path_or_id == PHOTOGRAPHS:
        raise ValueError(f"{PHOTOGRAPHS} are a few crops without labels: name a labelled dataset, such as scenes")
    try:
        path = as_path(path_or_id)
        if path is None:
            revision = pinned_revision(path_or_id, revision, token)
            where: dict[str, Any] = {"config_name": config_name, "revision": revision, "token": token}
            rows = undecoded(hub_rows(path_or_id, split, **where))
            texts = partial(hub_texts, path_or_id, split, features=rows.features, **where)
            return LabelledRows(rows, revision=revision, read_columns=texts)
        folder = Path(path if os.path.exists(path) else divide_glob(path)[0])
        rows, read_columns, names = _local_rows(Path(path), split, image_column)
        return LabelledRows(undecoded(rows), folder=folder, read_columns=read_columns, names=names)
    except (FileNotFoundError, PermissionError, ValueError) as error:
        reason = " ".join(str(error).split())[:600]
        raise ValueError(f"the split {split!r} of {Path(path_or_id).name} cannot be read: {reason}") from None


def holds_clips(folder: Path) -> bool:
    """Whether a folder is laid out as DAVIS; Pascal VOC has the same folders, with images right in the first."""
    if not all((folder / name).is_dir() for name in CLIP_FOLDERS):
        return False
    with os.scandir(folder / CLIP_FOLDERS[0]) as entries:
        return not any(entry.is_file() and not entry.name.startswith(".") for entry in entries)


def _local_rows(
    path: Path, split: str, image_column: str
) -> tuple[datasets.Dataset | datasets.IterableDataset, ReadColumns | None, Sequence[str]]:
    """The rows, what reads some columns of those that are streamed, and the names of images or shards."""
    if holds_clips(path) and not (path / "train").is_dir():
        raise ValueError("it holds clips, which only the task propagation reads")
    if saved := _saved(path, split):
        return saved, None, ()
    if path.is_file() and kind_of(path.name) == "folder":
        raise ValueError(f"{path.name} is a single image: name the folder that its split and class lie in, or a list")
    files = find_files(str(path), split, image_column)
    if files.objects and not any("objects" in item.columns for item in files.items):
        objects = read_boxes(files.names, files.objects, canonical(split), Place(files.root))
        items = [replace(item, columns={**item.columns, "objects": objects.get(item.name)}) for item in files.items]
        files = replace(files, items=items) if objects else files
    if files.kind in ("folder", "zip"):
        return _rows_of(files, "image" if path.is_dir() or kind_of(path.name) else image_column), None, files.names
    opening = partial(webdataset_rows if files.kind == "webdataset" else parquet_rows, files, path.name)
    return opening(), partial(_read_all, opening), files.names


def _read_all(
    opening: Callable[[Collection[str]], datasets.IterableDataset], columns: Collection[str]
) -> datasets.Dataset:
    rows = opening(columns)
    return datasets.Dataset.from_list(list(rows), features=rows.features)


def _saved(path: Path, split: str) -> datasets.Dataset | None:
    """The split of what `save_to_disk` has written, or of a folder of such; None of anything else."""
    if _is_saved(path):
        saved = datasets.load_from_disk(str(path))
        own = canonical(str(saved.split or "train"))
        if canonical(split) != own:
            raise ValueError(
                f"{path.name} is a saved Dataset, the split {own!r} alone: save a DatasetDict that has {split!r} too"
            )
        return saved
    parts = {part.name: part for part in sorted(path.iterdir()) if _is_saved(part)} if path.is_dir() else {}
    if not parts:
        return None
    by_split = {canonical(name): part for name, part in reversed(parts.items())}
    part = parts.get(split) or by_split.get(canonical(split))
    if part is None:
        raise ValueError(f"{path.name} has no split {split!r}; its splits are {', '.join(parts)}")
    return datasets.load_from_disk(str(part))


def _is_saved(path: Path) -> bool:
    return (path / "state.json").is_file() and (path / "dataset_info.json").is_file()


def _rows_of(files: Files, image_column: str) -> datasets.Dataset:
    """A table of images, with their classes, truth and further columns."""
    items = files.items
    columns = {
        key: [item.columns.get(key) for item in items]
        for key in dict.fromkeys(key for item in items for key in item.columns)
    }
    columns = {key: _of_one_type(key, values, files) for key, values in columns.items()}
    features = dict(datasets.Dataset.from_dict(columns).features)  # as their values tell
    if len(files.classes) > 1 and "label" in columns:
        Place(files.root).warn(
            f"the labels of metadata count, not the {len(files.classes)} folders; --label_column takes another column"
        )
    if files.classes and "label" not in columns:
        numbers = {name: number for number, name in enumerate(files.classes)}
        columns["label"] = [None if item.label is None else numbers[item.label] for item in items]
        features["label"] = datasets.ClassLabel(names=[as_text(name) for name in files.classes])
    names: dict[str, list[str | None]] = {image_column: [item.name for item in items]}
    for key in dict.fromkeys(key for item in items for key in item.truth):
        names[key] = [item.truth.get(key) for item in items]
    for key, files_of_key in names.items():
        columns[key] = [
            None if name is None else {"path": _as_address(files.address(name)), "bytes": None} for name in files_of_key
        ]
        features[key] = datasets.Image(decode=False)
    return datasets.Dataset.from_dict(columns, datasets.Features(features))


def _of_one_type(column: str, values: list[Any], files: Files) -> list[Any]:
    """The values of a column; as texts where they are texts and numbers.

    Raises:
        ValueError: if they can be no column.
    """
    try:
        pa.array(values)
    except pa.ArrowException as error:
        if any(isinstance(value, (dict, list)) for value in values):
            raise ValueError(
                f"the column {column!r} holds values of several types ({error}): write all alike"
            ) from error
        Place(files.root).warn(f"the column {column!r} holds values of several types, taken as texts")
        return [None if value is None else str(value) for value in values]
    return values


def _as_address(path: str) -> str:
    return path if path.isprintable() else FILE + quote(os.fsencode(path))


def _refuse_unused(what: str, **options: tuple[str | None, str | None]) -> None:
    for name, (value, default) in options.items():
        if value != default:
            option = {"config_name": " (--dataset_config)", "image_column": " (--image_column)"}.get(name, "")
            raise ValueError(f"{name}{option} means nothing for {what}, got {value!r}; leave it out")
