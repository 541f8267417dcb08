"""The protocols by name: found without importing them, and their settings from what a user says."""

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from types import UnionType
from typing import Any

from hf_geossl.evaluation.options import Task

# the file of each protocol, imported when the task is asked for; the order is that of reports
TASK_FILES = {
    "knn": "knn",
    "linear": "linear",
    "linear_sgd": "linear_sgd",
    "multilabel": "linear",
    "rotation": "rotation",
    "position": "position_loca",
    "equivariance": "equivariance",
    "orientation": "orientation",
    "segmentation": "segmentation",
    "segmentation_few_shot": "segmentation",
    "segmentation_finetune": "segmentation",
    "semantic_fpn": "semantic_fpn",
    "upernet": "upernet",
    "depth": "depth",
    "depth_dpt": "depth",
    "detection": "detection",
    "homography": "homography",
    "propagation": "propagation",
    "keypoints": "keypoints",
}
ALL = "all"


def missing_package(task: str, error: ModuleNotFoundError) -> str:
    """What to tell where a library is missing that a task needs."""
    return f"{task} needs {(error.name or 'a package').split('.')[0]}, which is missing: pip install 'hf_geossl[eval]'"


def nearest(word: str, valid: Sequence[str], what: str) -> str:
    """The end of an error message: the valid word that is closest to a wrong one, or all of them."""
    close = difflib.get_close_matches(word, valid, n=1, cutoff=0.4)
    return f"; did you mean {close[0]!r}?" if close else f"; {what} are {', '.join(valid)}"


def named_tasks(tasks: str | Iterable[str]) -> list[str]:
    """The names as they were given, in one text with commas or one by one."""
    return [name.strip() for name in (tasks.split(",") if isinstance(tasks, str) else tasks)]


def check_tasks(tasks: str | Iterable[str]) -> list[str]:
    """Args:
        tasks (`str` or `Iterable[str]`): Names, in one text with commas or one by one; `"all"` for all of them.

    Returns:
        `list[str]`: Each once, in the order of `TASK_FILES`.

    Raises:
        ValueError: If there is no such task.
    """
    names = named_tasks(tasks)
    for name in names:
        if name not in TASK_FILES and name != ALL:
            raise ValueError(f"there is no task {name!r}{nearest(name, list(TASK_FILES), 'tasks')}")
    if not names:
        raise ValueError(f"name at least one task of {', '.join(TASK_FILES)}")
    return [name for name in TASK_FILES if name in names or ALL in names]


def load_task(name: str) -> Task:
    """Args:
        name (`str`): One of `TASK_FILES`.

    Returns:
        `Task`.

    Raises:
        ImportError: If a library is missing that it needs.
    """
    try:
        return import_module(f"hf_geossl.evaluation.protocols.{TASK_FILES[name]}").TASKS[name]
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("hf_geossl"):
            raise
        raise ImportError(missing_package(name, error)) from error


def make_settings(name: str, task: Task, given: Mapping[str, Any]) -> Any:
    """A protocol's settings with some of them changed.

    Args:
        name (`str`): The task's, for messages.
        task (`Task`): Whose settings.
        given (`dict`): New values by name; integers stand for floats, lists for tuples.

    Returns:
        The settings' dataclass.

    Raises:
        ValueError: If there is no such setting, or a value is of another kind than its default.
    """
    hints = typing.get_type_hints(task.settings)
    values = {}
    for key, value in given.items():
        if key not in hints:
            raise ValueError(f"{name} has no setting {key!r}{nearest(key, list(hints), 'its settings')}")
        try:
            values[key] = _as(hints[key], value)
        except TypeError:
            default = getattr(task.settings(), key)
            kind = str(hints[key]) if typing.get_args(hints[key]) else getattr(hints[key], "__name__", str(hints[key]))
            raise ValueError(f"{name}.{key} must be {kind}, such as {default!r}, got {value!r}") from None
    return dataclasses.replace(task.settings(), **values)


def _as(kind: Any, value: Any) -> Any:
    """A value as the kind that is annotated, where it is one."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, UnionType):
        for option in arguments:
            try:
                return _as(option, value)
            except TypeError:
                continue
        raise TypeError
    if origin is typing.Literal:
        if value in arguments:
            return value
        raise TypeError
    if origin in (tuple, Sequence) and isinstance(value, (list, tuple)):
        kinds = arguments if origin is tuple and arguments[-1:] != (Ellipsis,) else [arguments[0]] * len(value)
        if len(kinds) != len(value):
            raise TypeError
        return tuple(_as(one, entry) for one, entry in zip(kinds, value, strict=True))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is type(None) and value is None:
        return None
    if isinstance(kind, type) and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise TypeError


def describe_tasks() -> dict[str, str]:
    """What every task is, in a line; or which package it needs."""
    lines = {}
    for name in TASK_FILES:
        try:
            lines[name] = load_task(name).what
        except ImportError as error:
            lines[name] = str(error)
    return lines
