"""Paths of a table that are written for another place: from another folder or machine, or without the ending."""

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from hf_geossl.data.images import EXTENSIONS
from hf_geossl.data.sources.split_names import SPLIT_OF_WORD, split_of
from hf_geossl.data.wording import Place, counted

_SAMPLES, _FIRST, _MOST_FOLDERS = 20, 3, 50


class Rule(NamedTuple):
    """How a path of a table becomes one below the table's folder.

    Args:
        drop (`int`): folders left out at its beginning.
        folder (`str`): that it lies in.
        ending (`str`): put behind it.
    """

    drop: int = 0
    folder: str = ""
    ending: str = ""

    def apply(self, name: str) -> str:
        """Makes the path below the table's folder."""
        if self == Rule():
            return name
        inside = "/".join(name.lstrip("/").split("/")[self.drop :]) if self.drop else name
        return os.path.normpath(os.path.join(self.folder, inside + self.ending)).replace(os.sep, "/")

    def describe(self, name: str) -> str:
        """Says what it does to a name."""
        return f"{name} is {self.apply(name)}"


def find_rule(names: Sequence[str], root: str, table: str = "") -> Rule | None:
    """Finds the rule by which paths lead to files: as they stand, below other folders, without their first folders, with an ending.

    Args:
        names (`Sequence[str]`): paths of a table.
        root (`str`): the folder of the table.
        table (`str`, *optional*): its name; of several folders that of the split in it comes first.

    Returns:
        `Rule`: the first by which at least half of some paths are there (one, as they stand); None if there is none.
    """
    some = [names[index] for index in range(0, len(names), max(1, len(names) // _SAMPLES))]
    if any(os.path.isfile(os.path.join(root, name)) for name in some):
        return Rule()
    endings = ("", *EXTENSIONS, *(ending.upper() for ending in EXTENSIONS))
    splits = {SPLIT_OF_WORD.get(word) for word in re.findall(r"[a-z]+", table.lower())} - {None}
    inside, beside = (
        sorted(_folders(path), key=lambda folder: split_of(folder) not in splits)
        for path in (root, os.path.join(root, ".."))
    )
    ways = [(ending, folder) for ending in endings for folder in ("", *inside)]
    ways += [("", os.path.join("..", folder)) for folder in beside]  # a table in a folder annotations
    depth = max((name.lstrip("/").count("/") for name in some), default=0)
    for drop in range(depth + 1 + any(name.startswith("/") for name in some)):
        for ending, folder in ways:
            rule, hits = Rule(drop, folder, ending), 0
            for number, name in enumerate(some):
                hits += os.path.isfile(os.path.join(root, rule.apply(name)))
                if not hits and number + 1 >= _FIRST:
                    break
            if 2 * hits >= len(some):
                return rule
    return None


def _folders(root: str) -> list[str]:
    try:
        with os.scandir(root or ".") as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())[:_MOST_FOLDERS]
    except OSError:
        return []


def placed(names: Sequence[str], place: Place) -> list[str]:
    """The paths of a table as they lie below its folder; says by which rule, where they are not there as they stand.

    Raises:
        FileNotFoundError: if they are nowhere to be found.
    """
    remote = [
        name for name in names if re.match(r"(?!file:)[a-z][a-z0-9+.-]+:/", name)
    ]  # also "https:/", as paths are written
    if remote:
        mend = "images are read from files: download them (img2dataset does), and list the files"
        if len(remote) == len(names):
            raise FileNotFoundError(f"the paths of {place.name} are addresses, such as {remote[0]}, and {mend}")
        place.warn(f"{counted(len(remote), 'path is an address', 'paths are addresses')} and cannot be read; {mend}")
    rule = find_rule(names, *os.path.split(place.path))
    if rule is None:
        raise FileNotFoundError(
            f"none of the paths of {place.name} is there, such as {names[0]}: they must lie below the folder of the table"
        )
    if rule != Rule():
        place.warn(f"paths are not there as they stand, and are taken by another rule ({rule.describe(names[0])})")
    return [rule.apply(name) for name in names]
