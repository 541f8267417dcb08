"""LOCA's Flax checkpoints come in with equal outputs, from any encoding that Flax writes, in bounded memory."""

import json
import math
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForPreTraining

from hf_geossl import LOCAConfig, LOCAForPreTraining, LOCAModel
from hf_geossl.cli.main import main
from hf_geossl.conversion import convert_loca_checkpoint
from hf_geossl.conversion.flax_file import FlaxFile
from tests.helpers.golden import SHARED

Tree = dict[str, Any]

needs_full_set = pytest.mark.skipif(
    not (SHARED / "loca" / "golden.safetensors").is_file(), reason="the full golden set is not beside the checkout"
)

HEAD = "projection_head_for_clustering_prediction"
SIZES = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20, "patch_size": 4}
HEAD_SIZES = {"head_hidden_size": 10, "head_bottleneck_size": 6, "num_prototypes": 8}
FIELDS = {**SIZES, **HEAD_SIZES, "image_size": (8, 12), "num_channels": 5}


def _shapes(head: bool = True) -> dict[str, tuple[int, ...]]:
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


def _tree(seed: int, head: bool = True) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(shape, generator=generator) for key, shape in _shapes(head).items()}


def _nested(flat: dict[str, Any]) -> Tree:
    tree: Tree = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def _raw(values: torch.Tensor) -> bytes:
    return values.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _triple(values: torch.Tensor) -> tuple[Any, ...]:
    return list(values.shape), str(values.dtype).removeprefix("torch."), _raw(values)


def _array(values: torch.Tensor, code: int = 1) -> msgpack.ExtType:
    return msgpack.ExtType(code, msgpack.packb(_triple(values)))


