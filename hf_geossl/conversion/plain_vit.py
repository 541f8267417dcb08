"""Weights of a plain ViT with class token, under the names that timm, DINO and others give them, as a trunk of this library."""

import logging
import re
from collections.abc import Mapping
from typing import Any, cast

import torch

from hf_geossl.conversion.checkpoint_file import State, load_strictly, part_of, tensors_of
from hf_geossl.methods import METHODS, PLAIN_VIT
from hf_geossl.modeling.configuration_vit import GeometricViTConfig
from hf_geossl.modeling.modeling_vit_heads import ViTTrunkModel

logger = logging.getLogger(__name__)
_PATCHES = "patch_embed.proj.weight"
HEAD_WIDTH = 64  # of all published ViTs
_KEYS = (
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^(?:register_tokens|reg_token)$", "embeddings.register_tokens"),
    (r"^mask_token$", "embeddings.mask_token"),
    (r"^blocks\.(\d+)\.ls(\d)\.gamma$", r"encoder.layer.\1.layer_scale\2.weight"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layer.\1.attention.projection."),
    (r"^blocks\.(\d+)\.attn\.", r"encoder.layer.\1.attention."),
    (r"^blocks\.(\d+)\.", r"encoder.layer.\1."),
    (r"^norm\.", "layernorm."),
)


def _flatten(content: Mapping[Any, Any], prefix: str = "", depth: int = 4) -> State:
    """The tensors of nested mappings, by their keys joined with dots; deeper ones, as in a file that holds itself, stay out."""
    state: State = {}
    for key, value in content.items():
        if isinstance(value, torch.Tensor):
            state[f"{prefix}{key}"] = value
        elif isinstance(value, Mapping) and depth:
            state |= _flatten(value, f"{prefix}{key}.", depth - 1)
    return state


def _choose(prefixes: list[str], name: str, weights: str | None) -> str:
    """Chooses the ViT to convert: of the network asked for, else of those under "state_dict" or "model"."""
    chosen = prefixes
    if weights is not None:
        other = "student" if weights == "teacher" else "teacher"
        chosen = [prefix for prefix in prefixes if weights in prefix.split(".")]
        chosen = chosen or [prefix for prefix in prefixes if other not in prefix.split(".")]
        if not chosen:
            raise ValueError(f"{name} holds the weights of a {other} and of no {weights}: choose weights={other!r}")
    for place in ("state_dict.", "model."):
        if len(chosen) > 1:
            chosen = [prefix for prefix in chosen if prefix.startswith(place)] or chosen
    if len(chosen) > 1:
        raise ValueError(f"{name} holds several ViTs ({', '.join(chosen)}): save the one to convert by itself")
    return chosen[0]


def _is_gated(state: State) -> bool:
    """Whether MLPs are SwiGLU: DINOv2 says w12, timm packs both halves into fc1."""
    first, second = (state.get(f"blocks.0.mlp.{layer}.weight") for layer in ("fc1", "fc2"))
    packed = first is not None and second is not None and first.shape[0] == 2 * second.shape[-1]
    return packed or any(".mlp.w12." in key for key in state)


def plain_names(content: Mapping[Any, Any], name: str, weights: str | None = None) -> State:
    """Gives a ViT's weights the names of a plain one, whatever wrapped them.

    Wrappers' prefixes go (what stands before "patch_embed.proj.weight", such as "module.", "_orig_mod.", "backbone." and the
    keys of nested mappings), and what lies beside them, which is logged, as is a head; blocks that DINOv2's program has divided
    into chunks ("blocks.0.3.") are counted through. Positions without one for the class token, as timm has them beside
    registers, get a zero.

    Args:
        content (`Mapping`): What a file holds.
        name (`str`): The file's name, for messages.
        weights (`"teacher"` or `"student"`, *optional*): Which network, where the file names them.

    Raises:
        ValueError: If there are no weights, several such ViTs, only the other network's, or gated MLPs (SwiGLU), which no
            trunk has.
    """
    found = _flatten(content)
    prefixes = sorted(key.removesuffix(_PATCHES) for key in found if key.endswith(_PATCHES))
    if not prefixes:
        return found or tensors_of(content, name)  # one of which says what the file holds instead
    prefix = _choose(prefixes, name, weights)
    state = part_of(found, prefix)
    left = [key for key in found if not key.startswith(prefix)]
    heads = [key for key in state if key.startswith(("head.", "head_drop."))]
    if left or heads:
        parts = sorted({".".join(key.split(".")[:2]) for key in left} | {prefix + key.split(".")[0] for key in heads})
        shown = ", ".join(parts[:8]) + (" ..." if len(parts) > 8 else "")
        logger.warning(f"{name}: {len(left) + len(heads)} tensors beside the ViT were left out ({shown})")
    state = {
        re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", key): value for key, value in state.items() if key not in heads
    }
    if _is_gated(state):
        raise ValueError(f"{name} has gated MLPs (SwiGLU, as DINOv2's ViT-g), which no trunk of this library has")
    positions = state.get("pos_embed")
    if positions is not None and "reg_token" in state and round(positions.shape[1] ** 0.5) ** 2 == positions.shape[1]:
        state["pos_embed"] = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    return state


def rename_trunk(state: State) -> State:
    """Gives a ViT's weights the names that they have in a trunk, in float32."""
    renamed = {}
    for key, value in state.items():
        name = key
        for pattern, replacement in _KEYS:
            name, count = re.subn(pattern, replacement, name)
            if count:
                break
        renamed[name] = value.float()
    return renamed


def trunk_config(
    state: State, name: str, config: GeometricViTConfig | None = None, **defaults: object
) -> GeometricViTConfig:
    """Makes the configuration of a trunk from the shapes of its weights.

    Args:
        state (`dict[str, torch.Tensor]`): The weights, under their foreign names.
        name (`str`): The file's name, for messages.
        config (`GeometricViTConfig`, *optional*): What shapes do not say; where both say something, the shapes win. It
            is not changed.
        **defaults: Fields where there is no `config`, beside heads of 64 channels.

    Returns:
        `GeometricViTConfig` of the method that takes over plain ViTs.

    Raises:
        ValueError: If the weights are not a plain ViT's, or the number of heads is neither given nor to be derived.
    """
    config_class: type[GeometricViTConfig] = METHODS[PLAIN_VIT].load("config")
    dimensions = {"cls_token": 3, "pos_embed": 3, "patch_embed.proj.weight": 4, "norm.weight": 1}
    dimensions["blocks.0.mlp.fc1.weight"] = 2
    missing = [key for key in dimensions if key not in state]
    if missing:
        raise ValueError(f"{name} is no plain ViT checkpoint: it lacks {', '.join(missing)}; is it another method's?")
    for key, expected in dimensions.items():
        if state[key].ndim != expected or not state[key].numel():
            raise ValueError(f"{name}: {key} must have {expected} dimensions, got shape {tuple(state[key].shape)}")
    hidden_size, num_channels, patch_size, patch_width = state["patch_embed.proj.weight"].shape
    if config is None:
        if hidden_size % HEAD_WIDTH:
            raise ValueError(
                f"{name} is {hidden_size} wide, which is no multiple of {HEAD_WIDTH}, so the number of heads cannot be "
                f"derived; give config={config_class.__name__}(hidden_size=..., num_attention_heads=...) (geossl convert: "
                "--num_attention_heads)"
            )
        heads = hidden_size // HEAD_WIDTH
        config = config_class(hidden_size=hidden_size, num_attention_heads=heads, **cast(dict[str, Any], defaults))
    positions = state["pos_embed"].shape[1] - 1
    height, width = (side // patch_size for side in config.image_height_width)
    if height * width != positions:
        height = width = round(positions**0.5)
    if height * width != positions or positions < 1 or patch_size != patch_width:
        raise ValueError(
            f"{name} has {positions} positions for patches of {patch_size} x {patch_width}, which is no square grid; "
            "give a config with its image_size"
        )
    depth = len({match.group(1) for key in state if (match := re.match(r"blocks\.(\d+)\.", key))})
    given = config.to_dict()
    if config.num_hidden_layers != depth:  # its stages are not those of this model
        given = {key: value for key, value in given.items() if key not in ("out_features", "out_indices")}
    given |= {
        "hidden_size": hidden_size,
        "num_channels": num_channels,
        "patch_size": patch_size,
        "image_size": height * patch_size if height == width else (height * patch_size, width * patch_size),
        "num_hidden_layers": depth,
        "intermediate_size": state["blocks.0.mlp.fc1.weight"].shape[0],
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "layerscale_value": 1.0 if "blocks.0.ls1.gamma" in state else None,
        "num_register_tokens": next((state[k].shape[1] for k in ("register_tokens", "reg_token") if k in state), 0),
        "use_mask_token": "mask_token" in state,
    }
    return config_class(**given)


def convert_plain_vit(
    content: Mapping[Any, Any],
    name: str,
    config: GeometricViTConfig | None,
    offset: float,
    weights: str | None = None,
) -> ViTTrunkModel:
    """Makes a trunk, in eval mode and float32, of a plain ViT's weights.

    Args:
        content, name, weights: As in `plain_names`.
        config: As in `trunk_config`.
        offset (`float`): Without `config`: `position_interpolation_offset`.

    Raises:
        ValueError: As both; also if a weight is missing, unknown or of another shape.
    """
    state = plain_names(content, name, weights)
    converted = trunk_config(state, name, config, position_interpolation_offset=offset, drop_path_rate=0.0)
    model: ViTTrunkModel = METHODS[PLAIN_VIT].load("model")(converted)
    load_strictly(model, rename_trunk(state), name)
    return model.eval()
