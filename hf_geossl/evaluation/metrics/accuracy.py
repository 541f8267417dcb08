"""Accuracy of classification: top-1, top-5 and the mean over classes.

The mean over classes is of the recall of each class that has references (scikit-learn's `balanced_accuracy_score`; the
number reported on Pets, Flowers and Aircraft).
"""

from typing import Any, ClassVar

import numpy as np
import torch

from .metric import (
    Features,
    Integer,
    Number,
    SummedMetric,
    mean_of_known,
    nested,
    shares,
    to_array,
    to_floats,
    to_integers,
)


class Accuracy(SummedMetric):
    """Top-1, top-5 and mean per-class accuracy.

    Args:
        num_classes (`int`): 2 or more.

    Raises:
        ValueError: If num_classes is below 2, or in `add_batch` if classes lie outside or scores and classes are mixed.
    """

    image_features: ClassVar[Features] = {"predictions": nested(Number, 1), "references": Integer}
    inputs = """
Args:
    predictions: Scores of shape `(images, num_classes)` (logits or probabilities), or classes of shape `(images,)`.
    references: Classes of shape `(images,)`, in 0..num_classes-1.

Returns:
    `accuracy`, `mean_per_class_accuracy` and, for scores over more than 5 classes, `accuracy_top5`, all in 0..1;
    `accuracy_per_class`: a list, NaN for a class without references.
"""
    same_columns = "predictions must be scores in every batch or classes in every batch, got both"

    def __init__(self, num_classes: int, **kwargs: object) -> None:
        super().__init__(**kwargs)
        if num_classes < 2:
            raise ValueError(f"num_classes must be 2 or more, got {num_classes}")
        self.num_classes = num_classes

    def rows_of(self, predictions: object, references: object) -> np.ndarray:
        """Right answers a class, images a class, both `num_classes` columns of uint8; of scores one more, right among five."""
        array = to_array("predictions", predictions)
        scores = to_floats("predictions", array, (None, self.num_classes)) if array.ndim == 2 else None
        if scores is None:
            classes = to_integers("predictions", array, (None,), self.num_classes)
        else:
            classes = scores.argmax(axis=1)
        truth = to_integers("references", references, (len(classes),), self.num_classes)
        answers = np.eye(self.num_classes, dtype=np.uint8)[truth]
        columns = [answers * (classes == truth)[:, None], answers]
        if scores is not None:
            first = torch.from_numpy(scores).topk(min(5, self.num_classes)).indices.numpy()
            columns.append((first == truth[:, None]).any(axis=1, keepdims=True))
        return np.concatenate([column.astype(np.uint8) for column in columns], axis=1)

    def summarize(self, total: np.ndarray) -> dict[str, float]:
        """See `SummedMetric`."""
        hits, images = self._by_class(total)
        result = {"accuracy": float(hits.sum() / images.sum())}
        if len(total) % 2 and self.num_classes > 5:
            result["accuracy_top5"] = float(total[-1] / images.sum())
        return {**result, "mean_per_class_accuracy": mean_of_known(shares(hits, images))}

    def details(self, total: np.ndarray) -> dict[str, Any]:
        """See `Metric`."""
        return {"accuracy_per_class": shares(*self._by_class(total)).tolist()}

    def _by_class(self, total: np.ndarray) -> np.ndarray:
        """Right answers and images, `(2, num_classes)`."""
        return np.asarray(total[: 2 * self.num_classes], dtype=np.float64).reshape(2, self.num_classes)