def _pack(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return _array(value)
    if isinstance(value, dict):
        return {key: _pack(child) for key, child in value.items()}
    return value


def _bytes(**trees: Any) -> bytes:
    return msgpack.packb(_pack(trees))


def _write(path: Path, **trees: Any) -> Path:
    path.write_bytes(_bytes(**trees))
    return path


def _file(path: Path, change: dict[str, Any] | None = None, head: bool = True) -> Path:
    """A whole checkpoint whose `params` are changed by `change`: None takes an array out."""
    params: dict[str, Any] = {**_tree(0, head), **(change or {})}
    params = {key: value for key, value in params.items() if value is not None}
    return _write(path, params=_nested(params), ema_params=_nested(_tree(1, head)))


def _expected_state(flat: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
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


def _check_model(
    model: LOCAForPreTraining,
    student: dict[str, torch.Tensor],
    teacher: dict[str, torch.Tensor],
    head: bool = True,
) -> None:
    if not head:
        student, teacher = ({k: v for k, v in flat.items() if not k.startswith(HEAD)} for flat in (student, teacher))
    expected = _expected_state(student)
    expected |= {f"teacher.{key}": value for key, value in _expected_state(teacher).items()}
    found = model.state_dict()
    assert found.keys() == expected.keys()
    for key, value in found.items():
        assert value.dtype == torch.float32, key
        assert torch.equal(value, expected[key]), key


# ---- the authors' numbers


@needs_full_set
@pytest.mark.parametrize("weights", ["params", "ema_params"])
def test_the_fake_checkpoint_has_the_authors_outputs(weights: str) -> None:
    folder = SHARED / "loca" / "checkpoint"
    expected = load_file(folder / "expected.safetensors")
    model = convert_loca_checkpoint(folder / "loca_fake_checkpoint", weights)
    trees = {
        name: {key.removeprefix(f"{name}/"): value for key, value in expected.items() if key.startswith(f"{name}/")}
        for name in ("params", "ema_params")
    }
    _check_model(model, trees[weights], trees["ema_params"])
    pixels = expected["in/image"].permute(0, 3, 1, 2)
    with torch.no_grad():
        for network, whose in ((model, weights), (model.teacher, "ema_params")):
            tokens = network.loca(pixels).last_hidden_state
            clusters = network.cluster_head(tokens).flatten(0, 1)
            positions = network.position_predictor(network.final_norm(network.cross_attention(tokens, tokens)))
            for found, name in ((tokens, "patches_repr"), (clusters, "cluster_logits"), (positions, "position_logits")):
                torch.testing.assert_close(found, expected[f"out/{whose}/{name}"], rtol=0, atol=1e-5)
    assert (model.config.image_size, model.config.patch_size) == (224, 16)
    assert (model.config.hidden_size, model.config.num_attention_heads, model.config.num_hidden_layers) == (32, 2, 2)


@needs_full_set
def test_the_golden_weights_survive_a_round_trip(tmp_path: Path) -> None:
    golden = load_file(SHARED / "loca" / "golden.safetensors")
    trees = {
        name: {key.removeprefix(f"{name}/"): value for key, value in golden.items() if key.startswith(f"{name}/")}
        for name in ("params", "ema_params")
    }
    path = _write(tmp_path / "checkpoint_1", **{name: _nested(flat) for name, flat in trees.items()})
    for weights in ("params", "ema_params"):
        _check_model(convert_loca_checkpoint(path, weights), trees[weights], trees["ema_params"])
    config = convert_loca_checkpoint(path).config
    assert (config.image_size, config.patch_size, config.num_attention_heads) == (64, 8, 3)
    assert (config.head_hidden_size, config.head_bottleneck_size, config.num_prototypes) == (40, 24, 32)


# ---- what goes where


@pytest.mark.parametrize("weights", ["params", "ema_params"])
def test_arrays_go_where_they_belong_and_shapes_tell_the_configuration(weights: str, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    model = convert_loca_checkpoint(_file(tmp_path / "checkpoint_7"), weights)
    assert torch.equal(torch.get_rng_state(), before), "no random numbers are drawn"
    assert type(model) is LOCAForPreTraining
    assert not model.training
    _check_model(model, _tree(0 if weights == "params" else 1), _tree(1))
    for field, value in {**FIELDS, "use_cluster_loss": True}.items():
        assert getattr(model.config, field) == value, field
    fresh = LOCAForPreTraining(LOCAConfig(**FIELDS))
    trained = {name: parameter.requires_grad for name, parameter in fresh.named_parameters()}
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == trained
    storages = [parameter.untyped_storage().data_ptr() for parameter in model.parameters()]
    assert len(set(storages)) == len(storages), "no two parameters share memory"
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_attention_computes_what_flax_computes(tmp_path: Path) -> None:
    """Of the einsums of `flax.linen.MultiHeadDotProductAttention`, in numpy."""
    model, flat = convert_loca_checkpoint(_file(tmp_path / "checkpoint_7")), _tree(0)
    arrays = {key: value.double().numpy() for key, value in flat.items()}
    queries, references = (
        np.random.default_rng(0).normal(size=(2, 5, 12)),
        np.random.default_rng(1).normal(size=(2, 4, 12)),
    )

    def attend(path: str, queries: Any, references: Any) -> Any:
        path = f"{path}/MultiHeadDotProductAttention_0"
        query, key, value = (
            np.einsum("bti,ihd->bthd", tokens, arrays[f"{path}/{name}/kernel"]) + arrays[f"{path}/{name}/bias"]
            for name, tokens in (("query", queries), ("key", references), ("value", references))
        )
        scores = np.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(4)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = np.einsum("bhqk,bkhd->bqhd", weights, value)
        return np.einsum("bqhd,hdo->bqo", mixed, arrays[f"{path}/out/kernel"]) + arrays[f"{path}/out/bias"]

    with torch.no_grad():
        model = model.double()
        crossed = model.cross_attention.attention(torch.tensor(queries), torch.tensor(references)).numpy()
        layer = model.loca.encoder.layer[1].attention(torch.tensor(queries))[0].numpy()
    np.testing.assert_allclose(crossed, attend("cross_attention_block", queries, references), atol=1e-9)
    np.testing.assert_allclose(layer, attend("encoderblock_1", queries, queries), atol=1e-9)


def test_a_file_without_a_projection_head_has_no_cluster_loss(tmp_path: Path) -> None:
    path = _file(tmp_path / "ablation", head=False)
    for config in (None, LOCAConfig(**SIZES, image_size=(8, 12), num_channels=5, location_target="self")):
        model = convert_loca_checkpoint(path, config=config)
        assert not model.config.has_cluster_head
        assert model.config.use_cluster_loss is (config is not None)
        _check_model(model, _tree(0, head=False), _tree(1, head=False))
    one_sided = _write(tmp_path / "one", params=_nested(_tree(0, head=False)), ema_params=_nested(_tree(1)))
    with pytest.raises(ValueError, match=f"has unknown ema_params/{HEAD}/Dense_0/bias"):
        convert_loca_checkpoint(one_sided)


def test_a_projection_head_without_prototypes_is_not_read(tmp_path: Path) -> None:
    without = [{key: value for key, value in _tree(seed).items() if "prototypes" not in key} for seed in (0, 1)]
    without[0][f"{HEAD}/Dense_1/kernel"] = torch.zeros(3, 4, 5)
    path = _write(tmp_path / "ablation", params=_nested(without[0]), ema_params=_nested(without[1]))
    model = convert_loca_checkpoint(path)
    assert model.config.use_cluster_loss is False
    _check_model(model, _tree(0), _tree(1), head=False)


# ---- encodings


def _chunked(values: torch.Tensor, size: int, form: str) -> Tree:
    chunks: Any = [_array(part) for part in values.reshape(-1).split(size)]
    shape: Any = list(values.shape)
    if form != "list":  # as flax writes them, whose maps may come in the order of the text
        order = sorted if form == "sorted map" else reversed if form == "reversed map" else list
        keys = list(order([str(index) for index in range(len(chunks))]))
        chunks = {key: chunks[int(key)] for key in keys}
        shape = {str(index): length for index, length in enumerate(shape)}
    marker = {"__msgpack_chunked_array__": True}
    parts = {"shape": shape, "chunks": chunks}
    return {**parts, **marker} if form == "reversed map" else {**marker, **parts}


@pytest.mark.parametrize("form", ["list", "map", "sorted map", "reversed map"])
def test_chunked_arrays(form: str, tmp_path: Path) -> None:
    flat = _tree(0)
    change = {
        key: _chunked(flat[key], 20, form) for key in ("position_predictor/kernel", "encoderblock_0/LayerNorm_0/bias")
    }
    key = "ToTokenSequence_0/embedding/kernel"  # 48 chunks: "10" comes before "2" in the order of the text
    change[key] = _chunked(flat[key], 20, form)
    _check_model(convert_loca_checkpoint(_file(tmp_path / "chunked", change)), flat, _tree(1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("way", ["array", "scalar", "chunked"])
def test_dtypes_become_float32(dtype: torch.dtype, way: str, tmp_path: Path) -> None:
    encode: dict[str, Callable[[torch.Tensor], Any]] = {
        "array": lambda values: _array(values),
        "scalar": lambda values: _array(values, code=3),
        "chunked": lambda values: _chunked(values, 7, "map"),
    }
    flat = {key: value.to(dtype) for key, value in _tree(0).items()}
    model = convert_loca_checkpoint(_file(tmp_path / "file", {key: encode[way](value) for key, value in flat.items()}))
    _check_model(model, {key: value.float() for key, value in flat.items()}, _tree(1))


@pytest.mark.parametrize("old", [False, True])
def test_names_and_bytes_as_old_and_new_msgpack_write_them(old: bool, tmp_path: Path) -> None:
    """Flax decodes the triple with raw=True: the dtype may be bytes, and the content text."""
    flat = _tree(0)
    change: dict[str, Any] = {}
    for key, value in flat.items():
        shape, dtype, content = _triple(value)
        packed = msgpack.packb((shape, dtype, content), use_bin_type=False)
        change[key] = msgpack.ExtType(1, packed if old else msgpack.packb((shape, dtype.encode(), content)))
    _check_model(convert_loca_checkpoint(_file(tmp_path / "file", change)), flat, _tree(1))


def test_other_values_and_any_order_at_the_top_are_tolerated(tmp_path: Path) -> None:
    params, ema_params = _nested(_tree(0)), _nested(_tree(1))
    number = msgpack.ExtType(2, msgpack.packb((1.0, -2.0)))
    others = {
        "opt_state": {"0": {"mu": params, "nu": {}}, "1": [], "count": _array(torch.tensor(3, dtype=torch.int32))},
        "state": None,
        "rng": msgpack.ExtType(1, msgpack.packb(([2], "uint32", b"12345678"))),
        "metadata": {"chrono": {"time": 1.5, "seen": 2**40, "negative": -(2**40), "done": True, "z": number}},
        "strange": {
            1: "integer",
            b"raw": 2.5,
            "when": msgpack.Timestamp.from_datetime(datetime(2024, 1, 1, tzinfo=UTC)),
        },
        "object": msgpack.ExtType(1, msgpack.packb(([1], "object", b"12345678"))),
        "many": list(range(70_000)),
        "text": ["x" * length for length in (31, 32, 255, 256, 70_000)],
        "extensions": [msgpack.ExtType(9, b"x" * length) for length in (1, 2, 3, 4, 8, 16, 17, 300, 70_000)],
        "wide": {str(index): index / 3 for index in range(70_000)},
    }
    orders = [
        {**others, "ema_params": ema_params, "params": params},
        {"params": params, **others, "ema_params": ema_params},
        {"ema_params": ema_params, "params": params},
    ]
    for content in orders:
        model = convert_loca_checkpoint(_write(tmp_path / "file", **content))
        _check_model(model, _tree(0), _tree(1))


def test_a_map_of_nothing_in_a_tree_is_nothing(tmp_path: Path) -> None:
    _check_model(convert_loca_checkpoint(_file(tmp_path / "file", {"dropout": {}})), _tree(0), _tree(1))


def test_missing_trees_are_named_with_what_is_there(tmp_path: Path) -> None:
    params, path = _nested(_tree(0)), tmp_path / "checkpoint_5"
    _write(path, params=params, opt_state={}, step=3)
    for weights in ("params", "ema_params"):
        with pytest.raises(
            ValueError, match="checkpoint_5 lacks ema_params .*at its top are: params, opt_state, step$"
        ):
            convert_loca_checkpoint(path, weights)
    _write(path, ema_params=params)
    with pytest.raises(ValueError, match="checkpoint_5 lacks params .*: ema_params$"):
        convert_loca_checkpoint(path)
    _check_model(convert_loca_checkpoint(path, "ema_params"), _tree(0), _tree(0))
    _write(path, target={})
    with pytest.raises(ValueError, match="lacks params and ema_params .*: target$"):
        convert_loca_checkpoint(path)
    path.write_bytes(msgpack.packb({}))
    with pytest.raises(ValueError, match="at its top are: no names$"):
        convert_loca_checkpoint(path)
    _write(path, params=params, ema_params=None)
    with pytest.raises(ValueError, match="in ema_params: NoneType, expected an array"):
        convert_loca_checkpoint(path)


# ---- the configuration


def test_a_configuration_gives_what_shapes_cannot_tell(tmp_path: Path) -> None:
    config = LOCAConfig(**FIELDS, drop_path_rate=0.1, num_kept_query_tokens=3, reference_selection="first")
    before = config.to_dict()
    model = convert_loca_checkpoint(_file(tmp_path / "file"), config=config)
    assert config.to_dict() == before
    assert model.config is not config
    assert (model.config.drop_path_rate, model.config.num_kept_query_tokens) == (0.1, 3)
    assert model.config.reference_selection == "first"
    assert model.loca.encoder.layer[1].drop_path.rate == 0.1
    _check_model(model, _tree(0), _tree(1))


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("hidden_size", 24, "hidden_size=24 (the file says 12)"),
        ("num_hidden_layers", 3, "num_hidden_layers=3 (the file says 2)"),
        ("num_attention_heads", 2, "num_attention_heads=2 (the file says 3)"),
        ("intermediate_size", 48, "intermediate_size=48 (the file says 20)"),
        ("patch_size", 2, "patch_size=2 (the file says 4)"),
        ("image_size", 8, "image_size=(8, 8) (the file says (8, 12))"),
        ("image_size", (12, 8), "image_size=(12, 8) (the file says (8, 12))"),
        ("num_channels", 3, "num_channels=3 (the file says 5)"),
        ("qkv_bias", False, "qkv_bias=False (the file says True)"),
        ("use_class_token", True, "use_class_token=True (the file says False)"),
        ("head_hidden_size", 11, "head_hidden_size=11 (the file says 10)"),
        ("head_bottleneck_size", 7, "head_bottleneck_size=7 (the file says 6)"),
        ("num_prototypes", 9, "num_prototypes=9 (the file says 8)"),
        ("use_cluster_loss", False, "use_cluster_loss=False (the file says True)"),
        ("location_target", "self", "location_target='self' (the file says 'reference')"),
    ],
)
def test_a_configuration_that_contradicts_the_file_is_refused(
    field: str, value: Any, told: str, tmp_path: Path
) -> None:
    config = LOCAConfig(**{**FIELDS, field: value})
    with pytest.raises(ValueError, match="config does not fit checkpoint_3: it has") as caught:
        convert_loca_checkpoint(_file(tmp_path / "checkpoint_3"), config=config)
    assert f"it has {told}; correct it" in str(caught.value)


def test_other_arguments_are_refused(tmp_path: Path) -> None:
    path = _file(tmp_path / "file")
    with pytest.raises(ValueError, match="weights must be 'params' or 'ema_params', got 'teacher'"):
        convert_loca_checkpoint(path, "teacher")
    with pytest.raises(TypeError, match="config must be a LOCAConfig, got dict"):
        convert_loca_checkpoint(path, config={})  # type: ignore[arg-type]
    config = LOCAConfig(**SIZES, image_size=(8, 12), num_channels=5)
    with pytest.raises(ValueError, match="it has use_cluster_loss=True .the file says False.; correct"):
        convert_loca_checkpoint(_file(tmp_path / "ablation", head=False), config=config)


# ---- inconsistent files


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"encoder_norm/scale": None}, "it lacks params/encoder_norm/scale$"),
        ({"encoderblock_1/LayerNorm_1/bias": None}, "it lacks params/encoderblock_1/LayerNorm_1/bias$"),
        (
            {"ToTokenSequence_0/embedding/kernel": None},
            "it lacks params/ToTokenSequence_0/embedding/kernel; is it another",
        ),
        ({f"{HEAD}/prototypes/kernel": None}, f"it has unknown ema_params/{HEAD}/Dense_0/bias"),
        ({f"{HEAD}/Dense_2/kernel": None}, f"it lacks params/{HEAD}/Dense_2/kernel; is it another"),
        ({"cls": torch.zeros(1, 1, 12)}, "it has unknown params/cls$"),
        (
            {"encoderblock_7/LayerNorm_0/bias": torch.zeros(12)},
            "lacks params/encoderblock_2/.*unknown params/encoderblock_7",
        ),
        ({"encoder_norm/scale": torch.zeros(13)}, r"params/encoder_norm/scale .\(13,\), expected \(12,\)"),
        ({"encoder_norm/scale": torch.zeros(12, 1)}, r"params/encoder_norm/scale .\(12, 1\), expected \(12,\)"),
        ({"encoder_norm/scale": torch.tensor(1.0)}, r"params/encoder_norm/scale .\(\), expected \(12,\)"),
        (
            {"encoderblock_1/MultiHeadDotProductAttention_0/query/kernel": torch.zeros(12, 4, 3)},
            r"encoderblock_1/\S+/query/kernel .\(12, 4, 3\), expected \(12, 3, 4\)",
        ),
        (
            {"position_predictor/kernel": torch.zeros(12, 9)},
            r"position_predictor/kernel .\(12, 9\), expected \(12, 6\)",
        ),
        ({f"{HEAD}/Dense_1/kernel": torch.zeros(10, 11)}, "equally wide .head_hidden_size., got 10 in Dense_0 and 11"),
        ({"ToTokenSequence_0/embedding/kernel": torch.zeros(4, 2, 5, 12)}, "must have square patches, got 4 x 2"),
        ({"ToTokenSequence_0/posembed_input": torch.zeros(1, 6, 12)}, "posembed_input must have 4 dimensions"),
        ({"encoder_norm/scale": None, "encoder_norm/scale2": torch.zeros(1)}, "lacks .*scale; has unknown .*scale2"),
    ],
)
def test_inconsistent_trees_are_refused_by_the_names_of_the_arrays(
    change: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        convert_loca_checkpoint(_file(tmp_path / "checkpoint_3", change))
    assert str(caught.value).startswith("checkpoint_3")
    assert "\n" not in str(caught.value)


def test_both_trees_are_checked(tmp_path: Path) -> None:
    ema_params = _tree(1)
    del ema_params["final_norm/bias"]
    path = _write(tmp_path / "file", params=_nested(_tree(0)), ema_params=_nested(ema_params))
    with pytest.raises(ValueError, match="lacks ema_params/final_norm/bias$"):
        convert_loca_checkpoint(path)
    path = _write(tmp_path / "file", params={"a": 3}, ema_params=_nested(_tree(1)))
    _check_model(convert_loca_checkpoint(path, "ema_params"), _tree(1), _tree(1))  # params is not even looked at


# ---- damaged and hostile files


def _ext(*triple: Any, code: int = 1) -> msgpack.ExtType:
    return msgpack.ExtType(code, msgpack.packb(triple if len(triple) != 1 else triple[0]))


_FOUR = b"\0" * 16


@pytest.mark.parametrize(
    ("leaf", "told"),
    [
        (_ext([4], "float32", b"\0" * 15), "expected shape, dtype and bytes"),
        (_ext([4], "float64", _FOUR), "its 2 values do not fill its shape"),
        (_ext([2**40, 2**40], "float32", _FOUR), "its 4 values do not fill its shape"),
        (_ext([2**63] * 30, "float32", _FOUR), "its 4 values do not fill its shape"),
        (_ext([1] * 2000, "float32", _FOUR), "up to 32 dimensions"),
        (_ext([1] * 33, "float32", b"1234"), "up to 32 dimensions"),
        (_ext([0, 2**60], "float32", b""), "expected up to 32 positive integers"),
        (_ext([-2, -2], "float32", _FOUR), "expected up to 32 positive integers as shape"),
        (_ext([4.0], "float32", _FOUR), "expected up to 32 positive integers"),
        (_ext([True], "float32", b"\0" * 4), "expected up to 32 positive integers"),
        (_ext(["4"], "float32", _FOUR), "expected up to 32 positive integers"),
        (_ext(4, "float32", _FOUR), "in params/a/b"),
        (_ext([4], "object", _FOUR), "dtype 'object', expected one of bfloat16, float16"),
        (_ext([4], "int32", _FOUR), "dtype 'int32'"),
        (_ext([2], "complex64", _FOUR), "dtype 'complex64'"),
        (_ext([4], "O" * 500, _FOUR), "dtype 'O{40}', "),
        (_ext([4], ["float32"], _FOUR), "a map or list stands where a single value belongs"),
        (_ext([4], 3, _FOUR), "dtype 'int'"),
        (_ext([4], b"\xff\n", _FOUR), r"dtype 'ÿ\\n'"),
        (_ext([4], "float32", [0, 0, 0, 0]), "a map or list stands where a single value belongs"),
        (_ext([4], "float32", 3), "expected shape, dtype and bytes"),
        (_ext([4], "float32"), "dtype and bytes of an array"),
        (_ext([[4]], "float32", _FOUR), "a map or list stands where a single value belongs"),
        (_ext({}), "in params/a/b"),
        (msgpack.ExtType(1, b""), "in params/a/b"),
        (msgpack.ExtType(1, msgpack.packb(([4], "float32", _FOUR)) + b"x"), "expected shape, dtype and bytes"),
        (msgpack.ExtType(1, msgpack.packb(([4], "float32", _FOUR))[:-1]), "in params/a/b"),
        (msgpack.ExtType(1, b"\x93\x91\x04\xc1"), "in params/a/b"),
        (msgpack.ExtType(1, b"\x93" + b"\x91" * 200), "in params/a/b"),
        (msgpack.ExtType(1, b"\x93" + b"\x91" * 100_000), "in params/a/b"),
        (msgpack.ExtType(1, b"\x93\xdd\x3f\xff\xff\xff"), "up to 32 dimensions"),
        (msgpack.ExtType(1, b"\x93\x91\x04\xdd\x3f\xff\xff\xff"), "exceeds max_array_len"),
        (msgpack.ExtType(2, msgpack.packb((1.0, 2.0))), "extension type 2, expected an array"),
        (msgpack.ExtType(5, b"x"), "extension type 5, expected an array"),
        (3.5, "float, expected an array"),
        (3, "int, expected an array"),
        (None, "NoneType, expected an array"),
        ("text", "str, expected an array"),
        (b"raw", "bytes, expected an array"),
        ([1], "in params/a/b/0: int, expected an array"),
        ({1: _ext([1], "float32", b"1234")}, "a name that is no printable text of up to 256 characters"),
        ({"x" * 2000: 1}, "a name that is no printable text of up to 256 characters"),
        ({"__msgpack_chunked_array__": True, "shape": [4]}, "its 0 values do not fill its shape"),
        ({"__msgpack_chunked_array__": True, "chunks": []}, "its 0 values do not fill its shape"),
        (
            {"__msgpack_chunked_array__": True, "shape": [5], "chunks": [_ext([4], "float32", _FOUR)]},
            "its 4 values do not fill its shape",
        ),
        ({"__msgpack_chunked_array__": True, "shape": [2**62], "chunks": {}}, "its 0 values do not fill its shape"),
        (
            {"__msgpack_chunked_array__": True, "shape": [4], "chunks": {"0": _ext([4], "float32", b"1")}},
            "in params/a/b/chunks/0: expected shape, dtype and bytes",
        ),
        ({"__msgpack_chunked_array__": True, "shape": {"0": 2, "2": 2}, "chunks": []}, "do not fill its shape"),
        ({"__msgpack_chunked_array__": True, "shape": [4], "chunks": 3}, "its 0 values do not fill its shape"),
        ({"__msgpack_chunked_array__": True, "shape": [4], "chunks": [3]}, "expected arrays as chunks"),
        ({"__msgpack_chunked_array__": True, "shape": [2**63] * 9999, "chunks": []}, "expected up to 32 positive"),
        ({"__msgpack_chunked_array__": True, "shape": [True], "chunks": []}, "expected up to 32 positive integers"),
    ],
)
def test_damaged_arrays_are_refused_by_name(leaf: Any, told: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_3"
    path.write_bytes(msgpack.packb({"ema_params": _pack(_nested(_tree(1))), "params": {"a": {"b": leaf}}}))
    with pytest.raises(ValueError, match=told) as caught:
        convert_loca_checkpoint(path)
    message = str(caught.value)
    assert message.startswith("checkpoint_3 is damaged or no Flax msgpack file, in params/a/b")
    assert str(tmp_path) not in message
    assert message.isprintable()
    assert len(message) < 400


@pytest.mark.parametrize("nest", [lambda tree: [tree], lambda tree: {"": tree}, lambda tree: {"x": tree}])
def test_trees_that_nest_deep_are_refused(nest: Callable[[Any], Any], tmp_path: Path) -> None:
    deep: Any = _array(torch.zeros(1))
    for _ in range(400):  # less than the library's own limit
        deep = nest(deep)
    path = _write(tmp_path / "file", params=deep if isinstance(deep, dict) else {"a": deep}, ema_params={})
    with pytest.raises(ValueError, match="^file has over 20000 arrays, or paths of over 256 characters, in params$"):
        convert_loca_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "in the map at its top"),
        (b"version https://git-lfs.github.com/spec/v1\n", "in the map at its top"),
        (b"\x1f\x8b\x08\x00gzip", "in the map at its top"),
        (b"PK\x03\x04zip", "in the map at its top"),
        (b"\x80\x02}q\x00.", "it goes on after its end"),
        (msgpack.packb([1, 2]), "in the map at its top"),
        (msgpack.packb(None), "in the map at its top"),
        (b"\xc1", "in the map at its top"),
        (b"\x80\x80", "it goes on after its end"),
        (msgpack.packb({"params": {}}) + b"\n", "it goes on after its end"),
        (b"\x81\xa6params", "in params"),
        (b"\x91" * 100_000, "in the map at its top"),
        (b"\x81\xa1a" * 100_000, "in a: StackError"),
        (b"\x81\xa1a" + b"\x91" * 100_000, "in a: StackError"),
        (b"\x81\xa1a\xdd\xff\xff\xff\xff", "in a"),
        (b"\xdf\xff\xff\xff\xff", "in the map at its top: 4294967295 entries, expected up to 20000"),
        (b"\x81\xa1a\xc6\xff\xff\xff\xff", "in a"),
        (b"\x81\xa1a\xc9\xff\xff\xff\xff\x01", "damaged"),
        (b"\xdb\xff\xff\xff\xff", "in the map at its top"),
        (b"\x81\xc4\x01a\xc0", "a name that is no printable text"),
        (b"\x81\xa2\xff\xfe\xc0", "can't decode byte 0xff"),
        (b"\x81\x92\xc0\xc0\xc0", "a map or list stands where a single value belongs"),
        (b"\x81\x81\xa1a\xc0\xc0", "a map or list stands where a single value belongs"),
        (b"\x81\xdd\x3f\xff\xff\xff", "exceeds max_array_len"),
        (
            b"\xde\x75\x30" + b"".join(b"\xa5%05d\xc0" % index for index in range(30_000)),
            "30000 entries, expected up to 20000",
        ),
    ],
)
def test_files_of_something_else_are_refused(content: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "some_file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=told) as caught:
        convert_loca_checkpoint(path)
    assert str(caught.value).startswith("some_file is damaged or no Flax msgpack file")
    assert str(tmp_path) not in str(caught.value)


def test_a_tree_of_countless_arrays_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_geossl.conversion.flax_file._MAXIMUM_ENTRIES", 5000)
    with pytest.raises(ValueError, match="^file has over 5000 arrays"):
        convert_loca_checkpoint(_write(tmp_path / "file", params=[_array(torch.zeros(1))] * 6000, ema_params={}))


def test_pytorch_files_folders_and_nothing_are_refused(tmp_path: Path) -> None:
    for new in (True, False):
        torch.save({"params": torch.zeros(3)}, tmp_path / "model.pth", _use_new_zipfile_serialization=new)
        with pytest.raises(ValueError, match="^model.pth is damaged or no Flax msgpack file"):
            convert_loca_checkpoint(tmp_path / "model.pth")
    (tmp_path / "checkpoint_9").mkdir()
    with pytest.raises(FileNotFoundError, match="^checkpoint_9 is a folder: give the path of the checkpoint file"):
        convert_loca_checkpoint(tmp_path / "checkpoint_9")
    with pytest.raises(FileNotFoundError, match="^nothing is no file: give the path of the checkpoint file"):
        convert_loca_checkpoint(tmp_path / "nothing")


def test_names_that_would_break_the_line_or_come_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="in params: a name that is no printable text") as caught:
        convert_loca_checkpoint(_file(tmp_path / "file", {"a\nb\x1b[31m": torch.zeros(1)}))
    assert str(caught.value).isprintable()
    doubled = {"encoder_norm": {"scale": torch.zeros(12)}, "encoder_norm/scale": torch.zeros(12)}
    with pytest.raises(ValueError, match="in params/encoder_norm/scale: it is there twice"):
        convert_loca_checkpoint(_write(tmp_path / "file", params=doubled, ema_params={}))


