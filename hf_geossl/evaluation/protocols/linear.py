"""Linear probes on frozen features: logistic regression of the class, or of several labels an image."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hf_geossl.evaluation.bootstrap import interval_by_rows
from hf_geossl.evaluation.cached_samples import held_if_rendered
from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.metrics.multilabel_average_precision import MultilabelAveragePrecision
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions, Task, TaskResult
from hf_geossl.evaluation.protocols.classifiers import (
    LogisticClassifier,
    accuracy_of,
    classification_result,
    count_classes,
    floors,
    hold_out,
    labelled_features,
    majority_accuracy,
)
from hf_geossl.evaluation.protocols.fit import check_settings


@dataclass(frozen=True)
class LogisticSettings:
    """Logistic regression on cached, standardised features without augmentation.

    Args:
        c_values (`tuple[float, ...]`): Inverse regularisations; the best on held-out training images is taken.
        held_out (`float`): Share of the training images that it is chosen on; the final fit uses all of them.
        max_iterations (`int`): Of L-BFGS.
        feature (`str`): Which feature of `compute_features`; "both" is class token and mean patch token.

    Source: The protocol for small datasets of SimCLR (arXiv 2002.05709, appendix B.8.2): L-BFGS, a sweep over the
    regularisation on validation images, and no augmentation.
    """

    c_values: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
    held_out: float = 0.2
    max_iterations: int = 1000
    feature: str = "both"

    def __post_init__(self) -> None:
        check_settings(self)


def measure_linear(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, settings: LogisticSettings
) -> TaskResult:
    """Accuracy of logistic regression.

    Args:
        encoder (`Encoder`): The model.
        data (`EvaluationData`): Images with `label`.
        options (`EvaluationOptions`): How to evaluate.
        settings (`LogisticSettings`): The protocol's own.

    Returns:
        `TaskResult`: `accuracy`, `mean_per_class_accuracy` and `accuracy_top5`. Floors: the most frequent class, random
        weights, an RGB thumbnail.

    Raises:
        ValueError: If there are no labels, or of fewer than two classes.
    """
    train, test = (held_if_rendered(samples, ["label"], encoder, options) for samples in (data.train, data.test))

    def fit(model: Encoder, column: str) -> tuple[LogisticClassifier, np.ndarray, np.ndarray, np.ndarray]:
        features, labels = labelled_features(model, train, column, "label", options)
        queries, truth = labelled_features(model, test, column, "label", options)
        num_classes, _ = count_classes(train, labels, truth)
        held = hold_out(len(labels), settings.held_out, options.seed)
        probe = LogisticClassifier(features, labels, held, settings.c_values, num_classes, settings.max_iterations)
        return probe, probe.scores(queries), labels, truth

    probe, scores, labels, truth = fit(encoder, settings.feature)
    num_classes, names = count_classes(train, labels, truth)
    title = f"{encoder.name}, linear probe on {test.name}"
    result = classification_result(scores, truth, num_classes, names, options, title)
    known = {"most frequent class": majority_accuracy(labels, truth)}
    for name, model, column in floors(encoder, settings.feature, options.seed):
        known[name] = accuracy_of(fit(model, column)[1], truth)
    result.details |= {
        "settings": asdict(settings),
        "train_images": len(labels),
        "c": probe.c,
        "converged": probe.converged,
        "floors": {"accuracy": known},
    }
    return result


def measure_multilabel(
    encoder: Encoder, data: EvaluationData, options: EvaluationOptions, settings: LogisticSettings
) -> TaskResult:
    """Mean average precision of one logistic regression a label.

    Args:
        encoder (`Encoder`): The model.
        data (`EvaluationData`): Images with `multi_label`.
        options (`EvaluationOptions`): How to evaluate.
        settings (`LogisticSettings`): The protocol's own; each label chooses its regularisation.

    Returns:
        `TaskResult`: `mean_average_precision`; that of each label in `details`. Floors: equal scores for all images (the
        mean share of positives), random weights, an RGB thumbnail.

    Raises:
        ValueError: If there are no such labels.
    """
    train, test = (held_if_rendered(samples, ["multi_label"], encoder, options) for samples in (data.train, data.test))

    def fit(model: Encoder, column: str) -> tuple[np.ndarray, np.ndarray, int, list[float | None]]:
        features, labels = labelled_features(model, train, column, "multi_label", options)
        queries, truth = labelled_features(model, test, column, "multi_label", options)
        held = hold_out(len(labels), settings.held_out, options.seed)
        scores = np.zeros(truth.shape)
        chosen: list[float | None] = []
        for index in range(labels.shape[1]):
            if len(np.unique(labels[~held, index])) < 2:  # nothing to learn: all images score alike
                chosen.append(None)
                continue
            probe = LogisticClassifier(features, labels[:, index], held, settings.c_values, 2, settings.max_iterations)
            scores[:, index] = probe.scores(queries)[:, 1]
            chosen.append(probe.c)
        return scores, np.asarray(truth), len(labels), chosen

    scores, truth, train_count, chosen = fit(encoder, settings.feature)

    def precision(scores: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
        metric = MultilabelAveragePrecision(truth.shape[1])
        return dict(metric.compute(predictions=scores, references=truth))

    found = precision(scores, truth)
    per_label = found.pop("average_precision_per_class")
    known = {"equal scores": precision(np.zeros_like(scores), truth)["mean_average_precision"]}
    for name, model, column in floors(encoder, settings.feature, options.seed):
        known[name] = precision(fit(model, column)[0], truth)["mean_average_precision"]
    names = train.names.get("multi_label") or tuple(map(str, range(truth.shape[1])))
    values = dict(zip(names, per_label, strict=True))

    def draw() -> Any:
        from hf_geossl.evaluation.pictures import bars

        return bars(values, ylabel="average precision", title=f"{encoder.name}, labels of {test.name}")

    result = TaskResult(found, pictures={"average_precision": draw})
    if options.bootstrap:

        def again(rows: np.ndarray) -> dict[str, float]:
            return {"mean_average_precision": precision(scores[rows], truth[rows])["mean_average_precision"]}

        result.intervals = interval_by_rows(again, len(truth), repeats=options.bootstrap, seed=options.seed)
    result.details = {
        "settings": asdict(settings),
        "train_images": train_count,
        "test_images": len(truth),
        "average_precision": values,
        "c": dict(zip(names, chosen, strict=True)),
        "floors": {"mean_average_precision": known},
    }
    return result


TASKS = {
    "linear": Task(measure_linear, LogisticSettings, "class of an image by logistic regression"),
    "multilabel": Task(measure_multilabel, LogisticSettings, "things in an image by one logistic regression each"),
}
