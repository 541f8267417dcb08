"""Foreign checkpoints in, without executing anything they carry, and timm models out."""

import argparse
import pickle
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from hf_geossl.modeling.configuration_gtsa import GTSAConfig
from hf_geossl.modeling.modeling_gtsa import GTSAModel
from hf_geossl.modeling.modeling_vit import resample_positions
from hf_geossl.modeling.pretraining_gtsa import GTSAForPreTraining

State = dict[str, torch.Tensor]

# one table for the key names of timm, DINO and GTSA's trunk, which agree
_TRUNK_KEYS = (
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layer.\1.attention.projection."),
    (r"^blocks\.(\d+)\.attn\.", r"encoder.layer.\1.attention."),
    (r"^blocks\.(\d+)\.", r"encoder.layer.\1."),
    (r"^norm\.", "layernorm."),
)
_ROTATION_KEYS = {
    "0": "linears.0",
    "1": "norms.0",
    "3": "linears.1",
    "4": "norms.1",
    "6": "linears.2",
    "7": "norms.2",
    "8": "classifier",
}


def read_torch_file(path: str | Path) -> dict[str, Any]:
    """Reads a `.safetensors` file, or a PyTorch file without executing what it carries.

    Args:
        path (`str` or `Path`): The file. A PyTorch file may hold tensors, containers and an `argparse.Namespace`.

    Returns:
        `dict[str, Any]`: What the file holds.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, of another kind, or holds an object that only running its code could make.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint file {path.name!r}: give the path of a .pth or .safetensors file")
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except Exception as error:
            raise ValueError(f"{path.name} is not a readable safetensors file: {error}") from error
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no checkpoint makes torch's reader fail in any way, KeyError 101 for a text
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and refused:
            raise ValueError(
                f"{path.name} holds the object {refused.group(1)}, which could run code; only tensors, containers and "
                "argparse.Namespace are read: save it again with its state_dict alone"
            ) from error
        # what torch says of a refused pickle advises to load it with weights_only=False: not passed on
        detail = "" if isinstance(error, pickle.UnpicklingError) else f" ({' '.join(str(error).split())[:120]})"
        raise ValueError(
            f"{path.name} is not a readable PyTorch checkpoint: it is damaged or of another kind{detail}"
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path.name} holds a {type(content).__name__}, expected a mapping from names to tensors")
    return dict(content)


def _tensors(content: Mapping[str, Any], name: str) -> State:
    """The tensors of a mapping, without the prefix that DistributedDataParallel leaves."""
    state = {
        key.removeprefix("module."): value
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, torch.Tensor)
    }
    if not state:
        raise ValueError(f"{name} holds no tensors under the expected names, got the keys {list(content)[:8]}")
    return state


def _part(state: State, prefix: str) -> State:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _rename_trunk(state: State) -> State:
    renamed = {}
    for key, value in state.items():
        name = key
        for pattern, replacement in _TRUNK_KEYS:
            name, count = re.subn(pattern, replacement, name)
            if count:
                break
        renamed[name] = value.float()
    return renamed


def _trunk_config(state: State, config: GTSAConfig, name: str) -> GTSAConfig:
    """A copy of `config` in which everything that the trunk's tensors tell is as they tell it."""
    dimensions = {"cls_token": 3, "pos_embed": 3, "patch_embed.proj.weight": 4, "norm.weight": 1}
    dimensions["blocks.0.mlp.fc1.weight"] = 2
    missing = [key for key in dimensions if key not in state]
    if missing:
        raise ValueError(f"{name} is no plain ViT checkpoint: it lacks {', '.join(missing)}; is it another method's?")
    for key, expected in dimensions.items():
        if state[key].ndim != expected or not state[key].numel():
            raise ValueError(f"{name}: {key} must have {expected} dimensions, got shape {tuple(state[key].shape)}")
    hidden_size, num_channels, patch_size, patch_width = state["patch_embed.proj.weight"].shape
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
    fields: dict[str, Any] = {
        "hidden_size": hidden_size,
        "num_channels": num_channels,
        "patch_size": patch_size,
        "image_size": height * patch_size if height == width else (height * patch_size, width * patch_size),
        "num_hidden_layers": depth,
        "intermediate_size": state["blocks.0.mlp.fc1.weight"].shape[0],
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
    }
    given = config.to_dict()
    if config.num_hidden_layers != depth:  # its stages are not those of this model
        given = {key: value for key, value in given.items() if key not in ("out_features", "out_indices")}
    return GTSAConfig(**{**given, **fields})


