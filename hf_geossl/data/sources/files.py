"""Local files as sources: folders of images, parquet files, WebDataset tars."""

import glob
import hashlib
import logging
import os
import re
import stat
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hf_geossl.data.images import EXTENSIONS, BrokenImageError
from hf_geossl.data.sources.base import Source, encoded_image, missing_column, named_rows, rows_from, units_for

_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF_WORD = {word: split for split, words in _SPLITS.items() for word in words}
_TAR_EXTENSIONS = (".tar", ".tar.gz", ".tgz")
_UNREADABLE_TAR = (OSError, EOFError, tarfile.TarError, zlib.error)
_PARQUET_ROWS_AT_ONCE = 32
_SIZES_IN_DIGEST = 1000


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Files:
    """The files of one kind and split: `kind` ("folder", "parquet" or "webdataset"), `root`, and sorted relative `names`."""

    kind: str
    root: str
    names: list[str]

    def digest(self) -> str:
        """A short hash of the names, and of the sizes of up to 1000 files spread evenly over them."""
        sizes = set(range(0, len(self.names), max(1, len(self.names) // _SIZES_IN_DIGEST)))
        total = hashlib.sha256()
        for index, name in enumerate(self.names):
            size = _size(os.path.join(self.root, name)) if index in sizes else ""
            total.update(f"{name}\0{size}\n".encode("utf-8", "surrogateescape"))
        return total.hexdigest()[:16]


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:  # a link that leads nowhere, or a file that has gone: reading it will say so
        return -1


def find_files(path: str, split: str) -> Files:
    """Finds the files that a path or glob means.

    A folder is searched to its depths; what is hidden is left out. If folders on the way (for parquet and tar also the
    file names) are called after splits, as `imagefolder` does it, only those of `split` are taken; otherwise every file
    belongs to the split "train".

    Args:
        path (`str`): an existing file or folder, or a glob.
        split (`str`): "train", "validation" or "test", or another name of theirs ("val").

    Returns:
        `Files`: at least one.

    Raises:
        FileNotFoundError: if nothing is there, or nothing that can be read.
        ValueError: if files of several kinds are mixed, or the split is not there.
    """
    if not os.path.exists(path) and _is_glob(path):
        matches = glob.glob(path, recursive=True)
        found = sorted(file for file in matches if os.path.isfile(file))
        if not found:
            what = "matches folders only" if matches else "matches no file"
            how = "let it match their files, as in 'photos/**/*.jpg'" if matches else "check the pattern and the folder"
            raise FileNotFoundError(f"the glob {path!r} {what}; {how}")
        fixed = re.split(r"[*?\[]", path)[0]
        root = os.path.dirname(fixed) or "."
        names = [os.path.relpath(file, root) for file in found]
    elif os.path.isfile(path):
        root, file = os.path.split(path)
        names = [file]
    else:
        root, names = path, sorted(_walk(path))
    names = [name.replace(os.sep, "/") for name in names]
    by_kind: dict[str, list[str]] = {}
    for name in names:
        by_kind.setdefault(_kind(name), []).append(name)
    others = by_kind.pop("", [])
    if not by_kind:
        what = f"{len(names)} files, but none of these kinds" if names else "no files"
        raise FileNotFoundError(
            f"{path!r} holds {what}; pass a path with images ({', '.join(EXTENSIONS)}), .parquet or .tar files"
        )
    if len(by_kind) > 1:
        kinds = ", ".join(f"{len(files)} of kind {kind}" for kind, files in by_kind.items())
        raise ValueError(f"{path!r} mixes files of several kinds ({kinds}); pass a glob that matches one kind")
    kind, names = by_kind.popitem()
    if others:
        endings = sorted({os.path.splitext(name)[1].lower() or "no ending" for name in others})
        logger.warning(
            "%d files of other kinds in %s (%s%s) are left out",
            len(others), name_of(path), ", ".join(endings[:8]), ", ..." if len(endings) > 8 else "",
        )  # fmt: skip
    return Files(kind, root, _of_split(names, split, path, by_file_name=kind != "folder"))


def _walk(root: str) -> Iterator[str]:
    seen = set()

    def unreadable(error: OSError) -> None:
        place = os.path.relpath(error.filename or root, root)
        logger.warning("the folder %s in %s cannot be read and is left out (%s)", place, name_of(root), error.strerror)

    for folder, inner, files in os.walk(root, followlinks=True, onerror=unreadable):
        try:
            place = os.stat(folder)
        except OSError as error:
            unreadable(error)
            inner.clear()
            continue
        if (place.st_dev, place.st_ino) in seen:  # a link that leads back up
            inner.clear()
            continue
        seen.add((place.st_dev, place.st_ino))
        inner[:] = sorted(name for name in inner if not name.startswith((".", "__")))
        for file in files:
            if not file.startswith("."):
                yield os.path.relpath(os.path.join(folder, file), root)


def _kind(name: str) -> str:
    name = name.lower()
    if name.endswith(".parquet"):
        return "parquet"
    if name.endswith(_TAR_EXTENSIONS):
        return "webdataset"
    return "folder" if name.endswith(EXTENSIONS) else ""


def _of_split(names: list[str], split: str, path: str, by_file_name: bool) -> list[str]:
    wanted = _SPLIT_OF_WORD.get(split.lower(), split)
    of_split: dict[str, list[str]] = {}
    for name in names:
        *folders, file = name.lower().split("/")
        words = [*folders, *(re.split(r"[^a-z]+", file) if by_file_name else [])]
        marks = [_SPLIT_OF_WORD[word] for word in words if word in _SPLIT_OF_WORD]
        if marks:
            of_split.setdefault(marks[0], []).append(name)
    if not of_split:
        of_split = {"train": names}
    if wanted not in of_split:
        raise ValueError(
            f"{path!r} has no split {split!r}; its splits are {', '.join(sorted(of_split))} "
            f"(a split is a folder called {', '.join(_SPLITS)}; without one, every file belongs to train)"
        )
    outside = len(names) - sum(map(len, of_split.values()))
    if outside:
        logger.warning(
            "%d files in %s lie in no folder of a split (%s) and are left out; if such a folder is none, rename it",
            outside, name_of(path), ", ".join(sorted(of_split)),
        )  # fmt: skip
    return of_split[wanted]


# ------------------------------------------------------------------------------------------------------------ folder


def folder_source(files: Files, name: str, shuffle_block: int) -> Source:
    """Opens a folder of images: rows hold file names only; a unit takes every n-th file of the sorted list."""
    units = units_for(len(files.names), shuffle_block)
    return Source(
        kind="folder",
        name=name,
        rows=rows_from(named_rows, units=[files.names[unit::units] for unit in range(units)]),
        units=units,
        read=partial(_path_below, files.root),
        identity={"files": len(files.names), "digest": files.digest()},
    )


def _path_below(root: str, row: dict) -> str:
    return os.path.join(root, row["value"])


# ----------------------------------------------------------------------------------------------------------- parquet


def parquet_source(files: Files, name: str, image_column: str, shuffle_block: int) -> Source:
    """Opens parquet files by row group, reading the image column only (bytes, or a struct of bytes and path)."""
    groups: list[tuple[str, int, int, int]] = []  # file, row group, its first row in the file, its end
    total = 0
    for file in files.names:
        try:
            _check_regular(os.path.join(files.root, file))
            metadata = pq.read_metadata(os.path.join(files.root, file))
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{file} in {name} is no readable parquet file: mend or remove it") from error
        schema = metadata.schema.to_arrow_schema()
        if image_column not in schema.names:
            raise missing_column(image_column, schema.names, f"{file} in {name}")
        kind = schema.field(image_column).type
        struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") + kind.get_field_index("path") > -2
        if not (struct or pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)):
            raise ValueError(
                f"the column {image_column!r} of {file} in {name} holds {kind}, not images; pass as image_column one "
                f"of encoded bytes, or of a struct with bytes and path, among: {', '.join(schema.names)}"
            )
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
        read=partial(_value, files.root),
        identity={"files": len(files.names), "rows": total, "digest": files.digest()},
    )


def _check_regular(path: str) -> None:
    """Raises an `OSError` for what would be waited for when it is opened, such as a pipe."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("it is no regular file")


def _parquet_rows(groups: list[tuple[str, int, int, int]], root: str, column: str) -> Iterator[tuple[int, dict]]:
    unreadable = (
        OSError,
        pa.ArrowException,
    )  # a local name: at the interpreter's end, pa may be gone before the stream
    for name, group, row, end in groups:
        try:
            with pq.ParquetFile(os.path.join(root, name)) as file:
                for batch in file.iter_batches(_PARQUET_ROWS_AT_ONCE, row_groups=[group], columns=[column]):
                    for value in batch.column(0).to_pylist():
                        yield row, {"key": f"{name}:{row}", "value": value}
                        row += 1
        except unreadable as error:
            reason = f"the rest of row group {group} cannot be read ({type(error).__name__})"
            for lost in range(row, end):  # each counts: the share of broken rows is the share of lost ones
                yield lost, {"key": f"{name}:{lost}", "error": reason}


def _value(root: str, row: dict) -> Any:
    if row.get("error"):
        raise BrokenImageError(row["error"])
    value = encoded_image(row["value"])
    return os.path.join(root, value) if isinstance(value, str) else value


# -------------------------------------------------------------------------------------------------------- webdataset


def webdataset_source(files: Files, name: str, image_column: str) -> Source:
    """Opens WebDataset tars, a unit each; a sample is a run of members that share their name up to the first dot.

    `image_column` is the rest of the name ("left.jpg", or "left" for any format). The default "image" takes the one
    plain image of a sample, whether it ends in .jpg, .png or .webp.
    """
    with_images: set[str] = set()
    others: set[str] = set()
    failures: list[str] = []
    for tar in files.names:  # until one is whole and holds samples
        try:
            for _, fields in _tar_samples(os.path.join(files.root, tar), most=20):
                for ending in fields:
                    (with_images if _kind(f"x.{ending}") == "folder" else others).add(ending)
        except _UNREADABLE_TAR as error:
            failures.append(f"{tar} ({_reason(error)})")
            continue
        if with_images or others:
            break
    if failures and not (with_images or others):
        raise ValueError(
            f"none of the tars of {name} can be read: {', '.join(failures[:3])}{', ...' if len(failures) > 3 else ''}; "
            "mend or replace them"
        )
    named = {ending for ending in with_images if image_column in (ending, ending.rpartition(".")[0])}
    plain = {ending for ending in with_images if "." not in ending}
    default = plain or (with_images if len(with_images) == 1 else set())
    if not named and (image_column != "image" or not default):
        raise missing_column(image_column, sorted(with_images | others), name)
    pattern = image_column if named else ("" if plain else default.pop())
    return Source(
        kind="webdataset",
        name=name,
        rows=rows_from(_tar_rows, tars=files.names, root=files.root, wanted=pattern),
        units=len(files.names),
        read=partial(_value, files.root),
        identity={"files": len(files.names), "digest": files.digest()},
    )


def _tar_rows(tars: list[str], root: str, wanted: str) -> Iterator[tuple[int, dict]]:
    unreadable = _UNREADABLE_TAR  # a local name: at the interpreter's end, the module's may be gone before the stream
    for name in tars:
        row = 0
        try:
            for sample, fields in _tar_samples(os.path.join(root, name), wanted):
                value = next(iter(fields.values()), None)
                yield row, {"key": f"{name}:{sample}", "value": value}
                row += 1
        except unreadable as error:
            reason = f"the rest of the archive cannot be read ({_reason(error)}); its samples, nobody knows how many, are lost"
            yield row, {"key": f"{name}:{row}", "error": reason}


def _reason(error: BaseException) -> str:
    text = (getattr(error, "strerror", None) or str(error)).split("\n")[0].rstrip(":")
    return text or type(error).__name__


def _tar_samples(path: str, wanted: str | None = None, most: int = -1) -> Iterator[tuple[str, dict[str, bytes | None]]]:
    """Yields `(sample, {ending: bytes})`; only the endings that are `wanted` are read, none of them if it is None."""
    _check_regular(path)
    current, fields = "", {}  # type: str, dict[str, bytes | None]
    with tarfile.open(path, "r:*") as archive:
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]  # the archive would remember every member it passes
            place, base = os.path.split(member.name)
            stem, _, ending = base.partition(".")
            if not member.isfile() or not stem or not ending or base.startswith("._"):
                continue
            sample = f"{place}/{stem}".lstrip("./")
            if sample != current and current:
                yield current, fields
                most -= 1
                if most == 0:
                    return
                fields = {}
            current, ending = sample, ending.lower()
            if wanted is None:
                fields[ending] = None
            elif _kind(f"x.{ending}") == "folder" and _matches(wanted, ending) and not fields:
                content = archive.extractfile(member)
                fields[ending] = content.read() if content else None
    if current:
        yield current, fields


def _matches(wanted: str, ending: str) -> bool:
    return "." not in ending if not wanted else wanted in (ending, ending.rpartition(".")[0])


def _is_glob(path: str) -> bool:
    return any(mark in path for mark in "*?[")


def name_of(path: str) -> str:
    """What people call a path or glob: its last part, which tells nothing about the machine."""
    return os.path.basename(os.path.abspath(os.path.expanduser(path))) or "files"


def as_path(path_or_id: str) -> str | None:
    """Tells a place on this machine from the id of a Hub dataset.

    Args:
        path_or_id (`str`): what the user gave.

    Returns:
        `str` or None: the path with `~` expanded, or None for what can only be a Hub id.

    Raises:
        FileNotFoundError: if it is written like a path, but nothing is there.
    """
    path = os.path.expanduser(path_or_id)
    if os.path.exists(path) or _is_glob(path):
        return path
    like_an_id = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", path_or_id)
    if not like_an_id or _kind(path_or_id) or Path(path).suffix in (".zip", ".arrow", ".json", ".csv"):
        raise FileNotFoundError(f"{path_or_id!r} does not exist; pass a file, a folder, a glob, or a Hub dataset's id")
    return None
