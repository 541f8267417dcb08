"""Trunks as plain models of other families, which open with no code of this library."""

import logging
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from hf_geossl.conversion import outgoing
from hf_geossl.conversion.checkpoint_file import State
from hf_geossl.conversion.families import FAMILIES, Family
from hf_geossl.conversion.families.names import from_trunk
from hf_geossl.conversion.timm import save_timm, to_timm
from hf_geossl.hub.export import MAX_SHARD_SIZE, make_image_processor
from hf_geossl.methods import TARGET_FAMILIES
from hf_geossl.modeling.configuration_vit import GeometricViTConfig
from hf_geossl.modeling.image_format import IMAGENET_MEAN, IMAGENET_STD

logger = logging.getLogger(__name__)
_SHARED_FIELDS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("layer_norm_eps", "patch_size", "num_channels", "initializer_range", "qkv_bias"),
)
_SHORT = {"dinov3": "dinov3_vit", "clip": "clip_vision_model", "siglip": "siglip_vision_model"}


def find_family(name: str, config: GeometricViTConfig) -> Family:
    """The family that a name means for a trunk: "dinov2" with or without registers, as the trunk has them.

    Raises:
        ValueError: If no such family can be written.
    """
    if name == "dinov2" and config.num_register_tokens:
        name = "dinov2_with_registers"
    name = _SHORT.get(name, name)
    for family in FAMILIES:
        if family.name == name and family.model_class:
            return family
    raise ValueError(f"there is no family {name!r} to write; choose one of {', '.join(TARGET_FAMILIES)}")


def _why_not(family: Family, config: GeometricViTConfig) -> str | None:
    """What of a trunk a family has no place for, as the end of a sentence; None where it fits."""
    fewest, most = family.registers
    height, width = config.image_height_width
    rotary = family.defaults.get("position_embedding_type") == "rope"
    rules = (
        (
            rotary == (config.position_embedding_type == "rope"),
            f"position_embedding_type={config.position_embedding_type!r}",
        ),
        (bool(family.has_class_token) == config.use_class_token, f"use_class_token={config.use_class_token}"),
        (fewest <= config.num_register_tokens <= most, f"{config.num_register_tokens} register tokens"),
        (family.can_gate or not config.gated_mlp, "gated MLPs"),
        (family.has_embedding_norm == config.embedding_norm, f"embedding_norm={config.embedding_norm}"),
        (family.has_patch_bias or not config.patch_bias, f"patch_bias={config.patch_bias}"),
        (rotary or height == width, f"positions of {height} x {width} pixels, which are no square"),
    )
    wrong = [words for fits, words in rules if not fits]
    return " and ".join(wrong) or None


def _config_fields(family: Family, config: GeometricViTConfig) -> dict[str, Any]:
    height, width = config.image_height_width
    shared = {name: getattr(config, name) for name in _SHARED_FIELDS}
    return shared | {"image_size": height if height == width else (height, width)} | family.extras(config)


def _prepare(state: State, family: Family, config: GeometricViTConfig) -> State:
    """Folds and fills in what the family has no place for, or always has."""
    if family.has_layer_scale:
        outgoing.add_layer_scale(state)
    else:
        outgoing.fold_layer_scale(state)
    if family.needs_key_bias:
        outgoing.join_key_bias(state)
    if family.needs_qkv_bias:
        for layer in outgoing.layers_of(state):
            state.setdefault(f"{layer}attention.qkv.bias", torch.zeros(3 * config.hidden_size))
    if family.has_patch_bias:
        state.setdefault("embeddings.patch_embeddings.bias", torch.zeros(config.hidden_size))
    if family.registers == (1, 1):  # a distillation token, whose position is in it
        positions = state["embeddings.position_embeddings"]
        state["embeddings.position_embeddings"] = torch.cat(
            [positions[:, :1], torch.zeros_like(positions[:, :1]), positions[:, 1:]], dim=1
        )
    return state


def _say_differences(family: Family, config: GeometricViTConfig) -> None:
    wanted = {name: family.defaults.get(name) for name in ("position_interpolation", "position_interpolation_offset")}
    if config.position_embedding_type == "learned" and any(getattr(config, name) != wanted[name] for name in wanted):
        logger.warning(
            f"features are equal at {config.image_size} pixels: at other sizes {family.name} resamples positions with "
            f"{wanted['position_interpolation']} to the exact size, this trunk with {config.position_interpolation} and an "
            f"offset of {config.position_interpolation_offset}"
        )
    if family.remark:
        logger.warning(family.remark)
    if family.has_pooler:
        logger.warning(
            f"{family.model_class} is written without a pooler: it makes a random one unless add_pooling_layer=False"
        )


