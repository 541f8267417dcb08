"""timm's `VisionTransformer`, and its `Eva` with DINOv3's rotary positions, in and out."""

import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import save_file
from torch import nn

from hf_geossl.conversion.checkpoint_file import State, read_torch_file
from hf_geossl.conversion.families.blocks import NAMING, TIMM, TIMM_FAMILIES
from hf_geossl.conversion.families.names import from_trunk
from hf_geossl.conversion.outgoing import config_of, join_key_bias, state_of, trunk_of
from hf_geossl.conversion.trunk_weights import SourceTrunk, build_trunk, given_fields, read_trunk
from hf_geossl.modeling.configuration_vit import GeometricViTConfig
from hf_geossl.modeling.modeling_vit_heads import ViTTrunkModel
from hf_geossl.modeling.positions import resample_positions

if TYPE_CHECKING:
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

logger = logging.getLogger(__name__)
# transformers' names: what timm calls them
_ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu", "silu": "silu"}


def _activation_of(module: nn.Module) -> str:
    """Finds transformers' name of an activation by what it computes."""
    from transformers.activations import ACT2FN

    probe = torch.linspace(-4, 4, 33)
    for name in _ACTIVATIONS:
        if torch.allclose(module(probe), ACT2FN[name](probe), atol=1e-6):
            return name
    raise ValueError(f"the timm model must have exact GELU, tanh GELU, quick GELU or SiLU in its MLPs, got {module}")


def _refuse_other_parts(model: Any) -> None:
    """Refuses, by name, what weights' names do not show."""
    rope = getattr(model, "rope", None)
    if rope is not None and (type(rope).__name__ != "RotaryEmbeddingDinoV3" or not model.blocks[0].attn.rotate_half):
        raise ValueError(f"the timm model must have DINOv3's rotary positions, got {type(rope).__name__}")
    if rope is not None and (
        model.pos_embed is not None or (rope.grid_indexing, rope.normalize_coords) != ("ij", "separate")
    ):
        raise ValueError("the timm model has other rotary positions than DINOv3's, or learned ones beside them")
    block = model.blocks[0]
    if not hasattr(block, "norm1") or type(block).__name__ not in ("Block", "EvaBlock"):
        raise ValueError(f"the timm model must have plain pre-norm blocks, got {type(block).__name__}")


def read_timm_model(model: Any, name: str = "the timm model", hints: Mapping[str, Any] | None = None) -> SourceTrunk:
    """Reads a trunk from a timm model.

    Args:
        model (`torch.nn.Module`): timm's.
        name (`str`): Its name, for messages.
        hints (`dict[str, Any]`, *optional*): Fields that neither the model nor its weights say.

    Raises:
        ValueError: If it has parts that trunks have not.
    """
    try:
        block, (height, width) = model.blocks[0], model.patch_embed.grid_size
        heads, mlp, patch_size = block.attn.num_heads, block.mlp, model.patch_embed.patch_size[0]
    except (AttributeError, IndexError, TypeError) as error:
        blocks = {type(block).__name__: None for block in getattr(model, "blocks", ())}
        got = type(model).__name__ + (f" of {', '.join(blocks)}" if blocks else "")
        raise ValueError(f"{name} must be a plain VisionTransformer, got {got}") from error
    _refuse_other_parts(model)
    rope = getattr(model, "rope", None)
    fields: dict[str, Any] = {
        "num_attention_heads": heads,
        "hidden_act": _activation_of(mlp.act),
        "image_size": (height * patch_size, width * patch_size),
        "layer_norm_eps": getattr(block.norm1, "eps", 1e-6),
        "registers_have_positions": not getattr(model, "no_embed_class", False) and model.pos_embed is not None,
    }
    fields["position_embedding_type"] = "learned" if rope is None else "rope"
    if rope is not None:
        if fields["image_size"][0] == fields["image_size"][1]:
            fields["image_size"] = fields["image_size"][0]
        fields["rope_theta"] = float(rope.temperature)
    trunk = read_trunk(model.state_dict(), name, families=(TIMM,), hints={**(hints or {}), **fields})
    cfg = getattr(model, "pretrained_cfg", None) or {}
    mean, std = cfg.get("mean"), cfg.get("std")
    return SourceTrunk(
        **{**vars(trunk), "image_mean": tuple(mean) if mean else None, "image_std": tuple(std) if std else None}
    )


def open_timm(name: str) -> SourceTrunk:
    """Opens a pretrained model of timm: `NAME`, `hf-hub:ID` or `local-dir:FOLDER`.

    Raises:
        ImportError: If timm is not installed.
        ValueError: If timm has no such model, or it has parts that trunks have not.
    """
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"timm:{name} needs timm: pip install 'hf_geossl[timm]'") from error
    if ":" not in name and not timm.is_model(name.split(".")[0]):
        raise ValueError(f"timm has no model {name!r}; timm.list_models('vit*') shows them")
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0)
    except (RuntimeError, OSError, ValueError) as error:
        raise ValueError(f"timm cannot open {name!r}: {' '.join(str(error).split())[:300]}") from error
    return read_timm_model(model, Path(name).name if name.startswith("local-dir:") else f"timm:{name}")


