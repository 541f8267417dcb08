"""Linear probes of several labels an image on frozen features: one logistic regression a label."""

from dataclasses import asdict

import numpy as np
from PIL import Image

from hf_geossl.evaluation.bootstrap import metric_intervals
from hf_geossl.evaluation.cached_samples import cache_if_rendered
from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.fitting.classifiers import LogisticClassifier, floors, hold_out, labelled_features
from hf_geossl.evaluation.metrics.multilabel_average_precision import MultilabelAveragePrecision
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocol import EvaluationProtocol, TaskResult
from hf_geossl.evaluation.protocols.linear import LogisticSettings


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
    train, test = (cache_if_rendered(samples, ["multi_label"], encoder, options) for samples in (data.train, data.test))

    def fit(model: Encoder, column: str) -> tuple[np.ndarray, np.ndarray, int, list[float | None]]:
        features, labels = labelled_features(model, train, column, "multi_label", options)
        queries, truth = labelled_features(model, test, column, "multi_label", options)
        held_out = hold_out(len(labels), settings.held_out, options.seed)
        scores = np.zeros(truth.shape)
        chosen: list[float | None] = []
        for index in range(labels.shape[1]):
            if len(np.unique(labels[~held_out, index])) < 2:  # nothing to learn: all images score alike
                chosen.append(None)
                continue
            probe = LogisticClassifier(
                features, labels[:, index], held_out, settings.c_values, 2, settings.max_iterations
            )
            scores[:, index] = probe.scores(queries)[:, 1]
            chosen.append(probe.c)
        return scores, np.asarray(truth), len(labels), chosen

    scores, truth, train_count, chosen = fit(encoder, settings.feature)
    metric = MultilabelAveragePrecision(truth.shape[1])
    rows = metric.rows_of(scores, truth)
    names = train.names.get("multi_label") or tuple(map(str, range(truth.shape[1])))
    values = dict(zip(names, metric.details(rows)["average_precision_per_class"], strict=True))

    def precision(scores: np.ndarray) -> float:
        return metric.numbers_of(metric.rows_of(scores, truth))["mean_average_precision"]

    known = {"equal scores": precision(np.zeros_like(scores))}
    for name, model, column in floors(encoder, settings.feature, options.seed):
        known[name] = precision(fit(model, column)[0])

    def draw() -> Image.Image:
        from hf_geossl.evaluation.pictures.charts import bars

        return bars(values, ylabel="average precision", title=f"{encoder.name}, labels of {test.name}")

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


PROTOCOLS = {"multilabel": EvaluationProtocol(measure_multilabel, LogisticSettings)}
