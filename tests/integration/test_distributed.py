"""
However a run is spread it gives the same: one process, two with DDP, two with FSDP2, and each from the others'
checkpoints. Real processes on loopback, which `accelerate launch` starts with the library's own configurations.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import hf_geossl
from tests.helpers.distributed_run import RESUMED, RUNS, SAVED, STEPS
from tests.helpers.forked import free_port
from tests.helpers.golden import ROOT
from tests.helpers.photographs import write_folder

pytestmark = pytest.mark.slow

CONFIGURATIONS = Path(hf_geossl.__file__).parent / "training" / "accelerate"
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three layouts, at the same time; each waits for the checkpoints of the others that it goes on from."""
    folder = tmp_path_factory.mktemp("distributed")
    write_folder(folder / "images", 48)
    script = str(ROOT / "tests" / "helpers" / "distributed_run.py")
    commands = {"alone": [sys.executable, script]}
    for layout, file in (("ddp", "ddp.yaml"), ("fsdp", "fsdp2.yaml")):
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGURATIONS / file)]
        commands[layout] = [*launch, "--num_processes", "2", "--main_process_port", str(free_port()), script]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    processes, logs = {}, {layout: folder / f"{layout}.log" for layout in commands}
    for layout, command in commands.items():
        with logs[layout].open("w") as log:
            processes[layout] = subprocess.Popen(
                [*command, str(folder), layout], env=environment, stdout=log, stderr=subprocess.STDOUT
            )
    try:
        codes = {layout: process.wait(timeout=400) for layout, process in processes.items()}
    finally:
        for process in processes.values():
            process.terminate()
    failed = [f"{layout}: {logs[layout].read_text()[-4000:]}" for layout, code in codes.items() if code]
    assert not failed, "\n".join(failed)
    return folder


def _result(folder: Path, name: str) -> dict[str, Any]:
    return torch.load(folder / f"{name}.pt", weights_only=True)


def _assert_same_weights(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=0, atol=TOLERANCE, msg=lambda text, name=name: f"{name}: {text}"
        )


def _assert_continues(folder: Path, resumed: str, undisturbed: str) -> None:
    """Losses after the checkpoint, and all weights at the end."""
    found, expected = _result(folder, resumed), _result(folder, undisturbed)
    losses = [entry["loss"] for entry in found["logged"]]
    assert len(losses) == STEPS
    assert losses == pytest.approx([entry["loss"] for entry in expected["logged"]], abs=TOLERANCE)
    _assert_same_weights(found["weights"], expected["weights"])


@pytest.mark.parametrize("method", RUNS)
@pytest.mark.parametrize("layout", ["ddp", "fsdp"])
def test_two_processes_give_the_loss_and_gradients_of_one(folder: Path, layout: str, method: str) -> None:
    """On the same images; DINOv2's KoLeo, which compares the images of a process, is taken of both halves by the one."""
    found, expected = _result(folder, f"{layout}_{method}"), _result(folder, f"one_{method}")
    for step, (ours, theirs) in enumerate(zip(found["logged"], expected["logged"], strict=True)):
        names = {name for name in theirs if name.endswith("loss") and name != "mean_image_loss"}
        assert {name: ours[name] for name in names} == pytest.approx({n: theirs[n] for n in names}, abs=TOLERANCE)
        # later on the weights differ in their last bits, and the norm more than the loss does
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=10 * TOLERANCE if step else TOLERANCE)
    assert found["gradients"].keys() == expected["gradients"].keys()
    for name, gradient in expected["gradients"].items():
        tolerance = TOLERANCE * max(gradient.abs().max().item(), 0.1)
        torch.testing.assert_close(found["gradients"][name], gradient, rtol=0, atol=tolerance)
    assert max(gradient.norm() for gradient in expected["gradients"].values()) > 0.3  # there is what to clip


@pytest.mark.parametrize("layout", ["micro", "ddp", "fsdp"])
def test_adapters_that_start_late_and_an_anchor_are_the_same_in_all_layouts(folder: Path, layout: str) -> None:
    """And from their own checkpoint to the bit; nothing is searched for that has no gradient."""
    found, expected = _result(folder, f"{layout}_adapted"), _result(folder, "micro_adapted")
    assert [entry["anchor_loss"] for entry in found["logged"]] == pytest.approx(
        [entry["anchor_loss"] for entry in expected["logged"]], abs=TOLERANCE
    )
    _assert_same_weights(found["weights"], expected["weights"])
    assert sum(".lora_" in name for name in found["weights"]) == 2 * 2 * 4  # A and B of student and teacher
    assert found["same_on_all"]
    assert found["unused"] in (None, False)
    again = _result(folder, f"{layout}_adapted_again")["weights"]
    assert [name for name, value in found["weights"].items() if not torch.equal(value, again[name])] == []


