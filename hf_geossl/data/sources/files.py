"""Local files: which ones a path means, of which kind and split; folders of images as sources."""

import glob
import hashlib
import logging
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hf_geossl.data.images import EXTENSIONS
from hf_geossl.data.sources.base import Source, rows_from, units_for
from hf_geossl.data.wording import counted

_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF_WORD = {word: split for split, words in _SPLITS.items() for word in words}
_TAR_EXTENSIONS = (".tar", ".tar.gz", ".tgz")
_PACKED = ("parquet", "webdataset")  # kinds of which a file holds many images
_SIZES_IN_DIGEST = 1000

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Files:
    """The files of one kind and split: `kind` ("folder", "parquet" or "webdataset"), `root`, and sorted relative `names`."""

    kind: str
    root: str
    names: list[str]

    def identity(self) -> dict[str, Any]:
        """Plain values that name the files: how many, and their digest."""
        return {"files": len(self.names), "digest": self.digest()}

    def digest(self) -> str:
        """A short hash of the names, and of the sizes of up to 1000 files spread evenly over them."""
        sizes = set(range(0, len(self.names), max(1, len(self.names) // _SIZES_IN_DIGEST)))
        total = hashlib.sha256()
        for index, name in enumerate(self.names):
            size = self._size(name) if index in sizes else ""
            total.update(f"{name}\0{size}\n".encode("utf-8", "surrogateescape"))
        return total.hexdigest()[:16]

    def _size(self, name: str) -> int:
        try:
            return os.path.getsize(os.path.join(self.root, name))
        except OSError:  # a link that leads nowhere, or a file that has gone: reading it will say so
            return -1


def find_files(path: str, split: str, *, prefer_packed: bool = False) -> Files:
    """Finds the files that a path or glob means.

    A folder is searched to its depths; what is hidden is left out. If folders (for parquet and tar also the file names)
    are called after splits, as `imagefolder` does it, only those of `split` are taken; otherwise every file belongs to
    the split "train".

    Args:
        path (`str`): an existing file or folder, or a glob.
        split (`str`): "train", "validation" or "test", or another name of theirs ("val").
        prefer_packed (`bool`, *optional*, defaults to `False`): take the parquet files or tars of a folder that holds
            plain images too, instead of refusing it.

    Raises:
        FileNotFoundError: if nothing is there, or nothing that can be read.
        ValueError: if files of several kinds are mixed, or the split is not there.
    """
    root, names = _list_files(path)
    by_kind: dict[str, list[str]] = {}
    for name in names:
        by_kind.setdefault(kind_of(name), []).append(name)
    others = by_kind.pop("", [])
    if not by_kind:
        what = f"{counted(len(names), 'file')}, but none of these kinds" if names else "no files"
        raise FileNotFoundError(
            f"{path!r} holds {what}; pass a path with images ({', '.join(EXTENSIONS)}), .parquet or .tar files"
        )
    packed = next((kind for kind in _PACKED if kind in by_kind), None)
    if prefer_packed and packed is not None:
        others += [name for kind, files in by_kind.items() if kind != packed for name in files]
        by_kind = {packed: by_kind[packed]}
    if len(by_kind) > 1:
        kinds = ", ".join(f"{len(files)} of kind {kind}" for kind, files in by_kind.items())
        raise ValueError(f"{path!r} mixes files of several kinds ({kinds}); pass a glob that matches one kind")
    kind, names = by_kind.popitem()
    if others:
        endings = sorted({os.path.splitext(name)[1].lower() or "no ending" for name in others})
        logger.warning(
            "%s in %s (%s%s) %s left out",
            counted(len(others), "file of another kind", "files of other kinds"), name_of(path),
            ", ".join(endings[:8]), ", ..." if len(endings) > 8 else "", "is" if len(others) == 1 else "are",
        )  # fmt: skip
    return Files(kind, root, _of_split(names, split, path, by_file_name=kind != "folder"))


def _list_files(path: str) -> tuple[str, list[str]]:
    """Lists all files that a path or glob means: the folder that they lie in, and their names below it, sorted."""
    if not os.path.exists(path) and _is_glob(path):
        matches = glob.glob(path, recursive=True)
        files = sorted(file for file in matches if os.path.isfile(file))
        if not files:
            what = "matches folders only" if matches else "matches no file"
            how = "let it match their files, as in 'photos/**/*.jpg'" if matches else "check the pattern and the folder"
            raise FileNotFoundError(f"the glob {path!r} {what}; {how}")
        fixed = re.split(r"[*?\[]", path)[0]
        root = os.path.dirname(fixed) or "."
        names = [os.path.relpath(file, root) for file in files]
    elif os.path.isfile(path):
        root, file = os.path.split(path)
        names = [file]
    else:
        root, names = path, sorted(_walk(path))
    return root, [name.replace(os.sep, "/") for name in names]


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


def kind_of(name: str) -> str:
    """Returns the kind of a file by its name: "parquet", "webdataset", "folder" (an image), or "" for any other."""
    name = name.lower()
    if name.endswith(".parquet"):
        return "parquet"
    if name.endswith(_TAR_EXTENSIONS):
        return "webdataset"
    return "folder" if name.endswith(EXTENSIONS) else ""


def kind_of_folder(folder: str) -> str:
    """Returns the kind of a folder of labelled data: "parquet" or "webdataset" where it holds such files, else "folder"."""
    kinds = {kind_of(name) for name in _walk(folder)}
    return next((kind for kind in _PACKED if kind in kinds), "folder")


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
            "%s in %s %s in no folder of a split (%s) and %s left out; if such a folder is none, rename it",
            counted(outside, "file"), name_of(path), "lies" if outside == 1 else "lie", ", ".join(sorted(of_split)),
            "is" if outside == 1 else "are",
        )  # fmt: skip
    return of_split[wanted]


def _is_glob(path: str) -> bool:
    return any(mark in path for mark in "*?[")


def name_of(path: str) -> str:
    """Returns what people call a path or glob: its last part, which reveals nothing about the machine."""
    return os.path.basename(os.path.abspath(os.path.expanduser(path))) or "files"


def as_path(path_or_id: str) -> str | None:
    """Returns the path with `~` expanded, or None for what can only be the id of a Hub dataset.

    Raises:
        FileNotFoundError: if it is written like a path, but nothing is there.
    """
    path = os.path.expanduser(path_or_id)
    if os.path.exists(path) or _is_glob(path):
        return path
    like_an_id = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", path_or_id)
    if not like_an_id or kind_of(path_or_id) or Path(path).suffix in (".zip", ".arrow", ".json", ".csv"):
        raise FileNotFoundError(f"{path_or_id!r} does not exist; pass a file, a folder, a glob, or a Hub dataset's id")
    return None


def check_regular(path: str) -> None:
    """Raises an `OSError` for what would be waited for when it is opened, such as a pipe."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("it is no regular file")


def named_rows(units: list[list[str]]) -> Iterator[tuple[int, dict]]:
    """Generates the rows of units that are lists of file names."""
    for names in units:
        for index, name in enumerate(names):
            yield index, {"key": name, "value": name}


def folder_source(
    files: Files,
    name: str,
    shuffle_block: int,
    *,
    kind: str = "folder",
    identity: dict[str, Any] | None = None,
    read: Callable[[str], Any] = str,
) -> Source:
    """Opens image files: rows hold their names only; a unit takes every n-th file of the sorted list.

    Args:
        files (`Files`): the images.
        name (`str`), kind (`str`, *optional*), identity (`dict`, *optional*): as in [`Source`].
        shuffle_block (`int`): rows that are shuffled together.
        read (`Callable`, *optional*): path or address of a file -> what `decode_image` takes.
    """
    units = units_for(len(files.names), shuffle_block)
    return Source(
        kind=kind,
        name=name,
        rows=rows_from(named_rows, units=[files.names[unit::units] for unit in range(units)]),
        units=units,
        read=partial(_read_below, files.root, read),
        identity=files.identity() if identity is None else identity,
        num_images=len(files.names),
    )


def _read_below(root: str, read: Callable[[str], Any], row: dict) -> Any:
    return read(os.path.join(root, row["value"]))
