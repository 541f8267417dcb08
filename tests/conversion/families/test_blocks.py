"""timm's models, and files of programs with the same names, come in with equal features."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from hf_geossl import GTSAConfig
from hf_geossl.conversion.family_export import save_family
from hf_geossl.conversion.source import convert_source, read_source
from hf_geossl.conversion.timm import convert_timm_checkpoint, to_timm
from tests.helpers.vit_families import (
    SIZES,
    TIMM,
    TRANSFORMERS,
    assert_equal_features,
    features_of,
    images,
    make_timm,
    relative_error,
    take_a_step,
)

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")


@pytest.mark.parametrize("name", list(TIMM))
def test_features_of_timm_are_equal_both_ways_and_after_a_step_of_training(name: str, tmp_path: Path) -> None:
    theirs = TIMM[name]()
    ours = convert_timm_checkpoint(theirs)
    assert_equal_features(ours, theirs)
    assert_equal_features(to_timm(ours), theirs)
    take_a_step(ours)
    save_family(ours, "timm", tmp_path / "back", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    back = timm.create_model(f"local-dir:{tmp_path / 'back'}", pretrained=True).eval()
    assert type(back).__name__ == ("Eva" if "dinov3" in name else "VisionTransformer")
    assert_equal_features(back, ours)
    for source in (tmp_path / "back", f"timm:local-dir:{tmp_path / 'back'}"):
        again = read_source(source)
        assert (again.family, again.image_mean, again.image_std) == ("timm", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        assert_equal_features(convert_source(source), ours, SIZES[:1])


@pytest.mark.parametrize(
    ("extra", "family", "interpolation", "offset"),
    [
        ({}, "dino", "bicubic", 0.1),
        ({"masked_embed": (1, 128)}, "dino", "bicubic", 0.1),  # iBOT's
        ({"mask_token": (1, 128)}, "dino", "bicubic", 0.1),  # DINOv2's
        ({"register_tokens": (1, 2, 128), "mask_token": (1, 128)}, "dinov2_reg", "bicubic_antialias", 0.0),
        ({"head.weight": (10, 128), "head.bias": (10,)}, "timm", "bicubic_antialias", 0.0),
        ({"decoder_embed.weight": (64, 128), "mask_token": (1, 1, 64)}, "mae", "bicubic", 0.0),
    ],
)
def test_positions_are_resampled_as_the_program_of_a_file_does(
    extra: dict[str, tuple[int, ...]],
    family: str,
    interpolation: str,
    offset: float,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    state = make_timm("vit_base_patch16_224").state_dict()
    state |= {name: torch.full(shape, 0.3) for name, shape in extra.items()}
    torch.save({"model": state}, tmp_path / "file.pth")
    trunk = read_source(tmp_path / "file.pth")
    fields = trunk.fields
    assert trunk.family == family
    assert ("is read as DINO's: where it is timm's, features at other sizes" in caplog.text) == (family == "dino")
    assert (fields["position_interpolation"], fields["position_interpolation_offset"]) == (interpolation, offset)
    assert fields["use_mask_token"] == (family != "mae" and any("mask" in name for name in extra))
    assert fields["num_register_tokens"] == (2 if family == "dinov2_reg" else 0)


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "vit_small_plus_patch16_dinov3_qkvb"])
def test_files_of_timms_dinov3_are_rotary(name: str, tmp_path: Path) -> None:
    theirs = make_timm(name)
    save_file(theirs.state_dict(), tmp_path / "file.safetensors")
    for model in (
        convert_source(tmp_path / "file.safetensors"),
        convert_timm_checkpoint(tmp_path / "file.safetensors"),
    ):
        assert_equal_features(model, theirs)


def test_files_of_clip_in_timms_names_say_that_they_do_not_say_the_activation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = make_timm("vit_base_patch16_clip_224")
    save_file(theirs.state_dict(), tmp_path / "file.safetensors")
    trunk = read_source(tmp_path / "file.safetensors")
    assert (trunk.family, trunk.fields["layer_norm_eps"]) == ("timm_clip", 1e-5)
    assert "do not say whether their MLPs have GELU or, as OpenAI's, quick GELU" in caplog.text
    assert_equal_features(convert_source(tmp_path / "file.safetensors"), theirs)
    quick = make_timm("vit_base_patch16_clip_quickgelu_224")
    save_file(quick.state_dict(), tmp_path / "quick.safetensors")
    given = GTSAConfig(hidden_size=128, num_attention_heads=2, hidden_act="quick_gelu")
    assert_equal_features(convert_source(tmp_path / "quick.safetensors", config=given), quick)


@pytest.mark.parametrize("name", ["eva02_small_patch14_224", "eva_giant_patch14_224"])
def test_eva_is_taken_where_it_is_plain_and_its_files_are_not(name: str, tmp_path: Path) -> None:
    theirs = make_timm(name, use_fc_norm=False)
    if name.startswith("eva02"):
        with pytest.raises(ValueError, match="must have DINOv3's rotary positions, got RotaryEmbedding"):
            convert_timm_checkpoint(theirs)
    else:
        assert_equal_features(convert_timm_checkpoint(theirs), theirs)
    save_file(theirs.state_dict(), tmp_path / "file.safetensors")
    with pytest.raises(ValueError, match="looks like EVA, and a file does not say whether positions are rotated"):
        read_source(tmp_path / "file.safetensors")


def test_files_of_a_giant_have_silu_in_their_gates(tmp_path: Path) -> None:
    theirs = make_timm("vit_giant_patch14_dinov2")
    save_file(theirs.state_dict(), tmp_path / "packed.safetensors")
    own = {key.replace("fc1", "w12").replace("fc2", "w3"): value for key, value in theirs.state_dict().items()}
    torch.save({"teacher": {f"backbone.{key}": value for key, value in own.items()}}, tmp_path / "own.pth")
    for file in ("packed.safetensors", "own.pth"):
        model = convert_source(tmp_path / file)
        assert (model.config.gated_mlp, model.config.hidden_act) == (True, "silu")
        assert_equal_features(model, theirs, SIZES[:1])


def test_mae_in_its_own_names_is_mae_in_transformers(tmp_path: Path) -> None:
    theirs = TRANSFORMERS["vit_mae"]()
    theirs.save_pretrained(tmp_path)
    vit: Any = to_timm(convert_source(tmp_path))
    torch.save({"model": vit.state_dict() | {"decoder_embed.weight": torch.ones(3, 128)}}, tmp_path / "mae.pth")
    ours = convert_source(tmp_path / "mae.pth")
    pixels = images(24, 40)
    assert relative_error(features_of(ours, pixels), features_of(theirs, pixels)) < 1e-4  # its file says no epsilon


@pytest.mark.parametrize(("width", "heads"), [(1280, 16), (1152, 16), (128, 2)])
def test_heads_of_huge_models_are_wider_than_64(width: int, heads: int, tmp_path: Path) -> None:
    vit = timm.create_model("vit_base_patch16_224", img_size=16, patch_size=16, embed_dim=width, depth=1, num_classes=0,
                            num_heads=2)  # fmt: skip
    torch.save(vit.state_dict(), tmp_path / "file.pth")
    assert read_source(tmp_path / "file.pth").fields["num_attention_heads"] == heads