@pytest.mark.parametrize("method", RUNS)
@pytest.mark.parametrize("layout", ["ddp", "fsdp"])
def test_teachers_agree_after_five_steps(folder: Path, layout: str, method: str) -> None:
    found, expected = _result(folder, f"{layout}_{method}"), _result(folder, f"one_{method}")
    assert found["same_on_all"]
    _assert_same_weights(found["weights"], expected["weights"])
    started = load_file(folder / "runs" / f"one_{method}" / f"checkpoint-{SAVED}" / "model.safetensors")
    moved = [(expected["weights"][name] - value).abs().max() for name, value in started.items() if "teacher." in name]
    assert method == "vicreg" or max(moved) > 20 * TOLERANCE


@pytest.mark.parametrize("layout", ["ddp", "fsdp"])
def test_accumulated_batches_of_two_processes_are_the_same_step(folder: Path, layout: str) -> None:
    _assert_continues(folder, f"{layout}_three", "one_ibot")


@pytest.mark.parametrize("layout", ["ddp", "fsdp"])
def test_a_stream_gives_two_processes_the_views_of_one(folder: Path, layout: str) -> None:
    """Images, crops and colours: two streams are the two micro-batches of one process or a batch of each of two."""
    _assert_continues(folder, f"{layout}_stream", "micro_stream")


def test_fsdp_divides_student_and_teacher_and_keeps_them_in_float32(folder: Path) -> None:
    whole, divided = _result(folder, "ddp_ibot"), _result(folder, "fsdp_ibot")
    assert (whole["held"], whole["units"], whole["unused"]) == (1.0, [], False)
    assert divided["held"] < 0.6
    units = ["FSDPEquiCoherentForPreTraining", "FSDPLayerNorm", "FSDPViTLayer", "FSDPViTPatchEmbeddings"]
    assert divided["units"] == units  # patch embeddings of student and teacher, for accelerate divides the student's
    assert divided["groups"] == whole["groups"]
    assert len({group["lr"] for group in divided["groups"]}) > 2  # layer-wise learning rates
    in_half = _result(folder, "fsdp_half")
    assert in_half["dtypes"] == ["torch.float32"]
    _assert_continues(folder, "fsdp_half", "ddp_half")
    full = _result(folder, "fsdp_gtsa")
    assert in_half["logged"][0]["loss"] != full["logged"][0]["loss"]
    assert in_half["logged"][0]["loss"] == pytest.approx(full["logged"][0]["loss"], abs=0.02)


def test_fsdp_with_layers_computed_again_is_the_same(folder: Path) -> None:
    """Activation checkpointing, given by arguments, which wraps layers under names of its own."""
    _assert_continues(folder, "fsdp_recomputed_ibot", "fsdp_ibot")
    names = [
        torch.load(folder / "runs" / run / "checkpoint-4" / "optimizer.pt", weights_only=True)["state"].keys()
        for run in ("fsdp_recomputed_ibot", "fsdp_ibot")
    ]
    assert names[0] == names[1]


@pytest.mark.parametrize("layout", ["ddp", "fsdp"])
def test_layers_traced_by_the_compiler_are_the_same_to_the_bit(folder: Path, layout: str) -> None:
    found, expected = _result(folder, f"{layout}_compiled")["weights"], _result(folder, f"{layout}_ibot")["weights"]
    assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []


def test_a_step_that_one_process_breaks_is_left_out_by_both(folder: Path) -> None:
    found, expected = _result(folder, "fsdp_broken"), _result(folder, "ddp_broken")
    for result in (found, expected):
        assert [entry["skipped_steps"] for entry in result["logged"]] == [0, 0, 1, 1]
    assert [e["loss"] for e in found["logged"]] == pytest.approx([e["loss"] for e in expected["logged"]], abs=TOLERANCE)
    _assert_same_weights(found["weights"], expected["weights"])


@pytest.mark.parametrize("method", RESUMED)
def test_fsdp_resumes_bit_for_bit(folder: Path, method: str) -> None:
    found, expected = _result(folder, f"fsdp_bits_{method}"), _result(folder, f"fsdp_{method}")
    assert [entry["loss"] for entry in found["logged"]] == [entry["loss"] for entry in expected["logged"]]
    assert [name for name, value in expected["weights"].items() if not value.equal(found["weights"][name])] == []


def test_fsdp_resumes_bit_for_bit_in_the_same_trainer(folder: Path) -> None:
    found = torch.load(folder / "fsdp_bits_loca_again.pt", weights_only=True)
    expected = _result(folder, "fsdp_loca")["weights"]
    assert [name for name, value in expected.items() if not value.equal(found[name])] == []


@pytest.mark.parametrize("method", RESUMED)
def test_ddp_and_fsdp_go_on_from_each_other(folder: Path, method: str) -> None:
    _assert_continues(folder, f"fsdp_from_ddp_{method}", f"ddp_{method}")
    _assert_continues(folder, f"ddp_from_fsdp_{method}", f"fsdp_{method}")


