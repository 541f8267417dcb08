"""Mean corner error of homography estimation.

That is the distance in pixels between the estimated and the true positions of the patch's four corners, averaged over corners
and images.
"""

from typing import ClassVar

import numpy as np

from .metric import Features, Number, SummedMetric, nested, to_floats


class CornerError(SummedMetric):
    """Mean corner error; `add_batch` refuses other shapes and numbers that are not finite."""

    image_features: ClassVar[Features] = {"predictions": nested(Number, 2), "references": nested(Number, 2)}
    inputs = """
Args:
    predictions: Positions, or displacements, of the four corners, x and y in pixels, of shape `(images, 4, 2)`.
    references: The true ones, of the same shape and order.

Returns:
    `mean_corner_error`, in pixels.
"""
    source = "DeTone et al., Deep Image Homography Estimation, 2016, section V."

    def rows_of(self, predictions: object, references: object) -> np.ndarray:
        """The image's mean distance, and 1: `np.ndarray` of float64, of shape `(images, 2)`."""
        truth = to_floats("references", references, (None, 4, 2))
        guess = to_floats("predictions", predictions, truth.shape)
        error = np.linalg.norm(guess - truth, axis=-1).mean(axis=-1)
        return np.stack([error, np.ones_like(error)], axis=1)

    def summarize(self, total: np.ndarray) -> dict[str, float]:
        """See `SummedMetric`."""
        return {"mean_corner_error": float(total[0] / total[1]) if total[1] else float("nan")}
