"""Splits that are lists."""

from types import SimpleNamespace
from typing import Any


def made(samples: list[dict[str, Any]], name: str = "made (train)", **names: tuple[str, ...]) -> Any:
    """A split of samples."""

    class Listed(list):
        samples = SimpleNamespace(names=names, name=name)

    listed = Listed(samples)
    listed.name = name
    return listed
