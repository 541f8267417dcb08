"""Parts that another family has no place for are folded into others without a change of features."""

import pytest
import torch
from torch import nn

from hf_geossl import GTSAConfig, GTSAModel
from hf_geossl.conversion.outgoing import (
    add_layer_scale,
    fold_layer_scale,
    join_key_bias,
    layers_of,
    state_of,
    trunk_of,
)
from tests.helpers.vit_families import features_of, images, randomise, relative_error

_SIZE = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 11, "image_size": 32, "patch_size": 8}


def test_folding_and_filling_leave_features_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    ours = randomise(GTSAModel(GTSAConfig(**_SIZE, layerscale_value=0.1, key_bias=False)))
    state = state_of(ours)
    assert len(layers_of(state)) == 11
    join_key_bias(state)
    assert not state["encoder.layer.10.attention.qkv.bias"][
        32:64
    ].any()  # others than 0 would change nothing but rotated keys
    fold_layer_scale(state)
    assert "22 layer scales were multiplied into the layers before them" in caplog.text
    plain = GTSAModel(GTSAConfig(**_SIZE)).eval()
    plain.load_state_dict(state)
    expected = features_of(ours, images(32, 32))
    assert relative_error(features_of(plain, images(32, 32)), expected) < 1e-5
    add_layer_scale(state)
    scaled = GTSAModel(GTSAConfig(**_SIZE, layerscale_value=0.1)).eval()
    scaled.load_state_dict(state)
    assert torch.equal(features_of(scaled, images(32, 32)), features_of(plain, images(32, 32)))


def test_models_without_a_trunk_are_refused() -> None:
    with pytest.raises(ValueError, match="somebody takes a model with a ViT trunk of this library, got Linear"):
        trunk_of(nn.Linear(2, 2), "somebody")
