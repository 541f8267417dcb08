"""Decoded samples: read and rendered once, by all cores, and shared by all tasks of a call and by the models it compares."""

import logging
import math
import shutil
import sys
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, TypeAlias

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from hf_geossl.data.images import BrokenImageError
from hf_geossl.data.wording import counted
from hf_geossl.evaluation.reading.sample_reader import CHANGED, ReadRow, Sample, StreamedRows

logger = logging.getLogger(__name__)

MEMORY = 2**32  # bytes of decoded samples in memory; further ones go to a temporary file
DISK = 2**35  # bytes of a split there at most, and half of what is free
IMAGES_A_WORKER = 64  # fewer are read sooner than a process has started
_TOGETHER = 8  # samples that a worker sends at a time
_GB = 10**9
Read: TypeAlias = (
    "dict[str, Any] | Exception | None"  # a sample as arrays, what reading it raised, None for a broken image
)
Batch: TypeAlias = tuple[
    dict[str, Any] | None, int, int, Counter[str]
]  # with the numbers of images, of broken ones, of changes


def update_seconds() -> float:
    """How often a progress bar is drawn: seldom where each time adds to a log."""
    return 0.1 if sys.stderr.isatty() else 5.0


class SampleStore:
    """Where samples are kept once they have been decoded; without a reference to it they are gone, files included.

    Args:
        memory (`int`): Bytes that stay in memory; what comes after lies in temporary files, which have no name and vanish
            with the process however that ends.
        num_workers (`int`): Processes that read and render.
        progress (`bool`): Whether progress bars are shown.
    """

    def __init__(self, memory: int = MEMORY, num_workers: int = 0, *, progress: bool = False) -> None:
        self.memory, self.num_workers, self.progress = memory, num_workers, progress
        self.in_memory = 0  # bytes
        self._rows: dict[str, StoredRows] = {}

    def add(self, size: int) -> None:
        """Counts bytes that now lie in memory."""
        self.in_memory += size

    def rows(
        self, fingerprint: str, name: str, rows: Any, read: ReadRow, indices: Sequence[int] | None
    ) -> "StoredRows":
        """The samples of a fingerprint, which are decoded when a whole pass over them is first asked for."""
        if fingerprint not in self._rows:
            self._rows[fingerprint] = StoredRows(self, name, rows, read, indices)
        return self._rows[fingerprint]


