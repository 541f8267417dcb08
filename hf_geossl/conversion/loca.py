"""Checkpoints of the LOCA authors' Flax program in."""

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers.initialization import no_init_weights

from hf_geossl.conversion.flax_file import FlaxArray, FlaxFile
from hf_geossl.modeling.configuration_loca import LOCAConfig
from hf_geossl.modeling.pretraining_loca import LOCAForPreTraining

_TREES = ("params", "ema_params")
_PATCHES = "ToTokenSequence_0/embedding/kernel"
_POSITIONS = "ToTokenSequence_0/posembed_input"
_QUERY = "encoderblock_0/MultiHeadDotProductAttention_0/query/kernel"
_MLP = "encoderblock_0/MlpBlock_0/Dense_0/kernel"
_HEAD = "projection_head_for_clustering_prediction"
_PROTOTYPES = f"{_HEAD}/prototypes/kernel"


@dataclass(frozen=True)
class _Place:
    """The parameter, or the rows of it, that an array of the file fills.

    Args:
        shape (`tuple[int, ...]`): Its shape in the file.
        name (`str`): Parameter of the student that it fills.
        part, parts (`int`): Which of how many equal groups of the parameter's rows.
    """

    shape: tuple[int, ...]
    name: str
    part: int = 0
    parts: int = 1


def _norm(path: str, name: str, size: int) -> dict[str, _Place]:
    return {f"{path}/scale": _Place((size,), f"{name}.weight"), f"{path}/bias": _Place((size,), f"{name}.bias")}


def _dense(path: str, name: str, inputs: int, outputs: int) -> dict[str, _Place]:
    return {
        f"{path}/kernel": _Place((inputs, outputs), f"{name}.weight"),
        f"{path}/bias": _Place((outputs,), f"{name}.bias"),
    }


