"""Reading a unit block by block, and the order in which units and rows are visited."""

from copy import deepcopy
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
    """Reads the rows of one unit in order, and continues at the exact row after a lost connection.

    Args:
        source ([`Source`]): the rows.
        unit (`int`): which unit.
        state (`dict`, *optional*): where to start, as [`UnitReader.state`] was then; None for the beginning.

    Attributes:
        state (`dict` or None): the unit's position after the rows read so far.
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
        """Returns the next `count` rows, fewer at the unit's end.

        Args:
            count (`int`): at least 1.

        Raises:
            ConnectionError: if the network keeps failing.
            ValueError: if the rows lack the column.
        """
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
