"""Weights of plain ViTs of any shape become a trunk; those of something else are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hf_geossl import GTSAConfig
from hf_geossl.conversion import convert_gtsa_checkpoint
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
        ({"weight": torch.zeros(3, 3)}, "no plain ViT checkpoint: it lacks cls_token"),
        ({"epoch": 3}, "holds no tensors under the expected names"),
        ({}, "holds no tensors under the expected names"),
        ({1: torch.zeros(2), "a": 3}, "holds no tensors under the expected names"),
        ({"model": {"backbone.conv1.weight": torch.zeros(3, 3)}}, "no plain ViT checkpoint"),
        (without_mlp, "lacks blocks.0.mlp.fc1.weight"),
        ({**state, "mask_token": torch.zeros(1, 1, 64)}, "has unknown mask_token"),
        ({**state, "blocks.0.ls1.gamma": torch.zeros(64)}, "has unknown .*ls1.gamma"),
        ({**state, "norm.weight": torch.zeros(7)}, "has other shapes for layernorm.weight"),
        ({**state, "pos_embed": torch.zeros(1, 16, 64)}, "15 positions .* no square grid"),
        ({**state, "pos_embed": torch.zeros(1, 1, 64)}, "0 positions"),
        ({**state, "pos_embed": torch.zeros(17, 64)}, "pos_embed must have 3 dimensions"),
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
