"""Keypoints end to end: a few scenes by heart, a dataset the same twice."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocols import keypoints
from hf_geossl.evaluation.protocols.keypoints import (
    KeypointsSettings,
    decode_heatmaps,
    draw_heatmaps,
    measure_keypoints,
)
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


def test_points_survive_being_drawn_as_heatmaps_to_a_part_of_a_pixel() -> None:
    generator = torch.Generator().manual_seed(0)
    frames = torch.tensor([[10.0, -4.0, 48.0], [30.0, 12.0, 24.0], [0.0, 0.0, 96.0]])
    places = 0.15 + 0.7 * torch.rand(3, 5, 2, generator=generator)
    points = torch.cat([frames[:, None, :2] + places * frames[:, None, 2:], torch.full((3, 5, 1), 2.0)], dim=-1)
    points[0, 0, 2] = 0
    points[0, 1, 0] = -3
    heatmaps, weights = draw_heatmaps(points, frames, 24, 2.0)
    assert weights[0].tolist() == [0, 0, 1, 1, 1]
    assert weights[1:].min() == 1
    decoded, scores = decode_heatmaps(heatmaps.numpy(), frames.numpy(), 2.0)
    seen = weights.bool().numpy()
    pixel = (frames[:, 2] / 24).numpy()[:, None]
    errors = np.linalg.norm(decoded - points[..., :2].numpy(), axis=-1) / pixel
    assert errors[seen].max() < 0.1  # a whole pixel's rounding alone would be up to .7
    assert (scores[seen] > 0.8).all()
