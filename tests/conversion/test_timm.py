"""timm's ViTs come in and go back with equal features."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from timm import create_model
from timm.models.vision_transformer import ResPostBlock
from torch import nn

from hf_geossl import GTSABackbone, GTSAConfig, GTSAForPreTraining, GTSAModel
from hf_geossl.conversion import convert_timm_checkpoint, to_timm
from tests.helpers.methods import METHODS, randomise
from tests.helpers.plain_vits import assert_close, images, save, tokens_of, vit_of

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_heads": 4, "embed_dim": 48},
        {"num_classes": 10},
        {"img_size": (32, 48)},
        {"img_size": (16, 64)},  # 16 positions, as many as 4 x 4
        {"norm_layer": partial(nn.LayerNorm, eps=1e-2)},
        {"global_pool": "avg", "fc_norm": False},
        {"init_values": 0.1},
        {"act_layer": partial(nn.GELU, approximate="tanh")},
        {"reg_tokens": 2, "no_embed_class": True},
        {"pre_norm": True},
    ],
)
def test_timm_models_come_in_and_go_back(fields: dict[str, Any]) -> None:
    vit = vit_of(**fields)
    model = convert_timm_checkpoint(vit)
    assert type(model) is GTSAModel
    assert not model.training
    pixels = images(2, 3, *vit.patch_embed.img_size)
    expected = tokens_of(vit, pixels)
    assert_close(tokens_of(model, pixels), expected)
    back = to_timm(model)
    assert not back.training
    assert back.patch_embed.img_size == vit.patch_embed.img_size
    assert_close(tokens_of(back, pixels), expected)
    with torch.no_grad():
        assert_close(back(pixels), expected[:, vit.num_prefix_tokens :].mean(1))
    state = vit.state_dict()
    if vit.no_embed_class:  # prefix tokens have positions of 0 now
        assert not back.pos_embed[:, :3].any()
        return
    assert back.state_dict().keys() == {key for key in state if not key.startswith("head.")}
    for key, value in back.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_what_a_timm_model_tells_wins_over_the_configuration() -> None:
    vit, config = vit_of(num_heads=4), GTSAConfig(hidden_size=64, num_attention_heads=2, projection_size=9)
    before = config.to_dict()
    model = convert_timm_checkpoint(vit, config)
    assert config.to_dict() == before
    assert (model.config.num_attention_heads, model.config.projection_size) == (4, 9)
    pixels = images(2, 3, 32, 32)
    assert_close(tokens_of(model, pixels), tokens_of(vit, pixels))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_timm_files_and_state_dicts(suffix: str, tmp_path: Path) -> None:
    vit, path, pixels = vit_of(num_classes=3), tmp_path / f"model{suffix}", images(2, 3, 32, 32)
    if suffix == ".pth":
        save({"state_dict": vit.state_dict()}, path)
    else:
        save_file(vit.state_dict(), path)
    for source in (path, str(path), vit.state_dict()):
        model = convert_timm_checkpoint(source)
        assert model.config.position_interpolation_offset == 0.0
        assert_close(tokens_of(model, pixels), tokens_of(vit, pixels))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"act_layer": nn.ReLU}, "exact GELU"),
        ({"qk_norm": True}, "unknown blocks.0.attn.q_norm.*looks like a ViT with normalised queries and keys"),
        ({"global_pool": "avg"}, r"lacks layernorm.weight: .* or one after pooling \(fc_norm\)"),
        ({"final_norm": False}, "lacks layernorm.weight: its tokens have no final norm"),
        ({"block_fn": ResPostBlock}, "plain pre-norm blocks, got ResPostBlock"),
        ({"patch_size": (8, 4)}, "patches of 8 x 4, and a trunk's are square"),
    ],
)
def test_timm_models_with_other_parts_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert_timm_checkpoint(vit_of(**fields))


def test_other_modules_are_refused() -> None:
    parallel = create_model("vit_base_patch16_18x2_224", embed_dim=64, depth=1, num_heads=1)
    with pytest.raises(ValueError, match="plain VisionTransformer, got VisionTransformer of ParallelThingsBlock"):
        convert_timm_checkpoint(parallel)
    with pytest.raises(ValueError, match="plain VisionTransformer, got Linear"):
        convert_timm_checkpoint(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="model with a ViT trunk.*got Linear"):
        to_timm(nn.Linear(2, 2))


@pytest.mark.parametrize("size", [None, 32, 64, 16, (48, 24), (16, 64)])
@pytest.mark.parametrize("offset", [0.1, 0.0])
def test_to_timm_has_equal_features_at_the_size_asked_for(size: Any, offset: float) -> None:
    config = GTSAConfig(
        hidden_size=97,  # 100 / 97 * 97 is 99.99...
        intermediate_size=100,
        num_attention_heads=1,
        num_hidden_layers=2,
        image_size=32,
        patch_size=8,
        layer_norm_eps=1e-3,
        position_interpolation_offset=offset,
    )
    model = GTSAModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.normal_(std=0.1, generator=generator)
    height, width = (32, 32) if size is None else (size, size) if isinstance(size, int) else size
    pixels = images(2, 3, height, width)
    vit = to_timm(model, image_size=size)
    with torch.no_grad():
        outputs = model(pixels)
        assert_close(vit.forward_features(pixels), outputs.last_hidden_state, 5e-6)
        assert_close(vit(pixels), outputs.pooler_output, 5e-6)


@pytest.mark.parametrize("fields", [{}, {"num_register_tokens": 3, "layerscale_value": 0.3, "host": "dino"}])
def test_to_timm_takes_registers_layer_scale_and_a_class_token_that_is_pooled(fields: dict[str, Any]) -> None:
    model = randomise(METHODS["equicoherent"].model("Model", **fields))
    pixels = images(2, 3, 32, 32)
    vit = to_timm(model)
    assert_close(tokens_of(vit, pixels), tokens_of(model, pixels))
    with torch.no_grad():
        assert_close(vit(pixels), model(pixels).pooler_output)


@pytest.mark.parametrize("size", [None, (48, 16), 64])
def test_to_timm_takes_loca(size: Any) -> None:
    model = randomise(METHODS["loca"].model("Model"))
    height, width = (size, size) if isinstance(size, int) else size or model.config.image_height_width
    pixels = images(2, 3, height, width)
    vit = to_timm(model, image_size=size)
    assert_close(tokens_of(vit, pixels), tokens_of(model, pixels))
    with torch.no_grad():
        assert_close(vit(pixels), model(pixels).pooler_output)


def test_to_timm_takes_any_class_and_refuses_what_timm_has_not() -> None:
    config = GTSAConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=3, image_size=32, patch_size=8)
    pixels = images(1, 3, 32, 32)
    backbone = GTSABackbone(config).eval()
    expected = backbone(pixels).feature_maps[0].flatten(2).mT
    assert_close(tokens_of(to_timm(backbone), pixels)[:, 1:], expected)
    pretraining = GTSAForPreTraining(config).eval()
    assert_close(tokens_of(to_timm(pretraining), pixels), tokens_of(pretraining.gtsa, pixels))
    with pytest.raises(ValueError, match="multiple of the patch size 8, got 36 x 36"):
        to_timm(backbone, image_size=36)
    config.hidden_act = "relu"
    with pytest.raises(ValueError, match="hidden_act gelu or gelu_pytorch_tanh or quick_gelu or silu, got 'relu'"):
        to_timm(GTSAModel(config))
