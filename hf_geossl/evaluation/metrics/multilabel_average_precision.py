"""Mean average precision of classification with several labels an image: the area under each class's precision-recall
curve (without interpolation), averaged over the classes that have a positive reference.
"""

from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score

from hf_geossl.evaluation.metrics.inputs import to_floats, to_integers
from hf_geossl.evaluation.metrics.streaming import Integer, Number, StreamingMetric, describe, nested

_INPUTS = """
Args:
    predictions: Scores of shape `(images, classes)`; only their order matters, so logits and probabilities both do.
    references: 1 where an image has the label, else 0, of shape `(images, classes)`.

Returns:
    `mean_average_precision`, in 0..1, NaN where no class has a positive; `average_precision_per_class`: a list, NaN for
    a class without positives.
"""
_SOURCE = "scikit-learn's average_precision_score; Everingham et al., IJCV 2010, section 4.2, without interpolation."


class MultilabelAveragePrecision(StreamingMetric):
    """Mean average precision over classes, by scikit-learn. Scores are kept until `compute`, `8 * classes` bytes an image.
    (torchmetrics' class of that name puts a batch through a sigmoid or not by the batch's own range, which mixes up the
    order between batches of logits.)

    Args:
        num_classes (`int`): 1 or more.
        kwargs: Of `evaluate.Metric`.

    Raises:
        ValueError: In `add_batch`, if shapes differ, scores are not finite or references are not 0 or 1.
    """

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_classes < 1:
            raise ValueError(f"num_classes must be 1 or more, got {num_classes}")
        self.num_classes = num_classes
        self.reset()

    def _info(self) -> Any:
        return describe(
            __doc__, _INPUTS, {"predictions": nested(Number, 1), "references": nested(Integer, 1)}, source=_SOURCE
        )

    def reset(self) -> None:
        self.scores: list[np.ndarray] = []
        self.truth: list[np.ndarray] = []

    def update(self, predictions: Any, references: Any, **inputs: Any) -> None:
        scores = to_floats("predictions", predictions, (None, self.num_classes))
        truth = to_integers("references", references, scores.shape, stop=2)
        self.scores.append(scores)
        self.truth.append(truth.astype(bool))

    def result(self) -> dict[str, Any]:
        scores, truth = np.concatenate(self.scores), np.concatenate(self.truth)
        per_class = [
            float(average_precision_score(truth[:, index], scores[:, index])) if truth[:, index].any() else float("nan")
            for index in range(self.num_classes)
        ]
        known = [value for value in per_class if not np.isnan(value)]
        return {
            "mean_average_precision": float(np.mean(known)) if known else float("nan"),
            "average_precision_per_class": per_class,
        }
