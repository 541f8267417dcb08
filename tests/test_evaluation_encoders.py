"""What an `Encoder` makes of other people's models: their class token, their normalisation."""

import logging
from typing import Any

import pytest
import timm
import torch
from supervised import small_model
from transformers import ViTConfig, ViTModel

from hf_geossl.evaluation.encoders import load_encoder


@pytest.mark.parametrize(
    ("class_token", "registers", "prefix"), [(True, 0, 1), (True, 2, 3), (False, 2, 2), (False, 0, 0)]
)
def test_a_register_is_not_taken_for_a_class_token(class_token: bool, registers: int, prefix: int) -> None:
    model = timm.models.VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=2,
        num_classes=0,
        class_token=class_token,
        reg_tokens=registers,
        global_pool="token" if class_token else "avg",
        final_norm=True,
        fc_norm=False,
    ).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        whole = model.forward_features(images)  # (2, prefix + 16, 32)
    encoder = load_encoder(model)
    tokens = encoder.tokens(images)
    torch.testing.assert_close(tokens.patches.flatten(1, 2), whole[:, prefix:])
    if class_token:
        torch.testing.assert_close(tokens.pooled, whole[:, 0])
        assert tokens.both.shape == (2, 64)
        torch.testing.assert_close(encoder.class_tokens(images, 1), whole[:, 0])
    else:
        assert tokens.class_token is None
        torch.testing.assert_close(tokens.pooled, whole[:, prefix:].mean(dim=1))
        assert tokens.both.shape == (2, 32)
        torch.testing.assert_close(encoder.class_tokens(images, 1), whole[:, prefix:].mean(dim=1))


def test_whose_normalisation_is_guessed_is_told(caplog: pytest.LogCaptureFixture) -> None:
    sizes: Any = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = ViTModel(ViTConfig(image_size=32, patch_size=8, **sizes), add_pooling_layer=False)
    with caplog.at_level(logging.WARNING, "hf_geossl"):
        encoder = load_encoder(model)
    assert encoder.mean == (0.485, 0.456, 0.406)
    [line] = caplog.messages
    assert line.startswith("ViTModel was given as an object: images are normalised with ImageNet's mean and deviation")
    assert "give the folder or Hub id, or an Encoder" in line
    caplog.clear()
    load_encoder(encoder)
    load_encoder(small_model())
    assert not caplog.messages
