"""Local files: which ones a path means, of which kind and split; folders of images as sources."""

import glob
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from hf_geossl.data.images import BrokenImageError
from hf_geossl.data.sources.archives import (
    ADDRESS,
    check_regular,
    is_plain_tar,
    member_size,
    members,
    read_member,
    tar_names,
)
from hf_geossl.data.sources.base import Source, rows_from, units_for
from hf_geossl.data.sources.box_files import box_files
from hf_geossl.data.sources.compressed import decompressed
from hf_geossl.data.sources.listing import (
    PART,
    TAR_ENDINGS,
    Division,
    arrange,
    divide,
    is_hidden,
    kind_of,
    sample_of,
    say_hidden,
)
from hf_geossl.data.sources.split_names import canonical, split_of
from hf_geossl.data.sources.strays import advice_on, endings_of, say_strays
from hf_geossl.data.sources.tables import METADATA, Item, read_list, read_metadata
from hf_geossl.data.wording import Place, as_text, counted, some_of

_OF_YAML = "a description of a dataset (.yaml) stands for its folder: give the folder"
_LISTS = (".txt", ".csv", ".tsv", ".jsonl", ".json")
_FILES_PER_STRAY = 4  # with fewer for each, files of two kinds are both the data
_MOST_LINKS = 8  # through which a folder is entered
_MEMBERS_TRIED = 100  # of a tar, to see what it holds
_SIZES_IN_DIGEST = 1000
_NOUNS = {
    "folder": ("image", "images"),
    "parquet": ("parquet file", "parquet files"),
    "webdataset": ("tar file", "tar files"),
    "zip": ("zip file", "zip files"),
}


@dataclass(frozen=True)
class Files:
    """The files of one kind and split.

    Attributes:
        kind (`str`): "folder" (images), "zip" (images in zips or tars), "parquet" or "webdataset".
        root (`str`): what the names lie below.
        names (`list[str]`): of the files.
        items (`list[Item]`): of images, with classes and truth.
        classes (`list[str]`): of all splits.
        archives (`dict[str, str]`): folder in the names -> path of the archive that it stands for; "" for a single one.
        objects (`list[str]`): files of boxes beside images (COCO, YOLO, Pascal VOC, ...), which labelled rows read.
    """

    kind: str
    root: str
    names: list[str]
    items: list[Item] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    archives: dict[str, str] = field(default_factory=dict)
    objects: list[str] = field(default_factory=list)

    def address(self, name: str) -> str:
        """The path of a file, or "archive://member::archive" of one in an archive."""
        if not self.archives:
            return os.path.join(self.root, name)
        folder = name.rpartition("/")[0] if "" not in self.archives else ""
        while folder not in self.archives:
            folder = folder.rpartition("/")[0]
        member = name.removeprefix(folder + "/") if folder else name
        return f"{ADDRESS}{member}::{self.archives[folder]}"

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
            return member_size(self.address(name)) if self.archives else os.path.getsize(self.address(name))
        except (
            OSError,
            BrokenImageError,
        ):  # a link that leads nowhere, or a file that has gone: reading it will say so
            return -1


def find_files(path: str, split: str, image_column: str = "image") -> Files:
    """Finds the files that a path or glob means, by the rule of [`hf_geossl.data.sources.listing`].

    A folder is searched to its depths; what is hidden is left out. Of files of several kinds those are taken that are the
    data: images, unless there are fewer than four for each parquet, tar or zip file. The others are said and left out.

    Args:
        path (`str`): an existing file or folder, or a glob.
        split (`str`): "train", "validation" or "test", another name of theirs ("val"), or one folder's ("train2017").
        image_column (`str`, *optional*): of a list, the column with the paths.

    Raises:
        FileNotFoundError: if nothing is there, or nothing that can be read.
        ValueError: if the split is not there, or a list, an archive or metadata cannot be read.
    """
    place = Place(path)
    if os.path.isfile(path) and path.lower().endswith(_LISTS):
        return _of_list(place, split, image_column)
    root, names, links = list_files(place)
    by_kind: dict[str, list[str]] = {}
    for entry in names:
        by_kind.setdefault(kind_of(entry), []).append(entry)
    others = by_kind.pop("", [])
    if not by_kind:
        what = f"{counted(len(names), 'file')} ({endings_of(names)}), but none of these kinds" if names else "no files"
        advice = _OF_YAML if path.lower().endswith((".yaml", ".yml")) else advice_on(others)
        raise FileNotFoundError(
            f"{path!r} holds {what}; pass a path with images (.jpg, .png, .tif, .npy, .dcm, ...), .parquet, .tar "
            f"or .zip files, a list of paths ({', '.join(_LISTS)}), or what save_to_disk has written{'; ' if advice else ''}{advice}"
        )
    kind = _kind_of_data(by_kind, path)
    metadata = [entry for entry in (*others, *by_kind.get("parquet", ())) if _is_metadata(entry)]
    metadata = metadata if kind == "folder" else []
    others += [entry for other, entries in by_kind.items() if other != kind for entry in entries]
    objects = box_files(root, others, by_kind[kind]) if kind == "folder" else []
    read = {*metadata, *objects}
    others = [entry for entry in others if entry not in read]
    say_strays(others, by_kind[kind], counted(len(by_kind[kind]), *_NOUNS[kind]), place)
    if kind == "folder":

        def content(file: str) -> bytes:
            return Path(root, file).read_bytes()

        images = by_kind["folder"]
        items, classes = arrange(images, split, place, read_metadata(metadata, content, images, place), links)
        return Files(kind, root, [item.name for item in items], items, classes, objects=objects)
    if kind == "zip" or (kind == "webdataset" and _are_folders(root, by_kind[kind])):
        return _in_archives(root, by_kind[kind], split, place)
    return Files(kind, root, divide(by_kind[kind], place, by_file_name=True, links=links).choose(split, place))


