"""The mean corner error by hand."""

import numpy as np

from hf_geossl.evaluation.metrics import (
    CornerError,
)


def test_corner_error_by_hand() -> None:
    truth = np.zeros((2, 4, 2))
    guess = truth.copy()
    guess[0] = [[3, 4], [0, 0], [0, 1], [6, 8]]
    assert CornerError().compute(predictions=guess, references=truth) == {"mean_corner_error": (16 / 4 + 0) / 2}
