"""Tables beside images: lists of paths, and metadata that gives columns and truth to files."""

import io
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from hf_geossl.data.images import EXTENSIONS
from hf_geossl.data.sources.coco import images_of
from hf_geossl.data.sources.listed_paths import find_rule, placed
from hf_geossl.data.wording import Place, counted, some_of

METADATA = ("metadata.jsonl", "metadata.json", "metadata.csv", "metadata.parquet")
_PATH_COLUMNS = ("file_name", "image", "path", "file", "filename", "filepath", "image_path", "file_path", "img")
_NUMBER_COLUMNS = ("id", "image_id", "imageid", "img_id", "name", "image_name", "isic_id")
_WITH_TEXT = re.compile(  # an image, and a text behind it
    rf"(.*?(?:{'|'.join(map(re.escape, EXTENSIONS))}))[\t ,;]+(\S.*)", re.IGNORECASE
)
Read = Callable[[str], bytes]  # the content of a file by its name


@dataclass
class Item:
    """An image: its `name` below the root, `label` (the class's name), and other `columns`, of which `truth` are names of files."""

    name: str
    label: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    truth: dict[str, str] = field(default_factory=dict)


def read_metadata(files: Sequence[str], read: Read, names: Sequence[str], place: Place) -> dict[str, Item]:
    """The columns and files of truth that metadata gives to images, by the images' names.

    Args:
        files (`Sequence[str]`): of metadata.
        read (`Callable`): content of a file by its name.
        names (`Sequence[str]`): of all image files; rows about others are said and left out.
        place (`Place`): of the data.

    Raises:
        ValueError: if one is no table, or has no column `file_name`.
    """
    given: dict[str, Item] = {}
    rows_read, absent = 0, []
    known = set(names)
    without_ending = {os.path.splitext(name)[0]: name for name in names} if files else {}
    for file in files:
        rows = read_table(file, read(file), place)
        column = next((name for name in _PATH_COLUMNS if name in rows), None)
        if column is None:
            raise ValueError(
                f"{file} has no column file_name but {', '.join(map(str, rows))}: name the images under it"
            )
        for row in rows.to_dict("records"):
            item = _item(row, column, file.rpartition("/")[0])
            item = replace(item, name=without_ending.get(item.name) or item.name)
            rows_read += 1
            if item.name in known:
                given.setdefault(item.name, item)
            else:
                absent.append(item.name)
    if absent:
        place.warn(
            f"{counted(len(absent), 'row')} of metadata about images that are not there left out ({some_of(absent)})"
        )
    if twice := rows_read - len(absent) - len(given):
        place.warn(f"{counted(twice, 'row')} of metadata left out, about images of earlier rows")
    return given


def _item(row: dict[Any, Any], column: str, folder: str = "") -> Item:
    """Makes an item of a row whose `column` names the image, and whose columns "..._file_name" its truth."""
    name = _below(folder, row.pop(column))
    values = {str(key): None if value is None or value != value else value for key, value in row.items()}
    files = {key: values.pop(key) for key in list(values) if key.endswith("_file_name")}
    truth = {key.removesuffix("_file_name"): _below(folder, value) for key, value in files.items() if value is not None}
    return Item(name, None, values, truth)


def _below(folder: str, name: object) -> str:
    if isinstance(name, str) and "\\" in name and "/" not in name:  # written on Windows
        name = name.replace("\\", "/")
    return os.path.normpath(os.path.join(folder, str(name))).replace(os.sep, "/")


