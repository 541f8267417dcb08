"""Other families of vision transformers: masked autoencoders, norms of other names, fresh weights."""

from typing import Any

import pytest
import timm
import torch
from transformers import (
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTMAEConfig,
    ViTMAEModel,
)

from hf_geossl.evaluation.loading import load_encoder

SIZES: Any = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def moved(model: Any) -> Any:
    """With norms that do something: fresh ones hardly do."""
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, 0.5)
    return model.eval()


def test_a_masked_autoencoder_shows_all_patches_in_their_order() -> None:
    torch.manual_seed(0)
    model = ViTMAEModel(ViTMAEConfig(image_size=32, patch_size=8, **SIZES)).eval()
    images = torch.randn(2, 3, 32, 32)
    first, second = (load_encoder(model).tokens(images) for _ in range(2))
    assert torch.equal(first.patches, second.patches)
    model.config.mask_ratio = 0.0
    with torch.no_grad():
        found = model(images, noise=torch.arange(16.0).repeat(2, 1))  # the smaller the earlier
    torch.testing.assert_close(first.patches.flatten(1, 2), found.last_hidden_state[:, 1:])
    assert load_encoder(model).random_twin().tokens(images).patches.shape == (2, 4, 4, 32)


@pytest.mark.parametrize("class_token", [True, False])
def test_a_norm_after_the_average_counts(class_token: bool) -> None:
    torch.manual_seed(0)
    model = moved(
        timm.models.VisionTransformer(
            img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0, global_pool="avg",
            class_token=class_token,
        )
    )  # fmt: skip
    images = torch.randn(2, 3, 32, 32)
    encoder = load_encoder(model)
    tokens = encoder.tokens(images)
    with torch.no_grad():
        torch.testing.assert_close(tokens.pooled, model(images))
        last = model.fc_norm(model.forward_features(images))
    torch.testing.assert_close(tokens.patches.flatten(1, 2), last[:, int(class_token) :])
    expected = last[:, 0] if class_token else last.mean(dim=1)
    torch.testing.assert_close(encoder.class_tokens(images, 1), expected)


def test_the_norm_after_the_last_layer_is_found_under_other_names() -> None:
    torch.manual_seed(0)
    encoder = load_encoder(moved(SiglipVisionModel(SiglipVisionConfig(image_size=32, patch_size=8, **SIZES))))
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(encoder.class_tokens(images, 1), encoder.tokens(images).mean)


@pytest.fixture
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's models come with fresh weights."""
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **given: create(name, pretrained=False, **given))


@pytest.mark.usefixtures("no_download")
def test_models_without_a_common_way_to_fresh_weights_have_a_random_twin() -> None:
    cait = load_encoder("timm:cait_xxs24_224")
    twin = cait.random_twin()
    assert twin.tokens(torch.randn(1, 3, 224, 224)).patches.shape == (1, 14, 14, 192)
    weights = [encoder.module.state_dict()["blocks.0.attn.qkv.weight"] for encoder in (cait, twin)]
    assert not torch.equal(*weights)
