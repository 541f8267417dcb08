"""Measured numbers on their way to a card: `{task: {metric: value}}`, and where and how they were measured."""

import json
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml

from hf_geossl.hub.redaction import redact, redact_values
from hf_geossl.hub.run_record import is_hub_id, weights_digest

logger = logging.getLogger(__name__)

RESULTS, EVAL_RESULTS = "results.json", ".eval_results/hf_geossl.yaml"
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
    "classification": "image-classification",
}


@dataclass(frozen=True)
class Result:
    """One measured number.

    Args:
        task, metric (`str`): What was measured.
        value (`float`): The number.
        dataset (`str` or `None`): What it was measured on, for people.
        dataset_id (`str` or `None`): The same, as the Hub names it; nothing for images that are not there.
        split (`str` or `None`): Which part.
        images (`int` or `None`): How many.
        clips (`int` or `None`): How many, where clips were measured.
        config (`str` or `None`): Which configuration of the dataset; of the scenes their mode.
        command (`str` or `None`): The command that measured it.
        chance (`float` or `None`): The same number of a model that knows nothing.
        quick (`bool`): Whether it comes from a quick evaluation: the card says so, and its metadata leave it out.
        interval (`(float, float)` or `None`): The 95 % interval over images.
        floors (`tuple[tuple[str, float], ...]`): What trivial models reach, by their names.
    """

    task: str
    metric: str
    value: float
    dataset: str | None = None
    dataset_id: str | None = None
    split: str | None = None
    images: int | None = None
    command: str | None = None
    chance: float | None = None
    clips: int | None = None
    config: str | None = None
    quick: bool = False
    interval: tuple[float, float] | None = None
    floors: tuple[tuple[str, float], ...] = ()

    @property
    def measured(self) -> str:
        """The number, its interval, and what trivial models reach, for people."""
        said = [f"95 %: {self.interval[0]:.4g} to {self.interval[1]:.4g}"] if self.interval else []
        said += [f"{name.replace('_', ' ')}: {value:.4g}" for name, value in self.floors]
        return f"{self.value:.4g}" + (f" ({'; '.join(said)})" if said else "")

    @property
    def data(self) -> str | None:
        """What it was measured on, for people: dataset, configuration, part and how many."""
        if self.dataset is None:
            return None
        subject = (
            self.dataset + (f", {self.config}" if self.config else "") + (f" ({self.split})" if self.split else "")
        )
        subject = f"{subject}, {self.counted}" if self.counted else subject
        return f"{subject}; quick, not comparable" if self.quick else subject

    @property
    def counted(self) -> str:
        """How many images or clips; nothing where it is not known."""
        return f"{self.clips} clips" if self.clips else f"{self.images} images" if self.images else ""

    @property
    def hub_task(self) -> str:
        """The Hub's name for the kind of task."""
        found = (hub for name, hub in _HUB_TASKS.items() if name in self.task)
        return next(found, "image-feature-extraction")


def _hub_name(dataset: str | None, dataset_id: str | None) -> str | None:
    for name in (dataset_id, dataset):
        if name is not None and is_hub_id(name):
            return name
    return EMBEDDED if dataset is not None and dataset.startswith("scenes") else None


_FORM = 'results must be of the form {task: {metric: number}}, such as {"knn": {"accuracy": 0.7}}'


def load_results(results: Mapping[str, Any] | str | Path) -> dict[str, Any]:
    """Opens measured results.

    Args:
        results (`dict`, `str` or `Path`): `{task: {metric: number}}`, or a JSON file of it.

    Returns:
        `dict`: What is there, without tokens and paths of the machine.

    Raises:
        ValueError: If there is no such file, or it is of another form.
    """
    if isinstance(results, (str, Path)):
        path = Path(results)
        try:
            results = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ValueError(f"the results file {path.name!r} cannot be read: {reason}") from None
        except ValueError as error:
            raise ValueError(
                f"{path.name} is not JSON ({error}): give a file of {{task: {{metric: number}}}}"
            ) from error
    if not isinstance(results, Mapping) or not all(isinstance(entry, Mapping) for entry in results.values()):
        raise ValueError(_FORM)
    return redact_values(dict(results))


def measured_results(folder: Path, results: Mapping[str, Any] | str | Path | None = None) -> dict[str, Any] | None:
    """The results of a model: those given, or `results.json` in its folder.

    Args:
        folder (`Path`): Of the model.
        results (`dict`, `str` or `Path`, *optional*): As in `load_results`.

    Returns:
        `dict`: None where there are none, or where those in the folder were measured with other weights.

    Raises:
        ValueError: If they are of another form, or those given were measured with other weights.
    """
    if results is None and not (folder / RESULTS).is_file():
        return None
    content = load_results(folder / RESULTS if results is None else results)
    if content.get(ABOUT, {}).get("weights_digest") in (None, weights_digest(folder)):
        return content
    message = (
        f"the results are of other weights than {folder.name} holds now: measure again (geossl evaluate --overwrite)"
    )
    if results is not None:
        raise ValueError(message)
    logger.warning(f"{message}; they are not on the card")
    return None


