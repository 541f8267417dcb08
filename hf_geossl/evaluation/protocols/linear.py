"""Linear probes on frozen features by logistic regression: the class, each of several labels, quarter turns of an image."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from hf_geossl.evaluation.bootstrap import metric_intervals
from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.features import Transform, compute_features, thumbnailed
from hf_geossl.evaluation.fitting.classifiers import (
    Predicted,
    accuracy_of,
    both_splits,
    classification_result,
    count_classes,
    fit_classifier,
    floors,
    hold_out,
    labelled_features,
    measure_classifier,
)
from hf_geossl.evaluation.metrics.multilabel_average_precision import MultilabelAveragePrecision
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocol import EvaluationProtocol, TaskResult
from hf_geossl.evaluation.samples import Samples
from hf_geossl.evaluation.settings import ProtocolSettings, Scale, Work

CLASSES = 8  # that a fit has in an estimate of its work
TURNS = ("0", "90", "180", "270")  # degrees, counter-clockwise


@dataclass(frozen=True)
class LogisticSettings(ProtocolSettings):
    """Logistic regression on cached, standardised features without augmentation.

    Args:
        c_values (`tuple[float, ...]`): Inverse regularisations; the best on held-out training images is taken, for each label.
        held_out (`float`): Share of the training images that it is chosen on; the final fit uses all of them.
        max_iterations (`int`): Of L-BFGS.
        feature (`str`): Which feature of `compute_features`; "both" is class token and mean patch token, "pooled" what the
            model itself defines.

    Source: The protocol for small datasets of SimCLR (arXiv 2002.05709, appendix B.8.2): L-BFGS, a sweep over the
    regularisation on validation images, and no augmentation.
    """

    c_values: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
    held_out: float = 0.2
    max_iterations: int = 1000
    feature: str = "both"

    def work(self, scale: Scale) -> Work:
        """See `ProtocolSettings`."""
        return Work({"images": scale.images}, 2 * scale.images, operations=self._fitting(scale.train, scale.width))

    def _fitting(self, rows: int, width: int) -> float:
        """Operations of three sources' fits, of some 100 iterations each."""
        return 3 * (len(self.c_values) + 1) * 100 * 8.0 * rows * 2 * width * CLASSES


def measure_linear(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, settings: LogisticSettings
) -> TaskResult:
    """Accuracy of logistic regression of `label`, which must be of two classes or more."""
    splits = both_splits(data)

    def predict(model: Encoder, column: str) -> Predicted:
        features, labels, queries, truth = labelled_features(model, splits, column, "label", options)
        num_classes, _ = count_classes(splits[0], labels, truth)
        held_out = hold_out(len(labels), settings.held_out, options.seed)
        probe = fit_classifier(
            features, labels, held_out, settings.c_values, num_classes, settings.max_iterations, encoder.device
        )
        details = {"c": probe.c, "converged": probe.converged}
        return Predicted(probe.scores(queries), truth, labels, details)

    title = f"{encoder.name}, linear probe on {splits[1].name}"
    return measure_classifier(encoder, settings.feature, splits[0], settings, options, title, predict)


def measure_multilabel(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, settings: LogisticSettings
) -> TaskResult:
    """Mean average precision of one logistic regression for each of `multi_label`.

    That of each label is in the details. Floors: equal scores for all images (the mean share of positives), random weights,
    a thumbnail.
    """
    splits = both_splits(data)

    def fit(model: Encoder, column: str) -> tuple[np.ndarray, np.ndarray, int, list[float | None]]:
        features, labels, queries, truth = labelled_features(model, splits, column, "multi_label", options)
        held_out = hold_out(len(labels), settings.held_out, options.seed)
        scores = np.zeros(truth.shape)
        chosen: list[float | None] = []
        for index in range(labels.shape[1]):
            if len(np.unique(labels[~held_out, index])) < 2:  # nothing to learn: all images score alike
                chosen.append(None)
                continue
            probe = fit_classifier(
                features, labels[:, index], held_out, settings.c_values, 2, settings.max_iterations, encoder.device
            )
            scores[:, index] = probe.scores(queries)[:, 1]
            chosen.append(probe.c)
        return scores, np.asarray(truth), len(labels), chosen

    scores, truth, train_count, chosen = fit(encoder, settings.feature)
    metric = MultilabelAveragePrecision(truth.shape[1])
    rows = metric.rows_of(scores, truth)
    names = splits[0].names.get("multi_label") or tuple(map(str, range(truth.shape[1])))
    values = dict(zip(names, metric.details(rows)["average_precision_per_class"], strict=True))

    def precision(scores: np.ndarray) -> float:
        return metric.numbers_of(metric.rows_of(scores, truth))["mean_average_precision"]

    known = {"equal scores": precision(np.zeros_like(scores))}
    for name, model, column in floors(encoder, settings.feature, options.seed):
        known[name] = precision(fit(model, column)[0])

    def draw() -> Image.Image:
        from hf_geossl.evaluation.pictures.charts import bars

        return bars(values, ylabel="average precision", title=f"{encoder.name}, labels of {splits[1].name}")

    return TaskResult(
        metrics=metric.numbers_of(rows),
        intervals=metric_intervals(metric, rows, repeats=options.bootstrap, seed=options.seed),
        details={
            "settings": asdict(settings),
            "train_images": train_count,
            "test_images": len(truth),
            "average_precision": values,
            "c": dict(zip(names, chosen, strict=True)),
            "floors": {"mean_average_precision": known},
        },
        pictures={"average_precision": draw},
    )


