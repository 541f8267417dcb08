"""Linear segmentation of frozen tokens: far above random ones, the same twice."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocol import load_protocol
from hf_geossl.evaluation.protocols.segmentation import LinearSegmentationSettings
from hf_geossl.evaluation.protocols.segmentation_finetune import FineTuningSettings
from hf_geossl.evaluation.registry import TASKS
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
