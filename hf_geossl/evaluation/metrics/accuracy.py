"""Accuracy of classification: top-1, top-5 and the mean over classes.

The mean over classes is of the recall of each class that has references (scikit-learn's `balanced_accuracy_score`; the
number reported on Pets, Flowers and Aircraft).
"""

from typing import Any

import numpy as np
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassStatScores

from hf_geossl.evaluation.metrics.inputs import to_array, to_floats, to_integers
from hf_geossl.evaluation.metrics.streaming import Integer, Number, StreamingMetric, describe, nested

_INPUTS = """
Args:
    predictions: Scores of shape `(images, num_classes)` (logits or probabilities), or classes of shape `(images,)`.
    references: Classes of shape `(images,)`, in 0..num_classes-1.

Returns:
    `accuracy`, `mean_per_class_accuracy` and, for scores over more than 5 classes, `accuracy_top5`, all in 0..1;
    `accuracy_per_class`: a list, NaN for a class without references.
"""


class Accuracy(StreamingMetric):
    """Top-1, top-5 and mean per-class accuracy, counted by torchmetrics.

    Args:
        num_classes (`int`): 2 or more.
        kwargs: Of `evaluate.Metric`.

    Raises:
        ValueError: If num_classes is below 2, or in `add_batch` if classes lie outside or scores and classes are mixed.
    """

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_classes < 2:
            raise ValueError(f"num_classes must be 2 or more, got {num_classes}")
        self.num_classes = num_classes
        self.counts = MulticlassStatScores(num_classes, average=None, validate_args=False)
        self.top5 = MulticlassAccuracy(max(num_classes, 5), top_k=5, average="micro", validate_args=False)
        self.reset()

    def _info(self) -> Any:
        return describe(__doc__, _INPUTS, {"predictions": nested(Number, 1), "references": Integer})

    def reset(self) -> None:
        self.counts.reset()
        self.top5.reset()
        self.with_scores: bool | None = None

    def update(self, predictions: Any, references: Any, **inputs: Any) -> None:
        classes, scores, truth = _checked(predictions, references, self.num_classes)
        if self.with_scores not in (None, scores is not None):
            raise ValueError("predictions must be scores in every batch or classes in every batch, got both")
        self.with_scores = scores is not None
        self.counts.update(classes, truth)
        if scores is not None and self.num_classes > 5:
            self.top5.update(scores, truth)

    def result(self) -> dict[str, Any]:
        hits, _, _, _, support = self.counts.compute().double().T
        per_class = (hits / support).tolist()  # 0 / 0 is NaN
        result: dict[str, Any] = {"accuracy": float(hits.sum() / support.sum())}
        if self.with_scores and self.num_classes > 5:
            result["accuracy_top5"] = float(self.top5.compute())
        return {
            **result,
            "mean_per_class_accuracy": float(np.nanmean(per_class)),
            "accuracy_per_class": per_class,
        }


def sums_of(predictions: Any, references: Any, *, num_classes: int) -> np.ndarray:
    """What accuracy adds up over images, for bootstrapping.

    Args:
        predictions: Scores of shape `(images, num_classes)`, or classes of shape `(images,)`.
        references: Classes of shape `(images,)`.
        num_classes (`int`): 2 or more.

    Returns:
        `np.ndarray` of uint8, of shape `(images, 2 * num_classes)`: right answers a class, images a class; for scores
        over more than 5 classes one column more, the answers right among the first five.

    Raises:
        ValueError: See [`Accuracy`].
    """
    classes, scores, truth = _checked(predictions, references, num_classes)
    answers = torch.nn.functional.one_hot(truth, num_classes)
    columns = [answers * (classes == truth)[:, None], answers]
    if scores is not None and num_classes > 5:
        columns.append((scores.topk(5).indices == truth[:, None]).any(dim=1, keepdim=True))
    return torch.cat([column.to(torch.uint8) for column in columns], dim=1).numpy()


def summarize(sums: np.ndarray) -> dict[str, float]:
    """Args:
        sums (`np.ndarray` of shape `(k,)`): Sum over images of the rows of [`sums_of`].

    Returns:
        `dict[str, float]`: [`Accuracy`]'s numbers, without the list.
    """
    num_classes = len(sums) // 2  # an odd length has the column of top-5
    hits, support = np.asarray(sums[: 2 * num_classes], dtype=np.float64).reshape(2, num_classes)
    seen = support > 0
    result = {"accuracy": float(hits.sum() / support.sum())}
    if len(sums) % 2:
        result["accuracy_top5"] = float(sums[-1] / support.sum())
    result["mean_per_class_accuracy"] = float((hits[seen] / support[seen]).mean())
    return result


def _checked(
    predictions: Any, references: Any, num_classes: int
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Classes, scores if they came, and true classes."""
    array = to_array("predictions", predictions)
    if array.ndim == 2:
        scores = torch.from_numpy(to_floats("predictions", array, (None, num_classes)))
        classes = scores.argmax(dim=1)
    else:
        scores = None
        classes = torch.from_numpy(to_integers("predictions", array, (None,), num_classes))
    truth = torch.from_numpy(to_integers("references", references, (len(classes),), num_classes))
    return classes, scores, truth
