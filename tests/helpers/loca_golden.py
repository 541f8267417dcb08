"""LOCA's golden numbers: the authors' Flax names and shapes against ours, written out apart from the converter."""

import json
from typing import Any

import torch
from safetensors.torch import load_file

from hf_geossl import LOCAConfig, LOCAForPreTraining
from tests.helpers.golden import golden_folder

HEAD = "projection_head_for_clustering_prediction"
Tree = dict[str, torch.Tensor]


def load_golden() -> tuple[Tree, dict[str, Any]]:
    folder = golden_folder("golden.safetensors", "loca")
    return load_file(folder / "golden.safetensors"), json.loads((folder / "golden.json").read_text())


def part(tensors: Tree, prefix: str) -> Tree:
    return {key.removeprefix(f"{prefix}/"): value for key, value in tensors.items() if key.startswith(f"{prefix}/")}


def _rules(num_layers: int, clusters: bool) -> list[tuple[str, str, str]]:
    """(kind, Flax path, our name) of every module."""
    attention, mlp = "MultiHeadDotProductAttention_0", "MlpBlock_0"
    rules = [("patches", "ToTokenSequence_0", "loca.embeddings")]
    for i in range(num_layers):
        flax, ours = f"encoderblock_{i}", f"loca.encoder.layer.{i}"
        rules += [("norm", f"{flax}/LayerNorm_0", f"{ours}.norm1"), ("norm", f"{flax}/LayerNorm_1", f"{ours}.norm2")]
        rules += [("self", f"{flax}/{attention}", f"{ours}.attention")]
        rules += [("dense", f"{flax}/{mlp}/Dense_{j}", f"{ours}.mlp.fc{j + 1}") for j in range(2)]
    rules += [("norm", "encoder_norm", "loca.layernorm"), ("norm", "final_norm", "final_norm")]
    flax, ours = "cross_attention_block", "cross_attention"
    for j, name in enumerate(("norm_query", "norm_key_value", "norm2")):
        rules += [("norm", f"{flax}/LayerNorm_{j}", f"{ours}.{name}")]
    rules += [("cross", f"{flax}/{attention}", f"{ours}.attention")]
    rules += [("dense", f"{flax}/{mlp}/Dense_{j}", f"{ours}.mlp.fc{j + 1}") for j in range(2)]
    rules += [("dense", "position_predictor", "position_predictor")]
    if clusters:
        rules += [("dense", f"{HEAD}/Dense_{j}", f"cluster_head.fc{j + 1}") for j in range(3)]
        rules += [("prototypes", f"{HEAD}/prototypes", "cluster_head.prototypes")]
    return rules


def to_torch(tree: Tree, num_layers: int = 2) -> Tree:
    """Our state dict of a network from the authors' tree."""
    state: Tree = {}

    def square(path: str) -> tuple[torch.Tensor, torch.Tensor]:
        kernel, bias = tree[f"{path}/kernel"], tree[f"{path}/bias"]  # (D, H, D / H), (H, D / H)
        return kernel.flatten(1).T, bias.flatten()

    for kind, flax, ours in _rules(num_layers, f"{HEAD}/prototypes/kernel" in tree):
        if kind == "patches":
            state[f"{ours}.patch_embeddings.weight"] = tree[f"{flax}/embedding/kernel"].permute(3, 2, 0, 1)
            state[f"{ours}.patch_embeddings.bias"] = tree[f"{flax}/embedding/bias"]
            state[f"{ours}.position_embeddings"] = tree[f"{flax}/posembed_input"].flatten(1, 2)
        elif kind == "norm":
            state[f"{ours}.weight"], state[f"{ours}.bias"] = tree[f"{flax}/scale"], tree[f"{flax}/bias"]
        elif kind in ("dense", "prototypes"):
            state[f"{ours}.weight"] = tree[f"{flax}/kernel"].T
            if kind == "dense":
                state[f"{ours}.bias"] = tree[f"{flax}/bias"]
        else:
            groups = {"qkv": ("query", "key", "value")} if kind == "self" else {}
            groups = groups or {"query": ("query",), "key_value": ("key", "value")}
            for name, members in groups.items():
                weights, biases = zip(*(square(f"{flax}/{member}") for member in members), strict=True)
                state[f"{ours}.{name}.weight"], state[f"{ours}.{name}.bias"] = torch.cat(weights), torch.cat(biases)
            state[f"{ours}.projection.weight"] = tree[f"{flax}/out/kernel"].flatten(0, 1).T
            state[f"{ours}.projection.bias"] = tree[f"{flax}/out/bias"]
    return {name: value.contiguous() for name, value in state.items()}


