"""LOCA checkpoints as Flax writes them, small and with random values, for tests of conversion."""

from pathlib import Path
from typing import Any

import msgpack
import torch

from hf_geossl import LOCAForPreTraining

Tree = dict[str, Any]


HEAD = "projection_head_for_clustering_prediction"


SIZES = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20, "patch_size": 4}


HEAD_SIZES = {"head_hidden_size": 10, "head_bottleneck_size": 6, "num_prototypes": 8}


FIELDS = {**SIZES, **HEAD_SIZES, "image_size": (8, 12), "num_channels": 5}


def flax_shapes(head: bool = True) -> dict[str, tuple[int, ...]]:
    """Of a tree as Flax has it: 12 wide, 3 heads of 4, MLP 20, patches of 4 x 4 x 5, a grid of 2 x 3."""
    attention = {f"{name}/kernel": (12, 3, 4) for name in ("query", "key", "value")}
    attention |= {f"{name}/bias": (3, 4) for name in ("query", "key", "value")}
    attention |= {"out/kernel": (3, 4, 12), "out/bias": (12,)}
    block = {f"MultiHeadDotProductAttention_0/{key}": shape for key, shape in attention.items()}
    block |= {"MlpBlock_0/Dense_0/kernel": (12, 20), "MlpBlock_0/Dense_0/bias": (20,)}
    block |= {"MlpBlock_0/Dense_1/kernel": (20, 12), "MlpBlock_0/Dense_1/bias": (12,)}
    shapes: dict[str, tuple[int, ...]] = {
        "ToTokenSequence_0/embedding/kernel": (4, 4, 5, 12),
        "ToTokenSequence_0/embedding/bias": (12,),
        "ToTokenSequence_0/posembed_input": (1, 2, 3, 12),
        "position_predictor/kernel": (12, 6),
        "position_predictor/bias": (6,),
    }
    norms = ["encoder_norm", "final_norm", *(f"cross_attention_block/LayerNorm_{index}" for index in range(3))]
    for name in ("encoderblock_0", "encoderblock_1", "cross_attention_block"):
        shapes |= {f"{name}/{key}": shape for key, shape in block.items()}
        norms += [f"{name}/LayerNorm_{index}" for index in range(2)]
    shapes |= {f"{name}/{key}": (12,) for name in norms for key in ("scale", "bias")}
    if head:
        for index, (before, after) in enumerate(((12, 10), (10, 10), (10, 6))):
            shapes |= {f"{HEAD}/Dense_{index}/kernel": (before, after), f"{HEAD}/Dense_{index}/bias": (after,)}
        shapes[f"{HEAD}/prototypes/kernel"] = (6, 8)
    return shapes


def flax_tree(seed: int, head: bool = True) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(shape, generator=generator) for key, shape in flax_shapes(head).items()}


def nested(flat: dict[str, Any]) -> Tree:
    tree: Tree = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def raw_bytes(values: torch.Tensor) -> bytes:
    return values.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def triple(values: torch.Tensor) -> tuple[Any, ...]:
    return list(values.shape), str(values.dtype).removeprefix("torch."), raw_bytes(values)


def flax_array(values: torch.Tensor, code: int = 1) -> msgpack.ExtType:
    return msgpack.ExtType(code, msgpack.packb(triple(values)))


def pack(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return flax_array(value)
    if isinstance(value, dict):
        return {key: pack(child) for key, child in value.items()}
    return value


def flax_bytes(**trees: Any) -> bytes:
    return msgpack.packb(pack(trees))


def write_flax(path: Path, **trees: Any) -> Path:
    path.write_bytes(flax_bytes(**trees))
    return path


def flax_file(path: Path, change: dict[str, Any] | None = None, head: bool = True) -> Path:
    """A whole checkpoint whose `params` are changed by `change`: None takes an array out."""
    params: dict[str, Any] = {**flax_tree(0, head), **(change or {})}
    params = {key: value for key, value in params.items() if value is not None}
    return write_flax(path, params=nested(params), ema_params=nested(flax_tree(1, head)))


def expected_state(flat: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our names and layout, said once more: by what each array does in Flax (einsum over named axes)."""
    state: dict[str, torch.Tensor] = {}

    def norm(path: str, name: str) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = flat[f"{path}/scale"], flat[f"{path}/bias"]

    def dense(path: str, name: str) -> None:
        state[f"{name}.weight"] = torch.einsum("io->oi", flat[f"{path}/kernel"])
        state[f"{name}.bias"] = flat[f"{path}/bias"]

    def block(path: str, name: str, norms: list[str], projections: dict[str, list[str]]) -> None:
        for index, ours in enumerate(norms):
            norm(f"{path}/LayerNorm_{index}", f"{name}.{ours}")
        attention = f"{path}/MultiHeadDotProductAttention_0"
        for ours, theirs in projections.items():
            kernels = [torch.einsum("ihd->hdi", flat[f"{attention}/{key}/kernel"]).flatten(0, 1) for key in theirs]
            state[f"{name}.attention.{ours}.weight"] = torch.cat(kernels)
            state[f"{name}.attention.{ours}.bias"] = torch.cat(
                [flat[f"{attention}/{key}/bias"].flatten() for key in theirs]
            )
        out = torch.einsum("hdo->ohd", flat[f"{attention}/out/kernel"])
        state[f"{name}.attention.projection.weight"] = out.flatten(1)
        state[f"{name}.attention.projection.bias"] = flat[f"{attention}/out/bias"]
        dense(f"{path}/MlpBlock_0/Dense_0", f"{name}.mlp.fc1")
        dense(f"{path}/MlpBlock_0/Dense_1", f"{name}.mlp.fc2")

    embeddings = "loca.embeddings"
    patches = torch.einsum("hwcd->dchw", flat["ToTokenSequence_0/embedding/kernel"])
    state[f"{embeddings}.patch_embeddings.weight"] = patches
    state[f"{embeddings}.patch_embeddings.bias"] = flat["ToTokenSequence_0/embedding/bias"]
    state[f"{embeddings}.position_embeddings"] = flat["ToTokenSequence_0/posembed_input"].flatten(1, 2)
    for index in range(sum(key.endswith("/LayerNorm_0/scale") for key in flat) - 1):
        block(
            f"encoderblock_{index}",
            f"loca.encoder.layer.{index}",
            ["norm1", "norm2"],
            {"qkv": ["query", "key", "value"]},
        )
    norm("encoder_norm", "loca.layernorm")
    block(
        "cross_attention_block",
        "cross_attention",
        ["norm_query", "norm_key_value", "norm2"],
        {"query": ["query"], "key_value": ["key", "value"]},
    )
    norm("final_norm", "final_norm")
    dense("position_predictor", "position_predictor")
    if f"{HEAD}/prototypes/kernel" in flat:
        for index in range(3):
            dense(f"{HEAD}/Dense_{index}", f"cluster_head.fc{index + 1}")
        state["cluster_head.prototypes.weight"] = torch.einsum("bk->kb", flat[f"{HEAD}/prototypes/kernel"])
    return state


def check_model(
    model: LOCAForPreTraining,
    student: dict[str, torch.Tensor],
    teacher: dict[str, torch.Tensor],
    head: bool = True,
) -> None:
    if not head:
        student, teacher = ({k: v for k, v in flat.items() if not k.startswith(HEAD)} for flat in (student, teacher))
    expected = expected_state(student)
    expected |= {f"teacher.{key}": value for key, value in expected_state(teacher).items()}
    found = model.state_dict()
    assert found.keys() == expected.keys()
    for key, value in found.items():
        assert value.dtype == torch.float32, key
        assert torch.equal(value, expected[key]), key
