"""Trunks become plain models of other families; what these have no place for is refused by name, or said."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from hf_geossl import GTSAConfig, GTSAForPreTraining, GTSAModel, LOCAConfig, LOCAModel
from hf_geossl.conversion.family_export import find_family, save_family, to_family
from hf_geossl.conversion.source import convert_source
from tests.helpers.vit_families import SIZES, assert_equal_features, features_of, images, randomise

_SIZE: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
_EXACT: dict[str, Any] = {**_SIZE, "position_interpolation_offset": 0.0}


def gtsa(**fields: Any) -> Any:
    return randomise(GTSAModel(GTSAConfig(**{**_EXACT, **fields})))


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("dinov2", {}),
        ("dinov2", {"layerscale_value": 0.1, "key_bias": False}),
        ("dinov2", {"num_register_tokens": 2, "position_interpolation": "bicubic_antialias"}),
        ("dinov3", {"position_embedding_type": "rope", "qkv_bias": False}),
        ("vit", {"layerscale_value": 0.1, "key_bias": False, "hidden_act": "quick_gelu"}),
        ("vit", {"patch_bias": False, "layer_norm_eps": 1e-3}),
        ("deit", {"num_register_tokens": 1, "intermediate_size": 100}),
        ("clip", {"patch_bias": False, "embedding_norm": True, "qkv_bias": False}),
        ("timm", {"position_interpolation": "bicubic_antialias", "num_register_tokens": 2, "key_bias": False}),
    ],
)
def test_own_trunks_become_plain_models(family: str, fields: dict[str, Any], tmp_path: Path) -> None:
    ours = gtsa(**fields)
    assert_equal_features(to_family(ours, family), ours)


def test_loca_becomes_a_model_without_a_class_token(caplog: pytest.LogCaptureFixture) -> None:
    ours = randomise(LOCAModel(LOCAConfig(**_SIZE)))
    for family in ("ijepa", "siglip", "timm"):
        assert_equal_features(to_family(ours, family), ours, SIZES[:1])
    assert "features are equal at 32 pixels: at other sizes ijepa resamples positions with bicubic" in caplog.text


@pytest.mark.parametrize(
    ("family", "fields", "why"),
    [
        ("vit", {"num_register_tokens": 2}, "vit has no place for 2 register tokens: choose dinov2 or timm$"),
        ("deit", {}, "deit has no place for 0 register tokens"),
        ("dinov3", {}, "dinov3_vit has no place for position_embedding_type='learned'"),
        ("dinov2", {"position_embedding_type": "rope"}, "no place for position_embedding_type='rope'"),
        ("dinov2", {"use_class_token": False}, "no place for use_class_token=False"),
        ("siglip", {}, "no place for use_class_token=True"),
        ("vit", {"gated_mlp": True}, "no place for gated MLPs"),
        ("clip", {}, "no place for embedding_norm=False and patch_bias=True"),
        ("vit", {"image_size": (32, 16)}, "positions of 32 x 16 pixels, which are no square"),
        ("dinov2", {"intermediate_size": 200}, "no place for MLPs of 200"),
        ("swin", {}, "there is no family 'swin' to write; choose one of dinov2, "),
        ("vit_mae", {}, "there is no family 'vit_mae' to write"),
    ],
)
def test_what_has_no_place_is_refused_by_name(family: str, fields: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=why):
        save_family(gtsa(**fields), family, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_timm_folders_refuse_what_json_cannot_say(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot say layer_norm_eps=0.001"):
        save_family(gtsa(layer_norm_eps=1e-3), "timm", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pretraining_model_gives_its_student_and_masks_stay_where_there_is_a_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = GTSAConfig(**_EXACT, use_mask_token=True, projector_hidden_size=8, projection_size=8)
    whole = randomise(GTSAForPreTraining(config))
    assert_equal_features(to_family(whole, "dinov2"), whole.gtsa)
    plain: Any = to_family(whole, "dinov2")
    assert torch.equal(plain.embeddings.mask_token, whole.gtsa.embeddings.mask_token)
    assert "mask token" not in caplog.text
    to_family(whole, "vit")
    assert "the mask token stays behind: ViTModel has none" in caplog.text
    assert "ViTModel is written without a pooler" in caplog.text


def test_a_saved_family_has_its_processor_and_no_code(tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    ours = gtsa()
    save_family(ours, "dinov2", tmp_path, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert (tuple(processor.image_mean), tuple(processor.image_std)) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert processor.size["height"] == 32
    assert "auto_map" not in (tmp_path / "config.json").read_text()
    assert_equal_features(AutoModel.from_pretrained(tmp_path).eval(), ours)


@pytest.mark.parametrize("family", ["dinov2", "timm"])
def test_other_images_have_no_processor_there(family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ours = gtsa(num_channels=5)
    save_family(ours, family, tmp_path)
    assert "no image processor is written" in caplog.text
    assert not (tmp_path / "preprocessor_config.json").exists()
    assert "mean" not in (tmp_path / "config.json").read_text()
    found = convert_source(tmp_path)
    assert torch.equal(features_of(found, images(32, 32, 5)), features_of(ours, images(32, 32, 5)))


def test_dinov2_has_registers_where_the_trunk_has() -> None:
    assert find_family("dinov2", GTSAConfig()).name == "dinov2"
    assert find_family("dinov2", GTSAConfig(num_register_tokens=4)).name == "dinov2_with_registers"
