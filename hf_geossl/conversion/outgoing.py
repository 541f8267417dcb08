"""A trunk's weights on their way to another family: what that family has no place for is folded into others, or filled in."""

import logging
import re
from typing import Any, cast

import torch
from torch import nn

from hf_geossl.conversion.checkpoint_file import State
from hf_geossl.modeling.configuration_vit import GeometricViTConfig
from hf_geossl.modeling.modeling_vit_heads import ViTTrunkModel

logger = logging.getLogger(__name__)


def trunk_of(model: nn.Module, taker: str) -> ViTTrunkModel:
    """The trunk of a model of this library.

    Args:
        model (`torch.nn.Module`): A trunk of any method, or a model of any class that has one.
        taker (`str`): Who takes it, for messages.

    Raises:
        ValueError: If it has none.
    """
    trunk: Any = (
        model if hasattr(model, "embeddings") else getattr(model, getattr(model, "base_model_prefix", ""), None)
    )
    if trunk is None or not hasattr(trunk, "embeddings"):
        raise ValueError(f"{taker} takes a model with a ViT trunk of this library, got {type(model).__name__}")
    return cast(ViTTrunkModel, trunk)


def config_of(trunk: ViTTrunkModel) -> GeometricViTConfig:
    """The configuration of a trunk, whose type transformers does not say."""
    return cast(GeometricViTConfig, trunk.config)


def state_of(trunk: ViTTrunkModel) -> State:
    """The weights of a trunk in float32, on the CPU."""
    return {key: value.detach().float().cpu() for key, value in trunk.state_dict().items()}


def layers_of(state: State) -> list[str]:
    """The prefixes of a trunk's layers."""
    return sorted({match[0] for key in state if (match := re.match(r"encoder\.layer\.\d+\.", key))})


def join_key_bias(state: State) -> None:
    """Gives keys a bias of 0 where only queries and values have one."""
    for layer in layers_of(state):
        if f"{layer}attention.query_bias" in state:
            query, value = (state.pop(f"{layer}attention.{part}_bias") for part in ("query", "value"))
            state[f"{layer}attention.qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])


def fold_layer_scale(state: State) -> None:
    """Multiplies the scales of residual branches into the layers before them."""
    folded = 0
    for layer in layers_of(state):
        for side, part in ((1, "attention.projection"), (2, "mlp.fc2")):
            scale = state.pop(f"{layer}layer_scale{side}.weight", None)
            if scale is not None:
                state[f"{layer}{part}.weight"] = state[f"{layer}{part}.weight"] * scale[:, None]
                state[f"{layer}{part}.bias"] = state[f"{layer}{part}.bias"] * scale
                folded += 1
    if folded:
        logger.warning(f"{folded} layer scales were multiplied into the layers before them: the family has none")


def add_layer_scale(state: State) -> None:
    """Gives residual branches scales of 1, where they have none."""
    for layer in layers_of(state):
        for side in (1, 2):
            width = state[f"{layer}norm1.weight"].shape[0]
            state.setdefault(f"{layer}layer_scale{side}.weight", torch.ones(width))
