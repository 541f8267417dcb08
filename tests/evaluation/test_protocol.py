"""Protocols that train the trunk too: what random weights reach, and the head start of a trunk that was trained with labels.

Numbers beside the limits were measured with training seeds 0 and 1.
"""

from dataclasses import replace
from typing import Any

import pytest

from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocol import RANDOM_WEIGHTS, load_protocol
from hf_geossl.evaluation.results import floors_by_metric
from tests.helpers.supervised import (
    RenderedData,
    measure_quietly,
    small_model,
)

OPTIONS = EvaluationOptions(batch_size=8, seed=5, bootstrap=0, cache_dir=None, progress=False)
# of each task: quick settings, and a number that is not the same for all that know little
TASKS: dict[str, tuple[dict[str, Any], str]] = {
    "segmentation_finetune": ({}, "pixel_accuracy"),
    "segmentation_few_shot": ({"shares": (0.5,), "subsets": 2}, "mean_iou_1/2"),
    "semantic_fpn": ({"pyramid_channels": 8, "head_channels": 8}, "pixel_accuracy"),
    "upernet": ({"hidden_size": 8, "auxiliary_channels": 8}, "pixel_accuracy"),
    "depth_dpt": ({"neck_hidden_sizes": (4, 4, 8, 8), "fusion_hidden_size": 8}, "abs_rel"),
    "detection": ({"channels": 8, "head_width": 8, "learning_rate": 5e-3, "steps": 20}, "box_ap"),
    "keypoints": ({"channels": 8, "images_per_step": 2}, "keypoint_ap"),
}


@pytest.mark.parametrize("name", TASKS)
def test_the_floor_is_what_the_random_twin_is_measured_at(name: str) -> None:
    given, metric = TASKS[name]
    task = load_protocol(name)
    sizes = {} if name == "keypoints" else {"batch_size": 4}
    settings = task.settings(**{"steps": 8, "warmup_steps": 1, **sizes, **given})
    data: Any = EvaluationData(size=64, limit=8) if name in ("detection", "keypoints") else RenderedData(limit=8)
    encoder = load_encoder(small_model(seed=3))
    result = task.measure(encoder, data, OPTIONS, replace(settings, random_floor=True))
    twin = task.measure(encoder.random_twin(OPTIONS.seed), data, OPTIONS, settings)
    floors = floors_by_metric(list(result.metrics), result.details["floors"])
    assert floors[metric]["random weights"] == pytest.approx(twin.metrics[metric], rel=1e-6)
    assert result.metrics[metric] != twin.metrics[metric]
    assert all(
        "random weights" not in found for found in floors_by_metric([metric], twin.details.get("floors", {})).values()
    )


# the trunk learns slowly, so that a head start shows
DENSE = {
    "steps": 40,
    "batch_size": 8,
    "warmup_steps": 4,
    "learning_rate": 2e-3,
    "trunk_factor": 0.1,
    "layer_decay": 0.7,
}


SEGMENTATION: dict[str, Any] = {**DENSE, "scales": (1.0, 1.0)}


DEPTH = {"steps": 150, "batch_size": 8, "warmup_steps": 10, "learning_rate": 3e-3, "crop_size": 32}


POINTS = {"steps": 80, "warmup_steps": 8, "learning_rate": 3e-3, "layer_decay": 0.1, "crop_size": 32}


END_TO_END: dict[str, dict[str, Any]] = {
    "segmentation_finetune": SEGMENTATION,
    "segmentation_few_shot": {**SEGMENTATION, "shares": (1 / 8,), "subsets": 1},
    "semantic_fpn": {**SEGMENTATION, "pyramid_channels": 32, "head_channels": 32},
    "upernet": {**SEGMENTATION, "hidden_size": 32, "auxiliary_channels": 16},
    "depth_dpt": {**DEPTH, "neck_hidden_sizes": (8, 8, 16, 16), "fusion_hidden_size": 8},
    "keypoints": {**POINTS, "channels": 32, "sigma": 1.5},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "metric", "floor", "gap"),
    [
        ("segmentation_finetune", "mean_iou", 0.1, 0.035),  # .144, .149 over .072; one class everywhere: .013
        ("segmentation_few_shot", "mean_iou_1/8", 0.09, 0.025),  # .115, .120 over .063
        ("semantic_fpn", "mean_iou", 0.14, 0.03),  # .182, .169 over .118
        ("upernet", "mean_iou", 0.16, 0.02),  # .172, .171 over .132
        ("depth_dpt", "delta1", 0.22, 0.03),  # .241, .229 over .173
        ("keypoints", "keypoint_ap", 0.05, 0.035),  # .081, .085 over .007; longer training goes above mean places' .152
    ],
)
def test_a_supervised_trunk_gives_a_head_start(
    supervised: Encoder, name: str, metric: str, floor: float, gap: float
) -> None:
    result = measure_quietly(name, supervised, RenderedData(limit=128), random_floor=True, **END_TO_END[name])
    random = floors_by_metric(list(result.metrics), result.details["floors"])[metric][RANDOM_WEIGHTS]
    assert random < floor
    assert result.metrics[metric] > random + gap
