"""Shards of the output on the disk: each is whole or not there, so that a run goes on after any end of it."""

import csv
import io
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from hf_geossl.tasks.embedding.arguments import FEATURES
from hf_geossl.tasks.embedding.features import THUMBNAIL
from hf_geossl.tasks.embedding.loader import Shard

SETTINGS, FACTS = ".settings.json", b"hf_geossl_embed"
PARTS_ENDING = ".parts"
_NAME = re.compile(r"embeddings-(\d{5,})-(\d{5,})\.parquet")
_GROUP_BYTES = 2**26  # of a row group, about


class OutputError(ValueError):
    """What lies at the place of the output cannot be gone on with, or be replaced."""


@dataclass
class ShardFacts:
    """What is known of a shard beside its rows.

    Args:
        images (`int`): Rows of the dataset that were read.
        last (`bool`): Whether it is the last of its unit.
        broken (`list[(str, str)]`): Key and reason.
        notes (`Counter`): Images by what decoding did to them.
        not_finite (`int`): Rows with features that are no finite numbers.
    """

    images: int = 0
    last: bool = False
    broken: list[tuple[str, str]] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    not_finite: int = 0

    def to_json(self) -> str:
        """Returns the text of it."""
        return json.dumps(vars(self))

    @classmethod
    def from_json(cls, text: str) -> "ShardFacts":
        """Makes it of what `to_json` returned."""
        values = json.loads(text)
        broken = [(key, reason) for key, reason in values["broken"]]
        return cls(**{**values, "broken": broken, "notes": Counter(values["notes"])})

    def add(self, other: "ShardFacts") -> None:
        """Adds those of what follows."""
        self.images += other.images
        self.broken += other.broken
        self.notes += other.notes
        self.not_finite += other.not_finite
        self.last = other.last


class ShardWriter:
    """Writes one shard: under another name, until it is whole.

    Args:
        folder (`Path`): Of the shards.
        shard ([`Shard`]): Which.
        features (`datasets.Features`): Of the rows.
    """

    def __init__(self, folder: Path, shard: Shard, features: datasets.Features) -> None:
        self.path, self.schema = folder / name_of_shard(shard), features.arrow_schema
        self.facts = ShardFacts()
        self._part = folder / f".{self.path.name}.part"
        self._writer = _writer(self._part, self.schema)
        self._pending: list[pa.Table] = []

    def add(self, table: pa.Table) -> None:
        """Adds rows."""
        self._pending.append(table)
        if sum(pending.nbytes for pending in self._pending) > _GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            self._writer.write_table(pa.concat_tables(self._pending))
            self._pending = []

    def finish(self) -> None:
        """Makes it whole: nothing of it is there before."""
        self._flush()
        self._writer.add_key_value_metadata({FACTS.decode(): self.facts.to_json()})
        self._writer.close()
        sync(self._part)
        os.replace(self._part, self.path)


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Opens a file; numbers of features are neither compressed nor counted, which would take long and save nothing."""
    empty = io.BytesIO()
    pq.write_table(schema.empty_table(), empty)
    described = pq.read_metadata(empty).schema
    leaves = [described.column(number).path for number in range(len(described))]
    plain = [leaf for leaf in leaves if leaf.partition(".")[0] not in (*FEATURES, THUMBNAIL)]
    compression = {leaf: "snappy" if leaf in plain else "none" for leaf in leaves}
    return pq.ParquetWriter(path, schema, compression=compression, use_dictionary=plain, write_statistics=plain)


def name_of_shard(shard: Shard) -> str:
    """The name of a shard's file; sorted by name they are in the order of the dataset."""
    return f"embeddings-{shard.unit:05d}-{shard.number:05d}.parquet"


