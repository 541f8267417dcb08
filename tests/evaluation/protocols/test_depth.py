"""Linear depth of frozen tokens above its floors; DPT end to end: it learns, its trunk slowly, and predicts by windows."""

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
from hf_geossl.evaluation.fitting.fit import layer_decay_groups
from hf_geossl.evaluation.heads.depth import DPTHead, silog_loss
from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocol import load_protocol
from hf_geossl.evaluation.protocols.depth import DPTSettings, LinearDepthSettings, train_dpt
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


@pytest.mark.slow
def test_dpt_learns_a_few_images_and_its_gradient_reaches_the_trunk(encoder: Encoder) -> None:
    data = EvaluationData(size=64, limit=8, test_split="train")
    settings = DPTSettings(**SMALL, steps=80, batch_size=8, learning_rate=5e-3, warmup_steps=5, trunk_factor=0.1)
    result = load_protocol("depth_dpt").measure(encoder, data, QUIET, settings)
    untrained = load_protocol("depth_dpt").measure(encoder, data, QUIET, replace(settings, steps=1))
    assert result.metrics["abs_rel"] < 0.35 < 0.8 < untrained.metrics["abs_rel"]
    assert isinstance(result.pictures["samples"](), Image.Image)

    trunk, head = encoder.trainable_copy(), DPTHead(96, **SMALL, cap=80.0)
    sample = next(data.train.batches(2))
    silog_loss(head(trunk, trunk.normalize(sample["image"])), sample["depth"], 80.0).backward()
    for name, parameter in trunk.module.named_parameters():
        if "layernorm" not in name and "key.bias" not in name and "mask_token" not in name:
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name


def test_dpts_trunk_learns_at_a_fiftieth(encoder: Encoder) -> None:
    head = DPTHead(96, **SMALL, cap=80.0)
    groups = layer_decay_groups(encoder.trainable_copy(), head, 1e-3, 0.01, trunk_factor=DPTSettings().trunk_factor)
    of_head = {id(parameter) for parameter in head.parameters()}
    for group in groups:
        for parameter in group["params"]:
            assert group["lr"] == pytest.approx(1e-3 if id(parameter) in of_head else 2e-5)
    assert sum(len(group["params"]) for group in groups) == len(of_head) + len(list(encoder.module.parameters()))


def test_larger_images_are_predicted_by_windows(encoder: Encoder) -> None:
    samples = load_samples("scenes", "train", size=64, limit=4)
    predict = train_dpt(
        encoder, samples, DPTSettings(**SMALL, steps=1, batch_size=4, crop_size=32), QUIET, description="windows"
    )
    images = next(samples.batches(4))["image"]
    whole = predict(images)
    assert whole.shape == (4, 64, 64)
    torch.testing.assert_close(whole[:, 32:, :32], predict(images[:, :, 32:, :32]))
