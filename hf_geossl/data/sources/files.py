"""Local files: which ones a path means, of which kind and split; folders of images as sources."""

import glob
import hashlib
import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from hf_geossl.data.images import EXTENSIONS, BrokenImageError
from hf_geossl.data.sources.archives import read_zip_member, zip_member, zip_members
from hf_geossl.data.sources.base import Source, rows_from, units_for
from hf_geossl.data.sources.listing import METADATA, SPLIT_WORDS, Item, arrange, canonical, divide, listed
from hf_geossl.data.wording import counted

_TAR_EXTENSIONS = (".tar", ".tar.gz", ".tgz")
_LISTS = (".txt", ".csv", ".tsv", ".jsonl")
_IMAGES_PER_ARCHIVE = 4  # with fewer, archives beside images are the data
_SIZES_IN_DIGEST = 1000

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Files:
    """The files of one kind and split.

    Attributes:
        kind (`str`): "folder" (images), "zip" (images in archives), "parquet" or "webdataset".
        root (`str`): what the names lie below.
        names (`list[str]`): of the files.
        items (`list[Item]`): of images, with classes and truth.
        classes (`list[str]`): of all splits.
        archives (`dict[str, str]`): first folder of the names -> the `.zip` that it stands for; "" for all names.
    """

    kind: str
    root: str
    names: list[str]
    items: list[Item] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    archives: dict[str, str] = field(default_factory=dict)

    def address(self, name: str) -> str:
        """The path of a file, or "zip://member::archive" of one in an archive."""
        if not self.archives:
            return os.path.join(self.root, name)
        first, _, inner = name.partition("/")
        archive, member = (self.archives[first], inner) if first in self.archives else (self.archives[""], name)
        return f"zip://{member}::{os.path.join(self.root, archive)}"

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
            return zip_member(self.address(name)).file_size if self.archives else os.path.getsize(self.address(name))
        except (
            OSError,
            BrokenImageError,
        ):  # a link that leads nowhere, or a file that has gone: reading it will say so
            return -1


def find_files(path: str, split: str) -> Files:
    """Finds the files that a path or glob means, by the rule of [`hf_geossl.data.sources.listing`].

    A folder is searched to its depths; what is hidden is left out. Of files of several kinds those are taken that are the
    data: images, unless there are fewer than four for each parquet, tar or zip file. The others are named and left out.

    Args:
        path (`str`): an existing file or folder, or a glob.
        split (`str`): "train", "validation" or "test", or another name of theirs ("val").

    Raises:
        FileNotFoundError: if nothing is there, or nothing that can be read.
        ValueError: if the split is not there, or a list or its metadata cannot be read.
    """
    name = name_of(path)
    if os.path.isfile(path) and path.lower().endswith(_LISTS):
        return _of_list(path, split)
    root, names = _list_files(path)
    by_kind: dict[str, list[str]] = {}
    for entry in names:
        by_kind.setdefault(kind_of(entry), []).append(entry)
    others = by_kind.pop("", [])
    metadata = [entry for entry in others if entry.split("/")[-1].lower() in METADATA]
    if not by_kind:
        what = f"{counted(len(names), 'file')}, but none of these kinds" if names else "no files"
        raise FileNotFoundError(
            f"{path!r} holds {what}; pass a path with images ({', '.join(EXTENSIONS)}), .parquet, .tar or .zip files, or a "
            f"list of paths ({', '.join(_LISTS)})"
        )
    images = by_kind.get("folder", [])
    packed = max((kind for kind in by_kind if kind != "folder"), key=lambda kind: len(by_kind[kind]), default="folder")
    kind = "folder" if len(images) >= _IMAGES_PER_ARCHIVE * len(by_kind[packed]) or packed == "folder" else packed
    if kind != "folder" and len(by_kind) > 1 + bool(images):
        kinds = ", ".join(f"{len(files)} of kind {each}" for each, files in by_kind.items())
        raise ValueError(f"{path!r} mixes files of several kinds ({kinds}); pass a glob that matches one kind")
    others = [entry for entry in others if (kind == "folder" and entry not in metadata) or kind != "folder"]
    others += [entry for other, entries in by_kind.items() if other != kind for entry in entries]
    if others:
        endings = Counter(os.path.splitext(entry)[1].lower() or "no ending" for entry in others)
        logger.warning(
            "%s in %s (%s%s) %s left out; taken %s",
            counted(len(others), "file of another kind", "files of other kinds"), name,
            ", ".join(sorted(endings)[:8]), ", ..." if len(endings) > 8 else "", "is" if len(others) == 1 else "are",
            counted(len(by_kind[kind]), *_NOUNS[kind]),
        )  # fmt: skip
    if kind == "zip":
        return _in_archives(root, by_kind["zip"], split, name)
    if kind == "folder":

        def read(file: str) -> bytes:
            return Path(root, file).read_bytes()

        items, classes = arrange(images, split, name, read, metadata)
        return Files(kind, root, [item.name for item in items], items, classes)
    divided, _ = divide(by_kind[kind], name, by_file_name=True)
    return Files(kind, root, _chosen(divided, split, path))


