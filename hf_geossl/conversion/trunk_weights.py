"""Weights of any family become those of a trunk, with the fields of its configuration that they say."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from transformers.initialization import no_init_weights

from hf_geossl.conversion.checkpoint_file import State, load_strictly
from hf_geossl.conversion.families import FAMILIES, Family
from hf_geossl.conversion.families.family import HEAD_WIDTH
from hf_geossl.conversion.families.names import to_trunk
from hf_geossl.conversion.wrappers import find_trunk, looks_like, parts_of
from hf_geossl.methods import METHODS, PLAIN_VIT
from hf_geossl.modeling.configuration_vit import GeometricViTConfig
from hf_geossl.modeling.modeling_vit_heads import ViTTrunkModel
from hf_geossl.modeling.teacher_student import TeacherStudentModel

logger = logging.getLogger(__name__)
_Config = TypeVar("_Config", bound=GeometricViTConfig)
TRUNK_FIELDS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps"),
    *("image_size", "patch_size", "num_channels", "image_format", "qkv_bias", "key_bias", "use_class_token"),
    *("num_register_tokens", "use_mask_token", "layerscale_value", "gated_mlp", "patch_bias", "embedding_norm"),
    *("position_embedding_type", "rope_theta", "position_interpolation", "position_interpolation_offset"),
)
_DIMENSIONS = {"cls_token": 3, "register_tokens": 3, "position_embeddings": 3, "mask_token": 2}
_PATCHES, _POSITIONS = "embeddings.patch_embeddings.weight", "embeddings.position_embeddings"
_ROPE_SIZE = 224  # in pixels; nothing but the size of images by default depends on it
# buffers that follow from the configuration, and what only masks them
_BUFFERS = re.compile(r"position_ids$|(^|\.)rope(_embed)?\.|\.k_bias$|relative_position_index$|\.bias_mask$")
_INSIDE = re.compile(r"^(model\.)?(embeddings|encoder|blocks|layers?|patch_embed|norm_pre|pos_embed)\.")


@dataclass(frozen=True)
class SourceTrunk:
    """A trunk from elsewhere.

    Args:
        name (`str`): What it is called in messages and on cards: a Hub id, `timm:NAME`, or the name of a file or folder.
        family (`str`): Whose names its weights had.
        fields (`dict[str, Any]`): Fields of `GeometricViTConfig`, of any method.
        state (`dict[str, torch.Tensor]`): Its weights in float32, by the names of a trunk.
        left_out (`tuple[str, ...]`): What it has beside a trunk: heads, decoders, poolers.
        image_mean, image_std (`tuple[float, ...]`, *optional*): Of its image processor, where it has one.
        pretraining (`TeacherStudentModel`, *optional*): The whole `...ForPreTraining` model that it is part of, with heads and
            teacher, where it is of this library.
    """

    name: str
    family: str
    fields: dict[str, Any]
    state: State = field(repr=False)
    left_out: tuple[str, ...] = ()
    image_mean: tuple[float, ...] | None = None
    image_std: tuple[float, ...] | None = None
    pretraining: TeacherStudentModel | None = field(default=None, repr=False)


def choose_family(state: State, beside: tuple[str, ...], patches: str, families: Sequence[Family] = FAMILIES) -> Family:
    """Chooses the family of weights by their names.

    Args:
        state (`dict[str, torch.Tensor]`): A ViT's weights.
        beside (`tuple[str, ...]`): Beginnings of names of weights beside it.
        patches (`str`): The name of its patch embedding.
        families (`Sequence[Family]`): To choose from; all where none of them has this patch embedding.

    Returns:
        `Family`: The first whose signs they have.
    """
    candidates = [family for family in families if family.naming.patches == patches]
    candidates = candidates or [family for family in FAMILIES if family.naming.patches == patches]
    keys = [*state, *beside]
    has_class = any(key.endswith(("cls_token", "class_embedding")) for key in state)
    for family in candidates:
        signed = not family.signs or any(f".{sign}" in f".{key}" for sign in family.signs for key in keys)
        if signed and family.has_class_token in (None, has_class):
            return family
    return candidates[-1]


def given_fields(config: GeometricViTConfig | None) -> dict[str, Any]:
    """The fields of a configuration that speak where a file does not: the number of heads, and what is not its default."""
    if config is None:
        return {}
    defaults = type(config)()
    fields = {name: getattr(config, name) for name in TRUNK_FIELDS}
    fields = {name: value for name, value in fields.items() if value != getattr(defaults, name)}
    return fields | {"num_attention_heads": config.num_attention_heads}


def _rename(state: State, family: Family, name: str) -> tuple[State, list[str]]:
    """Gives weights the trunk's names and numbers of dimensions; also names what is no part of a trunk."""
    # of joined weights the first alone is a sign: DINOv3 calls the second as it does that of an MLP without gates
    gated = any(found[1] == 0 for key in state for row in family.naming.gated if (found := row.find(key)))
    masked = [key for key in state if key.endswith(".qkv.bias_mask") and key.removesuffix("_mask") in state]
    for key in masked:  # of DINOv3's own files: keys have no bias, whatever the file holds
        query, _, value = state.pop(key.removesuffix("_mask")).chunk(3)
        state[key.replace("qkv.bias_mask", "q_bias")], state[key.replace("qkv.bias_mask", "v_bias")] = query, value
    renamed, unknown = to_trunk(
        {key: value for key, value in state.items() if not _BUFFERS.search(key)}, family.naming.choose_table(gated)
    )
    for key in [key for key in renamed if key.endswith("attention.qkv.bias#2")]:  # no bias of keys
        layer, value = key.removesuffix("qkv.bias#2"), renamed.pop(key)
        renamed[f"{layer}value_bias"] = value
        renamed[f"{layer}query_bias"] = renamed.pop(f"{layer}qkv.bias#0", torch.zeros_like(value))
    inside = [key for key in unknown if _INSIDE.match(key)] + [key for key in renamed if "#" in key]
    if inside:
        raise ValueError(
            f"{name} has unknown {', '.join(inside[:4])}{' ...' if len(inside) > 4 else ''} in its trunk"
            f"{looks_like(inside) or ', which no trunk of this library has'}"
        )
    inner, outer = (renamed.get(f"encoder.layer.0.mlp.fc{side}.weight") for side in (1, 2))
    if gated and inner is not None and outer is not None and inner.shape[0] != 2 * outer.shape[-1]:
        raise ValueError(f"{name} has gated MLPs whose layers do not fit: {tuple(inner.shape)}, {tuple(outer.shape)}")
    for part, dimensions in _DIMENSIONS.items():
        if (tokens := renamed.get(f"embeddings.{part}")) is not None:
            while tokens.ndim < dimensions:
                tokens = tokens[None]
            renamed[f"embeddings.{part}"] = tokens[0] if tokens.ndim == dimensions + 1 and len(tokens) == 1 else tokens
    if "embeddings.register_tokens" in renamed and not renamed["embeddings.register_tokens"].numel():
        del renamed["embeddings.register_tokens"]
    if family.name == "mae":  # it is the decoder's
        renamed.pop("embeddings.mask_token", None)
    return renamed, unknown


