"""Errors of depths by hand."""

import math

import numpy as np
import pytest

from hf_geossl.evaluation.metrics import (
    DepthErrors,
)


def test_depth_errors_by_hand() -> None:
    truth = [[[1.0, 2.0, 0.0], [4.0, 12.0, np.nan]], [[5.0, 20.0, 0.0], [0.0, 0.0, 0.0]], np.zeros((2, 3))]
    guess = [[[1.5, 2.2, 3.0], [3.0, 1.0, 1.0]], [[30.0, 1.0, np.nan], [1.0, 1.0, 1.0]], np.ones((2, 3))]
    result = DepthErrors(minimum=0.001, cap=10.0).compute(predictions=guess, references=truth)
    # first image: pixels 1, 2 and 4 m; second: 5 m against 30, clipped to 10; third: none
    assert result["abs_rel"] == pytest.approx(((0.5 + 0.1 + 0.25) / 3 + 1) / 2)
    assert result["rmse"] == pytest.approx((math.sqrt((0.25 + 0.04 + 1) / 3) + 5) / 2)
    assert result["delta1"] == pytest.approx((1 / 3 + 0) / 2)  # 1.5, 1.1 and 4 / 3
    assert result["images"] == 2
    cropped = DepthErrors().compute(
        predictions=guess[:1], references=truth[:1], valid=[[[True, False, True], [False, True, True]]]
    )
    assert cropped["abs_rel"] == pytest.approx(0.5)
    nothing = DepthErrors().compute(predictions=guess[2:], references=truth[2:])
    assert math.isnan(nothing["rmse"])
    assert nothing["images"] == 0