def convert_timm_checkpoint(
    source: str | Path | nn.Module | Mapping[str, Any],
    config: GeometricViTConfig | None = None,
) -> ViTTrunkModel:
    """Takes over a timm `VisionTransformer`, or `Eva` with DINOv3's rotary positions.

    Args:
        source (`str`, `Path`, `torch.nn.Module` or mapping): A `.safetensors` or `.pth` file, a timm model or its
            state dict. A classification head is left out.
        config (`GeometricViTConfig`, *optional*): What shapes (and a timm model's own attributes) do not say; by default
            heads of 64 channels, and positions resampled to the exact size with antialiasing, as timm does.

    Returns:
        `ViTTrunkModel` in eval mode, of the method that takes over plain ViTs: `last_hidden_state` equals timm's
        `forward_features`.

    Raises:
        FileNotFoundError, ValueError: As the converters of full checkpoints.
    """
    if isinstance(source, nn.Module):
        return build_trunk(read_timm_model(source, hints=given_fields(config)), config)
    name, content = "the timm model", source
    if not isinstance(source, Mapping):
        name, content = Path(source).name, read_torch_file(source)
    trunk = read_trunk(cast(Mapping[str, Any], content), name, families=TIMM_FAMILIES, hints=given_fields(config))
    return build_trunk(trunk, config)


def _state_for(trunk: ViTTrunkModel, grid: tuple[int, int]) -> State:
    """The weights of a trunk with positions for another grid, as timm has them: with those of registers, which are 0."""
    state = state_of(trunk)
    state.pop("embeddings.mask_token", None)
    embeddings, config = trunk.embeddings, config_of(trunk)
    if embeddings.position_embeddings is None:
        return state
    positions = state["embeddings.position_embeddings"]
    prefix, table = positions[:, : embeddings.num_class_tokens], positions[0, embeddings.num_class_tokens :]
    table = resample_positions(
        table.unflatten(0, embeddings.grid_size),
        *grid,
        embeddings.position_interpolation_offset,
        config.position_interpolation,
    )
    registers = prefix.new_zeros(1, config.num_register_tokens, config.hidden_size)
    state["embeddings.position_embeddings"] = torch.cat([prefix, registers, table.flatten(0, 1)[None]], dim=1)
    return state


def _arguments(trunk: ViTTrunkModel, size: tuple[int, int]) -> dict[str, Any]:
    """Arguments of timm's models that a JSON file can hold."""
    config = config_of(trunk)
    specific = _eva_arguments if config.position_embedding_type == "rope" else _vision_transformer_arguments
    return specific(trunk) | {
        "img_size": size,
        "patch_size": config.patch_size,
        "in_chans": config.num_channels,
        "global_pool": "token" if trunk.pools_class_token and config.use_class_token else "avg",
        "class_token": config.use_class_token,
        "init_values": config.layerscale_value,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "qkv_bias": config.qkv_bias,
    }


def _vision_transformer_arguments(trunk: ViTTrunkModel) -> dict[str, Any]:
    config = config_of(trunk)
    if config.embedding_norm == config.patch_bias:
        raise ValueError(
            "timm's ViTs have a bias in the patch embedding, or a norm after it, never both or none; got "
            f"patch_bias={config.patch_bias} and embedding_norm={config.embedding_norm}"
        )
    exact = config.position_interpolation == "bicubic_antialias" and not trunk.embeddings.position_interpolation_offset
    return {
        "mlp_ratio": _ratio(config, 2 if config.gated_mlp else 1),
        "reg_tokens": config.num_register_tokens,
        "fc_norm": False,
        "pre_norm": config.embedding_norm,
        "dynamic_img_size": exact,
        "act_layer": _ACTIVATIONS[config.hidden_act],
    }


def _eva_arguments(trunk: ViTTrunkModel) -> dict[str, Any]:
    config = config_of(trunk)
    if config.qkv_bias and config.key_bias:
        raise ValueError("timm's ViTs with rotary positions have no bias of keys, got key_bias=True")
    if config.gated_mlp and cast(int, config.intermediate_size) % 8:
        raise ValueError(f"timm's DINOv3 has gated MLPs of a multiple of 8, got {config.intermediate_size}")
    if config.hidden_act != ("silu" if config.gated_mlp else "gelu"):
        raise ValueError(f"timm's DINOv3 has GELU, and SiLU in gated MLPs, got hidden_act={config.hidden_act!r}")
    return {
        "mlp_ratio": _ratio(config),
        "num_reg_tokens": config.num_register_tokens,
        "use_fc_norm": False,
        "use_abs_pos_emb": False,
        "use_rot_pos_emb": True,
        "rope_type": "dinov3",
        "rope_temperature": config.rope_theta,
        "rope_rotate_half": True,
        "swiglu_mlp": config.gated_mlp,
        "swiglu_align_to": 8,
        "dynamic_img_size": True,
    }


