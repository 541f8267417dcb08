"""Every trunk is plain PyTorch: exported for any batch, traced, quantised, differentiated by torch.func; nothing waits for a GPU."""

import ast
import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

import hf_geossl.modeling
from tests.helpers.methods import METHODS, Method, images

SOURCES = sorted(Path(hf_geossl.modeling.__file__).parent.glob("*.py"))
OPTIONS = {"num_register_tokens": 2, "layerscale_value": 0.3}
ROTARY = {"position_embedding_type": "rope", "gated_mlp": True, "key_bias": False, "hidden_act": "silu"}
TRUNKS = [{}, {"position_interpolation": "bicubic_antialias"}, ROTARY]
# the second is not the size that the position table is made for
SIZES = [(32, 32), (40, 24)]


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Method:
    return METHODS[request.param]


# ---- What tools make of a trunk


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("gtsa", kind) for kind in ("Model", "Backbone", "ForImageClassification", "ForSemanticSegmentation")),
        ("loca", "ForImageClassification"),  # without a class token
        ("equicoherent", "Model"),
    ],
)
def test_a_model_exported_with_a_free_batch_gives_the_same_for_every_batch(
    name: str, kind: str, size: tuple[int, int]
) -> None:
    model = METHODS[name].model(kind, num_hidden_layers=2, num_labels=3, **OPTIONS)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(model, (images(2, 3, *size),), dynamic_shapes={"pixel_values": {0: batch}})
    for batch_size in (1, 2, 7):
        pixels = images(batch_size, 3, *size, seed=batch_size)
        with torch.no_grad():
            found, expected = exported.module()(pixels), model(pixels)
        assert found.keys() == expected.keys()
        for name in expected.keys() - {"feature_maps"}:
            torch.testing.assert_close(found[name], expected[name])
        for ours, theirs in zip(found.get("feature_maps", ()), expected.get("feature_maps", ()), strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("name", "size", "trunk"),
    [
        *(("gtsa", size, trunk) for size in SIZES for trunk in TRUNKS),
        ("loca", SIZES[1], {}),  # without a class token
        ("equicoherent", SIZES[1], {}),
    ],
)
def test_a_model_exported_with_free_sides_gives_the_same_for_every_size(
    name: str, size: tuple[int, int], trunk: dict[str, Any]
) -> None:
    """As transformers' ViT (with `interpolate_pos_encoding`) and DINOv2; the table's own size among the others."""
    model = METHODS[name].model("ForSemanticSegmentation", num_hidden_layers=1, num_labels=3, **OPTIONS, **trunk)
    sides = {2: 8 * torch.export.Dim("rows", min=1, max=64), 3: 8 * torch.export.Dim("columns", min=1, max=64)}
    exported = torch.export.export(model, (images(2, 3, *size),), dynamic_shapes={"pixel_values": sides}).module()
    for other in [*SIZES, (16, 88), (72, 32)]:
        with torch.no_grad():
            torch.testing.assert_close(exported(images(2, 3, *other)).logits, model(images(2, 3, *other)).logits)


@pytest.mark.filterwarnings("ignore:While compiling:UserWarning")
@pytest.mark.parametrize(("trunk", "size"), [({}, (32, 32)), ({}, (40, 24)), (ROTARY, (40, 24))])
def test_a_strict_export_keeps_batch_and_sides_free(trunk: dict[str, Any], size: tuple[int, int]) -> None:
    """It sees open sizes as whole numbers: comparing one with the table's would make a guard of it."""
    model = METHODS["gtsa"].model("ForSemanticSegmentation", num_hidden_layers=1, num_labels=3, **OPTIONS, **trunk)
    free = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    exported = torch.export.export(model, (images(2, 3, *size),), dynamic_shapes={"pixel_values": free}, strict=True)
    for batch_size, other in zip((1, 2, 5, 3), [*SIZES, (16, 88), (72, 32)], strict=True):
        pixels = images(batch_size, 3, *other)
        with torch.no_grad():
            torch.testing.assert_close(exported.module()(pixels).logits, model(pixels).logits)