def test_every_truncation_and_any_damage_is_refused_in_one_sentence(tmp_path: Path) -> None:
    small = {"params": {"a": {"kernel": torch.zeros(3, 2)}}, "ema_params": {"b": _chunked(torch.zeros(4), 3, "map")}}
    whole, path, generator = _bytes(**small), tmp_path / "broken", random.Random(0)
    damaged_files = [whole[:length] for length in range(len(whole))]
    for _ in range(1500):
        damaged = bytearray(whole)
        for _ in range(generator.choice([1, 2, 10])):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        damaged_files.append(bytes(damaged))
    for content in damaged_files:
        path.write_bytes(content)
        with pytest.raises(ValueError, match="^broken") as caught:  # undamaged it is no LOCA checkpoint either
            convert_loca_checkpoint(path)
        assert type(caught.value) is ValueError
        assert str(caught.value).isprintable()


def test_damage_in_a_whole_checkpoint_gives_a_model_or_a_sentence(tmp_path: Path) -> None:
    whole, path, generator = _file(tmp_path / "whole").read_bytes(), tmp_path / "broken", random.Random(1)
    headers = [index for index in range(len(whole)) if whole[index : index + 4] in (b"bias", b"kern", b"scal", b"floa")]
    outcomes: list[Any] = []
    for _ in range(60):  # next to names, where types, shapes and lengths stand
        damaged = bytearray(whole)
        damaged[generator.choice(headers) + generator.randrange(-4, 24)] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            outcomes.append(convert_loca_checkpoint(path))
        except ValueError as error:
            outcomes.append(str(error))
    for outcome in outcomes:
        assert isinstance(outcome, LOCAForPreTraining) or (outcome.startswith("broken") and "\n" not in outcome)
    assert len({type(outcome) for outcome in outcomes}) == 2


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(_bytes(params={"a": torch.zeros(100_000)}))
    with FlaxFile(path) as file:
        array = file.tree("params")["a"]
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(ValueError, match="file has become shorter while it was read"):
            file.read(array)