def read_table(file: str, content: bytes, place: Place) -> pd.DataFrame:
    """Reads a CSV, JSON, JSONL or parquet table of a few columns.

    Raises:
        ValueError: if it is none; the message names the file.
    """
    kind = os.path.splitext(file.lower())[1]
    try:
        if kind == ".parquet":
            return pd.read_parquet(io.BytesIO(content))
        text = as_unicode(content, place)
        if kind in (".jsonl", ".json"):
            return pd.DataFrame(_records(text, place))
        while text.startswith(("# ", "sep=")):
            text = text.partition("\n")[2]
        head = text.partition("\n")[0].strip()
        separator = max(",", ";", "\t", key=head.count)
        options: dict[str, Any] = {"sep": separator, "skipinitialspace": True}
        if any(cell.strip(' "').lower().endswith(EXTENSIONS) for cell in head.split(separator)):
            count = head.count(separator) + 1
            options |= {"header": None, "names": ["image", "label", *map(str, range(2, count))][:count]}
            place.warn(f"{file} has no line of names; its columns are called {', '.join(options['names'])}")
        rows = pd.read_csv(io.StringIO(text), **options)
        # "None" and "NA" are words, and may be classes, in columns that do not hold numbers otherwise
        words = pd.read_csv(io.StringIO(text), keep_default_na=False, na_values=["", "nan", "NaN"], **options)
        rows = _with_words(rows, words)
        for column in rows:  # numbers may be names of files, whose zeros count
            if str(column).lower().strip() in (*_PATH_COLUMNS, *_NUMBER_COLUMNS) and pd.api.types.is_integer_dtype(
                rows[column]
            ):
                rows[column] = pd.read_csv(io.StringIO(text), usecols=[column], dtype=str, **options)[column]
        for column in rows.select_dtypes(exclude=["number", "bool"]):  # blanks at the end name no other file or class
            rows[column] = rows[column].map(lambda cell: cell.strip() if isinstance(cell, str) else cell)
        return rows.rename(columns=lambda name: str(name).strip())
    except (ValueError, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{file} cannot be read as a table ({str(error).splitlines()[0][:120]})") from error


def as_unicode(content: bytes, place: Place) -> str:
    """The text of a file: UTF-8, UTF-16 by its mark, or else Windows' letters of western Europe, which is said."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        place.warn("the text is no UTF-8 and is read as cp1252 (western European letters)")
        return content.decode("cp1252", "replace")


def _records(text: str, place: Place) -> Any:
    """The rows of JSON: an object a line, a list of objects, a list under one name, lists under names, or names with labels.

    Raises:
        ValueError: if it is none of these.
    """
    text = text.strip()
    if text.startswith("{") and "\n{" in text.replace("\r", ""):
        return list(map(json.loads, filter(str.strip, text.splitlines())))
    document = json.loads(text)
    if isinstance(document, list) and all(isinstance(row, dict) for row in document):
        return document
    if not isinstance(document, dict):
        raise ValueError("it holds no objects")
    if "annotations" in document and "images" in document:
        return images_of(document, place)
    lists = [value for value in document.values() if isinstance(value, list)]
    if len(lists) == 1 and lists[0] and isinstance(lists[0][0], dict):
        return lists[0]
    if lists and len(lists) == len(document):
        return document
    if not lists and len(document) > 1 and all(name.lower().endswith(EXTENSIONS) for name in document):
        return [
            {"image": name, **value} if isinstance(value, dict) else {"image": name, "label": value}
            for name, value in document.items()
        ]
    return [document]


def _with_words(rows: pd.DataFrame, words: pd.DataFrame) -> pd.DataFrame:
    for column in rows:
        if not pd.api.types.is_numeric_dtype(rows[column]) or not rows[column].notna().any():
            rows[column] = words[column]
    return rows


def read_list(file: str, content: bytes, image_column: str, place: Place) -> list[Item]:
    """Reads a list of images: a `.txt` of paths, each perhaps with a label behind it, or a table with a column of paths.

    An image that is listed again counts by its first line.

    Args:
        file (`str`), content (`bytes`): of the list.
        image_column (`str`): with the paths; the default "image" stands for any of the usual names.
        place (`Place`): of the list.

    Raises:
        ValueError: if it has no column of paths; the message names those that it has.
    """
    items = _lines(content, place) if file.lower().endswith(".txt") else _rows(file, content, image_column, place)
    names = placed([item.name for item in items], place) if items else []
    by_name: dict[str, Item] = {}
    for name, item in zip(names, items, strict=True):
        by_name.setdefault(name, replace(item, name=name))
    if twice := len(items) - len(by_name):
        place.warn(f"{counted(twice, 'line')} left out, about images of earlier lines")
    return list(by_name.values())


def _lines(content: bytes, place: Place) -> list[Item]:
    text = as_unicode(content, place)
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("# ")]
    matches = [re.fullmatch(r"(.*?)[\t ,;]+(-?\d+)", line) for line in lines]
    if all(matches):
        return [Item(_below("", match[1]), None, {"label": int(match[2])}) for match in matches if match]
    texts = [_WITH_TEXT.fullmatch(line) for line in lines]
    if all(texts):
        return [Item(_below("", match[1]), None, {"label": match[2]}) for match in texts if match]
    return [Item(_below("", line)) for line in lines]


def _rows(file: str, content: bytes, image_column: str, place: Place) -> list[Item]:
    rows = read_table(file, content, place)
    if rows.empty:
        return []
    wanted = _PATH_COLUMNS if image_column == "image" else (image_column,)
    found = {str(name) if name == image_column else str(name).lower(): name for name in reversed(rows.columns)}
    column = next(
        (found[name] for name in wanted if name in found and _are_paths(rows[found[name]])),
        None,
    )
    if column is None and image_column == "image":
        root = os.path.dirname(place.path)
        texts = [name for name in rows if _are_paths(rows[name])]
        column = next(
            (name for name in texts if find_rule([_below("", cell) for cell in rows[name].dropna()], root)), None
        )
        if column is not None:
            place.warn(f"the column {column} is taken as paths; --image_column takes another")
    if column is None:
        raise ValueError(
            f"{file} has the columns {', '.join(map(str, rows)) or 'none'}, and none of paths: name it "
            f"{' or '.join(_PATH_COLUMNS[:3])}, or pass its name as image_column= (--image_column)"
        )
    named = rows[rows[column].notna()]
    if len(named) < len(rows):
        place.warn(f"{counted(len(rows) - len(named), 'line')} left out, with nothing in the column {column}")
    return [_item(row, column) for row in named.to_dict("records")]


def _are_paths(values: pd.Series) -> bool:
    """Whether a column holds text, and nothing else where it holds something."""
    given = values.dropna()
    return len(given) > 0 and bool(given.map(lambda value: isinstance(value, str)).all())