def _attention(
    path: str, name: str, projections: Mapping[str, tuple[str, ...]], config: LOCAConfig
) -> dict[str, _Place]:
    """Lists the arrays of an attention layer; `projections` are our linear layers with the authors' that each joins."""
    size, heads = config.hidden_size, config.num_attention_heads
    path, name = f"{path}/MultiHeadDotProductAttention_0", f"{name}.attention"
    places = {
        f"{path}/out/kernel": _Place((heads, size // heads, size), f"{name}.projection.weight"),
        f"{path}/out/bias": _Place((size,), f"{name}.projection.bias"),
    }
    for layer, sources in projections.items():
        for part, source in enumerate(sources):
            for leaf, suffix, first in (("kernel", "weight", (size,)), ("bias", "bias", ())):
                shape = (*first, heads, size // heads)
                places[f"{path}/{source}/{leaf}"] = _Place(shape, f"{name}.{layer}.{suffix}", part, len(sources))
    return places


def _layout(config: LOCAConfig) -> dict[str, _Place]:
    """Lists every array that a tree of this configuration has, by its path; the one table of names and shapes."""
    size, patch_size = config.hidden_size, config.patch_size
    height, width = (side // patch_size for side in config.image_height_width)
    mlp_size = config.intermediate_size or 4 * size
    embeddings = "loca.embeddings"
    places = {
        _PATCHES: _Place((patch_size, patch_size, config.num_channels, size), f"{embeddings}.patch_embeddings.weight"),
        "ToTokenSequence_0/embedding/bias": _Place((size,), f"{embeddings}.patch_embeddings.bias"),
        _POSITIONS: _Place((1, height, width, size), f"{embeddings}.position_embeddings"),
    }
    for index in range(config.num_hidden_layers):
        path, name = f"encoderblock_{index}", f"loca.encoder.layer.{index}"
        places |= _norm(f"{path}/LayerNorm_0", f"{name}.norm1", size)
        places |= _attention(path, name, {"qkv": ("query", "key", "value")}, config)
        places |= _norm(f"{path}/LayerNorm_1", f"{name}.norm2", size)
        places |= _dense(f"{path}/MlpBlock_0/Dense_0", f"{name}.mlp.fc1", size, mlp_size)
        places |= _dense(f"{path}/MlpBlock_0/Dense_1", f"{name}.mlp.fc2", mlp_size, size)
    places |= _norm("encoder_norm", "loca.layernorm", size)
    if config.has_cluster_head:
        hidden, bottleneck = config.head_hidden_size, config.head_bottleneck_size
        places |= _dense(f"{_HEAD}/Dense_0", "cluster_head.fc1", size, hidden)
        places |= _dense(f"{_HEAD}/Dense_1", "cluster_head.fc2", hidden, hidden)
        places |= _dense(f"{_HEAD}/Dense_2", "cluster_head.fc3", hidden, bottleneck)
        places[_PROTOTYPES] = _Place((bottleneck, config.num_prototypes), "cluster_head.prototypes.weight")
    path, name = "cross_attention_block", "cross_attention"
    places |= _norm(f"{path}/LayerNorm_0", f"{name}.norm_query", size)
    places |= _norm(f"{path}/LayerNorm_1", f"{name}.norm_key_value", size)
    places |= _attention(path, name, {"query": ("query",), "key_value": ("key", "value")}, config)
    places |= _norm(f"{path}/LayerNorm_2", f"{name}.norm2", size)
    places |= _dense(f"{path}/MlpBlock_0/Dense_0", f"{name}.mlp.fc1", size, mlp_size)
    places |= _dense(f"{path}/MlpBlock_0/Dense_1", f"{name}.mlp.fc2", mlp_size, size)
    places |= _norm("final_norm", "final_norm", size)
    places |= _dense("position_predictor", "position_predictor", size, height * width)
    return places


def _tree(file: FlaxFile, tree: str) -> dict[str, FlaxArray]:
    """Lists the arrays of a tree; none of a head without prototypes, which was not trained."""
    arrays = file.tree(tree)
    if _PROTOTYPES in arrays:
        return arrays
    return {path: array for path, array in arrays.items() if not path.startswith(f"{_HEAD}/")}


def _list(keys: Iterable[str]) -> str:
    keys = sorted(keys)
    return ", ".join(keys[:6]) + (f" and {len(keys) - 6} more" if len(keys) > 6 else "")


def _fields(arrays: Mapping[str, FlaxArray], tree: str, name: str) -> dict[str, Any]:
    """Derives fields of the configuration from the shapes of a tree."""
    dimensions = {_PATCHES: 4, _POSITIONS: 4, _QUERY: 3, _MLP: 2}
    has_head = _PROTOTYPES in arrays
    if has_head:
        dimensions |= {f"{_HEAD}/{part}/kernel": 2 for part in ("Dense_0", "Dense_1", "Dense_2", "prototypes")}
    if missing := [f"{tree}/{path}" for path in dimensions if path not in arrays]:
        raise ValueError(f"{name} is no LOCA checkpoint: it lacks {_list(missing)}; is it another method's?")
    for path, expected in dimensions.items():
        if len(shape := arrays[path].shape) != expected:
            raise ValueError(f"{name}: {tree}/{path} must have {expected} dimensions, got shape {shape}")
    patch_size, patch_width, num_channels, hidden_size = arrays[_PATCHES].shape
    if patch_size != patch_width:
        raise ValueError(f"{name}: {tree}/{_PATCHES} must have square patches, got {patch_size} x {patch_width}")
    height, width = (patch_size * side for side in arrays[_POSITIONS].shape[1:3])
    fields: dict[str, Any] = {
        "hidden_size": hidden_size,
        "num_hidden_layers": len({path.split("/")[0] for path in arrays if re.match(r"encoderblock_\d+/", path)}),
        "num_attention_heads": arrays[_QUERY].shape[1],
        "intermediate_size": arrays[_MLP].shape[1],
        "patch_size": patch_size,
        "image_size": height if height == width else (height, width),
        "num_channels": num_channels,
        "qkv_bias": True,
        "use_class_token": False,
        "use_cluster_loss": has_head,
    }
    if has_head:
        first, second = (arrays[f"{_HEAD}/{layer}/kernel"].shape[1] for layer in ("Dense_0", "Dense_1"))
        if first != second:
            raise ValueError(
                f"{name}: the hidden layers of {tree}/{_HEAD} must be equally wide (head_hidden_size), "
                f"got {first} in Dense_0 and {second} in Dense_1"
            )
        fields["head_hidden_size"] = first
        fields["head_bottleneck_size"] = arrays[f"{_HEAD}/Dense_2/kernel"].shape[1]
        fields["num_prototypes"] = arrays[_PROTOTYPES].shape[1]
    return fields


def _configuration(config: LOCAConfig | None, fields: dict[str, Any], name: str) -> LOCAConfig:
    """Makes the configuration of the file: a copy of the given one, if that does not contradict the shapes."""
    if config is None:
        return LOCAConfig(**fields)
    expected = dict(fields)
    if not expected["use_cluster_loss"] and not config.has_cluster_head:
        del expected["use_cluster_loss"]  # location_target="self" has no cluster head whatever use_cluster_loss says
    elif expected["use_cluster_loss"] and config.location_target != "reference":
        expected["location_target"] = "reference"
    given = {field: getattr(config, field) for field in expected}
    for sizes in (given, expected):
        size = sizes["image_size"]
        sizes["image_size"] = (size, size) if isinstance(size, int) else tuple(size)
    if other := [
        f"{field}={given[field]!r} (the file says {expected[field]!r})"
        for field in expected
        if given[field] != expected[field]
    ]:
        raise ValueError(f"config does not fit {name}: it has {', '.join(other)}; correct it or leave config out")
    return copy.deepcopy(config)


def _check(arrays: Mapping[str, FlaxArray], layout: Mapping[str, _Place], tree: str, name: str) -> None:
    """Refuses a tree that has not exactly the arrays of the layout."""
    parts = [
        ("lacks", [f"{tree}/{path}" for path in layout.keys() - arrays.keys()]),
        ("has unknown", [f"{tree}/{path}" for path in arrays.keys() - layout.keys()]),
        (
            "has other shapes than expected in",
            [
                f"{tree}/{path} ({arrays[path].shape}, expected {layout[path].shape})"
                for path in arrays.keys() & layout.keys()
                if arrays[path].shape != layout[path].shape
            ],
        ),
    ]
    if wrong := [f"{verb} {_list(keys)}" for verb, keys in parts if keys]:
        raise ValueError(f"{name} is no consistent LOCA checkpoint: it {'; '.join(wrong)}")


@torch.no_grad()
def _fill(parameter: torch.Tensor, place: _Place, values: torch.Tensor) -> None:
    """Copies an array of the file into its rows of a parameter."""
    rows = parameter.chunk(place.parts)[place.part]
    if rows.ndim == 4:  # (p, p, C, D) -> (D, C, p, p)
        rows.copy_(values.permute(3, 2, 0, 1))
    elif rows.ndim == 2:  # (inputs, outputs), either of them perhaps split into heads -> (outputs, inputs)
        rows.copy_(values.reshape(rows.shape[1], rows.shape[0]).T)
    else:
        rows.copy_(values.reshape(rows.shape))


def convert_loca_checkpoint(
    path: str | Path, weights: Literal["params", "ema_params"] = "params", config: LOCAConfig | None = None
) -> LOCAForPreTraining:
    """Reads a checkpoint of the LOCA authors' Flax program; neither jax nor flax is needed, and nothing is unpickled.

    The optimizer state is skipped and arrays are read one by one, so that memory has to fit little more than the
    finished model, however large the file is.

    Args:
        path (`str` or `Path`): A Flax msgpack file, such as `loca_vbase_imnet1k`.
        weights (`"params"` or `"ema_params"`): What the student gets; the teacher always gets `ema_params`.
        config (`LOCAConfig`, *optional*): What shapes do not say, such as `drop_path_rate`. It is not changed.

    Returns:
        `LOCAForPreTraining` in eval mode, float32. A file without prototypes gives `use_cluster_loss=False`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: For other `weights`; if the file is damaged, of another kind, or lacks one of the trees; if arrays
            are missing, unknown or of other shapes; or if `config` contradicts the shapes.

    Source: spec of the authors' files, section 4 (`flax.training.checkpoints`, scenic's `loca`).
    """
    if weights not in _TREES:
        raise ValueError(f"weights must be 'params' or 'ema_params', got {weights!r}")
    if config is not None and not isinstance(config, LOCAConfig):
        raise TypeError(f"config must be a LOCAConfig, got {type(config).__name__}")
    with FlaxFile(path) as file:
        needed = tuple(dict.fromkeys((weights, "ema_params")))
        if missing := [tree for tree in needed if tree not in file.keys]:
            raise ValueError(
                f"{file.name} lacks {' and '.join(missing)} (the student is made of {weights}, the teacher of ema_params); "
                f"at its top are: {', '.join(file.keys[:12]) or 'no names'}"
            )
        trees = {tree: _tree(file, tree) for tree in needed}
        converted = _configuration(config, _fields(trees[weights], weights, file.name), file.name)
        layout = _layout(converted)
        for tree, arrays in trees.items():
            _check(arrays, layout, tree, file.name)

        # every value is read below: a second initialisation would only cost time and random numbers
        with torch.random.fork_rng(devices=[]), no_init_weights():
            model = LOCAForPreTraining(converted).float()
        parameters = dict(model.named_parameters())
        for prefix, tree in (("", weights), ("teacher.", "ema_params")):
            for key, place in layout.items():
                _fill(parameters[prefix + place.name], place, file.read(trees[tree][key]))
    return model.eval()
