"""DINO's ViTs come in with equal features at every size."""

import argparse
from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional as F

from hf_geossl import GTSAConfig, GTSAModel
from hf_geossl.conversion import convert_dino_checkpoint
from tests.helpers.plain_vits import assert_close, images, save, tokens_of, vit_of

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")


def _dino_features(vit: VisionTransformer, pixels: torch.Tensor) -> torch.Tensor:
    """DINO's own way with positions (grid + 0.1 over the old grid, bicubic), on timm's other parts."""
    with torch.no_grad():
        tokens = vit.patch_embed.proj(pixels)
        rows, columns = tokens.shape[-2:]
        positions = vit.pos_embed
        old = round((positions.shape[1] - 1) ** 0.5)
        table = positions[:, 1:]
        if (rows, columns) != (old, old):
            table = F.interpolate(
                table.reshape(1, old, old, -1).permute(0, 3, 1, 2),
                scale_factor=((rows + 0.1) / old, (columns + 0.1) / old),
                mode="bicubic",
            )
            assert table.shape[-2:] == (rows, columns)
            table = table.permute(0, 2, 3, 1).flatten(1, 2)
        first = vit.cls_token.expand(len(pixels), -1, -1)
        tokens = torch.cat([first, tokens.flatten(2).mT], dim=1) + torch.cat([positions[:, :1], table], dim=1)
        for block in vit.blocks:
            tokens = block(tokens)
        return vit.norm(tokens)


@pytest.mark.parametrize("size", [(32, 32), (48, 48), (16, 40)])
def test_dino_checkpoints_have_equal_features_at_every_size(size: tuple[int, int], tmp_path: Path) -> None:
    teacher, student = vit_of(), vit_of()
    for parameter in student.parameters():
        with torch.no_grad():
            parameter.mul_(-0.5)
    head = {"mlp.0.weight": torch.zeros(8, 64), "last_layer.weight_g": torch.ones(4, 1)}
    content = {
        "student": {f"module.backbone.{key}": value for key, value in student.state_dict().items()}
        | {f"module.head.{key}": value for key, value in head.items()},
        "teacher": {f"backbone.{key}": value for key, value in teacher.state_dict().items()}
        | {f"head.{key}": value for key, value in head.items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_small", data_path="/data"),
        "dino_loss": {"center": torch.zeros(1, 4)},
    }
    full = save(content, tmp_path / "checkpoint.pth")
    flat = save(teacher.state_dict(), tmp_path / "dino_pretrain.pth")
    pixels = images(2, 3, *size)
    for path, weights, vit in (
        (full, "teacher", teacher),
        (full, "student", student),
        (flat, "teacher", teacher),
    ):
        model = convert_dino_checkpoint(path, weights)
        assert type(model) is GTSAModel
        assert not model.training
        assert model.config.position_interpolation_offset == 0.1
        assert_close(tokens_of(model, pixels), _dino_features(vit, pixels))
    assert (_dino_features(teacher, pixels) - _dino_features(student, pixels)).abs().max() > 0.1


def test_dino_weights_are_teacher_or_student(tmp_path: Path) -> None:
    path = save(vit_of().state_dict(), tmp_path / "dino.pth")
    with pytest.raises(ValueError, match="weights must be 'teacher' or 'student', got 'both'"):
        convert_dino_checkpoint(path, "both")
    heads = convert_dino_checkpoint(path, config=GTSAConfig(num_attention_heads=4))
    pixels = images(1, 3, 32, 32)
    assert_close(tokens_of(heads, pixels), _dino_features(vit_of(num_heads=4), pixels))
