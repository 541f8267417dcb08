"""Keypoints end to end: a few scenes by heart, a dataset the same twice."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocols import keypoints
from hf_geossl.evaluation.protocols.keypoints import KeypointsSettings, measure_keypoints
from tests.helpers.supervised import small_model
from tests.helpers.tiny_data import coco_folder

OPTIONS = EvaluationOptions(batch_size=16, bootstrap=20, cache_dir=None, progress=False)


@pytest.mark.slow
def test_points_of_a_handful_of_scenes_are_learned_by_heart() -> None:
    data = EvaluationData(size=64, limit=2, test_split="train")
    encoder = load_encoder(small_model())
    settings = KeypointsSettings(steps=100, images_per_step=2, learning_rate=2e-3, layer_decay=1.0, channels=32)
    result = measure_keypoints(encoder, data, OPTIONS, settings)
    floor = result.details["floors"]["mean_places"]
    assert result.metrics["pck"] > 0.9 > floor["pck"]
    assert result.metrics["keypoint_ap"] > 0.8 > floor["keypoint_ap"]
    assert result.pictures["points"]().width > 100


def test_keypoints_of_a_dataset_are_measured_and_the_same_twice(tmp_path: Path) -> None:
    data = EvaluationData(dataset=str(coco_folder(tmp_path)), size=56)
    settings = KeypointsSettings(steps=2, images_per_step=2, channels=8)
    first, second = (measure_keypoints(load_encoder(small_model()), data, OPTIONS, settings) for _ in range(2))
    assert all(np.isclose(first.metrics[name], second.metrics[name], equal_nan=True) for name in first.metrics)
    assert math.isnan(first.metrics["pck_point_2"])  # labelled nowhere
    # corners of the box are always in the same place of it
    assert first.details["floors"]["mean_places"]["pck"] == 1
    with pytest.raises(ValueError, match="must be a multiple of .* patch size 8, got 60"):
        measure_keypoints(load_encoder(small_model()), data, OPTIONS, replace(settings, crop_size=60))
    assert len(keypoints.COCO_POINTS) == 17
