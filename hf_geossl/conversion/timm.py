"""timm's `VisionTransformer` in and out."""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from hf_geossl.conversion.checkpoint_file import State, read_torch_file
from hf_geossl.conversion.plain_vit import convert_plain_vit
from hf_geossl.methods import METHODS, PLAIN_VIT
from hf_geossl.modeling.configuration_vit import GeometricViTConfig
from hf_geossl.modeling.modeling_vit_heads import ViTTrunkModel
from hf_geossl.modeling.positions import resample_positions

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

_ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}  # transformers' name: timm's
_KEYS = (
    (r"^embeddings\.(cls_token)$", r"\1"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
    (r"^encoder\.layer\.(\d+)\.layer_scale(\d)\.weight$", r"blocks.\1.ls\2.gamma"),
    (r"^encoder\.layer\.(\d+)\.attention\.projection\.", r"blocks.\1.attn.proj."),
    (r"^encoder\.layer\.(\d+)\.attention\.", r"blocks.\1.attn."),
    (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"^layernorm\.", "norm."),
)


def _config_of(module: nn.Module, config: GeometricViTConfig | None) -> GeometricViTConfig:
    """Makes a copy of `config`, or of the default, with what a timm model says beside its weights."""
    model: Any = module
    try:
        heads, activation = model.blocks[0].attn.num_heads, model.blocks[0].mlp.act
        (height, width), patch_size = model.patch_embed.grid_size, model.patch_embed.patch_size[0]
    except (AttributeError, IndexError, TypeError) as error:
        raise ValueError(f"the timm model must be a plain VisionTransformer, got {type(model).__name__}") from error
    probe = torch.linspace(-4, 4, 33)
    if not torch.allclose(activation(probe), nn.functional.gelu(probe), atol=1e-6):
        raise ValueError(f"the timm model must have exact GELU in its MLPs, got {activation}")
    fields = {
        "hidden_size": model.embed_dim,
        "num_attention_heads": heads,
        "patch_size": patch_size,
        "image_size": (height * patch_size, width * patch_size),
        "layer_norm_eps": getattr(model.norm, "eps", 1e-6),
    }
    given = {"position_interpolation_offset": 0.0, "drop_path_rate": 0.0} if config is None else config.to_dict()
    return cast(GeometricViTConfig, METHODS[PLAIN_VIT].load("config")(**{**given, **fields}))


def convert_timm_checkpoint(
    source: str | Path | nn.Module | Mapping[str, Any],
    config: GeometricViTConfig | None = None,
) -> ViTTrunkModel:
    """Takes over a timm `VisionTransformer` with class token, perhaps with layer scale and registers (as DINOv2's).

    Args:
        source (`str`, `Path`, `torch.nn.Module` or mapping): A `.safetensors` or `.pth` file, a timm model or its
            state dict. A classification head is left out.
        config (`GeometricViTConfig`, *optional*): What shapes (and a timm model's own attributes) do not say; by default
            heads of 64 channels, and positions resampled to the exact size.

    Returns:
        `ViTTrunkModel` in eval mode, of the method that takes over plain ViTs: `last_hidden_state` equals timm's
        `forward_features` at the size the file is made for. (At other sizes timm resamples positions with antialiasing,
        the trunk without.)

    Raises:
        FileNotFoundError, ValueError: As the converters of full checkpoints.
    """
    name = "the timm model"
    content: Mapping[str, Any]
    if isinstance(source, nn.Module):
        config = _config_of(source, config)
        content = source.state_dict()
    elif isinstance(source, Mapping):
        content = source
    else:
        name = Path(source).name
        content = read_torch_file(source)
    return convert_plain_vit(content, name, config, offset=0.0)


def _rename(trunk: ViTTrunkModel, grid: tuple[int, int]) -> State:
    """Gives the weights of a trunk timm's names, with positions for another grid."""
    state = {}
    for key, value in trunk.state_dict().items():
        if key == "embeddings.mask_token":
            continue
        for pattern, replacement in _KEYS:
            key, count = re.subn(pattern, replacement, key)
            if count:
                break
        state[key] = value.float()
    embeddings, config = trunk.embeddings, trunk.config
    classes = embeddings.num_class_tokens
    prefix, table = state["pos_embed"][:, :classes], state["pos_embed"][0, classes:]
    table = resample_positions(
        table.unflatten(0, embeddings.grid_size),
        *grid,
        embeddings.position_interpolation_offset,
        config.position_interpolation,
    )
    registers = prefix.new_zeros(1, config.num_register_tokens, config.hidden_size)  # they have no position
    state["pos_embed"] = torch.cat([prefix, registers, table.flatten(0, 1)[None]], dim=1)
    return state


def to_timm(model: nn.Module, image_size: int | tuple[int, int] | None = None) -> "VisionTransformer":
    """Gives the trunk as a timm `VisionTransformer`.

    Args:
        model (`torch.nn.Module`): A trunk of any method, or a model of any class that has one; its mask token stays behind.
        image_size (`int` or `(height, width)`, *optional*): Size in pixels that the timm model is made for; positions
            are resampled to it once, so that features are equal there. Defaults to `config.image_size`.

    Returns:
        `timm.models.VisionTransformer` in eval mode, without a head: `forward_features` equals `last_hidden_state`,
        and calling it gives `pooler_output`.

    Raises:
        ImportError: If timm is not installed.
        ValueError: If the model has no plain ViT trunk, or the patch does not divide `image_size`.
    """
    try:
        from timm.models.vision_transformer import VisionTransformer
    except ImportError as error:
        raise ImportError("to_timm needs timm: pip install timm") from error

    trunk: Any = (
        model if hasattr(model, "embeddings") else getattr(model, getattr(model, "base_model_prefix", ""), None)
    )
    if trunk is None or not hasattr(trunk, "embeddings"):
        raise ValueError(f"to_timm takes a model with a ViT trunk of this library, got {type(model).__name__}")
    config: GeometricViTConfig = trunk.config
    if config.hidden_act not in _ACTIVATIONS:
        raise ValueError(f"to_timm takes hidden_act {' or '.join(_ACTIVATIONS)}, got {config.hidden_act!r}")
    size = config.image_height_width if image_size is None else image_size
    height, width = (size, size) if isinstance(size, int) else size
    if height % config.patch_size or width % config.patch_size:
        raise ValueError(f"image_size must be a multiple of the patch size {config.patch_size}, got {height} x {width}")
    timm_model = VisionTransformer(
        img_size=(height, width),
        patch_size=config.patch_size,
        in_chans=config.num_channels,
        num_classes=0,
        global_pool="token" if trunk.pools_class_token else "avg",
        class_token=config.use_class_token,
        reg_tokens=config.num_register_tokens,
        init_values=config.layerscale_value,
        fc_norm=False,
        embed_dim=config.hidden_size,
        depth=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        mlp_ratio=(cast(int, config.intermediate_size) + 0.5) / config.hidden_size,  # timm rounds the product down
        qkv_bias=config.qkv_bias,
        act_layer=_ACTIVATIONS[config.hidden_act],
        norm_layer=partial(nn.LayerNorm, eps=config.layer_norm_eps),
    )
    timm_model.load_state_dict(_rename(trunk, (height // config.patch_size, width // config.patch_size)))
    return timm_model.eval()
