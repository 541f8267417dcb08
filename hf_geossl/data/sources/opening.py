"""Opens a dataset from anywhere by one name: the images of a stream, or labelled rows with all their columns."""

import glob
import os
from dataclasses import dataclass
from pathlib import Path

import datasets

from hf_geossl.data.sources.base import Source, undecoded
from hf_geossl.data.sources.files import as_path, find_files, folder_source, kind_of_folder, name_of
from hf_geossl.data.sources.hub import hub_rows, hub_source, pinned_revision
from hf_geossl.data.sources.opened import scenes_source
from hf_geossl.data.sources.parquet import parquet_source
from hf_geossl.data.sources.webdataset import webdataset_source

SCENES = "scenes"
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
    path = as_path(str(path_or_id))
    if path is None:
        return hub_source(str(path_or_id), split, config_name, image_column, shuffle_block, revision, token)
    _refuse_unused("local files", config_name=(config_name, None), revision=(revision, None))
    files = find_files(path, split)
    if files.kind == "parquet":
        return parquet_source(files, name_of(path), image_column, shuffle_block)
    if files.kind == "webdataset":
        return webdataset_source(files, name_of(path), image_column)
    _refuse_unused("a folder of images", image_column=(image_column, "image"))
    return folder_source(files, name_of(path), shuffle_block)


@dataclass(frozen=True)
class LabelledRows:
    """The rows of a labelled dataset, with all columns, and what is known of where they come from."""

    rows: datasets.Dataset | datasets.IterableDataset
    folder: Path | None = None  # on this machine
    revision: str | None = None  # the commit, on the Hub


def open_rows(
    path_or_id: str,
    split: str,
    *,
    config_name: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> LabelledRows:
    """Opens the labelled rows of a dataset.

    Args:
        path_or_id (`str`): a folder of images in one folder a class (or with `metadata.jsonl`, as `imagefolder` reads it),
            of parquet or tar files (as `webdataset` reads them), or of what `save_to_disk` of a `DatasetDict` has
            written; or the id of a dataset on the Hub.
        split (`str`): which part.
        config_name, revision (`str`, *optional*), token (`str` or `bool`, *optional*): of a dataset on the Hub.

    Returns:
        `LabelledRows`: a `datasets.Dataset` of a folder of images or a saved dataset, a stream of anything else, which on
        the Hub is pinned to its present commit.

    Raises:
        ValueError: if there is no such dataset or split; it names both.
        ConnectionError: if the Hub cannot be reached.
    """
    if os.path.isfile(path_or_id):
        raise ValueError(
            f"{Path(path_or_id).name} is a file: name the folder that holds its splits, such as train.parquet and "
            "test.parquet"
        )
    try:
        path = as_path(path_or_id)
        if path is None:
            revision = pinned_revision(path_or_id, revision, token)
            rows = hub_rows(path_or_id, split, config_name=config_name, revision=revision, token=token)
            return LabelledRows(undecoded(rows), revision=revision)
        return LabelledRows(undecoded(_local_rows(Path(path), split)), folder=Path(path))
    except (FileNotFoundError, PermissionError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"the split {split!r} of {Path(path_or_id).name} cannot be read: {reason}") from None


def _local_rows(folder: Path, split: str) -> datasets.Dataset | datasets.IterableDataset:
    if not folder.is_dir():
        raise ValueError("it is a pattern: name the folder that holds the splits")
    if all((folder / name).is_dir() for name in CLIP_FOLDERS):
        raise ValueError("it holds clips, which only the task propagation reads")
    if (folder / "dataset_dict.json").is_file():
        saved = datasets.load_from_disk(str(folder))
        if split not in saved:
            raise ValueError(f"it holds {', '.join(saved)}")
        return saved[split]
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        raise ValueError("a Dataset was saved, which has one split: save a DatasetDict of train and test")
    kind = kind_of_folder(str(folder))
    if kind == "folder":  # labels and metadata come from `imagefolder`, and its rules of splits with them
        return datasets.load_dataset("imagefolder", data_dir=str(folder), split=split)
    files = find_files(str(folder), split, prefer_packed=True)
    paths = [glob.escape(os.path.join(files.root, name)) for name in files.names]
    return datasets.load_dataset(files.kind, data_files={split: paths}, split=split, streaming=True)


def _refuse_unused(what: str, **options: tuple[str | None, str | None]) -> None:
    for name, (value, default) in options.items():
        if value != default:
            option = {"config_name": " (--dataset_config)", "image_column": " (--image_column)"}.get(name, "")
            raise ValueError(f"{name}{option} means nothing for {what}, got {value!r}; leave it out")
