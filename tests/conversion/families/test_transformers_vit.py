"""ViT, DeiT, MAE, MSN, I-JEPA and DINOv2 of transformers come in, are trained, and go back, with equal features."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, Dinov2Config, Dinov2Model, ViTForImageClassification

from hf_geossl.conversion.family_export import save_family
from hf_geossl.conversion.source import convert_source, read_source
from tests.helpers.vit_families import TRANSFORMERS, assert_equal_features, images, make, randomise, take_a_step

NAMES = [name for name in TRANSFORMERS if not name.startswith(("dinov3", "clip", "siglip"))]
BACK = {"vit_mae": "vit", "vit_msn": "vit", "dinov2_with_registers": "dinov2"}  # as what each goes back


@pytest.mark.parametrize("name", NAMES)
def test_features_are_equal_both_ways_and_after_a_step_of_training(name: str, tmp_path: Path) -> None:
    theirs, family = TRANSFORMERS[name](), name.split()[0]
    theirs.save_pretrained(tmp_path / "theirs")
    assert read_source(tmp_path / "theirs").family == family
    ours = convert_source(tmp_path / "theirs")
    assert_equal_features(ours, theirs)
    take_a_step(ours)
    save_family(ours, BACK.get(family, family), tmp_path / "back")
    back = AutoModel.from_pretrained(tmp_path / "back").eval()
    assert back.config.model_type == (family if "dinov2" in family else BACK.get(family, family))
    assert_equal_features(back, ours)
    with torch.no_grad():
        assert (back(images(32, 32))[0] - ours(images(32, 32))[0]).abs().max() < 1e-4
    assert not list((tmp_path / "back").glob("*.py"))


def test_the_interpolation_of_dinov2_is_that_of_its_class() -> None:
    # not the same table at another size: the classes with and without registers differ by antialiasing
    smaller = images(16, 16)
    plain = make("Dinov2Model", image_size=64)
    registers = make("Dinov2WithRegistersModel", image_size=64, num_register_tokens=1)
    with torch.no_grad():
        tables = [
            model.embeddings.interpolate_pos_encoding(torch.zeros(1, 5, 128), *smaller.shape[-2:])
            for model in (plain, registers)
        ]
        registers.embeddings.position_embeddings.copy_(plain.embeddings.position_embeddings)
        tables[1] = registers.embeddings.interpolate_pos_encoding(torch.zeros(1, 5, 128), *smaller.shape[-2:])
    assert (tables[0] - tables[1]).abs().max() > 0.05


def test_classifiers_and_masked_models_give_their_trunk_and_name_the_rest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = randomise(ViTForImageClassification(make("ViTModel").config))
    model.save_pretrained(tmp_path)
    trunk = read_source(tmp_path)
    assert trunk.left_out == ("classifier.bias", "classifier.weight")
    assert_equal_features(convert_source(tmp_path), model.vit)
    assert "read as vit: 2 parts beside the ViT left out (classifier.bias, classifier.weight)" in caplog.text


@pytest.mark.parametrize("gated", [True, False])
def test_giant_is_the_width_of_dinov2(gated: bool) -> None:
    from hf_geossl import GTSAConfig
    from hf_geossl.conversion.families.transformers_vit import FAMILIES

    family = next(family for family in FAMILIES if family.name == "dinov2")
    theirs = Dinov2Config(hidden_size=1536, num_attention_heads=24, use_swiglu_ffn=gated, num_hidden_layers=1)
    with torch.device("meta"):
        mlp = Dinov2Model(theirs).encoder.layer[0].mlp
    width = mlp.down_proj.in_features if gated else mlp.fc2.in_features
    assert width == (4096 if gated else 6144)
    config = GTSAConfig(hidden_size=1536, num_attention_heads=24, intermediate_size=width, gated_mlp=gated)
    assert family.extras(config)["mlp_ratio"] == theirs.mlp_ratio
    config.intermediate_size = 5000
    with pytest.raises(ValueError, match="no place for MLPs of 5000 in a trunk of 1536.*take --to timm"):
        family.extras(config)
