"""What an `Encoder` makes of other people's models: their class token, their normalisation."""

import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from transformers import (
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTImageProcessor,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
)

from hf_geossl.evaluation.loading import load_encoder
from tests.helpers.supervised import small_model

SIZES: Any = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


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
    model = ViTModel(ViTConfig(image_size=32, patch_size=8, **SIZES), add_pooling_layer=False)
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
def test_timm_models_of_one_size_are_opened_and_others_refused() -> None:
    with pytest.raises(TypeError, match="must be a vision transformer of timm or transformers, got ResNet"):
        load_encoder("timm:resnet18")
    beit = load_encoder("timm:beit_base_patch16_224")
    assert beit.tokens(torch.randn(1, 3, 224, 224)).patches.shape == (1, 14, 14, 768)
    with pytest.raises(
        ValueError, match=r"was made for images of 224 pixels and does not take 96 x 96 .*image_size 224"
    ):
        beit.tokens(torch.randn(1, 3, 96, 96))


@pytest.mark.usefixtures("no_download")
def test_models_without_a_common_way_to_fresh_weights_have_a_random_twin() -> None:
    cait = load_encoder("timm:cait_xxs24_224")
    twin = cait.random_twin()
    assert twin.tokens(torch.randn(1, 3, 224, 224)).patches.shape == (1, 14, 14, 192)
    weights = [encoder.module.state_dict()["blocks.0.attn.qkv.weight"] for encoder in (cait, twin)]
    assert not torch.equal(*weights)


@pytest.mark.parametrize(
    ("fields", "white"),
    [
        ({"do_normalize": False}, 1.0),
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}, 1.0),
        ({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}, 2.0),
        ({"image_mean": [1.0] * 3, "image_std": [1.0] * 3, "rescale_factor": 1 / 127.5}, 1.0),
        ({"image_mean": [127.5] * 3, "image_std": [127.5] * 3, "do_rescale": False}, 1.0),
    ],
)
def test_images_are_normalised_as_the_processor_says(fields: dict[str, Any], white: float, tmp_path: Path) -> None:
    ViTModel(ViTConfig(image_size=32, patch_size=8, **SIZES), add_pooling_layer=False).save_pretrained(tmp_path)
    processor = ViTImageProcessor(size={"height": 32, "width": 32}, **fields)
    processor.save_pretrained(tmp_path)
    pixels = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    pixels[..., ::2] = 40
    found = load_encoder(tmp_path).normalize(pixels)
    torch.testing.assert_close(found[0, :, 0, 1], torch.full((3,), white))
    torch.testing.assert_close(
        found, processor(list(pixels), return_tensors="pt")["pixel_values"], atol=1e-5, rtol=1e-5
    )


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"the device 'nix' cannot be used here .*choose cpu, cuda or cuda:0"):
        load_encoder(small_model(), device="nix")
