"""The arguments that choose scenes: ranges, defaults and checks, and the configuration names "<mode>-<size>"."""

from __future__ import annotations

import operator

from hf_geossl.data.scenes.description import MODES, SCENE_CLASSES, SPLITS, THING_CLASSES

DEFAULT_COUNTS = {"train": 40_000, "validation": 4_000, "test": 4_000}
COUNT_LIMIT = 2**31 - 1
SMALLEST_SIZE, LARGEST_SIZE = 8, 4096
_DEFAULT_MODE, _DEFAULT_STREAM_SIZE = "scene", 128


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises `ValueError` unless an argument is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_count(split: str, count: int | None) -> int:
    """Returns the number of scenes asked for, or the split's default; raises `ValueError` unless it is 1 to 2**31 - 1."""
    check_choice("split", split, SPLITS)
    count = DEFAULT_COUNTS[split] if count is None else operator.index(count)
    if not 1 <= count <= COUNT_LIMIT:
        raise ValueError(f"count must be from 1 to {COUNT_LIMIT}, got {count}")
    return count


def check_size(size: int) -> int:
    """Returns the image size as an `int`; raises `ValueError` unless it can be rendered."""
    size = operator.index(size)
    if not SMALLEST_SIZE <= size <= LARGEST_SIZE:
        raise ValueError(f"size must be from {SMALLEST_SIZE} to {LARGEST_SIZE} pixels, got {size}")
    return size


def label_names(mode: str) -> tuple[str, ...]:
    """Returns the names of the values of `label`: scene classes, or thing classes with `mode="object"`."""
    check_choice("mode", mode, MODES)
    return THING_CLASSES if mode == "object" else SCENE_CLASSES


def parse_config_name(config_name: str | None) -> tuple[str, int]:
    """Reads a configuration name.

    Args:
        config_name (`str` or `None`): "<mode>-<size>" with either part left out: "scene-96", "topdown", "128"; `None` is "scene-128".

    Returns:
        `tuple[str, int]`: mode and size in pixels.

    Raises:
        ValueError: for anything else.
    """
    if config_name is None:
        return _DEFAULT_MODE, _DEFAULT_STREAM_SIZE
    mode, separator, digits = config_name.rpartition("-") if isinstance(config_name, str) else ("", "", "")
    if not separator:
        mode, digits = (digits, str(_DEFAULT_STREAM_SIZE)) if digits in MODES else (_DEFAULT_MODE, digits)
    # Plain ASCII digits: int() alone would also take "+96", " 96" and "9_6".
    if mode in MODES and digits.isascii() and digits.isdigit() and len(digits) <= 4:
        size = int(digits)
        if SMALLEST_SIZE <= size <= LARGEST_SIZE:
            return mode, size
    raise ValueError(
        f'config_name must be "<mode>-<size>" with either part optional, mode one of {", ".join(MODES)} and size from '
        f'{SMALLEST_SIZE} to {LARGEST_SIZE} (for example "scene-96", "topdown", "128"), got {config_name!r}'
    )


def shard_ranges(split: str, num_shards: int, count: int | None) -> list[tuple[int, int]]:
    """Cuts the indices 0 to count - 1 into ranges (start, stop) of nearly equal length, at most one for each index."""
    total = check_count(split, count)
    if num_shards < 1:
        raise ValueError(f"num_shards must be at least 1, got {num_shards}")
    shards = min(num_shards, total)
    return [(shard * total // shards, (shard + 1) * total // shards) for shard in range(shards)]
