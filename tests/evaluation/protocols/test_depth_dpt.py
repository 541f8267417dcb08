"""DPT trained end to end: it learns, its trunk slowly, and it predicts by windows."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.fitting.fit import layer_decay_groups
from hf_geossl.evaluation.heads.depth import DPTHead, silog_loss
from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.evaluation.options import EvaluationData, EvaluationOptions
from hf_geossl.evaluation.protocol import load_protocol
from hf_geossl.evaluation.protocols.depth_dpt import DPTSettings, train_dpt
from hf_geossl.evaluation.samples import load_samples
from tests.helpers.supervised import small_model

QUIET = EvaluationOptions(cache_dir=None, progress=False, bootstrap=50)


SMALL: dict[str, Any] = {"neck_hidden_sizes": (8, 8, 16, 16), "fusion_hidden_size": 16}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder(small_model())


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
