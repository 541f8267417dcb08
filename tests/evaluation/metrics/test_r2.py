"""R2 by its formula, and against torchmetrics."""

import math

import numpy as np
import pytest
import torch
import torchmetrics

from hf_geossl.evaluation.metrics import (
    R2,
)


def test_r2_by_its_formula_and_by_torchmetrics() -> None:
    generator = np.random.default_rng(4)
    truth = generator.normal([0, 5], [0.1, 4], size=(50, 2))
    guess = truth + generator.normal(0, [0.05, 3], size=truth.shape)
    result = R2().compute(predictions=guess, references=truth)
    residual = ((truth - guess) ** 2).sum(axis=0)
    total = ((truth - truth.mean(axis=0)) ** 2).sum(axis=0)
    np.testing.assert_allclose(result["r2_per_output"], 1 - residual / total, rtol=1e-12)
    assert result["r2"] == pytest.approx((1 - residual / total).mean())
    assert result["r2_variance_weighted"] == pytest.approx(1 - residual.sum() / total.sum())
    for key, how in (("r2", "uniform_average"), ("r2_variance_weighted", "variance_weighted")):
        peer = torchmetrics.R2Score(multioutput=how)(torch.tensor(guess), torch.tensor(truth))
        assert result[key] == pytest.approx(float(peer), rel=1e-5)


def test_r2_of_small_numbers_and_of_constant_references() -> None:
    truth = np.linspace(0, 1e-4, 10)
    result = R2().compute(predictions=truth[::-1].copy(), references=truth)
    assert result["r2"] == pytest.approx(-3)  # torchmetrics says 1: the residual is below its 1e-4
    result = R2().compute(predictions=[[1, 2], [2, 2], [3, 3]], references=[[1, 2], [2, 2], [3, 2]])
    np.testing.assert_array_equal(result["r2_per_output"], [1, np.nan])
    assert math.isnan(result["r2"])
    assert result["r2_variance_weighted"] == 1
    assert math.isnan(R2().compute(predictions=[1.0], references=[1.0])["r2"])