def test_an_exported_dpt_serves_odd_and_even_numbers_of_patches() -> None:
    """transformers' DPT compares sizes of maps, of which an export took the example's answer for that of all."""
    model = METHODS["gtsa"].model("ForDepthEstimation", 0.05, num_hidden_layers=1, decoder_type="dpt")
    free = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    exported = torch.export.export(model, (images(2, 3, 40, 24),), dynamic_shapes={"pixel_values": free}).module()
    for shape in [(1, 24, 24), (1, 32, 32), (3, 72, 32)]:
        pixels = images(shape[0], 3, *shape[1:])
        with torch.no_grad():
            torch.testing.assert_close(exported(pixels).predicted_depth, model(pixels).predicted_depth)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("trunk", TRUNKS, ids=["own", "antialias", "rotary"])
@pytest.mark.parametrize("size", SIZES)
def test_a_traced_trunk_gives_the_same_for_every_batch_and_size(
    method: Method, size: tuple[int, int], trunk: dict[str, Any]
) -> None:
    model = method.model("Model", num_hidden_layers=2, **OPTIONS, **trunk)
    traced = torch.jit.trace(model, images(2, 3, *size), strict=False)
    for batch_size, other in zip((1, 2, 5), [*SIZES, (16, 64)], strict=True):
        pixels = images(batch_size, 3, *other, seed=batch_size)
        with torch.no_grad():
            found, expected = traced(pixels), model(pixels)
        torch.testing.assert_close(found["last_hidden_state"], expected.last_hidden_state)
        torch.testing.assert_close(found["pooler_output"], expected.pooler_output)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("trace", [torch.jit.trace, torch.export.export])
def test_a_detector_refuses_to_be_traced_with_a_batch_in_one_sentence(trace: Callable[..., object]) -> None:
    model = METHODS["gtsa"].model("ForObjectDetection", 0.05, num_hidden_layers=1, decoder_channels=8)
    with pytest.raises(ValueError, match=r"GTSAForObjectDetection is traced.* one image alone.* the trunk"):
        trace(model, (images(2, 3, 32, 32),))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", ["Model", "Backbone", "ForImageClassification", "ForSemanticSegmentation"])
def test_dynamic_quantisation_finds_every_linear_layer(method: Method, kind: str) -> None:
    model = method.model(kind, 0.05, num_hidden_layers=2, num_labels=3)
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert len(linear) == 4 * 2 + kind.startswith("For")  # qkv, projection, fc1, fc2 of each layer; the head
    kinds = {name: type(module) for name, module in quantised.named_modules()}
    assert all(kinds[name] is torch.ao.nn.quantized.dynamic.Linear for name in linear)
    with torch.no_grad():
        found, expected = quantised(images(2, 3, 40, 24)), model(images(2, 3, 40, 24))
    name = {"Model": "last_hidden_state", "Backbone": "feature_maps"}.get(kind, "logits")
    found, expected = (torch.stack(list(outputs[name])) for outputs in (found, expected))
    error = (found - expected).norm() / expected.norm()
    assert 0 < error < 0.05  # 8 bits


