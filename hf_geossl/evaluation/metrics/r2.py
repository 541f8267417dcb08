"""Coefficient of determination of one or several regressed outputs.

`r2` is the mean of the outputs' own R2 ("uniform_average"); `r2_variance_weighted` pools the squares of all outputs, so
that outputs of large variance rule it.
"""

from typing import Any, ClassVar

import numpy as np

from .metric import Features, Number, SummedMetric, nested, to_array, to_floats


class R2(SummedMetric):
    """R2 of sums of squares in float64.

    (torchmetrics' `R2Score` calls any residual below 1e-4 in all perfect, whatever the scale of the references.)
    `add_batch` refuses shapes that differ and numbers that are not finite.
    """

    image_features: ClassVar[Features] = {"predictions": nested(Number, 1), "references": nested(Number, 1)}
    inputs = """
Args:
    predictions: Of shape `(images,)` or `(images, outputs)`.
    references: Of the same shape.

Returns:
    `r2`, `r2_variance_weighted`: 1 is perfect, 0 is what the mean of the references would reach, below is worse;
    `r2_per_output`: a list. An output whose references are all equal, to a millionth of their size, or fewer than 2, has no
    R2: NaN, and so is `r2`.
"""
    same_columns = "references must have as many outputs in every batch"

    def rows_of(self, predictions: object, references: object) -> np.ndarray:
        """One, and for each output the reference, its square and the squared residual, `(images, 1 + 3 * outputs)`."""
        axes = to_array("references", references).ndim
        if axes not in (1, 2):
            raise ValueError(f"references must have shape (images,) or (images, outputs), got {axes} axes")
        truth = to_floats("references", references, (None,) * axes)
        guess = to_floats("predictions", predictions, truth.shape).reshape(len(truth), -1)
        truth = truth.reshape(len(truth), -1)
        return np.concatenate([np.ones((len(truth), 1)), truth, truth**2, (truth - guess) ** 2], axis=1)

    def summarize(self, total: np.ndarray) -> dict[str, float]:
        """See `SummedMetric`."""
        residual, spread = self._squares(total)
        weighted = 1 - residual[spread > 0].sum() / spread.sum() if spread.any() else np.nan
        return {"r2": float(self._per_output(total).mean()), "r2_variance_weighted": float(weighted)}

    def details(self, total: np.ndarray) -> dict[str, Any]:
        """See `Metric`."""
        return {"r2_per_output": self._per_output(total).tolist()}

    def _per_output(self, total: np.ndarray) -> np.ndarray:
        residual, spread = self._squares(total)
        return 1 - np.divide(residual, spread, out=np.full(len(spread), np.nan), where=spread > 0)

    def _squares(self, total: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Squared residuals and squared deviations from the mean, `(outputs,)` each; 0 of equal references."""
        images = total[0]
        sums, squares, residual = total[1:].reshape(3, -1)
        spread = squares - sums**2 / max(images, 1)
        spread[spread <= 1e-12 * squares] = 0.0  # what rounding leaves of equal references
        return residual, spread
