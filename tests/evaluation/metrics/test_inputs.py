"""What metrics are given: wrong shapes, kinds and ranges are refused by name."""

from typing import Any

import numpy as np
import pytest

from hf_geossl.evaluation import metrics


@pytest.mark.parametrize(
    ("name", "kwargs", "inputs", "told"),
    [
        ("accuracy", {"num_classes": 3}, ([0, 3], [0, 1]), "predictions must lie in 0..2, got 3"),
        ("accuracy", {"num_classes": 3}, ([0, 1], [0, -1]), "references must lie in 0..2, got -1"),
        ("accuracy", {"num_classes": 3}, ([0.0, 1.0], [0, 1]), "predictions must be integers, got float64; take the argmax"),
        ("accuracy", {"num_classes": 3}, (np.ones((2, 4)), [0, 1]), r"predictions must have shape \(any, 3\), got \(2, 4\)"),
        ("accuracy", {"num_classes": 3}, ([0, 1], [0]), r"references must have shape \(2\), got \(1,\)"),
        ("accuracy", {"num_classes": 2}, ([[0, np.nan]], [0]), "predictions must be finite, got 1 NaN"),
        ("mean_iou", {"num_classes": 3}, (np.zeros((1, 4, 4)), np.zeros((1, 4, 4), int)), "predictions must be integers"),
        ("mean_iou", {"num_classes": 3}, (np.full((1, 4, 4), 255), np.full((1, 4, 4), 255)), "predictions must lie in 0..2, got 255"),
        ("mean_iou", {"num_classes": 3}, (np.zeros((1, 4, 4), int), np.full((1, 4, 4), 4)), "references must lie in 0..2 or 255, got 4"),
        ("mean_iou", {"num_classes": 3}, (np.zeros((1, 4, 5), int), np.zeros((1, 4, 4), int)), r"predictions must have shape \(4, 4\), got \(4, 5\)"),
        ("mean_iou", {"num_classes": 3}, (np.zeros((2, 4, 4), int), np.zeros((1, 4, 4), int)), "of the same images, got 2 and 1"),
        ("r2", {}, (np.ones((3, 1)), np.ones(3)), r"predictions must have shape \(3\), got \(3, 1\)"),
        ("depth_errors", {}, (np.full((1, 2, 2), np.nan), np.ones((1, 2, 2))), "predictions must be numbers where .* got 4 NaN"),
        ("multilabel_average_precision", {"num_classes": 2}, (np.ones((1, 2)), [[0, 2]]), "references must lie in 0..1, got 2"),
        ("corner_error", {}, (np.ones((1, 8)), np.ones((1, 8))), r"references must have shape \(any, 4, 2\), got \(1, 8\)"),
        ("pckh", {}, (np.ones((1, 2, 2)), np.ones((1, 2, 2))), "pckh needs head_sizes"),
        ("j_and_f", {}, (np.ones((1, 2, 4, 4), int), np.ones((1, 2, 4, 4), int)), "3 or more are needed"),
        ("coco_average_precision", {}, ([{"boxes": []}], [{"boxes": []}]), "must be a dictionary an image with labels, boxes, scores"),
        ("coco_average_precision", {}, ([{"boxes": [[5, 5, 1, 1]], "scores": [1.0], "labels": [0]}], [{"boxes": [], "labels": []}]), "xyxy with sizes of 0 or more, got -4"),
        ("coco_average_precision", {"kinds": ("mask",)}, ([{"masks": np.full((1, 4, 4), 0.7), "scores": [1.0], "labels": [0]}], [{"masks": [], "labels": []}]), "put a threshold"),
        ("coco_average_precision", {"kinds": ("mask",)}, ([{"masks": np.ones((1, 4, 4), int), "scores": [1.0], "labels": [0]}], [{"masks": np.ones((1, 4, 5), int), "labels": [0]}]), "masks of an image must be equal in size"),
        ("keypoint_average_precision", {}, ([{"keypoints": np.ones((1, 5, 2)), "scores": [1.0]}], [{"keypoints": [], "area": []}]), r"must have shape \(1, 17, any\), got \(1, 5, 2\)"),
    ],
)  # fmt: skip
def test_inputs_that_make_no_sense_are_refused_by_name(
    name: str, kwargs: dict[str, Any], inputs: tuple[Any, Any], told: str
) -> None:
    metric = metrics.load(name, **kwargs)
    with pytest.raises(ValueError, match=told):
        metric.add_batch(predictions=inputs[0], references=inputs[1])
    with pytest.raises(ValueError, match="nothing to compute"):  # and left nothing behind
        metric.compute()