@dataclass(frozen=True)
class RotationSettings(LogisticSettings):
    """Four-way logistic regression on standardised features; every image comes with all four turns.

    Args:
        others: As in `LogisticSettings`. An image is held out with all of its turns.

    Source: GTSA (arXiv 2304.08014) measures the accuracy of four-way rotation prediction on frozen features.
    """

    c_values: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)

    def work(self, scale: Scale) -> Work:
        """See `ProtocolSettings`."""
        images = {"images": scale.images, **({"from above": scale.images} if scale.modes > 1 else {})}
        fitting = self._fitting(4 * scale.train, scale.width)
        return Work(images, scale.modes * 2 * 4 * scale.images, operations=scale.modes * fitting)


def turned(turns: int) -> Transform:
    """Turns images counter-clockwise by exact quarter turns; no pixel is changed. Adds `"thumbnail"`."""
    return thumbnailed(
        f"{turns} quarter turns" if turns else "", lambda images: torch.rot90(images, turns, dims=(-2, -1))
    )


def _all_turns(encoder: Encoder, samples: Samples, column: str, options: EvaluationOptions) -> np.ndarray:
    """Features `(4 * images, width)`: of all upright images, then of all turned once, and so on."""
    parts = [compute_features(encoder, samples, [column], options, transform=turned(turns)) for turns in range(4)]
    return np.concatenate([part[column] for part in parts])


def _measure_turns(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, settings: RotationSettings, mode: str
) -> tuple[TaskResult, dict[str, Any]]:
    """Accuracy on one kind of images, and the details of it."""
    train, test = both_splits(data, mode)

    def fit(model: Encoder, column: str) -> tuple[Any, np.ndarray, int]:
        features = _all_turns(model, train, column, options)
        images = len(features) // 4
        held_out = np.tile(hold_out(images, settings.held_out, options.seed), 4)
        labels = np.repeat(np.arange(4), images)
        probe = fit_classifier(
            features, labels, held_out, settings.c_values, 4, settings.max_iterations, encoder.device
        )
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
    its details lie in `details["topdown"]`. Floors: chance (0.25), random weights, a thumbnail (gravity and sky are seen
    in it).
    """
    result, details = _measure_turns(encoder, data, options, settings, data.mode)
    metrics = {"accuracy": result.metrics["accuracy"]}
    intervals = {name: ends for name, ends in result.intervals.items() if name in metrics}
    pictures = dict(result.pictures)
    if data.is_scenes and data.mode != "topdown":
        above, above_details = _measure_turns(encoder, data, options, settings, "topdown")
        metrics["accuracy_topdown"] = above.metrics["accuracy"]
        if above.intervals:
            intervals["accuracy_topdown"] = above.intervals["accuracy"]
        details["floors"]["accuracy_topdown"] = above_details.pop("floors")["accuracy"]
        details["topdown"] = above_details
        pictures["confusion_matrix_topdown"] = above.pictures["confusion_matrix"]
    return TaskResult(metrics, intervals, {"settings": asdict(settings), **details}, pictures)


PROTOCOLS = {
    "linear": EvaluationProtocol(measure_linear, LogisticSettings),
    "multilabel": EvaluationProtocol(measure_multilabel, LogisticSettings),
    "rotation": EvaluationProtocol(measure_rotation, RotationSettings),
}
