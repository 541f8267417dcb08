"""Mean IoU by hand, and against scikit-learn."""

import math

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from hf_geossl.evaluation.metrics import (
    MeanIoU,
)


def test_mean_iou_by_hand() -> None:
    #  class 0: 2 of 5 pixels shared; 1: 1 of 4; 2: only predicted, 0 of 1; 3: nowhere, left out; 4: only in truth, 0 of 1
    truth = [[0, 0, 0, 255], [1, 1, 255, 1], [4, 255, 255, 255]]
    guess = [[0, 0, 1, 3], [1, 0, 3, 2], [0, 0, 0, 0]]
    result = MeanIoU(num_classes=5).compute(predictions=[guess], references=[truth])
    expected = {
        "mean_iou": (2 / 5 + 1 / 4 + 0 + 0) / 4,
        "pixel_accuracy": 3 / 7,
        "mean_class_accuracy": (2 / 3 + 1 / 3 + 0) / 3,
    }
    assert {key: result[key] for key in expected} == pytest.approx(expected, abs=1e-7)
    np.testing.assert_allclose(result["iou_per_class"], [2 / 5, 1 / 4, 0, np.nan, 0], atol=1e-7)
    np.testing.assert_allclose(result["accuracy_per_class"], [2 / 3, 1 / 3, np.nan, np.nan, 0])
    everything_ignored = MeanIoU(num_classes=5).compute(predictions=[guess], references=np.full((1, 3, 4), 255))
    assert all(math.isnan(everything_ignored[key]) for key in expected)


def test_mean_iou_pools_images_of_several_sizes() -> None:
    generator = np.random.default_rng(2)
    shapes = [(5, 7), (9, 4), (6, 6)]
    truth = [generator.choice([0, 1, 2, 9], size=shape) for shape in shapes]
    guess = [generator.integers(0, 3, size=shape) for shape in shapes]
    result = MeanIoU(num_classes=3, ignore_index=9).compute(predictions=guess, references=truth)
    t, g = (np.concatenate([array.ravel() for array in arrays]) for arrays in (truth, guess))
    expected = sklearn_metrics.jaccard_score(t[t < 9], g[t < 9], average=None)
    np.testing.assert_allclose(result["iou_per_class"], expected, atol=1e-6)
    assert result["mean_iou"] == pytest.approx(expected.mean(), abs=1e-6)