def read_results(results: Mapping[str, Any]) -> list[Result]:
    """Reads measured results.

    Args:
        results (`dict`): `{task: {metric: number}}` as `load_results` opens it. The entry `about` is no task: its texts
            `dataset`, `dataset_id`, `config_name`, `split` and `command` and its number `images` tell where and how all were
            measured; where a task's `details` say that it saw fewer `test_images` (or `clips`), these count.

    Returns:
        `list[Result]`: In the order given; nested tables and lists are left to the file.

    Raises:
        ValueError: If a value is no finite number, or an entry of `about` is of another kind.
    """
    about = results.get(ABOUT, {})
    for name in ("dataset", "dataset_id", "config_name", "split", "command"):
        if not isinstance(about.get(name, ""), str):
            raise ValueError(f"about.{name} of the results must be a text, got {about[name]!r}")
    images = about.get("images")
    if images is not None and (isinstance(images, bool) or not isinstance(images, int) or images < 1):
        raise ValueError(f"about.images of the results must be a number of images, got {images!r}")
    if not isinstance(about.get("quick", False), bool):
        raise ValueError(f"about.quick of the results must be true or false, got {about['quick']!r}")
    dataset = about.get("dataset") or about.get("dataset_id")
    found = []
    for task, metrics in results.items():
        details = metrics.get("details") if isinstance(metrics.get("details"), Mapping) else {}
        counts = [details.get(key) for key in ("test_images", "images", "clips")]
        seen, own, clips = (count if isinstance(count, int) and count > 0 else None for count in counts)
        for metric, value in metrics.items() if task != ABOUT else ():
            if isinstance(value, (Mapping, list, tuple)):
                continue
            finite = (
                isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
            )
            if not finite:
                raise ValueError(
                    f"{task} {metric} of the results is {redact(value)[:40]!r}, and only finite numbers go on a card: "
                    "leave it out"
                )
            found.append(
                Result(
                    task,
                    metric,
                    float(value),
                    dataset,
                    _hub_name(dataset, about.get("dataset_id")),
                    about.get("split"),
                    None if clips else seen or own or images,
                    about.get("command"),
                    clips=clips,
                    config=about.get("config_name"),
                    quick=about.get("quick", False),
                    interval=_interval(metrics.get("intervals"), metric),
                    floors=_floors(details, metric),
                )
            )
    return found


def _interval(intervals: object, metric: str) -> tuple[float, float] | None:
    found = intervals.get(metric) if isinstance(intervals, Mapping) else None
    return (float(found[0]), float(found[1])) if isinstance(found, list | tuple) and len(found) == 2 else None


def _floors(details: object, metric: str) -> tuple[tuple[str, float], ...]:
    floors = details.get("floors") if isinstance(details, Mapping) else None
    found = floors.get(metric) if isinstance(floors, Mapping) else None
    known = found.items() if isinstance(found, Mapping) else ()
    return tuple((redact(name), float(value)) for name, value in known if isinstance(value, int | float))


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
    """The results as `model-index` entries of a card's metadata; those that name no data, or are quick, are left to its text."""
    return [
        EvalResult(
            task_type=result.hub_task,
            dataset_type=result.dataset_id or "other",
            dataset_name=result.dataset,
            dataset_config=result.config,
            dataset_split=result.split,
            metric_type=result.metric,
            metric_name=f"{result.task} {result.metric}".replace("_", " "),
            metric_value=result.value,
        )
        for result in results
        if result.dataset is not None and not result.quick
    ]


def eval_results(results: list[Result]) -> list[dict[str, Any]]:
    """The results on datasets with a name of the Hub's form, as entries of `.eval_results/*.yaml`."""
    entries = []
    for result in results:
        if result.dataset_id is None or result.quick:
            continue
        notes = [f"{result.metric} on {result.dataset}{f', {result.config}' if result.config else ''}"]
        notes += [result.counted] if result.counted else []
        notes += ["a dataset embedded in hf_geossl, not on the Hub"] if result.dataset_id == EMBEDDED else []
        notes += [f"measured by: {result.command}"] if result.command else []
        entries.append(
            EvalResultEntry(
                dataset_id=result.dataset_id,
                task_id=f"{result.task}.{result.metric}",
                value=result.value,
                notes="; ".join(notes),
            )
        )
    return eval_result_entries_to_yaml(entries)
