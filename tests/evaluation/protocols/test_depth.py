"""Linear depth of frozen tokens: above its floors, the same twice, on any library's model."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocol import load_protocol
from hf_geossl.evaluation.protocols.depth import LinearDepthSettings
from hf_geossl.evaluation.protocols.depth_dpt import DPTSettings
from hf_geossl.evaluation.samples import load_samples
from tests.helpers.supervised import small_model
from tests.helpers.tiny_models import foreign_model

QUIET = EvaluationOptions(cache_dir=None, progress=False, bootstrap=50)


SMALL: dict[str, Any] = {"neck_hidden_sizes": (8, 8, 16, 16), "fusion_hidden_size": 16}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder(small_model())


@pytest.mark.slow
def test_supervised_tokens_know_more_of_depth_than_random_ones(supervised: Encoder) -> None:
    data = EvaluationData(size=64, limit=300)
    settings = LinearDepthSettings(steps=250)
    result = load_protocol("depth").measure(supervised, data, QUIET, settings)
    floors = result.details["floors"]
    assert result.metrics["abs_rel"] < 0.8 * floors["random_weights"] < 0.8 * floors["constant"]
    assert result.metrics["delta1"] > 0.4
    for name, value in result.metrics.items():
        low, high = result.intervals[name]
        assert low < value < high
    assert result.details["images"] == 300
    assert isinstance(result.pictures["samples"](), Image.Image)
    json.dumps(result.details, allow_nan=False)

    logs, depths = [], []
    for sample in load_samples("scenes", "train", size=64, limit=300):
        logs.append(sample["depth"][sample["depth"] < 80].double().log())
    constant = float(torch.cat(logs).mean().exp())
    for sample in load_samples("scenes", "test", size=64, limit=300):
        truth = sample["depth"][sample["depth"] < 80]
        depths.append(float(((truth - constant).abs() / truth).mean()))
    assert floors["constant"] == pytest.approx(np.mean(depths), rel=1e-4)


def test_numbers_repeat_with_and_without_a_cache_and_leave_the_generator_alone(
    encoder: Encoder, tmp_path: Path
) -> None:
    data = EvaluationData(size=64, limit=16)
    before, weights = torch.get_rng_state(), encoder.fingerprint
    for task, settings in (
        ("depth", LinearDepthSettings(steps=10, random_floor=False)),
        ("depth_dpt", DPTSettings(**SMALL, steps=3, batch_size=4)),
    ):
        options = (QUIET, replace(QUIET, cache_dir=tmp_path), replace(QUIET, cache_dir=tmp_path))
        results = [load_protocol(task).measure(encoder, data, how, settings) for how in options]
        assert all(result.metrics == results[0].metrics for result in results)
        assert (
            load_protocol(task).measure(encoder, data, replace(QUIET, seed=1), settings).metrics != results[0].metrics
        )
    assert torch.equal(torch.get_rng_state(), before)
    assert encoder.fingerprint == weights


@pytest.mark.parametrize("kind", ["timm", "transformers"])
def test_other_libraries_transformers_go_through_the_same_code(kind: str) -> None:
    model = foreign_model(kind, size=48, width=32, layers=5)
    encoder, data = load_encoder(model), EvaluationData(size=64, limit=8)
    for task, settings in (
        ("depth", LinearDepthSettings(steps=2, random_floor=False)),
        ("depth_dpt", DPTSettings(**SMALL, steps=2, batch_size=4, crop_size=48)),
    ):
        result = load_protocol(task).measure(encoder, data, QUIET, settings)
        assert all(math.isfinite(value) for value in result.metrics.values())
        assert 0 < result.metrics["abs_rel"] < 10
        assert result.details["images"] == 8


def test_data_without_depth_are_refused(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "train" / "0.png")
    data = EvaluationData(str(tmp_path), size=32, test_split="train")
    for task in (load_protocol("depth"), load_protocol("depth_dpt")):
        with pytest.raises(ValueError, match="has no 'depth'"):
            task.measure(encoder, data, QUIET, task.settings())
    with pytest.raises(ValueError, match="no training pixel has a depth between 0.001 and 0.01 metres"):
        load_protocol("depth").measure(encoder, EvaluationData(size=64, limit=2), QUIET, LinearDepthSettings(cap=0.01))
