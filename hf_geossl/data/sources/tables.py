"""Tables beside images: lists of paths, and metadata that gives columns and truth to files."""

import io
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from hf_geossl.data.images import EXTENSIONS
from hf_geossl.data.wording import Place, counted, some_of

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_PATH_COLUMNS = ("file_name", "image", "path", "file", "filename", "filepath", "image_path", "file_path", "img")
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
    for file in files:
        rows = read_table(file, read(file))
        if "file_name" not in rows:
            raise ValueError(
                f"{file} has no column file_name but {', '.join(map(str, rows))}: name the images under it"
            )
        for row in rows.to_dict("records"):
            item = _item(row, "file_name", file.rpartition("/")[0])
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


def read_table(file: str, content: bytes) -> pd.DataFrame:
    """Reads a CSV, JSONL or parquet table of a few columns.

    Raises:
        ValueError: if it is none; the message names the file.
    """
    try:
        if file.endswith(".parquet"):
            return pd.read_parquet(io.BytesIO(content))
        if file.endswith(".jsonl"):
            text = content.decode("utf-8-sig").strip()
            whole = text.startswith("[")  # one JSON list
            return pd.DataFrame(
                json.loads(text) if whole else list(map(json.loads, filter(str.strip, text.splitlines())))
            )
        head = content.split(b"\n", 1)[0]
        separator = max(",", ";", "\t", key=lambda mark: head.count(mark.encode()))
        rows = pd.read_csv(io.BytesIO(content), sep=separator)
        # "None" and "NA" are words, and may be classes, in columns that do not hold numbers otherwise
        words = pd.read_csv(io.BytesIO(content), sep=separator, keep_default_na=False, na_values=["", "nan", "NaN"])
        return _with_words(rows, words)
    except (ValueError, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{file} cannot be read as a table ({str(error).splitlines()[0][:120]})") from error


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
    items = _lines(content) if file.endswith(".txt") else _rows(file, content, image_column, place)
    by_name: dict[str, Item] = {}
    for item in items:
        by_name.setdefault(item.name, item)
    if twice := len(items) - len(by_name):
        place.warn(f"{counted(twice, 'line')} left out, about images of earlier lines")
    return list(by_name.values())


def _lines(content: bytes) -> list[Item]:
    text = content.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("# ")]
    matches = [re.fullmatch(r"(.*?)[\t ,;]+(-?\d+)", line) for line in lines]
    if all(matches):
        return [Item(_below("", match[1]), None, {"label": int(match[2])}) for match in matches if match]
    texts = [_WITH_TEXT.fullmatch(line) for line in lines]
    if all(texts):
        return [Item(_below("", match[1]), None, {"label": match[2]}) for match in texts if match]
    return [Item(_below("", line)) for line in lines]


def _rows(file: str, content: bytes, image_column: str, place: Place) -> list[Item]:
    rows = read_table(file, content)
    if rows.empty:
        return []
    wanted = _PATH_COLUMNS if image_column == "image" else (image_column,)
    found = {str(name) if name == image_column else str(name).lower(): name for name in reversed(rows.columns)}
    column = next(
        (found[name] for name in wanted if name in found and _are_paths(rows[found[name]])),
        None,
    )
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
