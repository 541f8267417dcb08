"""Models are opened for evaluation: timm's by name, normalised as their processor says."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from transformers import (
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from hf_geossl.evaluation.loading import load_encoder
from tests.helpers.supervised import small_model

SIZES: Any = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


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


def test_a_folder_that_timm_wrote_is_opened_by_timm(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1, img_size=32).eval()
    timm.models.save_for_hf(model, tmp_path / "saved", model_args={"depth": 1, "img_size": 32})
    images = torch.randn(2, 3, 32, 32)
    opened = load_encoder(str(tmp_path / "saved"), device="cpu")
    expected = model.forward_features(images)[:, 1:].unflatten(1, (2, 2))
    torch.testing.assert_close(opened.tokens(images).patches, expected)


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


def test_a_type_without_a_trunk_of_its_own_is_said_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "upernet", "backbone_config": {"model_type": "vit"}})
    )
    with pytest.raises(
        ValueError, match="is of type 'upernet', of which there is no AutoModel: give a trunk"
    ) as raised:
        load_encoder(tmp_path)
    assert len(str(raised.value)) < 200
