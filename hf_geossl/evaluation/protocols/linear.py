"""The linear probe on frozen features: logistic regression of the class."""

from dataclasses import asdict, dataclass, replace

import numpy as np

from hf_geossl.evaluation.cached_samples import cache_if_rendered
from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.fitting.classifiers import (
    LogisticClassifier,
    accuracy_floors,
    accuracy_of,
    classification_result,
    count_classes,
    hold_out,
    labelled_features,
    majority_accuracy,
)
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocol import EvaluationProtocol, TaskResult
from hf_geossl.evaluation.settings import check_settings


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
    train, test = (cache_if_rendered(samples, ["label"], encoder, options) for samples in (data.train, data.test))

    def fit(model: Encoder, column: str) -> tuple[LogisticClassifier, np.ndarray, np.ndarray, np.ndarray]:
        features, labels = labelled_features(model, train, column, "label", options)
        queries, truth = labelled_features(model, test, column, "label", options)
        num_classes, _ = count_classes(train, labels, truth)
        held_out = hold_out(len(labels), settings.held_out, options.seed)
        probe = LogisticClassifier(features, labels, held_out, settings.c_values, num_classes, settings.max_iterations)
        return probe, probe.scores(queries), labels, truth

    probe, scores, labels, truth = fit(encoder, settings.feature)
    num_classes, names = count_classes(train, labels, truth)
    title = f"{encoder.name}, linear probe on {test.name}"
    result = classification_result(scores, truth, num_classes, names, options, title)
    known = accuracy_floors(
        encoder,
        settings.feature,
        options.seed,
        lambda model, column: accuracy_of(fit(model, column)[1], truth),
        {"most frequent class": majority_accuracy(labels, truth)},
    )
    details = {
        "settings": asdict(settings),
        "train_images": len(labels),
        "c": probe.c,
        "converged": probe.converged,
        "floors": {"accuracy": known},
    }
    return replace(result, details={**result.details, **details})


PROTOCOLS = {"linear": EvaluationProtocol(measure_linear, LogisticSettings)}
