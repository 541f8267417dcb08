"""Settings as values: frozen dataclasses whose fields have a range and a help, and flat keywords for nested ones."""

import difflib
import inspect
import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, make_dataclass, replace
from typing import Any, TypeVar

T = TypeVar("T")


def setting(
    default: T,
    help: str,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float = math.inf,
    words: Sequence[object] = (),
    flat: bool = True,
) -> T:
    """Declares a field of a dataclass of settings, with its default and its help for the command line.

    Args:
        default: The value where none is given.
        help (`str`): What it sets.
        low, above, high (`float`, *optional*): The range of a number, or of both numbers of a pair (smallest, largest):
            from `low` on, or above `above`, up to `high`.
        words (`Sequence`): The values that are valid, where they are few; None among them if it is.
        flat (`bool`): Whether views take it as a keyword of their own.
    """
    bounds = {"low": low, "above": above, "high": high, "words": tuple(words)}
    return field(default=default, metadata={"help": help, "flat": flat, **bounds})


def probability(default: float, help: str, *, flat: bool = True) -> float:
    """Declares a field that holds how often something happens, from 0 to 1."""
    return setting(default, help, low=0, high=1, flat=flat)


def area_share(default: tuple[float, float], crop: str) -> tuple[float, float]:
    """Declares a field that holds how much of an image's area a kind of crop takes, in (0, 1]."""
    return setting(default, f"Smallest and largest share of the image's area of {crop}.", above=0, high=1)


def group(default: T, names: Mapping[str, str] | None = None) -> T:
    """Declares a field that holds a dataclass of settings, whose fields its owner takes as flat keywords.

    `names` maps a flat keyword to a field of the group; by default all fields that `setting` declares flat are taken,
    under their own names.
    """
    return field(default=default, metadata={"group": True, "names": names})


@dataclass(frozen=True)
class Settings:
    """Settings that belong together: equal by value, hashable, and checked when they are made.

    Raises:
        ValueError: A value outside the range that its field declares; the message names the field.
    """

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, list):  # from YAML or a command line
                value = tuple(value)
                object.__setattr__(self, entry.name, value)
            if "words" in entry.metadata:
                _check(entry.name, value, isinstance(entry.default, tuple), entry.metadata)


def _check(name: str, value: object, is_pair: bool, declared: Mapping[str, object]) -> None:
    words, low, above, high = (declared[key] for key in ("words", "low", "above", "high"))
    if isinstance(words, tuple) and words:
        if value not in words:
            valid = [repr(word) for word in words if word is not None]
            choice = " or ".join(valid) if len(valid) == 2 else f"one of {', '.join(valid)}"
            raise ValueError(f"{name} must be {choice}, got {value!r}")
        return
    start, end = above if low is None else low, high
    if not isinstance(start, int | float) or not isinstance(end, int | float) or value is None:
        return
    numbers = value if isinstance(value, tuple) else (value,)
    outside = [number for number in numbers if not (start <= number <= end and math.isfinite(number))]
    if low is None:
        outside += [number for number in numbers if number == start]
    if is_pair:
        if outside or len(numbers) != 2 or numbers[0] > numbers[1]:
            first = f"{start:g} {'<' if low is None else '<='} smallest <= largest"
            last = f" <= {end:g}" if end < math.inf else ""
            raise ValueError(f"{name} must be (smallest, largest) with {first}{last}, got {value}")
    elif outside:
        if end < math.inf:
            bounds = f"lie in {'(' if low is None else '['}{start:g}, {end:g}]"
        elif low is None:
            bounds = f"be above {start:g}"
        else:
            bounds = "be 0 or more" if start == 0 else f"be at least {start:g}"
        raise ValueError(f"{name} must {bounds}, got {value}")


def flat_fields(cls: type, optional: Container[str] = ()) -> dict[str, Field[Any]]:
    """The flat keywords of a dataclass whose fields are declared by `setting` and `group`, with type, default and metadata.

    The `metadata` has the "help" and the "place": the field that holds the group (None for a setting without one) and
    the setting's name there. The default of `optional` keywords is None: something else decides where they are not
    given.
    """
    specified = []
    for owner in fields(cls):
        if not owner.metadata.get("group"):
            metadata = {**owner.metadata, "place": (None, owner.name)}
            specified.append((owner.name, owner.type, field(default=owner.default, metadata=metadata)))
            continue
        group_type: Any = type(owner.default)
        inner = {entry.name: entry for entry in fields(group_type)}
        names = owner.metadata["names"] or {name: name for name, entry in inner.items() if entry.metadata["flat"]}
        for flat, name in names.items():
            default: Any = getattr(owner.default, name)
            annotation: Any = inner[name].type
            if flat in optional:
                default, annotation = None, annotation | None
            metadata = {**inner[name].metadata, "place": (owner.name, name)}
            specified.append((flat, annotation, field(default=default, metadata=metadata)))
    return {entry.name: entry for entry in fields(make_dataclass(f"{cls.__name__}Settings", specified))}


def sort_settings(
    cls: type, flat: Mapping[str, Field[Any]], values: Sequence[object], settings: Mapping[str, object]
) -> tuple[dict[str, object], dict[str, object]]:
    """Sorts what a class was called with into flat settings, without a None that is the default, and whole groups.

    Raises:
        TypeError: An unknown keyword, with the nearest valid one; too many values, or two for one keyword.
    """
    valid = [*flat, *(entry.name for entry in fields(cls) if entry.name not in flat)]
    for name in settings:
        if name not in valid:
            close = difflib.get_close_matches(name, valid, n=1, cutoff=0.4)
            hint = f"did you mean {close[0]!r}?" if close else f"valid are {', '.join(flat)}"
            raise TypeError(f"{cls.__name__} has no setting {name!r}; {hint}")
    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in flat]
    named = {name: value for name, value in settings.items() if name in flat}
    given = inspect.Signature(parameters).bind_partial(*values, **named).arguments
    given = {name: value for name, value in given.items() if value is not None or flat[name].default is not None}
    return given, {name: value for name, value in settings.items() if name not in flat}


def nest(
    cls: type, flat: Mapping[str, Field[Any]], given: Mapping[str, object], groups: Mapping[str, object]
) -> dict[str, Any]:
    """A value for every field of `cls`; flat settings go into the groups that have them, and win over what is there."""
    nested: dict[str, Any] = {entry.name: groups.get(entry.name, entry.default) for entry in fields(cls)}
    changes: dict[str, dict[str, object]] = {}
    for name, value in given.items():
        owner, inner = flat[name].metadata["place"]
        if owner is None:
            nested[inner] = value
        else:
            changes.setdefault(owner, {})[inner] = value
    return nested | {owner: replace(nested[owner], **changed) for owner, changed in changes.items()}