def _count_registers(state: State) -> int:
    tokens = state.get("embeddings.register_tokens")
    return 0 if tokens is None else tokens.shape[1]


def _fold_positions(state: State, hints: Mapping[str, Any], name: str) -> tuple[int, int] | None:
    """Leaves one position for a class token, and adds those of registers into these; gives the grid."""
    if _POSITIONS not in state:
        return None
    positions, patch_size = state[_POSITIONS], state[_PATCHES].shape[-1]
    class_tokens = int("embeddings.cls_token" in state)
    registers = _count_registers(state)
    given = hints.get("image_size")
    side = (given, given) if isinstance(given, int) else tuple(given or (0, 0))
    hinted = (side[0] // patch_size, side[1] // patch_size)
    options = list(dict.fromkeys((class_tokens, 0, class_tokens + registers)))
    if hints.get("registers_have_positions"):
        options = [class_tokens + registers]
    grids: list[tuple[int, tuple[int, int]]] = []
    for prefix in options:
        count = positions.shape[1] - prefix
        root = round(max(count, 0) ** 0.5)
        if count > 0 and hinted[0] * hinted[1] == count:
            grids.insert(0, (prefix, hinted))
        elif count > 0 and root * root == count:
            grids.append((prefix, (root, root)))
    if not grids:
        raise ValueError(
            f"{name} has {positions.shape[1] - class_tokens} positions for patches of {patch_size} x "
            f"{state[_PATCHES].shape[-2]}, which is no square grid; give a config with its image_size"
        )
    prefix, grid = grids[0]
    if prefix > class_tokens:
        state["embeddings.register_tokens"] = state["embeddings.register_tokens"] + positions[:, class_tokens:prefix]
        state[_POSITIONS] = torch.cat([positions[:, :class_tokens], positions[:, prefix:]], dim=1)
    elif prefix < class_tokens:
        state[_POSITIONS] = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    return grid


def _check_shapes(state: State, name: str) -> None:
    needed = {
        _PATCHES: 4,
        "layernorm.weight": 1,
        "encoder.layer.0.mlp.fc1.weight": 2,
        "encoder.layer.0.mlp.fc2.weight": 2,
    }
    missing = [key for key in needed if key not in state]
    if "layernorm.weight" in missing:
        raise ValueError(
            f"{name} lacks layernorm.weight: its tokens have no final norm, or one after pooling (fc_norm), and a trunk's "
            "is before; take weights that were saved before fine-tuning"
        )
    if missing:
        raise ValueError(f"{name} is no plain ViT checkpoint: it lacks {', '.join(missing)}{looks_like(state)}")
    for key, dimensions in (needed | {f"embeddings.{part}": count for part, count in _DIMENSIONS.items()}).items():
        if key in state and (state[key].ndim != dimensions or not state[key].numel()):
            raise ValueError(f"{name}: {key} must have {dimensions} dimensions, got shape {tuple(state[key].shape)}")
    first, second = (state[f"encoder.layer.0.mlp.fc{side}.weight"] for side in (1, 2))
    if first.shape[0] not in (second.shape[1], 2 * second.shape[1]):  # twice as many where they are gated
        raise ValueError(f"{name} has MLPs whose layers do not fit: {tuple(first.shape)} and {tuple(second.shape)}")
    height, width = state[_PATCHES].shape[-2:]
    if height != width:
        raise ValueError(f"{name} has patches of {height} x {width}, and a trunk's are square")


def _count_heads(hidden_size: int, family: Family, hints: Mapping[str, Any], name: str) -> int:
    heads = hints.get("num_attention_heads") or family.heads.get(hidden_size)
    if heads is None and hidden_size % HEAD_WIDTH:
        class_name = METHODS[PLAIN_VIT].load("config").__name__
        raise ValueError(
            f"{name} is {hidden_size} wide, which is no multiple of {HEAD_WIDTH}, so the number of heads cannot be "
            f"derived; give config={class_name}(hidden_size=..., num_attention_heads=...) (geossl convert: "
            "--num_attention_heads)"
        )
    return heads or hidden_size // HEAD_WIDTH


def read_fields(state: State, family: Family, hints: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Reads the fields of a trunk's configuration off its weights; those of registers' positions are folded into these.

    Args:
        state (`dict[str, torch.Tensor]`): By the trunk's names; changed where positions are folded.
        family (`Family`): Whose they are.
        hints (`dict[str, Any]`): Fields that shapes do not say; where both say something, the shapes win.
        name (`str`): Of the source, for messages.

    Raises:
        ValueError: If the weights are not a ViT's, or the number of heads or the grid is neither given nor to be derived.
    """
    _check_shapes(state, name)
    grid = _fold_positions(state, hints, name)
    hidden_size, num_channels, patch_size, _ = state[_PATCHES].shape
    first = "encoder.layer.0."
    depth = len({match[1] for key in state if (match := re.match(r"encoder\.layer\.(\d+)\.", key))})
    width = state[f"{first}mlp.fc2.weight"].shape[-1]
    gated = state[f"{first}mlp.fc1.weight"].shape[0] == 2 * width
    fields: dict[str, Any] = {**family.defaults, **{key: value for key, value in hints.items() if key in TRUNK_FIELDS}}
    if grid is not None:
        height, breadth = (side * patch_size for side in grid)
        fields["image_size"] = height if height == breadth else (height, breadth)
    else:
        fields.setdefault("image_size", _ROPE_SIZE // patch_size * patch_size)
    if gated and family.name != "dinov3_vit":
        fields["hidden_act"] = "silu"  # DINOv2's configuration says "gelu", which gated MLPs do not read
    fields |= {
        "hidden_size": hidden_size,
        "num_hidden_layers": depth,
        "num_attention_heads": _count_heads(hidden_size, family, hints, name),
        "intermediate_size": width,
        "patch_size": patch_size,
        "num_channels": num_channels,
        "gated_mlp": gated,
        "qkv_bias": f"{first}attention.qkv.bias" in state or f"{first}attention.query_bias" in state,
        "key_bias": f"{first}attention.query_bias" not in state,
        "patch_bias": "embeddings.patch_embeddings.bias" in state,
        "embedding_norm": "embeddings.norm.weight" in state,
        "use_class_token": "embeddings.cls_token" in state,
        "num_register_tokens": _count_registers(state),
        "use_mask_token": "embeddings.mask_token" in state,
        "position_embedding_type": "rope" if grid is None else "learned",
        "layerscale_value": (fields.get("layerscale_value") or 1.0 if f"{first}layer_scale1.weight" in state else None),
    }
    return fields


def read_trunk(
    content: Mapping[Any, Any],
    name: str,
    *,
    weights: str | None = None,
    families: Sequence[Family] = FAMILIES,
    hints: Mapping[str, Any] | None = None,
) -> SourceTrunk:
    """Makes a trunk of the weights that a file or a model holds, whatever wrapped them.

    Args:
        content (`Mapping`): What a file holds.
        name (`str`): Its name, for messages.
        weights (`"teacher"` or `"student"`, *optional*): Which network, where the file names them.
        families (`Sequence[Family]`): Whose weights they can be; names decide.
        hints (`dict[str, Any]`, *optional*): Fields of the configuration that shapes do not say; shapes win.

    Raises:
        ValueError: If there is no ViT, or several; if it has parts that a trunk has not, or lacks one; if the number of heads
            cannot be derived.
    """
    state, beside, patches = find_trunk(content, name, weights)
    if "encoder.layer.0.attention.qkv.weight" in state:
        raise ValueError(f"{name} is a file of this library: give the folder that it lies in")
    if {"pos_embed", "blocks.0.attn.q_bias"} <= state.keys() and "position_embedding_type" not in (hints or {}):
        raise ValueError(
            f"{name} looks like EVA, and a file does not say whether positions are rotated too: give timm:NAME, which says it"
        )
    family = choose_family(state, beside, patches, families)
    periods = state.get("rope_embed.periods")  # of DINOv3's own files: one for four channels of a head
    renamed, unknown = _rename(state, family, name)
    hints = dict(hints or {})
    if periods is not None and _PATCHES in renamed:
        hints.setdefault("num_attention_heads", renamed[_PATCHES].shape[0] // (4 * len(periods)))
    fields = read_fields(renamed, family, hints, name)
    if family.remark:
        logger.warning(f"{name}: {family.remark}")
    return SourceTrunk(name, family.name, fields, renamed, tuple(sorted({*beside, *parts_of(unknown)})))


def make_config(
    config_class: type[_Config], trunk: SourceTrunk, config: GeometricViTConfig | None, **fields: object
) -> _Config:
    """Makes a configuration for a trunk.

    Args:
        config_class (`type`): Of a method.
        trunk (`SourceTrunk`): Its fields win.
        config (`GeometricViTConfig`, *optional*): Gives fields that trunks do not have; it is not changed.
        **fields: Fields where there is no `config`.
    """
    given = fields if config is None else config.to_dict()
    if config is not None and config.num_hidden_layers != trunk.fields["num_hidden_layers"]:
        # its stages are not those of this model
        given = {key: value for key, value in given.items() if key not in ("out_features", "out_indices")}
    return config_class(**{**given, **trunk.fields})


def describe_left_out(trunk: SourceTrunk) -> str | None:
    """What the source has beside the trunk, in a line with the family that it is read as; None where that is nothing."""
    if not trunk.left_out:
        return None
    shown = ", ".join(trunk.left_out[:8]) + (" ..." if len(trunk.left_out) > 8 else "")
    count = len(trunk.left_out)
    return f"{trunk.name}, read as {trunk.family}: {count} part{'s' if count > 1 else ''} beside the ViT left out ({shown})"


def say_left_out(trunk: SourceTrunk) -> None:
    """Logs what the source has beside the trunk."""
    if line := describe_left_out(trunk):
        logger.warning(line)


def build_trunk(trunk: SourceTrunk, config: GeometricViTConfig | None = None) -> ViTTrunkModel:
    """Makes a model of a trunk: of its own method, or of the one that takes over plain ViTs.

    Args:
        trunk (`SourceTrunk`): Whose weights they are.
        config (`GeometricViTConfig`, *optional*): Gives fields that trunks do not have; it is not changed.

    Returns:
        `ViTTrunkModel` in eval mode and float32, without stochastic depth where there is no `config`.

    Raises:
        ValueError: If a weight is missing, unknown or of another shape.
    """
    method = METHODS.get(trunk.family, METHODS[PLAIN_VIT])
    with no_init_weights():
        model: ViTTrunkModel = method.load("model")(
            make_config(method.load("config"), trunk, config, drop_path_rate=0.0)
        )
    load_strictly(model, trunk.state, trunk.name)
    say_left_out(trunk)
    return model.eval()
