"""What random weights reach where the trunk is trained too, if it is asked for."""

from dataclasses import replace
from typing import Any

import pytest

from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocol import load_protocol
from hf_geossl.evaluation.results import floors_by_metric
from tests.helpers.supervised import RenderedData, small_model

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