@pytest.mark.parametrize(
    ("kind", "decoder"),
    [
        *((name, None) for name in ("Model", "Backbone", "ForImageClassification", "ForPreTraining")),
        ("ForSemanticSegmentation", "upernet"),
        ("ForDepthEstimation", "dpt"),
        ("ForObjectDetection", None),
    ],
)
def test_a_model_that_captured_its_layers_is_copied_and_pickled_whole(kind: str, decoder: str | None) -> None:
    """transformers captures by hooks that are local functions, in backbones and dense heads from the first call on."""
    method = METHODS["gtsa"]
    model = method.model(kind, 0.05, num_hidden_layers=2, num_labels=3, decoder_type=decoder)
    trunk, pixels = model if kind in ("Model", "Backbone") else model.base_model, images(2, 3, 40, 24)
    outputs = trunk(pixels, output_hidden_states=True)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        trunk = copied if kind in ("Model", "Backbone") else copied.base_model
        for _ in range(2):
            found = trunk(pixels, output_hidden_states=True)
            assert len(found.hidden_states) == 3
            torch.testing.assert_close(found.hidden_states, outputs.hidden_states)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_gradients_by_torch_func_are_those_of_autograd_and_of_each_image_alone(method: Method) -> None:
    model = method.model("Model", num_hidden_layers=2, **OPTIONS)
    pixels, weights = images(3, 3, 40, 24), images(32, seed=1)
    parameters = dict(model.named_parameters())

    def loss(parameters: dict[str, torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
        return (functional_call(model, parameters, (pixels,)).pooler_output @ weights).square().sum()

    found = grad(loss)(parameters, pixels)
    expected = torch.autograd.grad((model(pixels).pooler_output @ weights).square().sum(), list(parameters.values()))
    for name, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-4 * gradient.abs().max().item(), msg=name)
    of_images = vmap(lambda image: grad(loss)(parameters, image[None]))(pixels)  # as differential privacy needs them
    for name, gradient in found.items():
        size = gradient.abs().max().item()
        torch.testing.assert_close(of_images[name].sum(0), gradient, rtol=1e-4, atol=1e-4 * size, msg=name)


def test_gradient_checkpointing_computes_layers_again_and_gives_the_same_gradients(method: Method) -> None:
    model, pixels = method.model("Model", num_hidden_layers=2).train(), images(2, 3, 32, 32)
    model.requires_grad_(True)
    calls = []
    for layer in model.encoder.layer:
        layer.mlp.fc1.register_forward_hook(lambda module, inputs, output: calls.append(module))
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        calls.clear()
        loss = model(pixels).pooler_output.square().sum()
        gradients.append(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True))
        assert len(calls) == 2 * (1 + checkpointing)
    for (name, _), before, after in zip(model.named_parameters(), *gradients, strict=True):
        assert (before is None) == (after is None), name
        assert before is None or torch.equal(before, after), name


@pytest.mark.parametrize(
    ("name", "host"),
    [*((name, None) for name in METHODS), *(("equicoherent", h) for h in ("dinov2", "vicreg", "simclr"))],
)
def test_a_pretraining_forward_pass_is_one_graph_with_the_same_bits(name: str, host: str | None) -> None:
    """Losses, drawn tokens and masks too: `fullgraph` refuses whatever would end a graph."""
    method, fields = METHODS[name], {} if host is None else {"host": host}
    model, batch = method.model("ForPreTraining", num_hidden_layers=1, **fields).train(), method.batch()
    if method.name == "EquiCoherent":
        batch["masked_patches"] = batch["bool_masked_pos"].flatten().nonzero().flatten()
    if host in ("vicreg", "simclr"):
        del batch["local_pixel_values"]
    torch._dynamo.reset()
    losses = []
    for forward in (model, torch.compile(model, fullgraph=True, backend="eager")):
        torch.manual_seed(0)
        model.reset_accumulated()
        losses.append(forward(**batch).loss)
    torch._dynamo.reset()
    assert torch.equal(*losses)


# ---- What the code may not do


def _calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """The calls outside of checks, of drawing random numbers and of counting masked patches where nobody has, with their names."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef) and node.name.lstrip("_").startswith(("check", "draw", "indices_of")):
            continue
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func).rpartition(".")[2], node
        yield from _calls(node)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_gradient_is_written_by_hand_and_no_private_name_of_torch_is_used(path: Path) -> None:
    names = {ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    names |= {
        f"{node.module}.{alias.name}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    of_torch = {name for name in names if name.startswith("torch.")}
    assert not {name for name in of_torch if "._" in name or name.startswith(("torch.ops", "torch.autograd"))}


# the image processor works on the host, before there is a device
@pytest.mark.parametrize(
    "path", [path for path in SOURCES if "processing" not in path.name], ids=lambda path: path.stem
)
def test_nothing_waits_for_the_device(path: Path) -> None:
    """Values of tensors come to the host in checks (on a CPU alone) and where random tokens are drawn, nowhere else."""
    for name, call in _calls(ast.parse(path.read_text())):
        text = f"{path.name}:{call.lineno} {ast.unparse(call)}"
        assert name not in ("item", "tolist", "cpu", "numpy", "nonzero"), text
        if name in ("int", "bool", "float") and call.args:
            tensors = {ast.unparse(node.func) for node in ast.walk(call.args[0]) if isinstance(node, ast.Call)}
            assert not any(called.startswith("torch.") or called.endswith((".sum", ".min", ".max", ".all", ".any")) for called in tensors), text  # fmt: skip
