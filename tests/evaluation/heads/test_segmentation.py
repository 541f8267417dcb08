"""Segmentation heads and their loss, by slow formulas."""

from typing import Any

import numpy as np
import pytest
import torch

from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.heads.segmentation import LinearHead, SegmentationHead, pixel_cross_entropy
from hf_geossl.evaluation.heads.semantic_fpn import SemanticFPNHead
from hf_geossl.evaluation.heads.upernet import UPerNetHead
from hf_geossl.evaluation.loading import load_encoder
from tests.helpers.supervised import small_model

SMALL: dict[str, Any] = {
    "segmentation_finetune": {},
    "semantic_fpn": {"pyramid_channels": 32, "head_channels": 32},
    "upernet": {"hidden_size": 32, "auxiliary_channels": 16},
}


def heads(encoder: Encoder) -> dict[str, SegmentationHead]:
    return {
        "segmentation_finetune": LinearHead(encoder.width, 17),
        "semantic_fpn": SemanticFPNHead(encoder, 17, **SMALL["semantic_fpn"], dropout=0.1),
        "upernet": UPerNetHead(encoder, 17, **SMALL["upernet"], pool_scales=(1, 2, 3, 6), auxiliary_weight=0.4),
    }


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder(small_model())


def test_cross_entropy_is_the_mean_over_pixels_with_truth() -> None:
    logits = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(3), requires_grad=True)
    truth = torch.tensor([[[0, 255], [2, 1]], [[255, 255], [1, 0]]], dtype=torch.uint8)
    slow = [
        -torch.log(logits[b, :, y, x].exp() / logits[b, :, y, x].exp().sum())[int(truth[b, y, x])]
        for b, y, x in np.ndindex(2, 2, 2)
        if truth[b, y, x] != 255
    ]
    torch.testing.assert_close(pixel_cross_entropy(logits, truth), torch.stack(slow).mean())
    nothing = pixel_cross_entropy(logits, torch.full_like(truth, 255))
    nothing.backward()
    assert nothing == 0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_the_linear_head_maps_each_patch_by_itself(encoder: Encoder) -> None:
    head = LinearHead(96, 5)
    pixels = torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(4))
    (logits,) = head(encoder, pixels)
    tokens = encoder.module(pixels).last_hidden_state[:, 1:]
    expected = tokens @ head.classifier.weight[:, :, 0, 0].T + head.classifier.bias
    torch.testing.assert_close(logits, expected.transpose(1, 2).reshape(2, 5, 8, 6), rtol=1e-4, atol=1e-5)
    assert head.predict(encoder, pixels).shape == (2, 5, 64, 48)


@pytest.mark.parametrize("task", SMALL)
def test_gradients_reach_the_whole_trunk(encoder: Encoder, task: str) -> None:
    trunk = encoder.trainable_copy()
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(8))
    truth = torch.randint(0, 17, (2, 64, 64), generator=torch.Generator().manual_seed(9))
    heads(encoder)[task].compute_loss(trunk, pixels, truth).backward()
    reached = {name for name, value in trunk.module.named_parameters() if value.grad is not None and value.grad.any()}
    expected = {
        name
        for name, _ in trunk.module.named_parameters()
        if task == "segmentation_finetune" or not name.startswith("layernorm")
    }
    expected = {name for name in expected if "mask_token" not in name and "key.bias" not in name}
    assert expected <= reached
    assert all(value.grad is None for value in encoder.module.parameters())
