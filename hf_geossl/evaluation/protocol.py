"""What a protocol is, and what it returns."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from PIL import Image

from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.registry import TASKS, missing_package

RANDOM_WEIGHTS = "random weights"  # the floor of the same architecture, untrained


@dataclass
class TaskResult:
    """What a protocol returns.

    Args:
        metrics (`dict[str, float]`): The numbers, by name; the first is the main one.
        intervals (`dict[str, tuple[float, float]]`): 95 % bootstrap intervals of some of them.
        details (`dict`): Settings, floors by model, curves: anything that JSON holds.
        pictures (`dict[str, Callable[[], PIL.Image.Image]]`): Drawn when they are called.
    """

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, Callable[[], Image.Image]] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluationProtocol:
    """How a task is measured; each protocol's file has a dictionary `PROTOCOLS` of them, by the names of the tasks.

    Args:
        measure (`Callable`): Maps `(encoder, data, options, settings)` to a `TaskResult`.
        settings (`type`): A frozen dataclass of the protocol's own numbers, with its defaults.
        missing_requirement (`Callable`): One sentence on what an encoder lacks to be measured at all; None if nothing.
    """

    measure: Callable[[Encoder, EvaluationData, EvaluationOptions, Any], TaskResult]
    settings: type
    missing_requirement: Callable[[Encoder], str | None] = lambda encoder: None


def load_protocol(task: str) -> EvaluationProtocol:
    """Imports the protocol of one of `TASKS`; an `ImportError` names a library that it needs and that is missing."""
    try:
        return import_module(f"hf_geossl.evaluation.protocols.{TASKS[task].file}").PROTOCOLS[task]
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("hf_geossl"):
            raise
        raise ImportError(missing_package(task, error.name)) from error
