"""Tables of weight names, one row a weight, that are read in both directions."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch

from hf_geossl.conversion.checkpoint_file import State

_FIELDS = {"{n}": r"(\d+)", "{leaf}": r"(weight|bias)"}


@lru_cache(maxsize=1024)
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile("".join(_FIELDS.get(part, re.escape(part)) for part in re.split(r"(\{\w+\})", template)))


def _fill(template: str, values: Iterable[str]) -> str:
    for value in values:
        template = re.sub(r"\{\w+\}", value, template, count=1)
    return template


@dataclass(frozen=True)
class Row:
    """A weight of the trunk, and where a family keeps it.

    Args:
        ours (`str`): Its name in the trunk; `{n}` is the number of a layer, `{leaf}` "weight" or "bias".
        theirs (`str`): Its name in the family. `{a+b+c}` are several weights, which are joined along the first dimension.
    """

    ours: str
    theirs: str

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """The names of the weights that are joined; one where nothing is."""
        joined = re.search(r"\{([\w.]+(?:\+[\w.]+)+)\}", self.theirs)
        if joined is None:
            return (self.theirs,)
        return tuple(self.theirs.replace(joined[0], part) for part in joined[1].split("+"))

    def find(self, key: str) -> tuple[str, int] | None:
        """Gives the trunk's name of a family's weight, and which part of it that is."""
        for part, template in enumerate(self.parts):
            if match := _pattern(template).fullmatch(key):
                return _fill(self.ours, match.groups()), part
        return None

    def names(self, key: str) -> list[str] | None:
        """Gives the family's names of a weight of the trunk."""
        match = _pattern(self.ours).fullmatch(key)
        return match and [_fill(part, match.groups()) for part in self.parts]


def rows(*pairs: tuple[str, str]) -> tuple[Row, ...]:
    """Makes rows of pairs (name in the trunk, name in the family)."""
    return tuple(Row(ours, theirs) for ours, theirs in pairs)


def to_trunk(state: Mapping[str, torch.Tensor], table: Sequence[Row]) -> tuple[State, list[str]]:
    """Gives a family's weights the trunk's names, in float32.

    Args:
        state (`dict[str, torch.Tensor]`): By the family's names.
        table (`Sequence[Row]`): The first row that fits a name counts.

    Returns:
        `tuple[dict[str, torch.Tensor], list[str]]`: The weights by the trunk's names, and names that no row has. Of joined
        weights with a part missing, the others are named `NAME#PART`.
    """
    joined: dict[str, dict[int, torch.Tensor]] = {}
    widths: dict[str, int] = {}
    unknown = []
    for key, value in state.items():
        for row in table:
            if found := row.find(key):
                name, part = found
                joined.setdefault(name, {})[part] = value.float()
                widths[name] = len(row.parts)
                break
        else:
            unknown.append(key)
    result: State = {}
    for name, parts in joined.items():
        if len(parts) == widths[name]:
            result[name] = torch.cat([parts[index] for index in sorted(parts)]) if len(parts) > 1 else parts[0]
        else:
            result |= {f"{name}#{index}": value for index, value in parts.items()}
    return result, unknown


def from_trunk(
    state: Mapping[str, torch.Tensor], table: Sequence[Row], expected: Collection[str] | None = None
) -> tuple[State, list[str]]:
    """Gives a trunk's weights a family's names: of several rows that fit, the first's.

    Args:
        state (`dict[str, torch.Tensor]`): By the trunk's names.
        table (`Sequence[Row]`): The family's.
        expected (`Collection[str]`, *optional*): The names to choose from.

    Returns:
        `tuple[dict[str, torch.Tensor], list[str]]`: The weights by the family's names, and names that no row has.
    """
    result: State = {}
    unknown = []
    for key, value in state.items():
        fitting = (names for row in table if (names := row.names(key)))
        names = next((names for names in fitting if expected is None or set(names) <= set(expected)), None)
        if names is None:
            unknown.append(key)
            continue
        result |= zip(names, (part.contiguous() for part in value.chunk(len(names))), strict=True)
    return result, unknown
