"""Checkpoints of the GTSA authors' program come in with equal features."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional as F

from hf_geossl import GTSAConfig, GTSAForPreTraining
from hf_geossl.conversion import convert_gtsa_checkpoint, to_timm
from tests.helpers.golden import SHARED, SHIPPED
from tests.helpers.plain_vits import assert_close, authors_state, images, save, tokens_of, vit_of

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")


needs_full_set = pytest.mark.skipif(
    not (SHARED / "gtsa" / "golden.safetensors").is_file(), reason="the full golden set is not beside the checkout"
)


@pytest.mark.parametrize("place", ["model", "top", "distributed"])
def test_full_checkpoint_goes_where_it_belongs(place: str, tmp_path: Path) -> None:
    vit = vit_of()
    state = authors_state(vit)
    content: Any = {"model": state, "epoch": 99, "args": argparse.Namespace(lr=0.1, crops=[2, 4]), "scaler": {}}
    if place == "top":
        content = state
    if place == "distributed":
        content["model"] = {f"module.{key}": value for key, value in state.items()}
    model = convert_gtsa_checkpoint(save(content, tmp_path / "checkpoint-99.pth"))
    assert type(model) is GTSAForPreTraining
    assert not model.training
    assert (model.config.num_attention_heads, model.config.num_hidden_layers) == (1, 2)
    assert (model.config.image_size, model.config.patch_size) == (32, 8)
    assert model.config.position_interpolation_offset == 0.1
    assert list(model.config.rotation_hidden_sizes) == [40, 36, 12]
    pixels = images(2, 3, 32, 32)
    assert_close(tokens_of(model.gtsa, pixels), tokens_of(vit, pixels))
    for parameter in vit.parameters():
        with torch.no_grad():
            parameter.mul_(2)
    assert_close(tokens_of(model.teacher.gtsa, pixels), tokens_of(vit, pixels))
    for ours, theirs in (
        ("projector.blocks.0.convolution.weight", "base_projector.blocks.0.0.weight"),
        ("projector.blocks.1.convolution.bias", "base_projector.blocks.1.0.bias"),
        ("projector.projection.weight", "base_projector.proj.weight"),
        ("teacher.projector.blocks.1.convolution.weight", "momentum_projector.blocks.1.0.weight"),
        ("teacher.projector.projection.bias", "momentum_projector.proj.bias"),
        ("predictor.block.convolution.weight", "base_predictor.blocks.0.0.weight"),
        ("predictor.projection.weight", "base_predictor.proj.weight"),
    ):
        assert torch.equal(model.state_dict()[ours], state[theirs]), ours
    features = images(3, 64)
    layers = {
        "0": lambda x, w, b: F.linear(x, w, b),
        "1": lambda x, w, b: F.gelu(F.layer_norm(x, x.shape[-1:], w, b)),
        "3": lambda x, w, b: F.linear(x, w, b),
        "4": lambda x, w, b: F.gelu(F.layer_norm(x, x.shape[-1:], w, b)),
        "6": lambda x, w, b: F.linear(x, w, b),
        "7": lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b),
        "8": lambda x, w, b: F.linear(x, w, b),
    }
    expected = features
    for index, layer in layers.items():
        expected = layer(expected, state[f"rot_predictor.{index}.weight"], state[f"rot_predictor.{index}.bias"])
    assert_close(model.rotation_head(features), expected, 1e-5)


@pytest.mark.parametrize("under", ["top", "model"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_flat_trunk_gives_teacher_equal_to_student_and_fresh_heads(under: str, suffix: str, tmp_path: Path) -> None:
    vit, path = vit_of(), tmp_path / f"CoCo_GTSA_99ep{suffix}"
    if suffix == ".safetensors":
        save_file(vit.state_dict(), path)
    else:
        save({"model": vit.state_dict()} if under == "model" else vit.state_dict(), path)
    torch.manual_seed(0)
    model = convert_gtsa_checkpoint(path)
    assert not model.training
    pixels = images(2, 3, 32, 32)
    assert_close(tokens_of(model.gtsa, pixels), tokens_of(vit, pixels))
    for teacher, student in zip(*model.teacher_pairs(), strict=True):
        assert torch.equal(teacher, student)
    assert model.projector.projection.weight.shape == (768, 384, 1, 1)  # the paper's, where nothing else is expected
    assert model.projector.projection.weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_tensors_win_over_the_configuration_which_is_not_changed(tmp_path: Path) -> None:
    path = save({"model": authors_state(vit_of(num_heads=4))}, tmp_path / "checkpoint.pth")
    config = GTSAConfig(
        hidden_size=192,
        num_attention_heads=4,
        num_hidden_layers=7,
        intermediate_size=100,
        image_size=224,
        patch_size=16,
        num_channels=1,
        projector_hidden_size=8,
        projection_size=9,
        predictor_hidden_size=10,
        rotation_hidden_sizes=(5,),
        out_indices=[1, 6],
        position_interpolation_offset=0.25,
        num_matches=(5, 4),
        id2label={0: "a", 1: "b", 2: "c"},
    )
    before = config.to_dict()
    model = convert_gtsa_checkpoint(path, config)
    assert config.to_dict() == before
    expected = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 256,
        "image_size": 32,
        "patch_size": 8,
        "num_channels": 3,
        "projector_hidden_size": 24,
        "projection_size": 20,
        "predictor_hidden_size": 28,
        "num_attention_heads": 4,
        "position_interpolation_offset": 0.25,
    }
    assert {name: getattr(model.config, name) for name in expected} == expected
    assert list(model.config.rotation_hidden_sizes) == [40, 36, 12]
    assert list(model.config.num_matches) == [5, 4]
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert model.config.stage_names == ["stem", "stage1", "stage2"]
    pixels = images(2, 3, 32, 32)
    assert_close(tokens_of(model.gtsa, pixels), tokens_of(vit_of(num_heads=4), pixels))


def test_half_precision_checkpoints_come_in_as_float32(tmp_path: Path) -> None:
    vit = vit_of()
    path = save({key: value.half() for key, value in vit.state_dict().items()}, tmp_path / "half.pth")
    model = convert_gtsa_checkpoint(path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    for parameter in vit.parameters():
        with torch.no_grad():
            parameter.copy_(parameter.half())
    pixels = images(1, 3, 32, 32)
    assert_close(tokens_of(model.gtsa, pixels), tokens_of(vit, pixels))


def test_the_authors_trunk_loads_strictly_into_timm_and_agrees(tmp_path: Path) -> None:
    """Weights of the authors' program (the part that ships), stripped of their prefix, at 224 pixels."""
    tensors = load_file(SHIPPED / "gtsa" / "encoder.safetensors")
    prefix = "state.base_encoder."
    trunk = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    vit = VisionTransformer(embed_dim=48, depth=2, num_heads=3, num_classes=0).eval()
    vit.load_state_dict(trunk, strict=True)
    model = convert_gtsa_checkpoint(save(trunk, tmp_path / "flat.pth"), GTSAConfig(num_attention_heads=3))
    pixels = images(1, 3, 224, 224)
    assert_close(tokens_of(model.gtsa, pixels), tokens_of(vit, pixels))
    exported = to_timm(model, image_size=96)  # at another size the authors' resampling is baked in
    expected = tensors["enc.96x96.patch_tokens"]
    assert_close(tokens_of(exported, tensors["view.2"].float())[:, 1:], expected, 1e-5)


@needs_full_set
def test_the_authors_teacher_agrees_with_timm(golden: Any, authors_file: Path) -> None:
    tensors, _ = golden
    prefix = "state.momentum_encoder."
    trunk = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    vit = VisionTransformer(embed_dim=48, depth=2, num_heads=3, num_classes=0).eval()
    vit.load_state_dict(trunk, strict=True)
    model = convert_gtsa_checkpoint(authors_file, GTSAConfig(num_attention_heads=3))
    pixels = tensors["view.0"].float()
    assert_close(tokens_of(model.teacher.gtsa, pixels), tokens_of(vit, pixels))
