"""The Semantic FPN head: convolved as if its maps had strides."""

from typing import Any

import pytest
import torch

from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.heads.segmentation import LinearHead, SegmentationHead
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


def test_semantic_fpn_convolves_its_equal_maps_as_if_they_had_strides(encoder: Encoder) -> None:
    head = heads(encoder)["semantic_fpn"].eval()
    assert isinstance(head, SemanticFPNHead)
    convolutions = [[layer for layer in level if isinstance(layer, torch.nn.Conv2d)] for level in head.levels]
    assert [len(level) for level in convolutions] == [1, 1, 2, 3]
    maps: list[torch.Tensor] = []
    for level in head.levels:
        level.register_forward_hook(lambda module, inputs, output: maps.extend([inputs[0], output]))
    pixels = torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(5))
    (logits,) = head(encoder, pixels)
    assert logits.shape == (2, 17, 8, 6)
    assert [tuple(part.shape[2:]) for part in maps[::2]] == [(8, 6)] * 4
    assert [tuple(part.shape[2:]) for part in maps[1::2]] == [(8, 6), (16, 12), (32, 24), (64, 48)]
