"""Layers compiled by block: how many graphs, the same numbers as eager ones, a compiler that fails, runs and their files."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils.cpp_extension  # inductor's import of it puts packages of setuptools on the path
from torch._dynamo.utils import counters

from hf_geossl.modeling.modeling_vit import ViTLayer, compute_layer
from hf_geossl.training.execution.compilation import BlockCompilation
from tests.helpers import equicoherent_run, gtsa_run, loca_run
from tests.helpers.exact_resume import different_weights, whole_and_resumed
from tests.helpers.methods import METHODS, Method

RUNS: dict[str, Any] = {"GTSA": gtsa_run, "LOCA": loca_run, "EquiCoherent": equicoherent_run}
SIZES = {"num_hidden_layers": 2, "drop_path_rate": 0.2}


@pytest.fixture(autouse=True)
def _forgotten_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    with torch._inductor.config.patch(compile_threads=1):  # others are processes, which take seconds to start
        yield
    torch._dynamo.reset()


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Method:
    return METHODS[request.param]


def gradients_of(model: Any, batch: Any, bf16: bool = False) -> tuple[float, torch.Tensor]:
    """The loss and all gradients in one vector, of one draw of drop path and tokens."""
    torch.manual_seed(0)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = model(**batch).loss
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_one_graph_for_layers_with_gradient_and_one_without_serve_all_sizes_of_views(method: Method) -> None:
    model, batch = method.model("ForPreTraining", **SIZES).train(), method.batch()
    loss, gradients = gradients_of(model, batch)
    with BlockCompilation("eager").compiled(model):
        found, same = gradients_of(model, batch)
        with torch._dynamo.config.patch(error_on_recompile=True):
            gradients_of(model, {name: value[:2] for name, value in batch.items()})
    assert (found, torch.equal(same, gradients)) == (loss, True)  # drop path too: its draws are not compiled
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]
    assert all(layer.compute is compute_layer for layer in model.modules() if isinstance(layer, ViTLayer))


def difference(method: Method, backend: str, bf16: bool) -> tuple[float, float]:
    """Of a compiled step from an eager one, in the loss, and in the gradients as a share of their norm."""
    model, batch = method.model("ForPreTraining", 0.1, **SIZES).train(), method.batch()
    loss, gradients = gradients_of(model, batch, bf16)
    with BlockCompilation(backend).compiled(model):
        compiled_loss, compiled_gradients = gradients_of(model, batch, bf16)
    return abs(compiled_loss - loss), ((compiled_gradients - gradients).norm() / gradients.norm()).item()


@pytest.mark.parametrize(("name", "bf16"), [*((name, False) for name in METHODS), ("gtsa", True)])
def test_compiled_layers_give_the_loss_and_gradients_of_eager_ones(name: str, bf16: bool) -> None:
    """By all that inductor does before it writes kernels; rounded nowhere else: drop path did, 9e-4 of GTSA's gradients."""
    of_loss, of_gradients = difference(METHODS[name], "aot_eager_decomp_partition", bf16)
    assert of_loss < (1e-3 if bf16 else 1e-5)
    assert of_gradients < (2e-4 if bf16 else 1e-5)


def test_kernels_of_inductor_give_them_in_bf16_too() -> None:
    """Of GTSA, whose gradients differ most where something is rounded on one side alone: 6e-3 when drop path was.

    Those of float32 are compared in a whole run of LOCA, below: a C compiler takes many seconds for each.
    """
    of_loss, of_gradients = difference(METHODS["gtsa"], "inductor", bf16=True)
    assert of_loss < 1e-3
    assert of_gradients < 2e-4


def failing(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
    raise RuntimeError("no such\ncompiler")


def test_a_compiler_that_fails_costs_one_line_and_no_number(caplog: pytest.LogCaptureFixture) -> None:
    method = METHODS["gtsa"]
    model, batch = method.model("ForPreTraining", **SIZES).train(), method.batch()
    loss, gradients = gradients_of(model, batch)
    with BlockCompilation(failing).compiled(model):
        found, same = gradients_of(model, batch)
    assert (found, torch.equal(same, gradients)) == (loss, True)
    (line,) = [record.message for record in caplog.records if record.name.startswith("hf_geossl")]
    assert "compiler failed" in line and "no such compiler" in line and "\n" not in line  # noqa: PT018


def test_without_a_c_compiler_a_run_goes_on(images: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain = gtsa_run.make_trainer(tmp_path / "plain", images, max_steps=2)
    plain.train()
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}):
        trainer = gtsa_run.make_trainer(tmp_path / "compiled", images, max_steps=2, torch_compile=True)
        trainer.train()
    assert not different_weights(plain.model, trainer.model)
    assert [record for record in caplog.messages if "compiler failed" in record]


def test_an_error_of_the_layers_is_not_taken_for_the_compilers(caplog: pytest.LogCaptureFixture) -> None:
    model = METHODS["gtsa"].model("ForPreTraining", **SIZES)
    with (
        BlockCompilation("eager").compiled(model),
        pytest.raises((RuntimeError, IndexError)),
    ):
        model.gtsa.encoder.layer[0](torch.ones(2, 3, 7))
    assert not [record for record in caplog.records if record.name.startswith("hf_geossl")]


def test_a_resumed_compiled_run_is_the_undisturbed_one_and_nearly_the_plain_one(images: Any, tmp_path: Path) -> None:
    """With inductor's kernels, in float32; the files have plain names."""
    run = RUNS["LOCA"]
    whole, resumed = whole_and_resumed(run.make_trainer, tmp_path, images, torch_compile=True)
    assert not different_weights(whole.model, resumed.model)
    plain = run.make_trainer(tmp_path / "plain", images, max_steps=6, logging_steps=2, probe_every_steps=0)
    plain.train()
    assert plain.model.state_dict().keys() == whole.model.state_dict().keys()
    # losses, since AdamW moves by rounding alone what has no gradient, such as the biases of keys
    losses = [[line["loss"] for line in run.state.log_history if "loss" in line] for run in (whole, plain)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert len(losses[0]) == 3
    whole.save_model(str(tmp_path / "model"))
    text = "".join(path.read_text() for path in (tmp_path / "model").glob("*.json"))
    assert "_orig_mod" not in text
    assert json.loads((tmp_path / "checkpoint-6" / "trainer_state.json").read_text())["global_step"] == 6


@pytest.mark.parametrize(
    ("backend", "fields"),
    [("aot_eager", {"gradient_checkpointing": True}), ("eager", {"lora_rank": 2})],
    ids=["checkpointing", "lora"],
)
def test_checkpointed_layers_and_adapters_train_as_without_compilation(
    images: Any, tmp_path: Path, backend: str, fields: dict[str, Any]
) -> None:
    trained = []
    for chosen in (None, backend):
        settings = {"torch_compile_backend": chosen, "max_steps": 2, "warmup_steps": 0, **fields}
        trainer = RUNS["LOCA"].make_trainer(tmp_path / str(chosen), images, **settings)
        trainer.train()
        trained.append(trainer.model.state_dict())
    for name, value in trained[0].items():
        torch.testing.assert_close(trained[1][name], value, rtol=1e-4, atol=1e-5)
    assert not counters["graph_break"]