# ---- memory

_MEASURE = """
import ctypes, gc, json, sys
import torch
from hf_geossl.publishing import convert_loca_checkpoint

def status(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024

convert_loca_checkpoint(sys.argv[1])  # what only the first call needs
found = []
for path in sys.argv[1:]:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or what the allocator happens to keep of the call before is not counted
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # forget the peak so far
    before = status("VmRSS")
    model = convert_loca_checkpoint(path)
    peak = status("VmHWM") - before
    found.append((peak, sum(parameter.nbytes for parameter in model.parameters())))
    del model
print(json.dumps(found))
"""


def _write_sparse(path: Path, shapes: dict[str, tuple[int, ...]], optimizer_bytes: int) -> None:
    """A checkpoint of zeros that takes hardly any room on disk, the optimizer's state first."""
    packer = msgpack.Packer()
    count = optimizer_bytes // 4
    with path.open("wb") as file:

        def array(shape: tuple[int, ...]) -> None:
            size = 4 * math.prod(shape)
            head = b"\x93" + msgpack.packb(list(shape)) + msgpack.packb("float32") + b"\xc6" + struct.pack(">I", size)
            file.write(b"\xc9" + struct.pack(">I", len(head) + size) + b"\x01" + head)
            file.seek(size, 1)

        def tree(node: Any) -> None:
            if not isinstance(node, dict):
                return array(node)
            file.write(packer.pack_map_header(len(node)))
            for key, child in node.items():
                file.write(packer.pack(key))
                tree(child)
            return None

        step = 1 << 21  # as large as the largest array of the trees
        state = {str(index): (min(step, count - start),) for index, start in enumerate(range(0, count, step))}
        tree({"opt_state": {"mu": state}, "params": _nested(shapes), "ema_params": _nested(shapes), "step": (1,)})
        file.truncate()


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_memory_is_that_of_the_model_however_large_the_optimizer_state_is(tmp_path: Path) -> None:
    shapes = _shapes()
    shapes[f"{HEAD}/Dense_2/kernel"], shapes[f"{HEAD}/Dense_2/bias"] = (1024, 2048), (2048,)
    shapes[f"{HEAD}/Dense_0/kernel"], shapes[f"{HEAD}/Dense_0/bias"] = (12, 1024), (1024,)
    shapes[f"{HEAD}/Dense_1/kernel"], shapes[f"{HEAD}/Dense_1/bias"] = (1024, 1024), (1024,)
    shapes[f"{HEAD}/prototypes/kernel"] = (2048, 1024)
    paths = [tmp_path / "without", tmp_path / "with"]
    _write_sparse(paths[0], shapes, 0)
    _write_sparse(paths[1], shapes, 5 << 30)
    command = [sys.executable, "-c", _MEASURE, *map(str, paths)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    (without, parameters), (with_optimizer, _) = json.loads(result.stdout)
    largest = 4 * 1024 * 2048
    assert parameters > 5 * largest
    assert with_optimizer < without + largest, (without, with_optimizer)
    assert with_optimizer < parameters + 3 * largest, (parameters, with_optimizer)


# ---- the command


def _error(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(list(argv)) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


@pytest.mark.parametrize("weights", [None, "params", "ema_params"])
def test_the_command_writes_a_folder_that_auto_classes_open(
    weights: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = _file(tmp_path / "checkpoint_3"), tmp_path / "converted"
    assert main(["convert", "loca", str(path), str(out), *(["--weights", weights] if weights else [])]) == 0
    assert "AutoModel.from_pretrained" in capsys.readouterr().out
    model = AutoModelForPreTraining.from_pretrained(out)
    assert type(model) is LOCAForPreTraining
    _check_model(model, _tree(1 if weights == "ema_params" else 0), _tree(1))
    trunk = AutoModel.from_pretrained(out)
    assert type(trunk) is LOCAModel
    pixels = torch.randn(1, 5, 8, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(trunk(pixels).last_hidden_state, model.eval().loca(pixels).last_hidden_state)
    assert json.loads((out / "preprocessor_config.json").read_text())["size"] == {"height": 8, "width": 12}


def test_the_command_says_what_applies_to_which_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = str(_file(tmp_path / "checkpoint_3")), str(tmp_path / "out")
    message = _error(capsys, "convert", "loca", path, out, "--weights", "teacher")
    assert "--weights must be one of params, ema_params for loca, got teacher" in message
    message = _error(capsys, "convert", "gtsa", path, out, "--weights", "params")
    assert "--weights must be one of full, student, teacher for gtsa, got params" in message
    message = _error(capsys, "convert", "loca", path, out, "--num_attention_heads", "3")
    assert "--num_attention_heads does not apply to loca" in message
    (tmp_path / "text").write_text("not a checkpoint")
    assert "text is damaged or no Flax msgpack file" in _error(capsys, "convert", "loca", str(tmp_path / "text"), out)
    assert not Path(out).exists()