def to_flax(state: Tree, num_layers: int = 2) -> Tree:
    """The authors' names for parameters, gradients or changes of a network; attention stays flat, `(D, D)` and `(D,)`."""
    tree: Tree = {}
    for kind, flax, ours in _rules(num_layers, "cluster_head.prototypes.weight" in state):
        if kind == "patches":
            tree[f"{flax}/embedding/kernel"] = state[f"{ours}.patch_embeddings.weight"].permute(2, 3, 1, 0)
            tree[f"{flax}/embedding/bias"] = state[f"{ours}.patch_embeddings.bias"]
            tree[f"{flax}/posembed_input"] = state[f"{ours}.position_embeddings"]
        elif kind == "norm":
            tree[f"{flax}/scale"], tree[f"{flax}/bias"] = state[f"{ours}.weight"], state[f"{ours}.bias"]
        elif kind in ("dense", "prototypes"):
            tree[f"{flax}/kernel"] = state[f"{ours}.weight"].T
            if kind == "dense":
                tree[f"{flax}/bias"] = state[f"{ours}.bias"]
        else:
            groups = {"qkv": ("query", "key", "value")} if kind == "self" else {}
            groups = {**(groups or {"query": ("query",), "key_value": ("key", "value")}), "projection": ("out",)}
            for name, members in groups.items():
                weights = state[f"{ours}.{name}.weight"].chunk(len(members))
                biases = state[f"{ours}.{name}.bias"].chunk(len(members))
                for member, weight, bias in zip(members, weights, biases, strict=True):
                    tree[f"{flax}/{member}/kernel"], tree[f"{flax}/{member}/bias"] = weight.T, bias
    return tree


def golden_config(settings: dict[str, Any], **fields: Any) -> LOCAConfig:
    return LOCAConfig(
        **{
            "hidden_size": settings["hidden"],
            "num_attention_heads": settings["heads"],
            "num_hidden_layers": settings["layers"],
            "intermediate_size": settings["mlp"],
            "patch_size": settings["patch"],
            "image_size": settings["ref"],
            "head_hidden_size": settings["head_hidden"],
            "head_bottleneck_size": settings["head_bott"],
            "num_prototypes": settings["head_out"],
            "num_kept_query_tokens": settings["q_seqlen"],
            "visible_reference_ratio": settings["ref_frac"],
            **fields,
        }
    )


def golden_model(golden: tuple[Tree, dict[str, Any]], **fields: Any) -> LOCAForPreTraining:
    tensors, numbers = golden
    model = LOCAForPreTraining(golden_config(numbers["config"], **fields)).eval()
    state = to_torch(part(tensors, "params"))
    state |= {f"teacher.{name}": value for name, value in to_torch(part(tensors, "ema_params")).items()}
    model.load_state_dict({name: value for name, value in state.items() if name in model.state_dict()})
    return model


def golden_batch(golden: tuple[Tree, dict[str, Any]]) -> dict[str, torch.Tensor]:
    """The views; the authors' focal queries are query-major, ours lie under their image."""
    tensors, numbers = golden

    def images(name: str) -> torch.Tensor:
        return tensors[name].permute(0, 3, 1, 2).contiguous()

    def by_image(values: torch.Tensor) -> torch.Tensor:
        return values.unflatten(0, (numbers["config"]["n_foc"], -1)).transpose(0, 1).contiguous()

    return {
        "reference_pixel_values": images("in/reference"),
        "random_query_pixel_values": images("in/query0"),
        "focal_query_pixel_values": by_image(images("in/queries")),
        "random_query_positions": tensors["in/query0_target_position"].flatten(1),
        "focal_query_positions": by_image(tensors["in/target_positions"]),
    }