_NOUNS = {
    "folder": ("image", "images"),
    "parquet": ("parquet file", "parquet files"),
    "webdataset": ("tar file", "tar files"),
    "zip": ("zip file", "zip files"),
}


def _chosen(divided: dict[str, list[str]], split: str, path: str) -> list[str]:
    wanted = canonical(split)
    if wanted not in divided:
        raise ValueError(
            f"{path!r} has no split {split!r}; its splits are {', '.join(sorted(divided))} "
            f"(a split is a folder called {', '.join(SPLIT_WORDS)}; without one, every file belongs to train)"
        )
    return divided[wanted]


def _of_list(path: str, split: str) -> Files:
    root, file = os.path.split(path)
    check_regular(path)
    items, splits = listed(file, Path(path).read_bytes())
    if not items:
        raise FileNotFoundError(f"{path!r} lists no images; give it a path in each line")
    divided: dict[str, list[str]] = {}
    for item in items:
        divided.setdefault(splits.get(item.name, "train"), []).append(item.name)
    names = set(_chosen(divided, split, path))
    chosen = [item for item in items if item.name in names]
    twice = len(chosen) - len({item.name for item in chosen})
    if twice:
        logger.warning("%s of %s %s there more than once", counted(twice, "line"), file, "is" if twice == 1 else "are")
    return Files("folder", root, [item.name for item in chosen], chosen)


def _in_archives(root: str, archives: list[str], split: str, name: str) -> Files:
    """The images in `.zip` files, read in place; of several archives each is a folder of its name."""
    places = {
        "" if len(archives) == 1 else os.path.splitext(archive)[0].replace("/", "_"): archive for archive in archives
    }
    members = {
        f"{place}/{member}" if place else member: None
        for place, archive in places.items()
        for member in zip_members(os.path.join(root, archive))
    }
    files = Files("zip", root, [], archives=places)
    images = sorted(member for member in members if kind_of(member) == "folder")
    metadata = [member for member in members if member.split("/")[-1].lower() in METADATA]
    left = len(members) - len(images) - len(metadata)
    if not images:
        raise FileNotFoundError(
            f"{name!r} holds no images ({', '.join(EXTENSIONS[:4])}, ...): {counted(left, 'other file')}"
        )
    if left:
        logger.warning(
            "%s in %s %s left out",
            counted(left, "file of another kind", "files of other kinds"),
            name,
            "is" if left == 1 else "are",
        )
    items, classes = arrange(images, split, name, lambda member: read_zip_member(files.address(member)), metadata)
    return Files("zip", root, [item.name for item in items], items, classes, places)


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
    """Returns the kind of a file by its name: "parquet", "webdataset", "zip", "folder" (an image), or "" for any other."""
    name = name.lower()
    if name.endswith(".parquet"):
        return "parquet"
    if name.endswith(_TAR_EXTENSIONS):
        return "webdataset"
    if name.endswith(".zip"):
        return "zip"
    return "folder" if name.endswith(EXTENSIONS) else ""


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
    if files.archives:
        read = read_zip_member
    return Source(
        kind=kind,
        name=name,
        rows=rows_from(named_rows, units=[files.names[unit::units] for unit in range(units)]),
        units=units,
        read=partial(_read_file, replace(files, names=[], items=[]), read),
        identity=files.identity() if identity is None else identity,
        num_images=len(files.names),
    )


def _read_file(files: Files, read: Callable[[str], Any], row: dict) -> Any:
    return read(files.address(row["value"]))