@pytest.mark.parametrize("layout", ["ddp", "fsdp"])
def test_one_process_and_two_go_on_from_each_other(folder: Path, layout: str) -> None:
    """One process takes the batches of the two one after the other; for losses that are means over images."""
    _assert_continues(folder, f"micro_from_{layout}_ibot", f"{layout}_ibot")
    _assert_continues(folder, f"{layout}_from_micro_ibot", "micro_ibot")


def test_another_number_of_batches_is_refused(folder: Path) -> None:
    messages: dict[str, str] = {}
    for layout in ("alone", "ddp", "fsdp"):
        messages |= json.loads((folder / f"messages_{layout}.json").read_text())
    assert sorted(messages) == ["ddp from one", "fsdp from one", "one from ddp", "one from fsdp"]
    for name, message in messages.items():
        counts = "1 and is 2" if name.endswith("from one") else "2 and is 1"
        assert (
            f"CheckpointError: checkpoint-2 was trained with other settings: batches of a step was {counts};" in message
        )


@pytest.mark.parametrize("method", RUNS)
def test_checkpoints_have_one_layout(folder: Path, method: str) -> None:
    """Whole weights by name and the optimizer's state by name, in the same files; nothing in them is executed."""
    paths = {name: folder / "runs" / f"{name}_{method}" / f"checkpoint-{SAVED}" for name in ("one", "ddp", "fsdp")}
    files = {name: {file.name for file in path.iterdir()} for name, path in paths.items()}
    assert files["ddp"] == files["fsdp"]
    assert not {name for name in files["ddp"] ^ files["one"] if not name.startswith(("rng_state", "run_state"))}
    for name, path in paths.items():
        assert (path / "config.json").read_text() == (paths["one"] / "config.json").read_text(), name
        _assert_same_weights(load_file(path / "model.safetensors"), load_file(paths["one"] / "model.safetensors"))
        found, expected = (torch.load(at / "optimizer.pt", weights_only=True) for at in (path, paths["one"]))
        assert found["param_groups"] == expected["param_groups"]
        assert found["state"].keys() == expected["state"].keys()
        for key, entries in expected["state"].items():
            _assert_same_weights(found["state"][key], entries)
    frozen = [name for name in load_file(paths["fsdp"] / "model.safetensors") if name.startswith("head.prototypes")]
    assert not set(frozen) & found["state"].keys()  # they have not moved yet
    assert (method in ("ibot", "dinov2")) == bool(frozen)


@pytest.mark.parametrize("method", RESUMED)
def test_a_checkpoint_loads_into_a_divided_model(folder: Path, method: str) -> None:
    """Where training put other weights; and by one process alone into a model that is whole."""
    saved = load_file(folder / "runs" / f"fsdp_{method}" / f"checkpoint-{SAVED}" / "model.safetensors")
    for how in ("loaded", "read"):
        found = torch.load(folder / f"fsdp_bits_{method}_{how}.pt", weights_only=True)
        assert found.keys() == saved.keys()
        assert [name for name, value in saved.items() if not value.equal(found[name])] == []


@pytest.mark.parametrize("method", RUNS)
def test_fsdp_exports_what_one_process_exports(folder: Path, method: str) -> None:
    paths = [folder / "runs" / f"{layout}_{method}" for layout in ("one", "fsdp")]
    expected, found = (load_file(path / "model.safetensors") for path in paths)
    _assert_same_weights(found, expected)
    assert (paths[0] / "config.json").read_text() == (paths[1] / "config.json").read_text()
    prefix = "" if method == "vicreg" else "teacher."
    trained = _result(folder, f"fsdp_{method}")["weights"]
    trunk = "equicoherent" if method in ("ibot", "dinov2", "vicreg") else method
    for name, value in found.items():
        assert value.equal(trained[f"{prefix}{trunk}.{name}"])


def test_probes_pictures_and_evaluation_work_on_divided_weights(folder: Path) -> None:
    whole, divided = _result(folder, "ddp_gtsa"), _result(folder, "fsdp_gtsa")
    assert len(divided["evaluated"]) == 2  # before training and after it
    assert divided["evaluated"] == pytest.approx(whole["evaluated"], abs=TOLERANCE)
    spreads = [
        [entry[name] for entry in result["logged"] for name in ("feature_spread", "target_spread") if name in entry]
        for result in (whole, divided)
    ]
    assert len(spreads[0]) >= 4
    assert spreads[1] == pytest.approx(spreads[0], abs=TOLERANCE)
    for layout in ("ddp", "fsdp"):
        for name in ("features.png", "positions.png"):
            assert (folder / "runs" / f"{layout}_loca" / name).is_file()
