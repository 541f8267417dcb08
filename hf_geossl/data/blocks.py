"""How a logical stream walks over its rows: the order of units and blocks, the rows of a unit, and the position."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from typing import Any

import numpy as np

from hf_geossl.data.retries import Backoff
from hf_geossl.data.sources.base import Source, missing_column

_UNIT_ORDER, _BLOCK_ORDER, _SAMPLE_SEED = 0, 1, 2


@lru_cache(maxsize=2)
def unit_order(seed: int, epoch: int, units: int) -> np.ndarray:
    """The order of the `units` units in an epoch: a permutation of shape `(units,)`, not to be written to."""
    order = _permutation([seed, _UNIT_ORDER, epoch], units)
    order.setflags(write=False)
    return order


def block_order(seed: int, epoch: int, unit: int, block: int, rows: int) -> np.ndarray:
    """The order of the `rows` rows of a block: a permutation of shape `(rows,)`."""
    return _permutation([seed, _BLOCK_ORDER, epoch, unit, block], rows)


def sample_seed(seed: int, epoch: int, unit: int, row: int) -> int:
    """The number in [0, 2**63) from which a row's augmentation is drawn in an epoch."""
    words = np.random.SeedSequence([seed, _SAMPLE_SEED, epoch, unit, row]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def _permutation(entropy: list[int], length: int) -> np.ndarray:
    # NumPy promises the raw numbers of a bit generator for ever, but not what `permutation` makes of them
    numbers = np.random.PCG64(np.random.SeedSequence(entropy)).random_raw(length)
    return np.argsort(numbers, kind="stable")


class UnitReader:
    """Reads the rows of a unit in order from `state`, and continues at the exact row after a lost connection.

    Attributes:
        state (`dict` or None): the unit's position after the rows read so far; None at its beginning.
    """

    def __init__(self, source: Source, unit: int, state: dict[str, Any] | None = None) -> None:
        self._source = source
        self._unit = unit
        self._backoff = Backoff(f"reading unit {unit} of {source.name}")
        self._rows: Any = None
        self.state = state

    def _next(self) -> dict[str, list[Any]] | None:
        """Returns the next row as a batch of one, None at the unit's end; opens the unit where that is due."""
        if self._rows is None:
            self._dataset = self._source.unit(self._unit)
            if self.state is not None:
                self._dataset.load_state_dict(deepcopy(self.state))
            # iter() would divide the rows among the workers of a loader once more; iter(batch_size=1) does not
            self._rows = self._dataset.iter(batch_size=1)
        try:
            return next(self._rows, None)
        except Exception:
            self._rows = None  # a generator that raised is finished
            raise

    def read(self, count: int) -> list[dict[str, Any]]:
        """Returns the next `count` rows, fewer at the unit's end."""
        rows: list[dict[str, Any]] = []
        while len(rows) < count and (batch := self._backoff(self._next)) is not None:
            self.state = self._dataset.state_dict()
            rows.append(self._select({column: values[0] for column, values in batch.items()}))
        return rows

    def _select(self, row: dict[str, Any]) -> dict[str, Any]:
        columns = self._source.columns
        if not any(column in row for column in columns):
            opened = self._source.kind in ("iterable", "indexed")
            raise missing_column(columns[0], list(row), self._source.name, opened)
        return {column: row[column] for column in columns if column in row}


@dataclass
class Position:
    """Where a logical stream stands: the start of its block and how much of the permuted block has been read."""

    units_done: int = 0  # by this logical stream, since the start of training
    block: int = 0  # of the unit
    row: int = 0  # of the unit, where the block starts
    unit_state: dict[str, Any] | None = None  # of the `datasets` stream, at the block's start
    taken: int = 0  # of the rows of the permuted block
    rows: int = 0  # tried since the start of training
    broken: int = 0  # of these
    notes: dict[str, int] = field(default_factory=dict)  # images by what decoding did to them

    @property
    def inside_unit(self) -> bool:
        """Whether rows of the current unit have been read."""
        return self.block > 0 or self.taken > 0

    def take_row(self) -> None:
        """Advances by one row of the permuted block."""
        self.taken += 1
        self.rows += 1

    def count_broken(self) -> None:
        """Counts the row taken last as broken."""
        self.broken += 1

    def count_note(self, kind: str) -> None:
        """Counts a note of this kind about the row taken last."""
        self.notes[kind] = self.notes.get(kind, 0) + 1

    def end_block(self, rows: int, unit_state: dict[str, Any] | None) -> None:
        """Moves to the next block, behind the `rows` rows of this one, where the unit has the state `unit_state`."""
        self.block, self.row, self.taken, self.unit_state = self.block + 1, self.row + rows, 0, unit_state

    def end_unit(self) -> None:
        """Moves to the start of the next unit."""
        self.units_done += 1
        self.block, self.row, self.taken, self.unit_state = 0, 0, 0, None

    def state_dict(self) -> dict[str, Any]:
        """Returns a copy of the position in plain values."""
        return asdict(self)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "Position":
        """Makes a position of what `state_dict` returned, among other entries; a `ValueError` names what is missing."""
        names = [entry.name for entry in fields(cls)]
        check_entries(state, [name for name in names if name != "notes"])  # which older states lack
        return cls(**{name: deepcopy(state[name]) for name in names if name in state})


def check_entries(state: Mapping[str, Any], names: list[str]) -> None:
    """Raises a `ValueError` that names the entries that a stream's state lacks."""
    missing = [name for name in names if name not in state]
    if missing:
        raise ValueError(f"this is no state of an ImageStream: it lacks {', '.join(missing)}")


def refuse_difference(saved: Mapping[str, object], present: Mapping[str, object]) -> None:
    """Raises a `ValueError` that names what differs between a saved fingerprint and the present one."""
    changed = [name for name in {**saved, **present} if saved.get(name) != present.get(name)]
    if changed:
        values = ", ".join(f"{name} was {saved.get(name)!r} and is {present.get(name)!r}" for name in changed)
        raise ValueError(
            f"the saved position belongs to another stream: {values}; open it as it was (a run goes on with the same images, seed "
            "and batches), or start without the state (a new run, from the weights by --model_name_or_path)"
        )