def _is_metadata(name: str) -> bool:
    return name.rpartition("/")[2].lower() in METADATA


def _kind_of_data(by_kind: dict[str, list[str]], path: str) -> str:
    """The kind of file that is the data; the others lie beside it."""
    packed = {kind: [name for name in names if not _is_metadata(name)] for kind, names in by_kind.items()}
    images = len(packed.pop("folder", ()))
    kind = max(packed, key=lambda kind: len(packed[kind]), default="folder")
    if images and (kind == "folder" or images >= _FILES_PER_STRAY * len(packed[kind])):
        return "folder"
    if any(_FILES_PER_STRAY * len(names) > len(packed[kind]) for other, names in packed.items() if other != kind):
        kinds = ", ".join(f"{len(files)} of kind {each}" for each, files in by_kind.items())
        raise ValueError(f"{path!r} mixes files of several kinds ({kinds}); pass a glob that matches one kind")
    return kind


def _are_folders(root: str, tars: list[str]) -> bool:
    """Whether tars hold folders of images as a `.zip` does, and not the samples of WebDataset.

    That is: images in folders without a file of another kind beside any of the first, in one tar, in one for each split, or
    in folders of splits. A compressed tar, which is decompressed for it, must hold folders of splits or several others.
    """
    first = list(islice(tar_names(os.path.join(root, tars[0])), _MEMBERS_TRIED))
    first = [name for name in first if not any(map(is_hidden, name.split("/")))]
    images = [name for name in first if kind_of(name) == "folder"]
    samples = {sample_of(name) for name in images}
    if not images or any("/" not in name for name in images):
        return False
    if any(sample_of(name) in samples for name in first if kind_of(name) != "folder"):
        return False
    in_splits = any(split_of(folder) for name in images for folder in name.split("/")[:-1])
    splits = {split_of(_stem(tar)) for tar in tars} - {None}
    if not in_splits and len(tars) > 1 and len(splits) < len(tars):
        return False
    several = len({name.rpartition("/")[0] for name in images}) > 1
    return in_splits or several or all(is_plain_tar(os.path.join(root, tar)) for tar in tars)


def _stem(archive: str) -> str:
    name = archive.rpartition("/")[2]
    return next((name[: -len(end)] for end in (*TAR_ENDINGS, ".zip") if name.lower().endswith(end)), name)


def _of_list(place: Place, split: str, image_column: str) -> Files:
    root, file = os.path.split(place.path)
    check_regular(place.path)
    items = read_list(file, Path(place.path).read_bytes(), image_column, place)
    if not items:
        raise FileNotFoundError(f"{place.path!r} lists no images; give it a path in each line")
    divided: dict[str, list[str]] = {}
    unknown = 0
    for item in items:
        given = item.columns.get("split", "train")
        unknown += given is None
        divided.setdefault("train" if given is None else canonical(str(given)), []).append(item.name)
    if unknown:
        place.warn(f"{counted(unknown, 'line')} without a split taken as train")
    names = set(Division(divided).choose(split, place))
    chosen = [item for item in items if item.name in names]
    return Files("folder", root, [item.name for item in chosen], chosen)


def _in_archives(root: str, archives: list[str], split: str, place: Place) -> Files:
    """The images in archives, read in place; of several archives each is a folder of its name, unless they are numbered parts."""
    inside = {
        archive: archive[: len(archive) - len(archive.rpartition("/")[2])] + _stem(archive) for archive in archives
    }
    if len(archives) == 1:
        folders = {"": archives[0]}
    elif len({re.sub(r"\d+", "", stem) for stem in inside.values()}) == 1 and not any(map(split_of, inside.values())):
        folders = {stem + PART: archive for archive, stem in inside.items()}
        place.warn(f"{counted(len(archives), 'archive')} taken as numbered parts of one folder")
    else:
        folders = {stem: archive for archive, stem in inside.items()}
        place.warn(f"{counted(len(archives), 'archive')} taken as folders of their names ({some_of(sorted(folders))})")
    folders = {folder: decompressed(os.path.join(root, archive)) for folder, archive in folders.items()}
    files = Files("zip", root, [], archives=folders)
    names, hidden = [], []
    for folder, archive in folders.items():
        for member in members(archive):
            name = f"{folder}/{member}" if folder else member
            if any(map(is_hidden, member.split("/"))):
                hidden += [name] if kind_of(name) else []
            else:
                names.append(name)
    say_hidden(hidden, place)
    images = sorted(name for name in names if kind_of(name) == "folder")
    metadata = [name for name in names if _is_metadata(name)]
    others = [name for name in names if kind_of(name) != "folder" and name not in metadata]
    if not images:
        raise FileNotFoundError(
            f"{place.name!r} holds {counted(len(others), 'file')}, but no images: unpack what may be packed in it again"
        )
    say_strays(others, images, counted(len(images), "image"), place, packed=True)
    given = read_metadata(metadata, lambda member: read_member(files.address(member)), images, place)
    items, classes = arrange(images, split, place, given)
    return replace(files, names=[item.name for item in items], items=items, classes=classes)


