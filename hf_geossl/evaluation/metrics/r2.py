"""Coefficient of determination of one or several regressed outputs.

`r2` is the mean of the outputs' own R2 ("uniform_average"); `r2_variance_weighted` pools the squares of all outputs, so
that outputs of large variance rule it.
"""

from typing import Any

import numpy as np
from sklearn.metrics import r2_score

from hf_geossl.evaluation.metrics.inputs import to_array, to_floats
from hf_geossl.evaluation.metrics.streaming import Number, StreamingMetric, describe, nested

_INPUTS = """
Args:
    predictions: Of shape `(images,)` or `(images, outputs)`.
    references: Of the same shape.

Returns:
    `r2`, `r2_variance_weighted`: 1 is perfect, 0 is what the mean of the references would reach, below is worse;
    `r2_per_output`: a list. An output whose references are all equal (or fewer than 2) has no R2: NaN, and so is `r2`.
"""


class R2(StreamingMetric):
    """R2 by scikit-learn, in float64 over all references at once. (torchmetrics' `R2Score` adds up squares in one pass and
    calls any residual below 1e-4 in all perfect, whatever the scale of the references.) Numbers are kept until `compute`.

    Args:
        kwargs: Of `evaluate.Metric`.

    Raises:
        ValueError: In `add_batch`, if shapes differ or numbers are not finite.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.reset()

    def _info(self) -> Any:
        return describe(__doc__, _INPUTS, {"predictions": nested(Number, 1), "references": nested(Number, 1)})

    def reset(self) -> None:
        self.predictions: list[np.ndarray] = []
        self.references: list[np.ndarray] = []

    def update(self, predictions: Any, references: Any, **inputs: Any) -> None:
        guess, truth = _outputs(predictions, references)
        if self.references and truth.shape[1] != self.references[0].shape[1]:
            raise ValueError(
                f"references must have {self.references[0].shape[1]} outputs as before, got {truth.shape[1]}"
            )
        self.predictions.append(guess)
        self.references.append(truth)

    def result(self) -> dict[str, Any]:
        guess, truth = np.concatenate(self.predictions), np.concatenate(self.references)
        defined = (truth != truth[:1]).any(axis=0)
        per_output = np.full(truth.shape[1], np.nan)
        weighted = float("nan")
        if defined.any():
            per_output[defined] = r2_score(truth[:, defined], guess[:, defined], multioutput="raw_values")
            weighted = float(r2_score(truth[:, defined], guess[:, defined], multioutput="variance_weighted"))
        return {
            "r2": float(per_output.mean()),
            "r2_variance_weighted": weighted,
            "r2_per_output": per_output.tolist(),
        }


def sums_of(predictions: Any, references: Any) -> np.ndarray:
    """What R2 adds up over images, for bootstrapping.

    Args:
        predictions, references: See [`R2`].

    Returns:
        `np.ndarray` of float64, of shape `(images, 1 + 3 * outputs)`: one, and for each output the reference, its square
        and the squared residual.

    Raises:
        ValueError: See [`R2`].
    """
    guess, truth = _outputs(predictions, references)
    return np.concatenate([np.ones((len(truth), 1)), truth, truth**2, (truth - guess) ** 2], axis=1)


def summarize(sums: np.ndarray) -> dict[str, float]:
    """Args:
        sums (`np.ndarray` of shape `(1 + 3 * outputs,)`): Sum over images of the rows of [`sums_of`].

    Returns:
        `dict[str, float]`: [`R2`]'s numbers, without the list.
    """
    images = sums[0]
    total, squares, residual = sums[1:].reshape(3, -1)
    if images < 2:
        return {"r2": float("nan"), "r2_variance_weighted": float("nan")}
    spread = squares - total**2 / images
    spread[spread <= 1e-12 * squares] = 0.0  # what rounding leaves of equal references
    defined = spread > 0
    per_output = 1 - np.divide(residual, spread, out=np.full(len(spread), np.nan), where=defined)
    return {
        "r2": float(per_output.mean()),
        "r2_variance_weighted": float(1 - residual[defined].sum() / spread.sum()) if defined.any() else float("nan"),
    }


def _outputs(predictions: Any, references: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both of shape `(images, outputs)`."""
    axes = to_array("references", references).ndim
    if axes not in (1, 2):
        raise ValueError(f"references must have shape (images,) or (images, outputs), got {axes} axes")
    truth = to_floats("references", references, (None,) * axes)
    guess = to_floats("predictions", predictions, truth.shape)
    return guess.reshape(len(guess), -1), truth.reshape(len(truth), -1)
