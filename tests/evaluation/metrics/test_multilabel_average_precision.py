"""Mean average precision by hand, and against torchmetrics."""

import math

import numpy as np
import pytest
import torch
import torchmetrics

from hf_geossl.evaluation.metrics import (
    MultilabelAveragePrecision,
)


def test_multilabel_average_precision() -> None:
    by_hand = MultilabelAveragePrecision(num_classes=2).compute(
        predictions=[[0.9, 5], [0.8, 6], [0.7, 7]], references=[[1, 0], [0, 0], [1, 0]]
    )
    assert by_hand["mean_average_precision"] == pytest.approx((1 + 2 / 3) / 2)  # at recall 1/2 and 1
    assert math.isnan(by_hand["average_precision_per_class"][1])
    generator = np.random.default_rng(3)
    scores, truth = generator.random((60, 5)), generator.integers(0, 2, (60, 5))
    peer = torchmetrics.classification.MultilabelAveragePrecision(num_labels=5)(
        torch.tensor(scores), torch.tensor(truth)
    )
    result = MultilabelAveragePrecision(num_classes=5).compute(predictions=scores, references=truth)
    assert result["mean_average_precision"] == pytest.approx(float(peer), abs=1e-6)


def test_multilabel_batches_of_logits_keep_their_order() -> None:
    """A batch whose logits happen to lie in 0..1 is ranked with the others as it is (a sigmoid a batch would not)."""
    metric = MultilabelAveragePrecision(num_classes=1)
    metric.add_batch(predictions=[[0.2], [0.1]], references=[[0], [0]])
    metric.add_batch(predictions=[[0.3], [-4.0]], references=[[1], [0]])
    assert metric.compute()["mean_average_precision"] == 1.0
    metric.add_batch(predictions=[[0.99]], references=[[0]])
    metric.add_batch(predictions=[[1.5], [-4.0]], references=[[1], [0]])
    assert metric.compute()["mean_average_precision"] == 1.0
