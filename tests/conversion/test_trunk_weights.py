"""Weights of plain ViTs of any shape become a trunk; those of something else are refused."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from transformers import Dinov2Config, Dinov2Model

from hf_geossl import GTSAConfig
from hf_geossl.conversion import convert_dino_checkpoint, convert_gtsa_checkpoint, convert_timm_checkpoint
from tests.helpers.plain_vits import assert_close, authors_state, images, save, tokens_of, vit_of

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"embed_dim": 128, "num_heads": 2, "depth": 1}, (32, 32)),
        ({"patch_size": 4, "img_size": 16}, (16, 16)),
        ({"in_chans": 5, "mlp_ratio": 3.0}, (32, 32)),
        ({"qkv_bias": False}, (32, 32)),
    ],
)
def test_other_widths_patches_and_channels(fields: dict[str, Any], size: tuple[int, int], tmp_path: Path) -> None:
    vit = vit_of(**fields)
    pixels = images(2, vit.patch_embed.proj.in_channels, *size)
    full = convert_gtsa_checkpoint(save(authors_state(vit), tmp_path / "full.pth"))
    flat = convert_gtsa_checkpoint(save(vit.state_dict(), tmp_path / "flat.pth"))
    for model in (full, flat):
        assert_close(tokens_of(model.gtsa, pixels), tokens_of(vit, pixels))


def test_heads_must_be_given_where_the_width_is_no_multiple_of_64(tmp_path: Path) -> None:
    vit = vit_of(embed_dim=48, num_heads=3)
    for content in (authors_state(vit), vit.state_dict()):
        path = save(content, tmp_path / "checkpoint.pth")
        with pytest.raises(ValueError, match="checkpoint.pth is 48 wide.*number of heads"):
            convert_gtsa_checkpoint(path)
        pixels = images(1, 3, 32, 32)
        model = convert_gtsa_checkpoint(path, GTSAConfig(num_attention_heads=3))
        assert_close(tokens_of(model.gtsa, pixels), tokens_of(vit, pixels))


def test_checkpoints_of_something_else(tmp_path: Path) -> None:
    path, state = tmp_path / "other.pth", vit_of().state_dict()
    without_mlp = {key.replace("mlp.fc1", "mlp.w12"): value for key, value in state.items()}
    cases = [
        (
            {"weight": torch.zeros(3, 3)},
            "no plain ViT checkpoint: it lacks a patch embedding of a known name, it has weight",
        ),
        ({"epoch": 3}, "holds no tensors under the expected names"),
        ({}, "holds no tensors under the expected names"),
        ({1: torch.zeros(2), "a": 3}, "holds no tensors under the expected names"),
        ({"model": {"backbone.conv1.weight": torch.zeros(3, 3)}}, "no plain ViT checkpoint"),
        (without_mlp, r"gated MLPs whose layers do not fit: \(256, 64\), \(64, 256\)"),
        ({**state, "mask_token": torch.zeros(1, 32)}, "has other shapes for embeddings.mask_token"),
        ({**state, "blocks.0.ls1.gamma": torch.zeros(64)}, "lacks .*layer_scale2.weight"),
        ({**state, "norm.weight": torch.zeros(7)}, "has other shapes for layernorm.weight"),
        ({**state, "pos_embed": torch.zeros(1, 19, 64)}, "18 positions .* no square grid"),
        ({**state, "pos_embed": torch.zeros(2, 17, 1, 64)}, "position_embeddings must have 3 dimensions"),
        ({**state, "patch_embed.proj.weight": torch.zeros(64, 192)}, "must have 4 dimensions"),
        ({key: value for key, value in state.items() if key != "blocks.1.norm2.bias"}, "lacks encoder.layer.1.norm2"),
    ]
    for content, message in cases:
        with pytest.raises(ValueError, match=message):
            convert_gtsa_checkpoint(save(content, path))
    state = authors_state(vit_of())
    for missing in ("base_projector.proj.weight", "momentum_projector.proj.bias", "rot_predictor.3.weight"):
        with pytest.raises(ValueError, match="lacks"):
            convert_gtsa_checkpoint(save({key: v for key, v in state.items() if key != missing}, path))


def dinov2(registers: int = 0) -> Any:
    """timm's DINOv2 in small, with layer scales and tokens that differ from each other."""
    torch.manual_seed(0)
    vit = timm.create_model(
        "vit_small_patch14_dinov2", img_size=56, depth=3, embed_dim=64, num_heads=1, num_classes=0,
        reg_tokens=registers, no_embed_class=bool(registers),
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.normal_(std=0.2)
    return vit


def theirs(vit: Any, *, registers: bool) -> dict[str, torch.Tensor]:
    """The names and tensors of DINOv2's own files: a mask token, and a position of the class token."""
    state = {key.replace("reg_token", "register_tokens"): value for key, value in vit.state_dict().items()}
    if registers:
        state["pos_embed"] = torch.cat([torch.zeros(1, 1, 64), state["pos_embed"]], dim=1)
    return state | {"mask_token": torch.ones(1, 64)}


def chunked(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        re.sub(r"^blocks\.(\d+)\.", lambda m: f"blocks.{int(m[1]) // 2}.{m[1]}.", key): v for key, v in state.items()
    }


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("wrapped", ["", "teacher", "timm", "module"])
def test_dinov2_comes_in_from_every_form_of_its_files(registers: int, wrapped: str, tmp_path: Path) -> None:
    vit = dinov2(registers)
    own = theirs(vit, registers=bool(registers))
    head = {"dino_head.mlp.0.weight": torch.ones(3, 3)}
    content: dict[str, Any] = {
        "": own,
        "teacher": {"teacher": {f"backbone.{key}": value for key, value in chunked(own).items()} | head},
        "timm": vit.state_dict(),
        "module": {f"module._orig_mod.backbone.{key}": value for key, value in own.items()} | head,
    }[wrapped]
    torch.save(content, tmp_path / "file.pth")
    convert = convert_timm_checkpoint if wrapped == "timm" else convert_dino_checkpoint
    model = convert(tmp_path / "file.pth")
    assert model.config.num_register_tokens == registers
    assert model.config.layerscale_value is not None
    assert model.config.use_mask_token == (wrapped != "timm")
    pixels = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        expected = vit.forward_features(pixels)
        found = model(pixels).last_hidden_state
    expected = (
        expected
        if found.shape[1] == expected.shape[1]
        else torch.cat([expected[:, :1], expected[:, 1 + registers :]], 1)
    )
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_several_vits_are_refused_by_name(tmp_path: Path) -> None:
    state = theirs(dinov2(), registers=False)
    both = {f"{part}.{key}": value for part in ("student", "teacher") for key, value in state.items()}
    torch.save(both, tmp_path / "both.pth")
    with pytest.raises(ValueError, match="holds several ViTs .student., teacher"):
        convert_timm_checkpoint(tmp_path / "both.pth")
    torch.save({"student": state}, tmp_path / "student.pth")
    with pytest.raises(ValueError, match="weights of a student and of no teacher: choose weights='student'"):
        convert_dino_checkpoint(tmp_path / "student.pth")
    content: dict[str, Any] = {"model": state}
    content["again"] = content  # a file that holds itself
    torch.save({"state": None, "weights": content}, tmp_path / "circle.pth")
    with pytest.raises(ValueError, match="holds several ViTs"):
        convert_timm_checkpoint(tmp_path / "circle.pth")


@pytest.mark.parametrize("part", ["teacher", "student"])
@pytest.mark.parametrize(
    "nest",
    [
        lambda student, teacher: {"student": student, "teacher": teacher},
        lambda student, teacher: {"checkpoint": {"teacher": teacher, "student": student}},
        lambda student, teacher: {
            "model": {f"{part}.{key}": v for part, state in (("student", student), ("teacher", teacher)) for key, v in state.items()}
        },
    ],
)  # fmt: skip
def test_nested_files_give_the_network_asked_for_and_name_what_is_left(
    nest: Any, part: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vit = dinov2()
    own = {f"backbone.{key}": value for key, value in chunked(theirs(vit, registers=False)).items()}
    zeros = {key: torch.zeros_like(value) for key, value in own.items()}
    student, teacher = (zeros, own) if part == "teacher" else (own, zeros)
    content = nest(student, teacher | {"dino_head.last_layer.weight": torch.ones(3, 3)})
    torch.save(content, tmp_path / "file.pth")
    model = convert_dino_checkpoint(tmp_path / "file.pth", part)
    pixels = torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        expected = vit.forward_features(pixels)
        assert (model(pixels).last_hidden_state - expected).abs().max() < 1e-5 * expected.abs().max()
    (line,) = caplog.messages
    other = "student" if part == "teacher" else "teacher"
    assert re.search(rf"file.pth, read as dino: [12] parts? beside the ViT left out \(.*{other}", line)


def test_features_are_those_of_transformers_dinov2(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dino = Dinov2Model(
        Dinov2Config(hidden_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14)
    ).eval()
    with torch.no_grad():
        for parameter in dino.parameters():
            parameter.normal_(std=0.2)
    names = (
        (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
        (r"^embeddings\.position_embeddings", "pos_embed"),
        (r"^embeddings\.", ""),
        (r"^layernorm", "norm"),
        (r"^encoder\.layer\.", "blocks."),
        (r"attention\.(output\.dense|o_proj)", "attn.proj"),
        (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
    )
    state = dict(dino.state_dict())
    # transformers has written either names
    for query, others in (
        (".attention.attention.query.", ("key", "value")),
        (".attention.q_proj.", ("k_proj", "v_proj")),
    ):
        for key in [key for key in state if query in key]:
            word = query.split(".")[-2]
            parts = [state.pop(key.replace(f".{word}.", f".{one}.")) for one in (word, *others)]
            state[key.replace(query, ".attn.qkv.")] = torch.cat(parts)
    for pattern, replacement in names:
        state = {re.sub(pattern, replacement, key): value for key, value in state.items()}
    torch.save({"state_dict": state}, tmp_path / "dinov2.pth")
    pixels = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        expected = dino(pixels).last_hidden_state
        for convert in (convert_timm_checkpoint, convert_dino_checkpoint):
            found = convert(tmp_path / "dinov2.pth")(pixels).last_hidden_state
            assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
