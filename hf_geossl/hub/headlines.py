"""The few numbers at the top of a card: one a task, in plain words, beside what trivial models reach."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_geossl.hub.results import Result
from hf_geossl.methods import METHODS

RANDOM, THUMBNAIL, GUESSING = COLUMNS = ("random weights", "thumbnail", "guessing")

# by task what is measured, for people who know none of them
_QUESTIONS = {
    "knn": "Class of an image, from similar ones",
    "linear": "Class of an image, linear classifier",
    "linear_sgd": "Class of an image, linear classifier",
    "multilabel": "Objects in an image",
    "rotation": "Which way up an image is",
    "equivariance": "What was done to an image",
    "orientation": "Which way an object points",
    "segmentation": "What each pixel shows, linear classifier",
    "segmentation_few_shot": "What each pixel shows, few images",
    "segmentation_finetune": "What each pixel shows, fine-tuned",
    "semantic_fpn": "What each pixel shows, fine-tuned",
    "upernet": "What each pixel shows, fine-tuned",
    "depth": "How far away each pixel is, linear map",
    "depth_dpt": "How far away each pixel is, fine-tuned",
    "detection": "Where objects are",
    "homography": "How two views lie to each other",
    "propagation": "Where an object is in the next frames",
    "keypoints": "Where parts of a body are",
    "finetuned_classification": "Class of an image",
    "finetuned_segmentation": "What each pixel shows",
    "finetuned_depth": "How far away each pixel is",
    "finetuned_detection": "Where objects are",
    "knn_accuracy": "Class of an image, from similar ones",
    "linear_accuracy": "Class of an image, linear classifier",
    "quarter_turn_accuracy": "Which way up an image is",
    "position_accuracy": "Which quarter of an image a piece shows",
    "correspondence_accuracy": "Where a square of a turned piece lies",
}
# and its number, where the metric's own name does not say it
_NUMBERS = {
    "mean_iou": "overlap with the truth, mean IoU",
    "abs_rel": "mean error as a share of the depth",
    "box_ap": "found and well placed, box AP, at most 1",
}
_SPELT = {"ap": "AP", "iou": "IoU"}
_LOWER = re.compile(r"error|rmse|abs_rel|distance|loss|_std$")  # metrics of which less is better
_SHARE = re.compile(r"accuracy|iou")


def metric_words(metric: str) -> str:
    """A metric as people write it: `mean IoU`, `box AP50`."""
    return re.sub(r"\b(ap|iou)(?=\d*\b)", lambda name: _SPELT[name[0]], metric.replace("_", " "))


def lower_is_better(metric: str) -> bool:
    """Whether less of a metric is better, by its name."""
    return _LOWER.search(metric) is not None


@dataclass(frozen=True)
class Headline:
    """A row of the table.

    Args:
        question (`str`): What was measured.
        measured (`str`): The number, in bold where it is surely better than all floors, with its interval.
        floors (`dict[str, str]`): What trivial models reach, by column.
        better (`bool`): Whether the number is better than all floors by more than its interval.
    """

    question: str
    measured: str
    floors: Mapping[str, str]
    better: bool


def headlines(results: Sequence[Result], record: Mapping[str, Any]) -> list[Headline]:
    """The rows of the table: of each measured task its first number, or else what was measured while training.

    Args:
        results (`Sequence[Result]`): Measured results.
        record (`Mapping[str, Any]`): Of the run; its entry `instruments` is `{"images": ..., "step": ..., "values": {name:
            {"measured": ..., "interval": [low, high], "floors": {name: value}}}}`.

    Returns:
        `list[Headline]`: In the order measured.
    """
    first: dict[str, Result] = {}
    for result in results:
        known = first.setdefault(result.task, result)
        if result.floors and not known.floors:
            first[result.task] = result
    if first:
        return [_row(result) for result in first.values()]
    values = record.get("instruments", {}).get("values", {})
    return [
        _row(
            Result(
                name,
                name,
                entry["measured"],
                interval=tuple(entry["interval"]),
                floors=tuple(entry["floors"].items()),
            )
        )
        for name, entry in values.items()
    ]


def floor_columns(floors: Sequence[tuple[str, float]], metric: str) -> dict[str, float]:
    """What trivial models reach, by column: random weights, a thumbnail, and of all others the best."""
    sign = -1 if lower_is_better(metric) else 1
    columns: dict[str, float] = {}
    for name, value in floors:
        words = name.replace("_", " ")
        column = RANDOM if words == RANDOM else THUMBNAIL if THUMBNAIL in words else GUESSING
        columns[column] = max(columns.get(column, value), value, key=lambda floor: sign * floor)
    return columns


def _row(result: Result) -> Headline:
    sign, columns = -1 if lower_is_better(result.metric) else 1, floor_columns(result.floors, result.metric)
    values = [result.value, *columns.values()]
    share = _SHARE.search(result.metric) is not None and all(0 <= value <= 1 for value in values)
    low, high = result.interval or (result.value, result.value)
    worst = low if sign > 0 else high
    better = bool(columns) and result.interval is not None and all(sign * (worst - v) > 0 for v in columns.values())
    number = _written(result.value, share)
    measured = f"**{number}**" if better else number
    if result.interval is not None:
        measured += (
            f" ({_written(low, share, unit='')}\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}{_written(high, share, unit='')})"
        )
    return Headline(
        _question(result),
        measured,
        {name: _written(value, share) for name, value in columns.items()},
        better,
    )


def question_of(task: str) -> str:
    """What a task measures, for people who know none of them."""
    own = {one.name: one.summary for method in METHODS.values() for one in method.tasks}
    return _QUESTIONS.get(task) or own.get(task) or task.replace("_", " ")


def _question(result: Result) -> str:
    question = question_of(result.task)
    if result.metric in (result.task, "accuracy"):
        return question
    arrow = ", less is better" if lower_is_better(result.metric) else ""
    return f"{question} ({_NUMBERS.get(result.metric, metric_words(result.metric))}{arrow})"


def _written(value: float, share: bool, unit: str = "\N{NO-BREAK SPACE}%") -> str:
    return f"{100 * value:.0f}{unit}" if share else f"{value:.3g}"
