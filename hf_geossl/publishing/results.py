"""Measured numbers on their way to a card: `{task: {metric: value}}`, and where and how they were measured."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml

from hf_geossl.training.record import is_hub_id
from hf_geossl.training.redaction import redact, redact_values

RESULTS = "results.json"
ABOUT = "about"
EMBEDDED = "hf_geossl/scenes"  # the name that the embedded dataset has where one of the Hub is asked for

# the Hub's name for a kind of task, by a part of ours; the first that fits
_HUB_TASKS = {
    "segmentation": "image-segmentation",
    "detection": "object-detection",
    "depth": "depth-estimation",
    "keypoints": "keypoint-detection",
    "knn": "image-classification",
    "linear": "image-classification",
}


@dataclass(frozen=True)
class Result:
    """
    One measured number.

    Args:
        task, metric (`str`): What was measured.
        value (`float`): The number.
        dataset (`str`): What it was measured on, for people.
        dataset_id (`str` or `None`): The same, as the Hub names it; nothing for images that are not there.
        split (`str` or `None`): Which part.
        images (`int` or `None`): How many.
        command (`str` or `None`): The command that measured it.
        chance (`float` or `None`): The same number of a model that knows nothing.
    """

    task: str
    metric: str
    value: float
    dataset: str
    dataset_id: str | None = None
    split: str | None = None
    images: int | None = None
    command: str | None = None
    chance: float | None = None

    @property
    def hub_task(self) -> str:
        """The Hub's name for the kind of task."""
        found = (hub for name, hub in _HUB_TASKS.items() if name in self.task)
        return next(found, "image-feature-extraction")


def _hub_name(dataset: str, dataset_id: str | None) -> str | None:
    for name in (dataset_id, dataset):
        if name is not None and is_hub_id(name):
            return name
    return EMBEDDED if dataset.startswith("scenes") else None


def read_results(results: Mapping[str, Any] | str | Path) -> list[Result]:
    """
    Reads measured results.

    Args:
        results (`dict`, `str` or `Path`): `{task: {metric: number}}`, or a JSON file of it. The entry `about` is no task:
            `dataset`, `dataset_id`, `split`, `images` and `command` there tell where and how all were measured.

    Returns:
        `list[Result]`: In the order given; values that are no numbers (nested tables, lists) are left to the file.

    Raises:
        ValueError: If there is no such file, it is of another form, or a number is not finite.
    """
    if not isinstance(results, Mapping):
        path = Path(results)
        try:
            results = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"there is no results file {path.name!r}: geossl evaluate writes one") from None
        except ValueError as error:
            raise ValueError(
                f"{path.name} is not JSON ({error}): give a file of {{task: {{metric: number}}}}"
            ) from error
    if not isinstance(results, Mapping) or not all(isinstance(entry, Mapping) for entry in results.values()):
        raise ValueError('results must be of the form {task: {metric: number}}, such as {"knn": {"accuracy": 0.7}}')
    about = redact_values(dict(results.get(ABOUT, {})))
    dataset = str(about.get("dataset", "scenes"))
    found = []
    for task, metrics in results.items():
        for metric, value in metrics.items() if task != ABOUT else ():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            if not math.isfinite(value):
                raise ValueError(f"{task} {metric} is {value}, and only measured numbers go on a card: leave it out")
            found.append(
                Result(
                    redact(task),
                    redact(metric),
                    float(value),
                    dataset,
                    _hub_name(dataset, about.get("dataset_id")),
                    about.get("split"),
                    about.get("images"),
                    about.get("command"),
                )
            )
    return found


def held_out_results(record: Mapping[str, Any]) -> list[Result]:
    """What a run measured on held-out images, from its record (see `run_record`); empty where it measured nothing."""
    held_out = record.get("held_out")
    if not held_out:
        return []
    return [
        Result(
            "pretraining",
            metric,
            entry["measured"],
            held_out["data"],
            _hub_name(held_out["data"], held_out.get("dataset_id")),
            held_out.get("split"),
            held_out["images"],
            record.get("command"),
            entry["chance"],
        )
        for metric, entry in held_out["values"].items()
    ]


def model_index(results: list[Result]) -> list[EvalResult]:
    """The results as `model-index` entries of a card's metadata."""
    return [
        EvalResult(
            task_type=result.hub_task,
            dataset_type=result.dataset_id or "other",
            dataset_name=result.dataset,
            dataset_split=result.split,
            metric_type=result.metric,
            metric_name=f"{result.task} {result.metric}".replace("_", " "),
            metric_value=result.value,
        )
        for result in results
    ]


def eval_result_files(results: list[Result]) -> dict[str, list[dict[str, Any]]]:
    """The results on datasets with a name on the Hub, as files: `.eval_results/<dataset>.yaml` -> entries in its form."""
    files: dict[str, list[EvalResultEntry]] = {}
    for result in results:
        if result.dataset_id is None:
            continue
        told = [f"{result.metric} on {result.dataset}"]
        told += [f"{result.images} images"] if result.images else []
        told += ["a dataset embedded in hf_geossl, not on the Hub"] if result.dataset_id == EMBEDDED else []
        told += [f"measured by: {result.command}"] if result.command else []
        entry = EvalResultEntry(
            dataset_id=result.dataset_id,
            task_id=f"{result.task}.{result.metric}",
            value=result.value,
            notes="; ".join(told),
        )
        files.setdefault(f".eval_results/{result.dataset_id.replace('/', '--')}.yaml", []).append(entry)
    return {path: eval_result_entries_to_yaml(entries) for path, entries in files.items()}
