"""Where a logical stream stands, in plain values that a checkpoint can hold."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass
class Position:
    """The start of the current block and how much of the permuted block has been read."""

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
        """Moves to the start of the next block.

        Args:
            rows (`int`): rows of the block that ends.
            unit_state (`dict`, *optional*): of the `datasets` stream, after these rows.
        """
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
        """Makes a position of what `state_dict` returned; `state` may have other entries too.

        Raises:
            ValueError: if entries are missing.
        """
        names = [field.name for field in fields(cls)]
        missing = [name for name in names if name not in state and name != "notes"]  # which older states lack
        if missing:
            raise ValueError(f"this is no state of an ImageStream: it lacks {', '.join(missing)}")
        return cls(**{name: deepcopy(state[name]) for name in names if name in state})


def refuse_difference(saved: Mapping[str, object], present: Mapping[str, object]) -> None:
    """Raises a `ValueError` that names what differs between a saved fingerprint and the present one."""
    changed = [name for name in {**saved, **present} if saved.get(name) != present.get(name)]
    if changed:
        values = ", ".join(f"{name} was {saved.get(name)!r} and is {present.get(name)!r}" for name in changed)
        raise ValueError(
            f"the saved position belongs to another stream: {values}; open it as it was, or start without the state"
        )