def _ratio(config: GeometricViTConfig, factor: int = 1) -> float:
    """The ratio of widths that timm makes the MLP's of; it rounds the product down."""
    return (factor * cast(int, config.intermediate_size) + 0.5) / config.hidden_size


def to_timm(model: nn.Module, image_size: int | tuple[int, int] | None = None) -> "VisionTransformer | Eva":
    """Gives the trunk as a timm model.

    Args:
        model (`torch.nn.Module`): A trunk of any method, or a model of any class that has one; its mask token stays behind.
        image_size (`int` or `(height, width)`, *optional*): Size in pixels that the timm model is made for; positions
            are resampled to it once, so that features are equal there. Defaults to `config.image_size`.

    Returns:
        `timm.models.VisionTransformer`, or `timm.models.eva.Eva` for rotary positions, in eval mode, without a head:
        `forward_features` equals `last_hidden_state`, and calling it gives `pooler_output`. It takes other sizes where
        positions are resampled as timm does.

    Raises:
        ImportError: If timm is not installed.
        ValueError: If the model has no plain ViT trunk, or one that timm has not, or the patch does not divide `image_size`.
    """
    try:
        from timm.layers import SwiGLUPacked
        from timm.models.eva import Eva
        from timm.models.vision_transformer import VisionTransformer
    except ImportError as error:
        raise ImportError("to_timm needs timm: pip install timm") from error

    trunk = trunk_of(model, "to_timm")
    config = config_of(trunk)
    if config.hidden_act not in _ACTIVATIONS:
        raise ValueError(f"to_timm takes hidden_act {' or '.join(_ACTIVATIONS)}, got {config.hidden_act!r}")
    size = config.image_height_width if image_size is None else image_size
    height, width = (size, size) if isinstance(size, int) else size
    if height % config.patch_size or width % config.patch_size:
        raise ValueError(f"image_size must be a multiple of the patch size {config.patch_size}, got {height} x {width}")
    arguments = _arguments(trunk, (height, width)) | {"norm_layer": partial(nn.LayerNorm, eps=config.layer_norm_eps)}
    state = _state_for(trunk, (height // config.patch_size, width // config.patch_size))
    timm_model: VisionTransformer | Eva
    if config.position_embedding_type == "rope":
        timm_model = Eva(**arguments, num_classes=0)
    else:
        join_key_bias(state)
        if config.gated_mlp:
            arguments["mlp_layer"] = SwiGLUPacked
        timm_model = VisionTransformer(**arguments, num_classes=0)
    if not arguments["dynamic_img_size"]:
        logger.warning("the timm model takes images of its own size alone: it resamples positions in another way")
    expected = timm_model.state_dict().keys()
    renamed, _ = from_trunk(state, NAMING.choose_table(config.gated_mlp), expected)
    timm_model.load_state_dict(renamed)
    return timm_model.eval()


def save_timm(model: nn.Module, folder: Path, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    """Writes the trunk as a folder from which `timm.create_model("local-dir:FOLDER", pretrained=True)` opens it.

    Args:
        model (`torch.nn.Module`): As in `to_timm`.
        folder (`Path`): It is made.
        mean, std (`Sequence[float]`, *optional*): Normalisation of images in [0, 1], where they are plain.

    Raises:
        ValueError: As `to_timm`; also if none of the models that timm knows by name differs from this one by nothing but
            what a JSON file can hold.
    """
    timm_model = to_timm(model)
    trunk = trunk_of(model, "to_timm")
    config = config_of(trunk)
    if config.position_embedding_type == "rope":
        architecture = f"vit_small_{'plus_' if config.gated_mlp else ''}patch16_dinov3"
    elif config.gated_mlp:
        architecture = "vit_giant_patch14_dinov2"
    else:
        architecture = "vit_base_patch16_224" if config.layer_norm_eps == 1e-6 else "vit_base_patch16_clip_224"
    epsilon = 1e-6 if architecture in ("vit_base_patch16_224", "vit_giant_patch14_dinov2") else 1e-5
    if config.layer_norm_eps != epsilon or (config.gated_mlp and config.hidden_act != "silu"):
        raise ValueError(
            f"a folder of timm cannot say layer_norm_eps={config.layer_norm_eps} with hidden_act={config.hidden_act!r}: "
            "take to_timm in Python, or another family"
        )
    height, width = config.image_height_width
    arguments = _arguments(trunk, (height, width))
    if config.gated_mlp:
        arguments.pop("act_layer", None)
    description = {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": config.hidden_size,
        "global_pool": arguments["global_pool"],
        "model_args": arguments,
        "pretrained_cfg": {
            "num_classes": 0,
            "input_size": [config.num_channels, height, width],
            "fixed_input_size": not arguments["dynamic_img_size"],
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            **({"mean": list(mean), "std": list(std)} if mean and std else {}),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in timm_model.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
