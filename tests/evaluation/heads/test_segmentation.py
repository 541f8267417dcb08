"""Segmentation heads and their loss, by slow formulas; UPerNet by the loss of transformers' own model."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import UperNetConfig, UperNetForSemanticSegmentation

from hf_geossl import GTSAConfig
from hf_geossl.evaluation.encoders import Encoder
from hf_geossl.evaluation.heads.segmentation import LinearHead, SegmentationHead, SemanticFPNHead, UPerNetHead
from hf_geossl.evaluation.loading import load_encoder
from hf_geossl.modeling.dense_heads import RescaleNeck, layers_of_maps, pixel_cross_entropy
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


def test_upernet_has_the_loss_of_transformers_own_model(encoder: Encoder) -> None:
    """The published class, with our neck in the place of its backbone and our decoder's weights."""
    head = heads(encoder)["upernet"].eval()
    assert isinstance(head, UPerNetHead)
    config = UperNetConfig(
        backbone_config=GTSAConfig(
            hidden_size=96, num_hidden_layers=4, num_attention_heads=3, intermediate_size=96, out_indices=[1, 2, 3, 4]
        ),
        hidden_size=32,
        auxiliary_channels=16,
        num_labels=17,
    )
    theirs = UperNetForSemanticSegmentation(config).eval()
    theirs.decode_head.load_state_dict(head.decoder.head.state_dict())
    theirs.auxiliary_head.load_state_dict(head.decoder.auxiliary.state_dict())
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(6))
    truth = torch.randint(0, 17, (2, 64, 64), generator=torch.Generator().manual_seed(7))
    truth[:, :9] = 255
    maps = head.decoder.neck(encoder.maps(pixels, (0, 0, 1, 2)))
    theirs.backbone.forward_with_filtered_kwargs = lambda *_, **__: type(
        "Maps", (), {"feature_maps": maps, "hidden_states": None, "attentions": None}
    )
    with torch.no_grad():
        outputs = theirs(pixels, labels=truth)
        torch.testing.assert_close(head.compute_loss(encoder, pixels, truth), outputs.loss)
        torch.testing.assert_close(head.predict(encoder, pixels), outputs.logits)


def test_layers_are_those_of_papers_and_evenly_spaced_elsewhere() -> None:
    assert layers_of_maps(12) == (2, 5, 8, 11)
    assert layers_of_maps(24) == (5, 11, 17, 23)
    assert layers_of_maps(4) == (0, 1, 2, 3)
    assert layers_of_maps(3) == (0, 0, 1, 2)
    assert layers_of_maps(1) == (0, 0, 0, 0)


def test_the_neck_gives_each_map_its_stride() -> None:
    torch.manual_seed(0)
    maps = [torch.randn(2, 8, 7, 4) for _ in range(4)]
    neck = RescaleNeck(8).eval()
    found = neck(maps)
    assert [tuple(part.shape) for part in found] == [(2, 8, 28, 16), (2, 8, 14, 8), (2, 8, 7, 4), (2, 8, 4, 2)]
    assert torch.equal(found[2], maps[2])
    assert torch.equal(found[3][:, :, 1, 0], maps[3][:, :, 2:4, 0:2].amax(dim=(2, 3)))
    assert torch.equal(found[3][:, :, 3, 1], maps[3][:, :, 6, 2:4].amax(dim=2))  # what is left of an odd side
    weight, bias = neck.scales[1].weight, neck.scales[1].bias  # (in, out, 2, 2): each position becomes a square of four
    expected = torch.einsum("bi,io->bo", maps[1][:, :, 3, 2], weight[:, :, 1, 0]) + bias
    torch.testing.assert_close(found[1][:, :, 7, 4], expected)
    with pytest.raises(ValueError, match="maps must be 4, got 3"):
        neck(maps[:3])