class StoredRows(Dataset):
    """Decoded samples of one split at one size, by the indices of their rows; of a stream by their places in it.

    Args:
        store (`SampleStore`): Whose memory they take.
        name (`str`): For messages.
        rows, read, indices: As of `Samples`.

    Attributes:
        indices (`list[int]`, *optional*): What they are found by, in order; of a stream None until it has been read.
    """

    def __init__(self, store: SampleStore, name: str, rows: Any, read: ReadRow, indices: Sequence[int] | None) -> None:
        self._store, self._name, self._source = store, name, (rows, read)
        self.indices: list[int] | None = None if indices is None else list(indices)
        self._columns: dict[str, _Column] = {}
        self._places: dict[int, int] = {}
        self._broken: set[int] = set()
        self._changes: dict[int, Mapping[str, int]] = {}
        self.filled = False
        self._refused = False

    def fill(self) -> bool:
        """Decodes all samples, unless that has been done; False where they would not even fit on the disk."""
        if self.filled or self._refused:
            return self.filled
        count, columns, spilled = 0, dict[str, _Column](), False
        total = None if self.indices is None else len(self.indices)
        with tqdm(
            total=total,
            desc=f"reading {self._name}",
            unit=" img",
            disable=not self._store.progress,
            leave=False,
            dynamic_ncols=True,
            mininterval=update_seconds(),
        ) as bar:
            for position, sample in enumerate(self._decoded()):
                if isinstance(sample, Exception):
                    raise sample
                if sample is None:
                    self._broken.add(position)
                else:
                    if not columns and not self._fits(sample, total):
                        self._refused = True
                        return False
                    if changes := sample.pop(CHANGED, None):
                        self._changes[position] = changes
                    for name, value in sample.items():
                        columns.setdefault(name, _Column(value)).append(position, value)
                    bytes_now = sum(column.size for column in columns.values())
                    if not spilled and self._store.in_memory + bytes_now > self._store.memory:
                        self._say_that_it_spills()
                        spilled = True
                    if spilled:
                        for column in columns.values():
                            column.spill()
                count = position + 1
                bar.update()
        for column in columns.values():
            column.close(count)
        if not spilled:
            self._store.add(sum(column.size for column in columns.values()))
        self.indices = list(range(count)) if self.indices is None else self.indices
        self._places = {index: place for place, index in enumerate(self.indices)}
        self._columns, self.filled = columns, True
        return True

    def _decoded(self) -> Iterator[Read]:
        rows, read = self._source
        if self.indices is None:
            yield from map(_as_arrays, StreamedRows(rows, read))
            return
        workers = min(self._store.num_workers, len(self.indices) // IMAGES_A_WORKER)
        loader: DataLoader = DataLoader(
            _Decoding(rows, read, self.indices),
            _TOGETHER,
            num_workers=workers if workers > 1 else 0,
            collate_fn=list,
            generator=torch.Generator(),
        )
        for part in loader:
            yield from part

    def _fits(self, first: Mapping[str, Any], total: int | None) -> bool:
        if total is None:
            return True  # of a stream with a limit
        needed = total * sum(value.nbytes for value in first.values() if isinstance(value, np.ndarray))
        left = self._store.memory - self._store.in_memory
        if needed <= left or needed <= min(DISK, shutil.disk_usage(tempfile.gettempdir()).free / 2):
            return True
        logger.warning(
            "%s: %s take %.0f GB decoded, more than is kept of a split (34 GB, half of the free disk): read again in each pass "
            "(limit takes fewer)",
            self._name, counted(total, "image"), needed / _GB,
        )  # fmt: skip
        return False

    def _say_that_it_spills(self) -> None:
        logger.warning(
            "%s: decoded images are beyond %.1f GB of memory and go to a temporary file in %s, which is gone after the call",
            self._name, self._store.memory / _GB, tempfile.gettempdir(),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.indices or ())

    def __getitem__(self, index: int) -> Sample:
        """The sample of a row.

        Raises:
            BrokenImageError: If its image cannot be decoded.
        """
        position = self._places[index]
        if position in self._broken:
            raise BrokenImageError("it could not be decoded")
        sample = {name: column[position] for name, column in self._columns.items() if column.has(position)}
        changes = self._changes.get(position)
        return sample if changes is None else {**sample, CHANGED: dict(changes)}

    def batches(self, indices: Sequence[int], batch_size: int, names: Sequence[str]) -> Iterator[Batch]:
        """Batches of some columns, which all samples have in one shape, sliced as whole arrays; broken images left out."""
        places = np.array([self._places[index] for index in indices])
        for start in range(0, len(places), batch_size):
            part = places[start : start + batch_size]
            readable = np.array([place for place in part.tolist() if place not in self._broken], dtype=np.int64)
            changes: Counter[str] = Counter()
            for place in readable.tolist() if self._changes else ():
                changes.update(self._changes.get(place, {}))
            known = [name for name in names if name in self._columns]
            batch = {name: self._columns[name].stacked(readable) for name in known} if len(readable) else None
            yield batch, len(part), len(part) - len(readable), changes

    def are_uniform(self, names: Sequence[str]) -> bool:
        """Whether every sample has those of these columns that any sample has, in one shape."""
        readable = len(self) - len(self._broken)
        return all(self._columns[name].is_uniform(readable) for name in names if name in self._columns)


class _Decoding(Dataset):
    """Reads samples as arrays; a broken image is None, and an error comes back as a value to be raised without a worker's traceback."""

    def __init__(self, rows: Any, read: ReadRow, indices: Sequence[int]) -> None:
        self.rows, self.read, self.indices = rows, read, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Read:
        index = self.indices[position]
        try:
            return _as_arrays(self.read(index, self.rows[index]))
        except BrokenImageError:
            return None
        except Exception as error:
            return error


def _as_arrays(sample: Sample | None) -> dict[str, Any] | None:
    if sample is None:
        return None
    return {
        name: value if name == CHANGED else np.asarray(value.numpy() if isinstance(value, torch.Tensor) else value)
        for name, value in sample.items()
    }


class _Column:
    """The values of one key of all samples, end to end: in memory or in a file; masks take a bit a pixel."""

    def __init__(self, first: np.ndarray) -> None:
        self.dtype, self._bits = first.dtype, first.dtype == bool
        self.size = 0  # bytes
        self._bytes: bytearray | np.ndarray = bytearray()
        self._file: IO[bytes] | None = None
        self._starts, self._forms = array("q"), array("i")  # of each position, -1 where it has none
        self._shapes: dict[tuple[int, ...], int] = {}

    def append(self, position: int, value: np.ndarray) -> None:
        self._skip_to(position)
        self._starts.append(self.size)
        self._forms.append(self._shapes.setdefault(value.shape, len(self._shapes)))
        content = np.packbits(value).tobytes() if self._bits else value.astype(self.dtype, copy=False).tobytes()
        self.size += len(content)
        if self._file is None:
            assert isinstance(self._bytes, bytearray)
            self._bytes += content
        else:
            self._file.write(content)

    def spill(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="hf_geossl-")  # noqa: SIM115
            self._file.write(bytes(self._bytes))
            self._bytes = bytearray()

    def close(self, count: int) -> None:
        self._skip_to(count)
        if self._file is not None and self.size:
            self._file.flush()
            self._bytes = np.memmap(self._file, np.uint8, mode="r")
        self._all_shapes = list(self._shapes)

    def _skip_to(self, position: int) -> None:
        while len(self._starts) < position:
            self._starts.append(-1)
            self._forms.append(-1)

    def has(self, position: int) -> bool:
        return self._forms[position] >= 0

    def __getitem__(self, position: int) -> torch.Tensor | int | float:
        shape = self._all_shapes[self._forms[position]]
        value = self._read(self._starts[position], math.prod(shape)).reshape(shape)
        return torch.from_numpy(value) if shape else value.item()

    def _read(self, start: int, count: int) -> np.ndarray:
        if not count:
            return np.empty(0, self.dtype)
        if not self._bits:
            return np.frombuffer(self._bytes, self.dtype, count, start).copy()
        packed = np.frombuffer(self._bytes, np.uint8, (count + 7) // 8, start)
        return np.unpackbits(packed, count=count).view(bool)

    def is_uniform(self, count: int) -> bool:
        values = len(self._forms) - self._forms.count(-1)
        return len(self._all_shapes) == 1 and values == count and not self._bits

    def stacked(self, positions: np.ndarray) -> torch.Tensor:
        """The values at some positions, `(positions, ...)`, of a uniform column."""
        shape = self._all_shapes[0]
        values = np.frombuffer(self._bytes, self.dtype).reshape(-1, *shape)
        rows = np.frombuffer(self._starts, np.int64)[positions] // max(1, values[:1].nbytes)
        return torch.from_numpy(values[rows])
