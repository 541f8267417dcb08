"""Mean corner error of homography estimation: the distance in pixels between the estimated and the true positions of the
patch's four corners, averaged over corners and images.
"""

from typing import Any

import numpy as np

from hf_geossl.evaluation.metrics.inputs import to_floats
from hf_geossl.evaluation.metrics.streaming import Number, StreamingMetric, describe, nested

_INPUTS = """
Args:
    predictions: Positions, or displacements, of the four corners, x and y in pixels, of shape `(images, 4, 2)`.
    references: The true ones, of the same shape and order.

Returns:
    `mean_corner_error`, in pixels.
"""
_SOURCE = "DeTone et al., Deep Image Homography Estimation, 2016, section V."


class CornerError(StreamingMetric):
    """Mean corner error.

    Args:
        kwargs: Of `evaluate.Metric`.

    Raises:
        ValueError: In `add_batch`, if the shape is another or numbers are not finite.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.reset()

    def _info(self) -> Any:
        return describe(
            __doc__, _INPUTS, {"predictions": nested(Number, 2), "references": nested(Number, 2)}, source=_SOURCE
        )

    def reset(self) -> None:
        self.sums = np.zeros(2)

    def update(self, predictions: Any, references: Any, **inputs: Any) -> None:
        self.sums += sums_of(predictions, references).sum(axis=0)

    def result(self) -> dict[str, Any]:
        return summarize(self.sums)


def sums_of(predictions: Any, references: Any) -> np.ndarray:
    """What the error adds up over images, for bootstrapping.

    Args:
        predictions, references: See [`CornerError`].

    Returns:
        `np.ndarray` of float64, of shape `(images, 2)`: the image's mean distance, and 1.

    Raises:
        ValueError: See [`CornerError`].
    """
    truth = to_floats("references", references, (None, 4, 2))
    guess = to_floats("predictions", predictions, truth.shape)
    error = np.linalg.norm(guess - truth, axis=-1).mean(axis=-1)
    return np.stack([error, np.ones_like(error)], axis=1)


def summarize(sums: np.ndarray) -> dict[str, float]:
    """Args:
        sums (`np.ndarray` of shape `(2,)`): Sum over images of the rows of [`sums_of`].

    Returns:
        `dict[str, float]`: [`CornerError`]'s number.
    """
    return {"mean_corner_error": float(sums[0] / sums[1]) if sums[1] else float("nan")}
