"""Segmentation: frozen tokens far above random ones, the same twice; on few images; end to end by the segmenter."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.fitting.segmenters import train_and_score
from hf_geossl.evaluation.heads.segmentation import SegmentationHead
from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocol import load_protocol
from hf_geossl.evaluation.protocols import segmentation
from hf_geossl.evaluation.protocols.segmentation import FewShotSettings, FineTuningSettings, LinearSegmentationSettings
from hf_geossl.evaluation.registry import TASKS
from hf_geossl.evaluation.samples import load_samples
from tests.helpers.supervised import small_model

QUIET = EvaluationOptions(cache_dir=None, progress=False, bootstrap=50)


ALL_TASKS = {
    name: load_protocol(name)
    for name in TASKS
    if name.startswith("segmentation") or name in ("semantic_fpn", "upernet")
}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder(small_model())


@pytest.mark.slow
def test_supervised_tokens_are_far_above_random_ones(supervised: Encoder) -> None:
    data = EvaluationData(size=64, limit=300)
    result = ALL_TASKS["segmentation"].measure(supervised, data, QUIET, LinearSegmentationSettings(steps=250))
    floors = result.details["floors"]
    assert floors["constant"] < 0.03
    assert floors["constant"] < floors["random_weights"] < 0.14
    assert result.metrics["mean_iou"] > floors["random_weights"] + 0.08
    low, high = result.intervals["mean_iou"]
    assert low < result.metrics["mean_iou"] < high
    assert high - low < 0.1
    values = [iou for iou in result.details["iou_per_class"].values() if iou is not None]
    assert np.mean(values) == pytest.approx(result.metrics["mean_iou"])
    assert result.details["iou_per_class"]["sky"] > result.details["iou_per_class"]["sign"]
    assert result.details["settings"] == asdict(LinearSegmentationSettings(steps=250))
    picture = result.pictures["samples"]()
    assert isinstance(picture, Image.Image)
    assert len(picture.getcolors(2**24) or ()) > 100
    json.dumps(result.details, allow_nan=False)


def test_numbers_repeat_with_and_without_a_cache_and_leave_the_generator_alone(
    encoder: Encoder, tmp_path: Path
) -> None:
    data = EvaluationData(size=64, limit=24)
    before, weights = torch.get_rng_state(), encoder.fingerprint
    cached = replace(QUIET, cache_dir=tmp_path)
    frozen = LinearSegmentationSettings(steps=10, random_floor=False)
    tuned = FineTuningSettings(steps=3, batch_size=4)
    for task, settings in (("segmentation", frozen), ("segmentation_finetune", tuned)):
        results = [ALL_TASKS[task].measure(encoder, data, how, settings) for how in (QUIET, cached, cached)]
        assert all(result.metrics == results[0].metrics for result in results)
        assert all(result.intervals == results[0].intervals for result in results)
        other = ALL_TASKS[task].measure(encoder, data, replace(QUIET, seed=1), settings)
        assert other.metrics != results[0].metrics
    assert torch.equal(torch.get_rng_state(), before)
    assert encoder.fingerprint == weights


def test_few_shot_reports_mean_and_spread_over_nested_subsets(encoder: Encoder) -> None:
    train = load_samples("scenes", "train", size=64, limit=64)
    for seed in range(3):
        eighth, half = ({int(sample["index"]) for sample in train.subset(share, seed)} for share in (1 / 8, 1 / 2))
        assert eighth < half
        assert (len(eighth), len(half)) == (8, 32)
    data = EvaluationData(size=64, limit=16)
    settings = FewShotSettings(shares=(1 / 8, 1.0), steps=4, batch_size=4)
    result = ALL_TASKS["segmentation_few_shot"].measure(encoder, data, QUIET, settings)
    for share, size in (("1/8", 2), ("1", 16)):
        runs = result.details["subsets"][share]
        values = [run["mean_iou"] for run in runs]
        assert [run["training_images"] for run in runs] == [size] * 3
        assert len(set(values)) == 3
        assert result.metrics[f"mean_iou_{share}"] == pytest.approx(sum(values) / 3)
        assert result.metrics[f"mean_iou_{share}_std"] == pytest.approx(np.std(values, ddof=1))
        low, high = result.intervals[f"mean_iou_{share}"]
        assert low <= result.metrics[f"mean_iou_{share}"] <= high
    assert isinstance(result.pictures["samples_1_8"](), Image.Image)


@pytest.mark.parametrize(
    ("task", "head", "sizes"),
    [
        ("semantic_fpn", "SemanticFPNHead", {"pyramid_channels": 8, "head_channels": 4, "dropout": 0.3}),
        (
            "upernet",
            "UPerNetHead",
            {"hidden_size": 8, "auxiliary_channels": 4, "auxiliary_weight": 0.7, "pool_scales": (1, 3)},
        ),
    ],
)
def test_settings_reach_the_head_and_numbers_are_the_segmenters(
    task: str, head: str, sizes: dict[str, Any], encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(QUIET, bootstrap=20, batch_size=4, seed=5)
    made: list[dict[str, Any]] = []
    kind = getattr(segmentation, head)

    def watch(encoder: Encoder, num_classes: int, **sizes: Any) -> SegmentationHead:
        made.append({"num_classes": num_classes, **sizes})
        return kind(encoder, num_classes, **sizes)

    monkeypatch.setattr(segmentation, head, watch)
    data, protocol = EvaluationData(size=64, limit=6), ALL_TASKS[task]
    settings = protocol.settings(steps=3, batch_size=2, warmup_steps=1, **sizes)
    result = protocol.measure(encoder, data, options, settings)
    assert made == [{"num_classes": 17, **sizes}]
    assert result.details["settings"] == asdict(settings)
    assert (result.details["training_images"], result.details["images"]) == (6, 6)
    names = data.train.names["semantic"]
    scored = train_and_score(
        encoder,
        (data.train, data.test),
        names,
        settings,
        options,
        seed=options.seed,
        description="",
    )
    assert scored.numbers == pytest.approx(result.metrics, rel=1e-6)
    low, high = result.intervals["mean_iou"]
    assert low <= result.metrics["mean_iou"] <= high