def sync(path: Path) -> None:
    """Waits until the disk has a file."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def read_facts(path: Path) -> ShardFacts:
    """Reads what is known of a shard; a `KeyError` of a file that is none."""
    return ShardFacts.from_json((pq.read_metadata(path).metadata or {})[FACTS].decode())


class Output:
    """Where the table goes: one file, or a folder of shards.

    A file is put together of shards that lie beside it until they are all there; a folder is the folder of the shards under
    another name until then.

    Args:
        path (`Path`): A file that ends in .parquet, or a folder.
        settings (`Mapping`): Plain values that decide what stands in the table.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.settings = path, json.loads(json.dumps(settings))
        self.is_file = path.suffix == ".parquet"
        self.parts = path.with_name(path.name + PARTS_ENDING)
        self._done = path.with_name(f".{path.name}{PARTS_ENDING}")
        self.lock_file = path.with_name(f".{path.name}.lock")
        self.broken_file = broken_file_of(path)

    @property
    def is_there(self) -> bool:
        """Whether something lies at its place; whole, since it gets its name last."""
        return self.path.is_file() or (self.path.is_dir() and any(self.path.iterdir()))

    def prepare(self, overwrite: bool) -> bool:
        """Makes the folder of the shards, unless the table is complete.

        Args:
            overwrite (`bool`): Whether what is there is deleted.

        Returns:
            `bool`: Whether there is something to do.

        Raises:
            OutputError: If something else is there, or a table of other settings.
        """
        shutil.rmtree(self._done, ignore_errors=True)
        if overwrite:
            self._delete()
        if self.is_there:
            self._compare(self._saved(), "was made")
            self._drop_parts()
            return False
        if self.parts.exists():
            self._compare(self._settings_in(self.parts), "was begun")
            return True
        self.parts.mkdir(parents=True)
        self._write_settings()
        return True

    def _drop_parts(self) -> None:
        if self.parts.exists():  # under another name: of a folder that is half deleted nobody could go on
            os.replace(self.parts, self._done)
            shutil.rmtree(self._done)

    def _write_settings(self) -> None:
        part = self.parts / f"{SETTINGS}.part"
        part.write_text(json.dumps(self.settings, indent=1), encoding="utf-8")
        sync(part)
        os.replace(part, self.parts / SETTINGS)

    def _delete(self) -> None:
        for path in (self.path, self.parts):
            if not path.exists():
                continue
            if path.is_dir() and any(path.iterdir()) and self._settings_in(path) is None:
                raise OutputError(f"{path} is no folder of features, and is not replaced: choose another output")
            if path.is_file() and self._saved() is None:
                raise OutputError(f"{path} is no table of features, and is not replaced: choose another output")
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.broken_file.unlink(missing_ok=True)

    def _saved(self) -> dict[str, Any] | None:
        if self.path.is_dir():
            return self._settings_in(self.path)
        try:
            saved: dict[str, Any] = json.loads((pq.read_metadata(self.path).metadata or {})[FACTS])["settings"]
            return saved
        except (pa.ArrowException, KeyError, ValueError):
            return None

    def _settings_in(self, folder: Path) -> dict[str, Any] | None:
        try:
            saved: dict[str, Any] = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
            return saved
        except (OSError, ValueError):
            if folder == self.parts and not list(folder.glob("*.parquet")):  # ended before the settings were written
                self._write_settings()
                return self.settings
            return None

    def _compare(self, saved: dict[str, Any] | None, how: str) -> None:
        if saved is None:
            raise OutputError(f"{self.path} is there and holds no features of this command: choose another output")
        before, now = _flat(saved), _flat(self.settings)
        changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if changed:
            values = ", ".join(f"{name} {_short(before.get(name))} (now {_short(now.get(name))})" for name in changed)
            raise OutputError(
                f"{self.path} {how} with {values}: give the same, choose another output, or begin anew with --overwrite"
            )

    def shards(self) -> dict[Shard, ShardFacts]:
        """The shards that are there."""
        found: dict[Shard, ShardFacts] = {}
        for path in self.parts.glob("embeddings-*.parquet"):
            if match := _NAME.fullmatch(path.name):
                found[Shard(int(match[1]), int(match[2]))] = read_facts(path)
        return dict(sorted(found.items(), key=lambda item: (item[0].unit, item[0].number)))

    def finish(self, units: int, features: datasets.Features) -> ShardFacts:
        """Puts the table in its place.

        Args:
            units (`int`): Of the dataset.
            features (`datasets.Features`): Of the rows.

        Returns:
            `ShardFacts`: Of all of them.

        Raises:
            RuntimeError: If a shard is missing.
        """
        shards = self.shards()
        missing = [unit for unit in range(units) if not is_complete(unit, shards)]
        if missing:
            raise RuntimeError(f"shards of unit {missing[0]} of {self.path} are missing: run the same command again")
        total = ShardFacts()
        for facts in shards.values():
            total.add(facts)
        if total.images == len(total.broken):
            self._drop_parts()  # nothing of it is worth going on with
            raise ValueError(
                f"no image could be used: {len(total.broken)} broken, such as {': '.join(total.broken[0])}"
                if total.broken
                else "the dataset holds no images"
            )
        self._write_broken(total.broken)
        if self.is_file:
            self._join([self.parts / name_of_shard(shard) for shard in shards], features, total)
            self._drop_parts()
        else:
            if self.path.is_dir() and not any(self.path.iterdir()):
                self.path.rmdir()
            os.rename(self.parts, self.path)
        return total

    def _join(self, paths: Sequence[Path], features: datasets.Features, total: ShardFacts) -> None:
        part = self.path.with_name(f".{self.path.name}.part")
        with _writer(part, features.arrow_schema) as writer:
            for path in paths:
                with pq.ParquetFile(path) as file:
                    for number in range(file.num_row_groups):
                        writer.write_table(file.read_row_group(number))
            known = {**json.loads(total.to_json()), "settings": self.settings}
            writer.add_key_value_metadata({FACTS.decode(): json.dumps(known)})
        sync(part)
        os.replace(part, self.path)

    def _write_broken(self, broken: Sequence[tuple[str, str]]) -> None:
        self.broken_file.unlink(missing_ok=True)
        if broken:
            with open(self.broken_file, "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("key", "reason"), *broken])

    def files(self) -> list[Path]:
        """The files of the table, in order."""
        return [self.path] if self.path.is_file() else sorted(self.path.glob("embeddings-*.parquet"))

    def facts(self) -> ShardFacts:
        """What is known of the table that is complete."""
        if self.path.is_file():
            known = json.loads(pq.read_metadata(self.path).metadata[FACTS])
            known.pop("settings")
            return ShardFacts.from_json(json.dumps(known))
        total = ShardFacts()
        for path in self.files():
            total.add(read_facts(path))
        return total


def broken_file_of(path: Path) -> Path:
    """Where the broken images of an output are listed."""
    return path.with_name(f"{path.name.removesuffix('.parquet')}.broken.csv")


def is_complete(unit: int, shards: Mapping[Shard, ShardFacts]) -> bool:
    """Whether all shards of a unit are there: without a gap, to the last."""
    facts = [shards[shard] for shard in _from_first(unit, shards)]
    return bool(facts) and facts[-1].last


def _from_first(unit: int, shards: Mapping[Shard, ShardFacts]) -> Iterator[Shard]:
    number = 0
    while (shard := Shard(unit, number)) in shards:
        yield shard
        number += 1


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings whose values are dictionaries as one for each entry, such as "dataset files"."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= {f"{name} {key}": entry for key, entry in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else f"{text[:57]}..."