def list_files(place: Place) -> tuple[str, list[str], dict[str, str]]:
    """Lists all files that a path or glob means: the folder that they lie in, their names below it, sorted, and links.

    Links are names that are reached by a link, with what they lead to: a name below the folder too, or a path.
    """
    path = place.path
    if os.path.isfile(path):
        root, file = os.path.split(path)
        return root, [file], {}
    if os.path.exists(path):
        names, links = _walk(place)
        return path, sorted(names), links
    root, pattern = divide_glob(path)
    matches = glob.glob(os.path.join(glob.escape(root), pattern), recursive=True)
    files = sorted(file for file in matches if os.path.isfile(file))
    if not files:
        what = "matches folders only" if matches else "matches no file"
        how = "let it match their files, as in 'photos/**/*.jpg'" if matches else "check the pattern and the folder"
        raise FileNotFoundError(f"the glob {path!r} {what}; {how}")
    return root, [os.path.relpath(file, root).replace(os.sep, "/") for file in files], {}


def divide_glob(path: str) -> tuple[str, str]:
    """The folder that a glob begins with, which exists, whatever marks are in its name; and the pattern below it."""
    parts = path.split(os.sep)
    for end in range(len(parts) - 1, 0, -1):
        root = os.sep.join(parts[:end]) or os.sep
        if os.path.isdir(root):
            return root, os.path.join(*parts[end:])
    return ".", path


def _walk(place: Place) -> tuple[list[str], dict[str, str]]:
    """Lists the files below a folder, through links too: what is reached by links has an entry in the second."""
    names: list[str] = []
    links: dict[str, str] = {}
    hidden: list[str] = []
    root = os.path.realpath(place.path)
    visits: Counter[str] = Counter()

    def enter(folder: str, real: str, above: frozenset[str]) -> None:
        try:
            with os.scandir(os.path.join(place.path, folder)) as scanned:
                entries = sorted(scanned, key=lambda entry: entry.name)
        except OSError as error:
            place.warn(f"the folder {folder or '.'} cannot be read and is left out ({error.strerror})")
            return
        for entry in entries:
            name, linked = os.path.join(folder, entry.name), entry.is_symlink()
            target = os.path.realpath(entry.path) if linked else os.path.join(real, entry.name)
            is_folder = os.path.isdir(entry.path) if linked else entry.is_dir()
            if is_hidden(entry.name):
                hidden.extend([name] if is_folder or kind_of(name) else [])
            elif is_folder:
                visits[target] += 1
                if target not in above and visits[target] <= _MOST_LINKS:  # else it leads back up, or to the same again
                    enter(name, target, above | {target})
            else:
                names.append(name.replace(os.sep, "/"))
                below = target.removeprefix(root + os.sep).replace(os.sep, "/")
                if below != names[-1]:
                    links[names[-1]] = below

    enter("", root, frozenset({root}))
    say_hidden(hidden, place)
    return names, links


def _is_glob(path: str) -> bool:
    return any(mark in path for mark in "*?[")


def as_path(path_or_id: str) -> str | None:
    """Returns the path with `~` expanded, or None for what can only be the id of a Hub dataset.

    Raises:
        FileNotFoundError: if it is written like a path, but nothing is there.
    """
    path = os.path.expanduser(path_or_id)
    if path.startswith("file://"):
        path = unquote(path.removeprefix("file://"))
    if os.path.exists(path) or _is_glob(path):
        return path
    like_an_id = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", path_or_id)
    if not like_an_id or kind_of(path_or_id) or Path(path).suffix in (".zip", ".arrow", *_LISTS):
        pattern = re.sub(r"\{[^{}]*(\.\.|,)[^{}]*\}", "*", path_or_id)  # of webdataset's own programs
        instead = f"; braces are no pattern here, write {pattern!r}" if pattern != path_or_id else ""
        raise FileNotFoundError(
            f"{path_or_id!r} does not exist; pass a file, a folder, a glob, or a Hub dataset's id{instead}"
        )
    return None


def named_rows(units: list[list[str]]) -> Iterator[tuple[int, dict]]:
    """Generates the rows of units that are lists of file names."""
    for names in units:
        for index, name in enumerate(names):
            yield index, {"key": as_text(name), "value": name}


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
        read = read_member
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
