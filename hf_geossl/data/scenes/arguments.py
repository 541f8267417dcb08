"""Ranges and defaults of the arguments that choose scenes, and their checks."""

from __future__ import annotations

import operator

from hf_geossl.data.scenes.description import MODES, SCENE_CLASSES, SPLITS, THING_CLASSES

DEFAULT_COUNTS = {"train": 40_000, "validation": 4_000, "test": 4_000}
COUNT_LIMIT = 2**31 - 1
SMALLEST_SIZE, LARGEST_SIZE = 8, 4096


def check_split(split: str) -> None:
    """Raises `ValueError` unless `split` is one of `SPLITS`."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(map(repr, SPLITS))}, got {split!r}")


def check_mode(mode: str) -> None:
    """Raises `ValueError` unless `mode` is one of `MODES`."""
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(map(repr, MODES))}, got {mode!r}")


def check_count(split: str, count: int | None) -> int:
    """Returns the number of scenes asked for, or the split's default; raises `ValueError` unless it is 1 to 2**31 - 1."""
    check_split(split)
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
    check_mode(mode)
    return THING_CLASSES if mode == "object" else SCENE_CLASSES
