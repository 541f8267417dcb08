"""What an inspection remembers on the disk: bounded in memory, consistent after every interruption."""

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

_TABLES = """
CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS contents (digest BLOB PRIMARY KEY, split TEXT NOT NULL, image TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS copies (digest BLOB NOT NULL, split TEXT NOT NULL, image TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS broken (split TEXT NOT NULL, image TEXT NOT NULL, reason TEXT NOT NULL);
"""


class InspectionState:
    """The state of an inspection in one SQLite file; nothing since the last `commit` survives an interruption.

    Args:
        path (`Path`): the file; made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database = sqlite3.connect(path)
        self._database.executescript(_TABLES)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()  # without a commit: back to the last one

    def load(self, name: str) -> Any:
        """Returns plain values that were saved under a name; None if there are none."""
        row = self._database.execute("SELECT value FROM state WHERE name = ?", (name,)).fetchone()
        return None if row is None else json.loads(row[0])

    def save(self, name: str, value: object) -> None:
        """Saves plain values under a name; kept with the next `commit`."""
        self._database.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (name, json.dumps(value)))

    def commit(self) -> None:
        """Makes everything since the last commit permanent, or nothing of it."""
        self._database.commit()

    def add_content(self, split: str, image: str, digest: bytes) -> None:
        """Remembers the content of an image; one that was there before is a copy."""
        changed = self._database.execute("INSERT OR IGNORE INTO contents VALUES (?, ?, ?)", (digest, split, image))
        if changed.rowcount == 0:
            self._database.execute("INSERT INTO copies VALUES (?, ?, ?)", (digest, split, image))

    def add_broken(self, split: str, image: str, reason: str) -> None:
        """Remembers an image that cannot be used."""
        self._database.execute("INSERT INTO broken VALUES (?, ?, ?)", (split, image, reason))

    def count_copies(self) -> int:
        """How many images have the content of another one, which itself is not counted."""
        return int(self._database.execute("SELECT COUNT(*) FROM copies").fetchone()[0])

    def count_across_splits(self) -> int:
        """How many images have the content of an image of another split."""
        query = "SELECT COUNT(*) FROM copies JOIN contents USING (digest) WHERE copies.split != contents.split"
        return int(self._database.execute(query).fetchone()[0])

    def groups(self, most: int) -> Iterator[list[str]]:
        """The first groups of images of equal content, each as "split: image"."""
        firsts = self._database.execute(
            "SELECT digest, split, image FROM contents WHERE digest IN (SELECT digest FROM copies LIMIT ?) "
            "ORDER BY split, image LIMIT ?",
            (100 * most, most),
        ).fetchall()
        for digest, split, image in firsts:
            others = self._database.execute(
                "SELECT split, image FROM copies WHERE digest = ? ORDER BY rowid LIMIT ?", (digest, most)
            )
            yield [f"{split}: {image}", *(f"{other}: {copy}" for other, copy in others)]

    def broken(self, most: int) -> list[dict[str, str]]:
        """The first images that cannot be used."""
        rows = self._database.execute("SELECT split, image, reason FROM broken ORDER BY rowid LIMIT ?", (most,))
        return [{"split": split, "image": image, "reason": reason} for split, image, reason in rows]


def digest_of(value: object) -> bytes | None:
    """A hash of an image's content: of its file as it is stored, or of its pixels where it has none.

    Args:
        value (`bytes`, `str`, `pathlib.Path`, or an image or array): what a source gives.

    Returns:
        `bytes`: 16 of them; None for a file that cannot be read, which reading it will say.
    """
    if isinstance(value, (str, Path)):
        try:
            if not os.path.isfile(value):
                return None
            with open(value, "rb") as file:
                return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
        except OSError:
            return None
    if isinstance(value, (bytes, bytearray, memoryview)):
        return hashlib.blake2b(value, digest_size=16).digest()
    pixels = np.asarray(value)
    header = f"{pixels.dtype.str}{pixels.shape}".encode()
    return hashlib.blake2b(header + np.ascontiguousarray(pixels).tobytes(), digest_size=16).digest()
