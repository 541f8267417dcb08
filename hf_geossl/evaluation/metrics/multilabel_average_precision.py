"""Mean average precision of classification with several labels an image.

That is the area under each class's precision-recall curve (without interpolation), averaged over the classes that have a
positive reference.
"""

from typing import Any, ClassVar

import numpy as np
from sklearn.metrics import average_precision_score

from .metric import Features, Integer, Metric, Number, mean_of_known, nested, to_floats, to_integers


class MultilabelAveragePrecision(Metric[list[np.ndarray]]):
    """Mean average precision over classes, by scikit-learn.

    Scores are stored until `compute`, `16 * classes` bytes an image. (torchmetrics' class of that name puts a batch through a
    sigmoid or not by the batch's own range, which mixes up the order between batches of logits.)

    Args:
        num_classes (`int`): 1 or more.

    Raises:
        ValueError: In `add_batch`, if shapes differ, scores are not finite or references are not 0 or 1.
    """

    image_features: ClassVar[Features] = {"predictions": nested(Number, 1), "references": nested(Integer, 1)}
    inputs = """
Args:
    predictions: Scores of shape `(images, classes)`; only their order matters, so logits and probabilities both do.
    references: 1 where an image has the label, else 0, of shape `(images, classes)`.

Returns:
    `mean_average_precision`, in 0..1, NaN where no class has a positive; `average_precision_per_class`: a list, NaN for
    a class without positives.
"""
    source = "scikit-learn's average_precision_score; Everingham et al., IJCV 2010, section 4.2, without interpolation."

    def __init__(self, num_classes: int, **kwargs: object) -> None:
        super().__init__(**kwargs)
        if num_classes < 1:
            raise ValueError(f"num_classes must be 1 or more, got {num_classes}")
        self.num_classes = num_classes

    def rows_of(self, predictions: object, references: object) -> list[np.ndarray]:
        """Scores and truth of each image, `(2, classes)`."""
        scores = to_floats("predictions", predictions, (None, self.num_classes))
        truth = to_integers("references", references, scores.shape, stop=2)
        return list(np.stack([scores, truth], axis=1))

    def summarize(self, total: list[np.ndarray]) -> dict[str, float]:
        """See `Metric`."""
        return {"mean_average_precision": mean_of_known(self._per_class(total))}

    def details(self, total: list[np.ndarray]) -> dict[str, Any]:
        """See `Metric`."""
        return {"average_precision_per_class": self._per_class(total).tolist()}

    def _per_class(self, total: list[np.ndarray]) -> np.ndarray:
        scores, truth = np.stack(total, axis=1)
        precisions = [
            average_precision_score(t, s) if t.any() else np.nan for t, s in zip(truth.T, scores.T, strict=True)
        ]
        return np.array(precisions, dtype=np.float64)
