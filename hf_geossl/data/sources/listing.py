"""The one rule for files: which split, class and truth the names of a folder, an archive or a list mean.

- The split is the first folder called after one, in the field's spellings (train, val2017, test_images), the same number of
  folders below the root for all files; without such folders every file belongs to "train". Of parquet and tar files it may
  be a word of the file's name.
- The class is the first folder below the split in which files differ, whatever lies deeper.
- Folders of maps (masks, annotations, labels, ...) beside folders of images hold their truth, by the files' names.
- `metadata.jsonl` or `metadata.csv` gives further columns to the files that it names under `file_name`; files that it
  names under another `..._file_name` are truth.
"""

import io
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from hf_geossl.data.wording import counted

SPLIT_WORDS = {
    "train": ("train", "training", "trainval"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF_WORD = {word: split for split, words in SPLIT_WORDS.items() for word in words}
_ABOUT = r"(?:images?|imgs?|pictures?|photos?|data|set|split|part|\d+)"
_SPLIT_NAME = re.compile(
    rf"(?:{_ABOUT}[\s_.-]+)*({'|'.join(sorted(_SPLIT_OF_WORD, key=len, reverse=True))})(?:[\s_.-]*{_ABOUT})*"
)
_IMAGE_FOLDERS = frozenset(
    ["image", "images", "img", "imgs", "jpegimages", "input", "inputs", "rgb", "leftimg8bit", "photos", "pictures"]
)
_TRUTH_FOLDERS = frozenset(
    [
        "mask",
        "masks",
        "annotation",
        "annotations",
        "label",
        "labels",
        "labelids",
        "segmentation",
        "segmentations",
        "segmentationclass",
        "segmentationobject",
        "seg",
        "gt",
        "gtfine",
        "ground_truth",
        "groundtruth",
        "target",
        "targets",
    ]
)
_TRUTH_ENDING = re.compile(r"[_-](?:mask|label|labels|seg|gt|annotation|labelids|labeltrainids)$")
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_PATH_COLUMNS = ("file_name", "image", "path", "file", "filename", "filepath", "image_path", "file_path", "img")
_DEEPEST_SPLIT = 3

logger = logging.getLogger(__name__)
Read = Callable[[str], bytes]  # the content of a file by its name


@dataclass
class Item:
    """An image: its `name` below the root, `label` (the class's name), and other `columns`, of which `truth` are names of files."""

    name: str
    label: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    truth: dict[str, str] = field(default_factory=dict)


def split_of(word: str) -> str | None:
    """The split that a folder is called after: "train", "validation" or "test"; None for any other name."""
    match = _SPLIT_NAME.fullmatch(word.lower().strip())
    return _SPLIT_OF_WORD[match[1]] if match else None


def canonical(split: str) -> str:
    """The split that a user's word for one means; another word is returned as it is."""
    return split_of(split) or split


def divide(names: Sequence[str], of: str, *, by_file_name: bool = False) -> tuple[dict[str, list[str]], int | None]:
    """Divides names among splits.

    Args:
        names (`Sequence[str]`): with `/` between folders.
        of (`str`): what people call the data, for messages.
        by_file_name (`bool`): whether a word of the file's name may be the split too, as for parquet and tar files.

    Returns:
        `(dict, int | None)`: the names by split, and which folder of a name is the split (None: there is none).
    """
    folders = {name: name.split("/")[:-1] for name in names}
    depth = _split_depth(list(folders.values()), of)
    divided: dict[str, list[str]] = {}
    if depth is not None:
        marks = {name: split_of(place[depth]) if len(place) > depth else None for name, place in folders.items()}
    elif by_file_name:
        marks = _marks(names)
    else:
        marks = {}
    if not any(marks.values()):
        return ({"train": list(names)} if names else {}), None
    outside: list[str] = []
    for name, split in marks.items():
        (outside if split is None else divided.setdefault(split, [])).append(name)
    if outside:
        logger.warning(
            "%s in %s %s in no folder of a split (%s) and %s left out; if such a folder is none, rename it",
            counted(len(outside), "file"), of, "lies" if len(outside) == 1 else "lie", ", ".join(sorted(divided)),
            "is" if len(outside) == 1 else "are",
        )  # fmt: skip
    return divided, depth


def _marks(names: Sequence[str]) -> dict[str, str | None]:
    """The split that each file is called after: its first word, or any one where all files have such a word."""
    words = {name: re.split(r"[^a-z]+", name.split("/")[-1].lower()) for name in names}
    anywhere = {name: next(filter(None, map(_SPLIT_OF_WORD.get, parts)), None) for name, parts in words.items()}
    return anywhere if all(anywhere.values()) else {name: _SPLIT_OF_WORD.get(parts[0]) for name, parts in words.items()}


def _split_depth(places: list[list[str]], of: str) -> int | None:
    for depth in range(min(_DEEPEST_SPLIT, max(map(len, places), default=0))):
        at = Counter(place[depth] if len(place) > depth else "" for place in places)
        named = [folder for folder in at if folder and split_of(folder)]
        others = [folder for folder in at if folder and not split_of(folder)]
        if not named or (depth and len(named) < len(at)):
            continue
        if len(set(map(split_of, named))) == 1 and len(others) > 1:
            logger.warning(
                "the folder %s in %s is taken as a class, as it lies beside %s, which are no splits",
                named[0], of, ", ".join(sorted(others)[:3]),
            )  # fmt: skip
            return None
        return depth
    return None


def arrange(
    names: Sequence[str], split: str, of: str, read: Read, metadata: Sequence[str] = ()
) -> tuple[list[Item], list[str]]:
    """Finds the images of a split, with their classes and truth.

    Args:
        names (`Sequence[str]`): all image files, sorted.
        split (`str`): which.
        of (`str`): what people call the data.
        read (`Callable`): content of a file by its name.
        metadata (`Sequence[str]`): files of further columns.

    Returns:
        `(list[Item], list[str])`: the images in order, and the class names of all splits, sorted.

    Raises:
        ValueError: if the split is not there, or metadata cannot be read.
    """
    given, used = _given(metadata, read)
    maps, pairs = _pairs([name for name in names if name not in used], of)
    images = [name for name in names if name not in used and name not in maps]
    if used:
        logger.info("%s of %s are truth that metadata names", counted(len(used & set(names)), "image file"), of)
    divided, depth = divide(images, of)
    wanted = canonical(split)
    if wanted not in divided:
        raise ValueError(
            f"{of!r} has no split {split!r}; its splits are {', '.join(sorted(divided)) or 'none'} "
            f"(a split is a folder called {', '.join(SPLIT_WORDS)}; without one, every file belongs to train)"
        )
    labels = _classes(divided, depth, images=bool(pairs))
    items, place = (
        [],
        {name: number for number, name in enumerate(given)},
    )  # in the order of metadata where there is some
    for name in sorted(divided[wanted], key=lambda name: place.get(name, len(place))):
        columns, truth = given.get(name, ({}, {}))
        truth = truth or ({"annotation": pairs[name]} if name in pairs else {})
        items.append(Item(name, labels.get(name), columns, truth))
    return items, sorted({label for label in labels.values() if label is not None})


def _classes(divided: Mapping[str, Sequence[str]], depth: int | None, *, images: bool) -> dict[str, str | None]:
    """The class of each name: the first folder below the split in which the files of all splits differ."""
    below: dict[str, list[str]] = {}
    for names in divided.values():
        for name in names:
            folders = name.split("/")[:-1]
            inside = folders if depth is None else folders[depth + 1 :]
            inside = [folder for folder in inside if not (images and folder.lower() in _IMAGE_FOLDERS)]
            below[name] = inside or (folders[depth - 1 : depth] if depth and not images else [])
    while (
        below and len({tuple(place[:1]) for place in below.values()}) == 1 and all(len(p) > 1 for p in below.values())
    ):
        below = {name: place[1:] for name, place in below.items()}  # all lie in one folder, and in others inside of it
    return {name: place[0] if place else None for name, place in below.items()}


def _pairs(names: Sequence[str], of: str) -> tuple[set[str], dict[str, str]]:
    """Maps in folders of truth beside folders of images, and which map belongs to which image."""
    places: dict[tuple[str, ...], set[str]] = {}
    for name in names:
        folders = name.split("/")[:-1]
        for place, folder in enumerate(folders):
            places.setdefault(tuple(folders[:place]), set()).add(folder)
    beside = {  # where both lie beside each other
        above
        for above, inside in places.items()
        if any(folder.lower() in _IMAGE_FOLDERS for folder in inside)
        and any(folder.lower() in _TRUTH_FOLDERS for folder in inside)
    }
    if not beside:
        return set(), {}
    maps: dict[tuple[str, ...], str] = {}
    images: dict[tuple[str, ...], str] = {}
    for name in names:
        *folders, file = name.split("/")
        for place, folder in enumerate(folders):
            if tuple(folders[:place]) in beside and folder.lower() in (_TRUTH_FOLDERS | _IMAGE_FOLDERS):
                stem = os.path.splitext(file)[0]
                is_map = folder.lower() in _TRUTH_FOLDERS
                key = (*folders[:place], *folders[place + 1 :], _TRUTH_ENDING.sub("", stem) if is_map else stem)
                (maps if is_map else images).setdefault(key, name)
                break
    pairs = {image: maps[key] for key, image in images.items() if key in maps}
    truth = {name for name in names if name in set(maps.values()) or _lies_in_truth(name, beside)}
    logger.warning(
        "%s in %s %s in folders of truth beside the images (%s) and %s no images to learn from; %s by name",
        counted(len(truth), "file"), of, "lies" if len(truth) == 1 else "lie",
        ", ".join(sorted({_truth_folder(name, beside) for name in truth})), "is" if len(truth) == 1 else "are",
        f"{counted(len(pairs), 'image has one', 'images have one')}",
    )  # fmt: skip
    return truth, pairs


def _truth_folder(name: str, beside: set[tuple[str, ...]]) -> str:
    folders = name.split("/")[:-1]
    return next(
        (f for place, f in enumerate(folders) if tuple(folders[:place]) in beside and f.lower() in _TRUTH_FOLDERS), ""
    )


def _lies_in_truth(name: str, beside: set[tuple[str, ...]]) -> bool:
    return bool(_truth_folder(name, beside))


def _given(metadata: Sequence[str], read: Read) -> tuple[dict[str, tuple[dict[str, Any], dict[str, str]]], set[str]]:
    """By image, the columns and the files of truth that metadata gives it; and all those files."""
    given: dict[str, tuple[dict[str, Any], dict[str, str]]] = {}
    used: set[str] = set()
    for file in metadata:
        rows = read_table(file, read(file))
        if "file_name" not in rows:
            raise ValueError(
                f"{file} has no column file_name but {', '.join(map(str, rows))}: name the images under it"
            )
        folder = file.rpartition("/")[0]
        files = [column for column in rows if column.endswith("_file_name")]
        others = [column for column in rows if column not in (*files, "file_name")]
        for row in rows.to_dict("records"):
            truth = {c.removesuffix("_file_name"): _below(folder, row[c]) for c in files if isinstance(row[c], str)}
            columns = {column: None if _is_missing(row[column]) else row[column] for column in others}
            given[_below(folder, row["file_name"])] = columns, truth
            used.update(truth.values())
    return given, used


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def _below(folder: str, name: object) -> str:
    return os.path.normpath(os.path.join(folder, str(name))).replace(os.sep, "/")


def read_table(file: str, content: bytes) -> pd.DataFrame:
    """Reads a CSV, JSONL or parquet table of a few columns.

    Raises:
        ValueError: if it is none; the message names the file.
    """
    try:
        if file.endswith(".parquet"):
            return pd.read_parquet(io.BytesIO(content))
        if file.endswith(".jsonl"):
            return pd.DataFrame([json.loads(line) for line in content.decode().splitlines() if line.strip()])
        return pd.read_csv(io.BytesIO(content), sep="\t" if file.endswith(".tsv") else ",")
    except (ValueError, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{file} cannot be read as a table ({str(error).splitlines()[0][:120]})") from error


def listed(file: str, content: bytes) -> tuple[list[Item], dict[str, str]]:
    """Reads a list of images: a `.txt` of paths, each perhaps with a label behind it, or a table with a column of paths.

    Returns:
        `(list[Item], dict[str, str])`: the images, and the split of each that the list gives one (column "split").

    Raises:
        ValueError: if it has no column of paths; the message names those that it has.
    """
    if file.endswith(".txt"):
        lines = [line.strip() for line in content.decode("utf-8", "surrogateescape").splitlines() if line.strip()]
        matches = [re.fullmatch(r"(.*?)(?:[\t ,;]+(-?\d+))?", line) for line in lines]
        labelled = all(match and match[2] for match in matches)
        return [
            Item(
                _below("", match[1] if labelled and match else line),
                columns={"label": int(match[2])} if labelled and match else {},
            )
            for line, match in zip(lines, matches, strict=True)
        ], {}
    rows = read_table(file, content)
    column = next(
        (name for name in _PATH_COLUMNS if name in rows and rows[name].map(lambda v: isinstance(v, str)).all()), None
    )
    if column is None:
        raise ValueError(
            f"{file} has the columns {', '.join(map(str, rows)) or 'none'}, and none of paths: name it "
            f"{' or '.join(_PATH_COLUMNS[:3])}"
        )
    items, splits = [], {}
    for row in rows.to_dict("records"):
        name = _below("", row.pop(column))
        if isinstance(row.get("split"), str):
            splits[name] = canonical(row["split"])
        truth = {
            key.removesuffix("_file_name"): _below("", row.pop(key)) for key in list(row) if key.endswith("_file_name")
        }
        items.append(
            Item(name, None, {key: None if _is_missing(value) else value for key, value in row.items()}, truth)
        )
    return items, splits
