"""COCO's evaluation where there is nothing."""

import math

import numpy as np

from hf_geossl.evaluation.metrics import (
    COCOAveragePrecision,
    KeypointAveragePrecision,
)


def test_average_precision_where_there_is_nothing() -> None:
    none = {"boxes": [], "labels": [], "masks": np.zeros((0, 8, 8), dtype=bool)}
    one = {"boxes": [[1, 1, 5, 5]], "labels": [2], "masks": np.ones((1, 8, 8), dtype=bool)}
    metric = COCOAveragePrecision(kinds=("box", "mask"))
    result = metric.compute(predictions=[{**none, "scores": []}], references=[one])
    assert result["box_ap"] == result["mask_ap"] == 0
    for found in ({**none, "scores": []}, {**one, "scores": [0.5]}):
        result = metric.compute(predictions=[found], references=[none])
        assert all(math.isnan(value) for value in result.values())
    people = KeypointAveragePrecision(sigmas=(0.1,))
    person = {"keypoints": [[[1, 1, 2]]], "area": [4.0]}
    assert people.compute(predictions=[{"keypoints": [], "scores": []}], references=[person])["keypoint_ap"] == 0
    for found in ({"keypoints": [], "scores": []}, {"keypoints": [[[1, 1]]], "scores": [0.5]}):
        result = people.compute(predictions=[found], references=[{"keypoints": [], "area": []}])
        assert all(math.isnan(value) for value in result.values())
