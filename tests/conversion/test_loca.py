"""LOCA's Flax checkpoints come in with equal outputs, in bounded memory."""

import json
import math
import random
import struct
import subprocess
import sys
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
from tests.helpers.flax_files import (
    FIELDS,
    HEAD,
    SIZES,
    check_model,
    flax_file,
    flax_shapes,
    flax_tree,
    nested,
    write_flax,
)
from tests.helpers.golden import SHARED

needs_full_set = pytest.mark.skipif(
    not (SHARED / "loca" / "golden.safetensors").is_file(), reason="the full golden set is not beside the checkout"
)


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
    check_model(model, trees[weights], trees["ema_params"])
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
    path = write_flax(tmp_path / "checkpoint_1", **{name: nested(flat) for name, flat in trees.items()})
    for weights in ("params", "ema_params"):
        check_model(convert_loca_checkpoint(path, weights), trees[weights], trees["ema_params"])
    config = convert_loca_checkpoint(path).config
    assert (config.image_size, config.patch_size, config.num_attention_heads) == (64, 8, 3)
    assert (config.head_hidden_size, config.head_bottleneck_size, config.num_prototypes) == (40, 24, 32)


@pytest.mark.parametrize("weights", ["params", "ema_params"])
def test_arrays_go_where_they_belong_and_shapes_tell_the_configuration(weights: str, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    model = convert_loca_checkpoint(flax_file(tmp_path / "checkpoint_7"), weights)
    assert torch.equal(torch.get_rng_state(), before), "no random numbers are drawn"
    assert type(model) is LOCAForPreTraining
    assert not model.training
    check_model(model, flax_tree(0 if weights == "params" else 1), flax_tree(1))
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
    model, flat = convert_loca_checkpoint(flax_file(tmp_path / "checkpoint_7")), flax_tree(0)
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
    path = flax_file(tmp_path / "ablation", head=False)
    for config in (None, LOCAConfig(**SIZES, image_size=(8, 12), num_channels=5, location_target="self")):
        model = convert_loca_checkpoint(path, config=config)
        assert not model.config.has_cluster_head
        assert model.config.use_cluster_loss is (config is not None)
        check_model(model, flax_tree(0, head=False), flax_tree(1, head=False))
    one_sided = write_flax(tmp_path / "one", params=nested(flax_tree(0, head=False)), ema_params=nested(flax_tree(1)))
    with pytest.raises(ValueError, match=f"has unknown ema_params/{HEAD}/Dense_0/bias"):
        convert_loca_checkpoint(one_sided)


def test_a_projection_head_without_prototypes_is_not_read(tmp_path: Path) -> None:
    without = [{key: value for key, value in flax_tree(seed).items() if "prototypes" not in key} for seed in (0, 1)]
    without[0][f"{HEAD}/Dense_1/kernel"] = torch.zeros(3, 4, 5)
    path = write_flax(tmp_path / "ablation", params=nested(without[0]), ema_params=nested(without[1]))
    model = convert_loca_checkpoint(path)
    assert model.config.use_cluster_loss is False
    check_model(model, flax_tree(0), flax_tree(1), head=False)


def test_missing_trees_are_named_with_what_is_there(tmp_path: Path) -> None:
    params, path = nested(flax_tree(0)), tmp_path / "checkpoint_5"
    write_flax(path, params=params, opt_state={}, step=3)
    for weights in ("params", "ema_params"):
        with pytest.raises(
            ValueError, match="checkpoint_5 lacks ema_params .*at its top are: params, opt_state, step$"
        ):
            convert_loca_checkpoint(path, weights)
    write_flax(path, ema_params=params)
    with pytest.raises(ValueError, match="checkpoint_5 lacks params .*: ema_params$"):
        convert_loca_checkpoint(path)
    check_model(convert_loca_checkpoint(path, "ema_params"), flax_tree(0), flax_tree(0))
    write_flax(path, target={})
    with pytest.raises(ValueError, match="lacks params and ema_params .*: target$"):
        convert_loca_checkpoint(path)
    path.write_bytes(msgpack.packb({}))
    with pytest.raises(ValueError, match="at its top are: no names$"):
        convert_loca_checkpoint(path)
    write_flax(path, params=params, ema_params=None)
    with pytest.raises(ValueError, match="in ema_params: NoneType, expected an array"):
        convert_loca_checkpoint(path)


def test_a_configuration_gives_what_shapes_cannot_tell(tmp_path: Path) -> None:
    config = LOCAConfig(**FIELDS, drop_path_rate=0.1, num_kept_query_tokens=3, reference_selection="first")
    before = config.to_dict()
    model = convert_loca_checkpoint(flax_file(tmp_path / "file"), config=config)
    assert config.to_dict() == before
    assert model.config is not config
    assert (model.config.drop_path_rate, model.config.num_kept_query_tokens) == (0.1, 3)
    assert model.config.reference_selection == "first"
    assert model.loca.encoder.layer[1].drop_path.rate == 0.1
    check_model(model, flax_tree(0), flax_tree(1))


@pytest.mark.parametrize(
    ("field", "value", "message"),
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
    field: str, value: Any, message: str, tmp_path: Path
) -> None:
    config = LOCAConfig(**{**FIELDS, field: value})
    with pytest.raises(ValueError, match="config does not fit checkpoint_3: it has") as caught:
        convert_loca_checkpoint(flax_file(tmp_path / "checkpoint_3"), config=config)
    assert f"it has {message}; correct it" in str(caught.value)


def test_other_arguments_are_refused(tmp_path: Path) -> None:
    path = flax_file(tmp_path / "file")
    with pytest.raises(ValueError, match="weights must be 'params' or 'ema_params', got 'teacher'"):
        convert_loca_checkpoint(path, "teacher")
    with pytest.raises(TypeError, match="config must be a LOCAConfig, got dict"):
        convert_loca_checkpoint(path, config={})  # type: ignore[arg-type]
    config = LOCAConfig(**SIZES, image_size=(8, 12), num_channels=5)
    with pytest.raises(ValueError, match="it has use_cluster_loss=True .the file says False.; correct"):
        convert_loca_checkpoint(flax_file(tmp_path / "ablation", head=False), config=config)


@pytest.mark.parametrize(
    ("change", "message"),
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
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        convert_loca_checkpoint(flax_file(tmp_path / "checkpoint_3", change))
    assert str(caught.value).startswith("checkpoint_3")
    assert "\n" not in str(caught.value)


def test_both_trees_are_checked(tmp_path: Path) -> None:
    ema_params = flax_tree(1)
    del ema_params["final_norm/bias"]
    path = write_flax(tmp_path / "file", params=nested(flax_tree(0)), ema_params=nested(ema_params))
    with pytest.raises(ValueError, match="lacks ema_params/final_norm/bias$"):
        convert_loca_checkpoint(path)
    path = write_flax(tmp_path / "file", params={"a": 3}, ema_params=nested(flax_tree(1)))
    check_model(convert_loca_checkpoint(path, "ema_params"), flax_tree(1), flax_tree(1))  # params is not even looked at


def test_damage_in_a_whole_checkpoint_gives_a_model_or_a_sentence(tmp_path: Path) -> None:
    whole, path, generator = flax_file(tmp_path / "whole").read_bytes(), tmp_path / "broken", random.Random(1)
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


_MEASURE = """
import ctypes, gc, json, sys
import torch
from hf_geossl.conversion import convert_loca_checkpoint

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
        tree({"opt_state": {"mu": state}, "params": nested(shapes), "ema_params": nested(shapes), "step": (1,)})
        file.truncate()


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_memory_is_that_of_the_model_however_large_the_optimizer_state_is(tmp_path: Path) -> None:
    shapes = flax_shapes()
    shapes[f"{HEAD}/Dense_2/kernel"], shapes[f"{HEAD}/Dense_2/bias"] = (1024, 2048), (2048,)
    shapes[f"{HEAD}/Dense_0/kernel"], shapes[f"{HEAD}/Dense_0/bias"] = (12, 1024), (1024,)
    shapes[f"{HEAD}/Dense_1/kernel"], shapes[f"{HEAD}/Dense_1/bias"] = (1024, 1024), (1024,)
    shapes[f"{HEAD}/prototypes/kernel"] = (2048, 1024)
    paths = [tmp_path / "without", tmp_path / "with"]
    _write_sparse(paths[0], shapes, 0)
    _write_sparse(paths[1], shapes, 1 << 30)
    command = [sys.executable, "-c", _MEASURE, *map(str, paths)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    (without, parameters), (with_optimizer, _) = json.loads(result.stdout)
    largest = 4 * 1024 * 2048
    assert parameters > 5 * largest
    assert with_optimizer < without + largest, (without, with_optimizer)
    assert with_optimizer < parameters + 3 * largest, (parameters, with_optimizer)


def _error(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(list(argv)) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


@pytest.mark.parametrize("weights", [None, "params", "ema_params"])
def test_the_command_writes_a_folder_that_auto_classes_open(
    weights: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = flax_file(tmp_path / "checkpoint_3"), tmp_path / "converted"
    assert main(["convert", "loca", str(path), str(out), *(["--weights", weights] if weights else [])]) == 0
    assert "AutoModel.from_pretrained" in capsys.readouterr().out
    model = AutoModelForPreTraining.from_pretrained(out)
    assert type(model) is LOCAForPreTraining
    check_model(model, flax_tree(1 if weights == "ema_params" else 0), flax_tree(1))
    trunk = AutoModel.from_pretrained(out)
    assert type(trunk) is LOCAModel
    pixels = torch.randn(1, 5, 8, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(trunk(pixels).last_hidden_state, model.eval().loca(pixels).last_hidden_state)
    assert json.loads((out / "preprocessor_config.json").read_text())["size"] == {"height": 8, "width": 12}


def test_the_command_says_what_applies_to_which_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = str(flax_file(tmp_path / "checkpoint_3")), str(tmp_path / "out")
    message = _error(capsys, "convert", "loca", path, out, "--weights", "teacher")
    assert "--weights must be one of params, ema_params for loca, got teacher" in message
    message = _error(capsys, "convert", "gtsa", path, out, "--weights", "params")
    assert "--weights must be one of full, student, teacher for gtsa, got params" in message
    message = _error(capsys, "convert", "loca", path, out, "--num_attention_heads", "3")
    assert "--num_attention_heads does not apply to loca" in message
    (tmp_path / "text").write_text("not a checkpoint")
    assert "text is damaged or no Flax msgpack file" in _error(capsys, "convert", "loca", str(tmp_path / "text"), out)
    assert not Path(out).exists()
