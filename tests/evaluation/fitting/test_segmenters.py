"""Segmentation heads trained end to end on any library's model, and the floor of one class."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.fitting.segmenters import class_names, score
from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocol import load_protocol
from hf_geossl.evaluation.protocols.segmentation import FineTuningSettings, LinearSegmentationSettings
from hf_geossl.evaluation.registry import TASKS
from hf_geossl.evaluation.samples import Columns
from tests.helpers.supervised import small_model
from tests.helpers.tiny_data import folder_with_maps
from tests.helpers.tiny_models import foreign_model

QUIET = EvaluationOptions(cache_dir=None, progress=False, bootstrap=50)


ALL_TASKS = {
    name: load_protocol(name)
    for name in TASKS
    if name.startswith("segmentation") or name in ("semantic_fpn", "upernet")
}


SMALL: dict[str, Any] = {
    "segmentation_finetune": {},
    "semantic_fpn": {"pyramid_channels": 32, "head_channels": 32},
    "upernet": {"hidden_size": 32, "auxiliary_channels": 16},
}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder(small_model())


@pytest.mark.slow
@pytest.mark.parametrize("task", SMALL)
def test_end_to_end_training_learns_a_few_images(encoder: Encoder, task: str) -> None:
    data = EvaluationData(size=64, limit=8, test_split="train")
    settings = ALL_TASKS[task].settings(
        **SMALL[task], steps=80, batch_size=8, learning_rate=3e-3, warmup_steps=5, scales=(1.0, 1.0)
    )
    result = ALL_TASKS[task].measure(encoder, data, QUIET, settings)
    assert result.details["floors"]["constant"] < 0.06
    assert result.metrics["mean_iou"] > 0.45
    assert result.metrics["pixel_accuracy"] > 0.8


@pytest.mark.parametrize("kind", ["timm", "transformers"])
@pytest.mark.parametrize("task", ["segmentation", *SMALL])
def test_other_libraries_transformers_go_through_the_same_code(kind: str, task: str) -> None:
    model = foreign_model(kind, size=48, width=32, layers=5)
    settings = ALL_TASKS[task].settings(steps=2, batch_size=4)
    if task != "segmentation":
        settings = replace(settings, **SMALL[task], crop_size=48, window_stride=32)  # four windows an image
    result = ALL_TASKS[task].measure(load_encoder(model), EvaluationData(size=64, limit=8), QUIET, settings)
    assert 0 < result.metrics["mean_iou"] < 0.3
    assert result.details["images"] == 8


def test_a_folder_of_images_and_maps_is_measured(encoder: Encoder, tmp_path: Path) -> None:
    folder = folder_with_maps(tmp_path / "maps", classes=6)
    columns = Columns(reduce_labels=True)
    data = EvaluationData(folder, size=32, test_split="train", columns=columns)
    assert class_names(data.train, None, QUIET, encoder) == tuple("012345")
    assert class_names(data.train, 9, QUIET, encoder) == tuple("012345678")
    for task, settings in (
        ("segmentation", LinearSegmentationSettings(steps=2, batch_size=2)),
        ("segmentation_finetune", FineTuningSettings(steps=2, batch_size=2)),
    ):
        result = ALL_TASKS[task].measure(encoder, data, QUIET, settings)
        assert set(result.details["iou_per_class"]) == set("012345")
        assert result.details["images"] == 4
    bare = EvaluationData(folder_with_maps(tmp_path / "bare", classes=6, maps=False), size=32, test_split="train")
    for task in ALL_TASKS:
        with pytest.raises(ValueError, match="has no 'semantic'"):
            ALL_TASKS[task].measure(encoder, bare, QUIET, ALL_TASKS[task].settings())


def test_a_constant_prediction_scores_the_constant_floor() -> None:
    truth = torch.tensor([[[0, 0, 1], [2, 0, 255]], [[0, 1, 1], [0, 0, 0]]], dtype=torch.uint8)
    images = torch.zeros(2, 3, 2, 3, dtype=torch.uint8)
    scored = score(iter([(images, truth, torch.zeros_like(truth))]), ("a", "b", "c", "d"))
    assert scored.constant_floor == pytest.approx(7 / 11 / 3)
    assert scored.numbers["mean_iou"] == pytest.approx(scored.constant_floor)
    assert scored.iou_per_class == {"a": pytest.approx(7 / 11), "b": 0.0, "c": 0.0, "d": None}