def _with_heads(config: GTSAConfig | None, state: State, name: str) -> GTSAConfig:
    """The given configuration, or the default one with heads of 64 channels."""
    if config is not None:
        return config
    hidden_size = state["patch_embed.proj.weight"].shape[0] if "patch_embed.proj.weight" in state else 384
    if hidden_size % 64:
        raise ValueError(
            f"{name} is {hidden_size} wide, which is no multiple of 64, so the number of heads cannot be told; "
            "give config=GTSAConfig(hidden_size=..., num_attention_heads=...) (geossl convert: --num_attention_heads)"
        )
    return GTSAConfig(hidden_size=hidden_size, num_attention_heads=hidden_size // 64)


def _load_strictly(model: torch.nn.Module, state: State, name: str) -> None:
    expected = model.state_dict()
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    wrong = sorted(key for key in expected.keys() & state.keys() if expected[key].shape != state[key].shape)
    if missing or unexpected or wrong:
        parts = [("lacks", missing), ("has unknown", unexpected), ("has other shapes for", wrong)]
        raise ValueError(f"{name} " + "; ".join(f"{verb} {', '.join(keys[:6])}" for verb, keys in parts if keys))
    model.load_state_dict(state)


def convert_gtsa_checkpoint(path: str | Path, config: GTSAConfig | None = None) -> GTSAForPreTraining:
    """Reads a checkpoint of the GTSA authors' program.

    Args:
        path (`str` or `Path`): A full training checkpoint (`checkpoint-99.pth`) or a flat trunk (ViT keys at the top
            or under `model`). A flat trunk gives a teacher equal to the student, and fresh heads.
        config (`GTSAConfig`, *optional*): What the tensors cannot tell, such as `num_attention_heads` (default: width
            / 64). Where both tell, the tensors win. It is not changed.

    Returns:
        `GTSAForPreTraining` in eval mode, float32.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file holds anything but tensors and plain data, or another model, or if the number of heads
            can neither be told nor is given.

    Source: spec of the authors' files, section 2.8; nothing in the file is executed.
    """
    name = Path(path).name
    content = read_torch_file(path)
    state = _tensors(content["model"] if isinstance(content.get("model"), Mapping) else content, name)
    full = any(key.startswith("base_encoder.") for key in state)
    trunk = _part(state, "base_encoder.") if full else state
    converted = _trunk_config(trunk, _with_heads(config, trunk, name), name)
    if not full:
        model = GTSAForPreTraining(converted)
        _load_strictly(model.gtsa, _rename_trunk(trunk), name)
        model.copy_student_to_teacher()
        return model.eval()

    def widths(key: str) -> int:
        if key not in state:
            raise ValueError(f"{name} is no full GTSA checkpoint: it lacks {key}")
        return state[key].shape[0]

    converted.projector_hidden_size = widths("base_projector.blocks.0.0.weight")
    converted.projection_size = widths("base_projector.proj.weight")
    converted.predictor_hidden_size = widths("base_predictor.blocks.0.0.weight")
    converted.rotation_hidden_sizes = tuple(widths(f"rot_predictor.{index}.weight") for index in (0, 3, 6))
    model = GTSAForPreTraining(converted)

    loaded: State = {}
    for prefix, target in (("base_encoder.", "gtsa."), ("momentum_encoder.", "teacher.gtsa.")):
        loaded |= {target + key: value for key, value in _rename_trunk(_part(state, prefix)).items()}
    for prefix, target in (("base_projector.", "projector."), ("momentum_projector.", "teacher.projector.")):
        for key, value in _part(state, prefix).items():
            key = re.sub(r"^blocks\.(\d)\.0\.", r"blocks.\1.convolution.", key)
            loaded[target + re.sub(r"^proj\.", "projection.", key)] = value.float()
    for key, value in _part(state, "base_predictor.").items():
        key = re.sub(r"^blocks\.0\.0\.", "block.convolution.", key)
        loaded["predictor." + re.sub(r"^proj\.", "projection.", key)] = value.float()
    for key, value in _part(state, "rot_predictor.").items():
        index, _, rest = key.partition(".")
        loaded[f"rotation_head.{_ROTATION_KEYS.get(index, index)}.{rest}"] = value.float()
    _load_strictly(model, loaded, name)
    return model.eval()


def _convert_plain(state: State, config: GTSAConfig | None, offset: float, name: str) -> GTSAModel:
    default = _with_heads(config, state, name)
    if config is None:
        default.position_interpolation_offset, default.drop_path_rate = offset, 0.0
    model = GTSAModel(_trunk_config(state, default, name))
    _load_strictly(model, _rename_trunk(state), name)
    return model.eval()


def _timm_config(model: Any, config: GTSAConfig | None) -> GTSAConfig:
    """A copy of `config`, or of the default, with what a timm model tells beside its tensors."""
    try:
        heads, activation = model.blocks[0].attn.num_heads, model.blocks[0].mlp.act
        (height, width), patch_size = model.patch_embed.grid_size, model.patch_embed.patch_size[0]
    except (AttributeError, IndexError, TypeError) as error:
        raise ValueError(f"the timm model must be a plain VisionTransformer, got {type(model).__name__}") from error
    probe = torch.linspace(-4, 4, 33)
    if not torch.allclose(activation(probe), torch.nn.functional.gelu(probe), atol=1e-6):
        raise ValueError(f"the timm model must have exact GELU in its MLPs, got {activation}")
    fields = {
        "hidden_size": model.embed_dim,
        "num_attention_heads": heads,
        "patch_size": patch_size,
        "image_size": (height * patch_size, width * patch_size),
        "layer_norm_eps": getattr(model.norm, "eps", 1e-6),
    }
    given = {"position_interpolation_offset": 0.0, "drop_path_rate": 0.0} if config is None else config.to_dict()
    return GTSAConfig(**{**given, **fields})


def convert_timm_checkpoint(source: Any, config: GTSAConfig | None = None) -> GTSAModel:
    """Takes over a timm `VisionTransformer` with class token and without layer scale or registers.

    Args:
        source (`str`, `Path`, `torch.nn.Module` or mapping): A `.safetensors` or `.pth` file, a timm model or its
            state dict. A classification head is left out.
        config (`GTSAConfig`, *optional*): What the tensors (and a timm model's own attributes) cannot tell; by default
            heads of 64 channels, and positions resampled to the exact size.

    Returns:
        `GTSAModel` in eval mode: `last_hidden_state` equals timm's `forward_features` at the size the file is made
        for. (At other sizes timm resamples positions with antialiasing, GTSA without.)

    Raises:
        FileNotFoundError, ValueError: As `convert_gtsa_checkpoint`.
    """
    name = "the timm model"
    if isinstance(source, torch.nn.Module):
        config = _timm_config(source, config)
        source = source.state_dict()
    elif not isinstance(source, Mapping):
        name = Path(source).name
        source = read_torch_file(source)
    content = source.get("state_dict", source.get("model", source))
    state = {
        key: value for key, value in _tensors(content, name).items() if not key.startswith(("head.", "head_drop."))
    }
    return _convert_plain(state, config, 0.0, name)


def convert_dino_checkpoint(path: str | Path, weights: str = "teacher", config: GTSAConfig | None = None) -> GTSAModel:
    """Takes over a ViT of the DINO authors' program.

    Args:
        path (`str` or `Path`): A backbone file (`dino_deitsmall16_pretrain.pth`) or a full training checkpoint.
        weights (`"teacher"` or `"student"`): Which network of a full checkpoint; the published ones are teachers.
        config (`GTSAConfig`, *optional*): What the tensors cannot tell.

    Returns:
        `GTSAModel` in eval mode: `last_hidden_state` equals DINO's normalised tokens at every image size (DINO and
        GTSA resample positions alike).

    Raises:
        FileNotFoundError, ValueError: As `convert_gtsa_checkpoint`; also for another `weights`.
    """
    if weights not in ("teacher", "student"):
        raise ValueError(f"weights must be 'teacher' or 'student', got {weights!r}")
    name = Path(path).name
    content = read_torch_file(path)
    state = _tensors(content[weights] if isinstance(content.get(weights), Mapping) else content, name)
    if any(key.startswith("backbone.") for key in state):
        state = _part(state, "backbone.")
    return _convert_plain({k: v for k, v in state.items() if not k.startswith("head.")}, config, 0.1, name)


def to_timm(model: Any, image_size: int | tuple[int, int] | None = None) -> Any:
    """Gives the trunk as a timm `VisionTransformer`.

    Args:
        model (`GTSAModel`, `LOCAModel`, `EquiCoherentModel` or any class that holds one): The model; its mask token stays behind.
        image_size (`int` or `(height, width)`, *optional*): Size in pixels that the timm model is made for; positions
            are resampled to it once, so that features are equal there. Defaults to `config.image_size`.

    Returns:
        `timm.models.VisionTransformer` in eval mode, without a head: `forward_features` equals `last_hidden_state`,
        and calling it gives `pooler_output`: the mean patch token, EquiCoherent's class token.

    Raises:
        ImportError: If timm is not installed.
        ValueError: If the model has no plain ViT trunk, or the patch does not divide `image_size`.
    """
    try:
        from timm.models.vision_transformer import VisionTransformer
    except ImportError as error:
        raise ImportError("to_timm needs timm: pip install timm") from error

    trunk = model if hasattr(model, "embeddings") else getattr(model, getattr(model, "base_model_prefix", ""), None)
    if trunk is None or not hasattr(trunk, "embeddings"):
        raise ValueError(f"to_timm takes a model with a ViT trunk, such as GTSAModel, got {type(model).__name__}")
    config = trunk.config
    activations = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}  # transformers' name: timm's
    if config.hidden_act not in activations:
        raise ValueError(f"to_timm takes hidden_act {' or '.join(activations)}, got {config.hidden_act!r}")
    size = config.image_height_width if image_size is None else image_size
    height, width = (size, size) if isinstance(size, int) else size
    if height % config.patch_size or width % config.patch_size:
        raise ValueError(f"image_size must be a multiple of the patch size {config.patch_size}, got {height} x {width}")
    timm_model = VisionTransformer(
        img_size=(height, width),
        patch_size=config.patch_size,
        in_chans=config.num_channels,
        num_classes=0,
        global_pool="token" if config.model_type == "equicoherent" else "avg",
        class_token=config.use_class_token,
        reg_tokens=config.num_register_tokens,
        init_values=config.layerscale_value,
        fc_norm=False,
        embed_dim=config.hidden_size,
        depth=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        mlp_ratio=(config.intermediate_size + 0.5) / config.hidden_size,  # timm rounds the product down
        qkv_bias=config.qkv_bias,
        act_layer=activations[config.hidden_act],
        norm_layer=partial(torch.nn.LayerNorm, eps=config.layer_norm_eps),
    )
    state = {}
    for key, value in trunk.state_dict().items():
        if key == "embeddings.mask_token":
            continue
        key = re.sub(r"^embeddings\.(cls_token)$", r"\1", key)
        key = re.sub(r"^embeddings\.register_tokens$", "reg_token", key)
        key = re.sub(r"^encoder\.layer\.(\d+)\.layer_scale(\d)\.weight$", r"blocks.\1.ls\2.gamma", key)
        key = re.sub(r"^embeddings\.position_embeddings$", "pos_embed", key)
        key = re.sub(r"^embeddings\.patch_embeddings\.", "patch_embed.proj.", key)
        key = re.sub(r"^encoder\.layer\.(\d+)\.attention\.projection\.", r"blocks.\1.attn.proj.", key)
        key = re.sub(r"^encoder\.layer\.(\d+)\.attention\.", r"blocks.\1.attn.", key)
        key = re.sub(r"^encoder\.layer\.(\d+)\.", r"blocks.\1.", key)
        state[re.sub(r"^layernorm\.", "norm.", key)] = value.float()
    classes = trunk.embeddings.num_class_tokens
    prefix, table = state["pos_embed"][:, :classes], state["pos_embed"][0, classes:]
    table = resample_positions(
        table.unflatten(0, trunk.embeddings.grid_size),
        height // config.patch_size,
        width // config.patch_size,
        trunk.embeddings.position_interpolation_offset,
        config.position_interpolation,
    )
    registers = prefix.new_zeros(1, config.num_register_tokens, config.hidden_size)  # they have no position
    state["pos_embed"] = torch.cat([prefix, registers, table.flatten(0, 1)[None]], dim=1)
    timm_model.load_state_dict(state)
    return timm_model.eval()
