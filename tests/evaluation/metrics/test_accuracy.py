"""Accuracy against scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics

from hf_geossl.evaluation.metrics import (
    Accuracy,
)


def test_accuracy_is_scikit_learns() -> None:
    generator = np.random.default_rng(1)
    truth = generator.choice([0, 1, 2, 3, 5, 6, 7], size=200)  # class 4 has no references
    scores = generator.normal(size=(200, 8)) + 1.2 * np.eye(8)[truth]
    result = Accuracy(num_classes=8).compute(predictions=scores, references=truth)
    guess = scores.argmax(axis=1)
    assert result["accuracy"] == sklearn_metrics.accuracy_score(truth, guess)
    assert result["accuracy_top5"] == pytest.approx(
        sklearn_metrics.top_k_accuracy_score(truth, scores, k=5, labels=range(8)), abs=1e-7
    )
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        expected = sklearn_metrics.balanced_accuracy_score(truth, guess)
    assert result["mean_per_class_accuracy"] == pytest.approx(expected, abs=1e-12)
    assert math.isnan(result["accuracy_per_class"][4])
    as_classes = Accuracy(num_classes=8).compute(predictions=guess, references=truth)
    assert "accuracy_top5" not in as_classes
    assert as_classes["accuracy"] == result["accuracy"]
    few = Accuracy(num_classes=5).compute(predictions=np.eye(5), references=range(5))
    assert "accuracy_top5" not in few  # would always be 1
    half = torch.tensor(scores, dtype=torch.bfloat16)
    expected = float((half.float().argmax(dim=1).numpy() == truth).mean())
    assert Accuracy(num_classes=8).compute(predictions=half, references=truth)["accuracy"] == expected
