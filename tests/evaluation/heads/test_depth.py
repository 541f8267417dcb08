"""Depth heads and their loss: by the paper's formula, and by transformers' own DPT."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DPTConfig, DPTForDepthEstimation

from hf_geossl import GTSAConfig, GTSAModel
from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.heads.depth import DPTHead, LinearDepthHead, silog_loss
from hf_geossl.evaluation.loading import load_encoder
from tests.helpers.supervised import small_model

SMALL: dict[str, Any] = {"neck_hidden_sizes": (8, 8, 16, 16), "fusion_hidden_size": 16}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder(small_model())


def test_silog_is_the_formula_of_the_paper() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted = torch.rand(2, 3, 4, generator=generator) * 20 + 0.5
    truth = torch.rand(2, 3, 4, generator=generator) * 20 + 0.5
    truth[0, 0, :2], truth[1, 2, 3], truth[1, 0, 0] = 0, 80.0, 1e-4
    errors = [
        math.log(float(predicted[place])) - math.log(float(truth[place]))
        for place in np.ndindex(2, 3, 4)
        if 1e-3 < truth[place] < 80
    ]
    assert len(errors) == 20
    for weight in (0.0, 0.5, 0.85):
        expected = math.sqrt(sum(error**2 for error in errors) / 20 - weight * sum(errors) ** 2 / 20**2)
        assert float(silog_loss(predicted.log(), truth, 80.0, weight)) == pytest.approx(expected, rel=1e-5)
    same = silog_loss((predicted * 3).log(), truth, 80.0, 1.0)
    assert float(same) == pytest.approx(float(silog_loss(predicted.log(), truth, 80.0, 1.0)), rel=1e-4)


def test_silog_of_nothing_and_of_the_truth_has_a_finite_gradient() -> None:
    logs = torch.zeros(1, 2, 2, requires_grad=True)
    for truth in (torch.zeros(1, 2, 2), torch.ones(1, 2, 2), torch.full((1, 2, 2), 90.0)):
        loss = silog_loss(logs, truth, 80.0)
        (gradient,) = torch.autograd.grad(loss, logs)
        assert loss < 1e-5
        assert torch.isfinite(gradient).all()


def test_the_linear_head_starts_at_the_mean_and_maps_each_patch_by_itself() -> None:
    torch.manual_seed(0)
    patches = torch.randn(2, 4, 3, 6)
    head = LinearDepthHead(6, 1.5).eval()
    assert torch.equal(head(patches, (32, 24)), torch.full((2, 32, 24), 1.5))
    torch.nn.init.normal_(head.linear.weight)
    expected = patches / math.sqrt(1 + 1e-5) @ head.linear.weight[0, :, 0, 0] + 1.5
    torch.testing.assert_close(head(patches, (4, 3)), expected)


def test_dpt_is_transformers_own_up_to_the_last_activation() -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "patch_size": 16,
    }
    trunk = GTSAModel(GTSAConfig(**sizes)).eval()
    encoder = load_encoder(trunk)
    head = DPTHead(16, **SMALL, cap=10.0).eval()
    config = DPTConfig(
        backbone_config=GTSAConfig(
            **sizes, out_indices=[1, 2, 3, 4], reshape_hidden_states=False, apply_layernorm=False
        ),
        hidden_size=16,
        readout_type="ignore",
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16,
    )
    theirs = DPTForDepthEstimation(config).eval()
    theirs.backbone.load_state_dict(trunk.state_dict())
    theirs.neck.load_state_dict(head.neck.state_dict())
    theirs.head.load_state_dict(head.head.state_dict())
    theirs.head.head[-1] = torch.nn.Identity()
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = 10.0 * theirs(pixels).predicted_depth.sigmoid()
        assert expected.std() > 1e-3
        torch.testing.assert_close(head(encoder, pixels).exp(), expected, rtol=1e-4, atol=1e-5)
        assert head(encoder, pixels[:, :, :48]).shape == (2, 48, 64)
