"""Quarter turns: a linear classifier of frozen features predicts by how many of them an image is turned."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from hf_geossl.evaluation.cached_samples import thumbnails
from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.features import Transform, compute_features
from hf_geossl.evaluation.fitting.classifiers import (
    LogisticClassifier,
    accuracy_of,
    cached_splits,
    classification_result,
    floors,
    hold_out,
)
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocol import EvaluationProtocol, TaskResult
from hf_geossl.evaluation.protocols.linear import LogisticSettings
from hf_geossl.evaluation.samples import Samples

TURNS = ("0", "90", "180", "270")  # degrees, counter-clockwise


@dataclass(frozen=True)
class RotationSettings(LogisticSettings):
    """Four-way logistic regression on standardised features; every image comes with all four turns.

    Args:
        others: As in `LogisticSettings`. An image is held out with all of its turns.

    Source: GTSA (arXiv 2304.08014) measures the accuracy of four-way rotation prediction on frozen features.
    """

    c_values: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def turned(turns: int) -> Transform:
    """Turns images counter-clockwise by exact quarter turns; no pixel is changed. Adds `"thumbnail"`."""

    def apply(batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        images = torch.rot90(batch["image"], turns, dims=(-2, -1))
        return images, {"thumbnail": thumbnails(images)}

    return Transform(f"{turns} quarter turns", apply)


def _all_turns(encoder: Encoder, samples: Samples, column: str, options: EvaluationOptions) -> np.ndarray:
    """Features `(4 * images, width)`: of all upright images, then of all turned once, and so on."""
    parts = [compute_features(encoder, samples, [column], options, transform=turned(turns)) for turns in range(4)]
    return np.concatenate([part[column] for part in parts])


def _measure(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, settings: RotationSettings, mode: str
) -> tuple[TaskResult, dict[str, Any]]:
    """Accuracy on one kind of images, and the details of it."""
    train, test = cached_splits(data, [], encoder, options, mode)

    def fit(model: Encoder, column: str) -> tuple[LogisticClassifier, np.ndarray, int]:
        features = _all_turns(model, train, column, options)
        images = len(features) // 4
        held_out = np.tile(hold_out(images, settings.held_out, options.seed), 4)
        labels = np.repeat(np.arange(4), images)
        probe = LogisticClassifier(features, labels, held_out, settings.c_values, 4, settings.max_iterations)
        return probe, probe.scores(_all_turns(model, test, column, options)), images

    probe, scores, images = fit(encoder, settings.feature)
    truth = np.repeat(np.arange(4), len(scores) // 4)
    title = f"{encoder.name}, degrees of {test.name}"
    result = classification_result(scores, truth, 4, TURNS, options, title, repeats=4)
    known = {"chance": 0.25}
    for name, model, column in floors(encoder, settings.feature, options.seed):
        known[name] = accuracy_of(fit(model, column)[1], truth)
    details = {
        "train_images": images,
        "c": probe.c,
        "converged": probe.converged,
        "floors": {"accuracy": known},
        **result.details,
    }
    return result, details


def measure_rotation(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, settings: RotationSettings
) -> TaskResult:
    """Accuracy of the predicted quarter turns.

    With scenes of another mode than "topdown" also `accuracy_topdown`, from above, where nothing but chance is to be expected;
    its details lie in `details["topdown"]`. Floors: chance (0.25), random weights, an RGB thumbnail (gravity and sky are seen
    in it).
    """
    result, details = _measure(encoder, data, options, settings, data.mode)
    metrics = {"accuracy": result.metrics["accuracy"]}
    intervals = {name: ends for name, ends in result.intervals.items() if name in metrics}
    pictures = dict(result.pictures)
    if data.is_scenes and data.mode != "topdown":
        above, above_details = _measure(encoder, data, options, settings, "topdown")
        metrics["accuracy_topdown"] = above.metrics["accuracy"]
        if above.intervals:
            intervals["accuracy_topdown"] = above.intervals["accuracy"]
        details["floors"]["accuracy_topdown"] = above_details.pop("floors")["accuracy"]
        details["topdown"] = above_details
        pictures["confusion_matrix_topdown"] = above.pictures["confusion_matrix"]
    return TaskResult(metrics, intervals, {"settings": asdict(settings), **details}, pictures)


PROTOCOLS = {"rotation": EvaluationProtocol(measure_rotation, RotationSettings)}