def to_family(model: nn.Module, family: str) -> nn.Module:
    """Gives the trunk as a plain model of another family, of transformers or timm.

    Args:
        model (`torch.nn.Module`): A trunk of any method, or a model of any class that has one.
        family (`str`): One of `TARGET_FAMILIES`. "dinov2" has registers where the trunk has.

    Returns:
        `PreTrainedModel`, such as `Dinov2Model`, in eval mode and float32 with equal features; or timm's model.

    Raises:
        ValueError: If there is no such family, or the trunk has what it has no place for, by name.
    """
    if family == "timm":
        return to_timm(model)
    trunk = outgoing.trunk_of(model, "to_family")
    config = outgoing.config_of(trunk)
    target = find_family(family, config)
    if wrong := _why_not(target, config):
        others = [name for name in TARGET_FAMILIES if name == "timm" or not _why_not(find_family(name, config), config)]
        raise ValueError(f"{target.name} has no place for {wrong}: choose {' or '.join(others)}")
    _say_differences(target, config)
    config_class = transformers.CONFIG_MAPPING[target.name]
    model_class: Any = getattr(transformers, target.model_class)
    made = config_class(**_config_fields(target, config))
    state = _prepare(outgoing.state_of(trunk), target, config)
    return _load(model_class, made, state, target)


def _load(model_class: Any, config: Any, state: State, family: Family) -> PreTrainedModel:
    """Makes transformers' model of weights by the trunk's names; its own loading knows how its versions call them."""
    keywords = {"add_pooling_layer": False} if family.has_pooler else {}
    width = state["encoder.layer.0.mlp.fc2.weight"].shape[-1]
    gated = state["encoder.layer.0.mlp.fc1.weight"].shape[0] == 2 * width
    if not family.has_mask_token and state.pop("embeddings.mask_token", None) is not None:
        logger.warning(f"the mask token stays behind: {family.model_class} has none")
    elif family.has_mask_token and getattr(config, "use_mask_token", True):
        state.setdefault("embeddings.mask_token", torch.zeros(1, config.hidden_size))
    if family.registers[1]:
        state.setdefault("embeddings.register_tokens", torch.zeros(1, 0, config.hidden_size))
    for key, dimensions in family.dimensions.items():
        if key in state:
            state[key] = state[key].reshape(
                state[key].shape[-dimensions:] if state[key].ndim > dimensions else (1, *state[key].shape)
            )
    renamed, unknown = from_trunk(state, family.naming.choose_table(gated))
    if unknown:
        raise ValueError(f"{family.name} has no place for {', '.join(unknown[:4])}")
    model, info = model_class.from_pretrained(
        None, config=config, state_dict=renamed, output_loading_info=True, dtype=torch.float32, **keywords
    )
    wrong = sorted({*info["missing_keys"], *info["unexpected_keys"], *(str(key) for key in info["mismatched_keys"])})
    if wrong:
        raise ValueError(f"{family.model_class} does not take these weights: {', '.join(wrong[:4])}")
    return model.eval()


def save_family(
    model: nn.Module,
    family: str,
    output_dir: str | Path,
    image_mean: tuple[float, ...] | None = None,
    image_std: tuple[float, ...] | None = None,
) -> None:
    """Writes the trunk as a plain folder of another family, with its image processor, which opens with no code of this library.

    Args:
        model, family: As in `to_family`.
        output_dir (`str` or `Path`): The folder.
        image_mean, image_std (`tuple[float, ...]`, *optional*): Normalisation of images in [0, 1]; ImageNet's by default.

    Raises:
        ValueError: As `to_family`; also if a folder of timm cannot state the model.
    """
    image_format = outgoing.config_of(outgoing.trunk_of(model, "save_family")).get_image_format()
    plain_images = image_format is not None and image_format.is_rgb8
    mean, std = image_mean or IMAGENET_MEAN, image_std or IMAGENET_STD
    if not plain_images:
        logger.warning("no image processor is written: those of transformers and timm read RGB of 8 bits alone")
    if family == "timm":
        save_timm(model, Path(output_dir), *((mean, std) if plain_images else (None, None)))
        return
    plain: Any = to_family(model, family)
    size = plain.config.image_size
    plain.save_pretrained(output_dir, max_shard_size=MAX_SHARD_SIZE)
    if plain_images:
        pixels = (size, size) if isinstance(size, int) else tuple(size)
        make_image_processor(pixels, mean, std).save_pretrained(output_dir)
