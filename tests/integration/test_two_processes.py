"""Two real processes on loopback: disjoint images, equal teachers, losses meant over both, and an exact resume."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.golden import ROOT
from tests.helpers.photographs import write_folder

pytestmark = pytest.mark.slow

SCRIPT = """
import json, os, signal, sys
import torch
from tests.helpers.METHOD_run import make_trainer
torch.set_num_threads(1)
settings = json.loads(sys.argv[1])
resume, report, stop_at = settings.pop("resume"), settings.pop("report"), settings.pop("stop_at")
trainer = make_trainer(**settings)
seen, own, tokens = [], [], []
compute = trainer.compute_loss

def compute_loss(*args, **kwargs):
    loss = compute(*args, **kwargs)
    own.append(loss.item())
    return loss

guard = trainer.parts.guard

def begin_step(begin=guard.begin_step):
    seen.extend(guard.keys)
    begin()
    if trainer.state.global_step == stop_at and trainer.args.process_index == 0:
        os.kill(os.getpid(), signal.SIGTERM)

if hasattr(trainer.model, "draw_kept_query_tokens"):
    draw = trainer.model.draw_kept_query_tokens

    def draw_and_note(count):
        tokens.append(draw(count).tolist())
        return torch.tensor(tokens[-1])

    trainer.model.draw_kept_query_tokens = draw_and_note

trainer.compute_loss, guard.begin_step = compute_loss, begin_step
trainer.train(resume_from_checkpoint=resume)
seen.extend(guard.keys)
drawn = list(tokens)
weights = {name: value.double().sum().item() for name, value in trainer.model.state_dict().items()}
steps = trainer.state.global_step
images = [{"image": torch.full((40, 40, 3), 50 * i, dtype=torch.uint8)} for i in range(5)]
evaluated = [trainer.evaluate(images) for _ in range(2)]
history = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
with open(f"{report}_{trainer.args.process_index}.json", "w") as file:
    json.dump({"keys": seen, "losses": own, "weights": weights, "history": history, "evaluated": evaluated, "steps": steps, "tokens": drawn}, file)
trainer.end_processes()
assert not [t for t in os.listdir("/proc/self/task") if "gloo" in open(f"/proc/self/task/{t}/comm").read()]
"""


def _run(
    method: str, folder: Path, name: str, resume: str | None, output: Path, data: Path, stop_at: int = -1
) -> list[dict[str, Any]]:
    script = folder / "script.py"
    script.write_text(SCRIPT.replace("METHOD", method))
    settings = {
        "output_dir": str(output),
        "data": str(data),
        "resume": resume,
        "stop_at": stop_at,
        "per_device_eval_batch_size": 1,
        "report": str(folder / name),
        "max_steps": 6,
        "save_steps": 3,
        "logging_steps": 1,
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [*command, json.dumps(settings)], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return [json.loads((folder / f"{name}_{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module", params=["gtsa", "loca", "equicoherent"])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    method, folder = request.param, tmp_path_factory.mktemp("two")
    data = write_folder(folder / "images", 48)
    whole = _run(method, folder, "whole", None, folder / "run", data)
    return {
        "whole": whole,
        "resumed": _run(method, folder, "resumed", str(folder / "run" / "checkpoint-3"), folder / "run", data),
    }


def test_no_image_reaches_both_and_an_epoch_reaches_all(runs: dict[str, list[dict[str, Any]]]) -> None:
    first, second = (rank["keys"] for rank in runs["whole"])
    assert len(first) == len(second) == 6 * 4
    assert len(set(first) | set(second)) == 48  # 6 steps of 2 x 4 images are one epoch of the 48


def test_both_hold_the_same_weights(runs: dict[str, list[dict[str, Any]]]) -> None:
    first, second = (rank["weights"] for rank in runs["whole"])
    assert first == second


def test_each_draws_its_own_tokens(runs: dict[str, list[dict[str, Any]]]) -> None:
    first, second = (rank["tokens"] for rank in runs["whole"])
    assert len(first) == len(second)
    assert all(one != other for one, other in zip(first, second, strict=True))


def test_logged_loss_is_the_mean_over_processes(runs: dict[str, list[dict[str, Any]]]) -> None:
    first, second = (rank["losses"] for rank in runs["whole"])
    assert first != second
    for step, entry in enumerate(runs["whole"][0]["history"]):
        assert entry["loss"] == pytest.approx((first[step] + second[step]) / 2, abs=1e-6)
        if "crop_loss" in entry:
            weight = 0.5 if step >= 1 else 0.0  # correspondence_start 0.11 of 6 steps
            total = entry["crop_loss"] + weight * entry["correspondence_loss"] + 0.5 * entry["rotation_loss"]
        elif "host_loss" in entry:
            assert entry["host_loss"] == pytest.approx(entry["class_loss"] + entry["patch_loss"], abs=1e-5)
            total = entry["host_loss"] + entry["reconstruction_loss"]
        else:
            total = entry["location_loss"] + entry["cluster_loss"] + entry["mean_entropy_loss"]
        assert total == pytest.approx(entry["loss"], abs=1e-5)


def test_resume_of_two_processes_is_exact(runs: dict[str, list[dict[str, Any]]]) -> None:
    for whole, resumed in zip(runs["whole"], runs["resumed"], strict=True):
        assert resumed["weights"] == whole["weights"]
        assert resumed["keys"] == whole["keys"][12:]
        assert resumed["losses"] == whole["losses"][3:]
        assert resumed["tokens"] == whole["tokens"][len(whole["tokens"]) // 2 :]


def test_evaluation_of_a_count_that_two_do_not_share_evenly_ends(runs: dict[str, list[dict[str, Any]]]) -> None:
    first, second = (
        [{name: value for name, value in run.items() if "second" not in name and "time" not in name} for run in runs]
        for runs in (rank["evaluated"] for rank in runs["whole"])
    )
    assert first == second
    assert first[0] == first[1]
    assert first[0]["eval_images"] == 5
    assert sum(name.endswith("_loss") for name in first[0]) >= 4
    assert abs(first[0]["eval_loss"]) < 10


def test_a_signal_to_one_stops_both_at_the_same_step(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "images", 48)
    stopped = _run("gtsa", tmp_path, "stopped", None, tmp_path / "run", data, stop_at=2)
    assert [rank["steps"] for rank in stopped] == [3, 3]
    first, second = (rank["weights"] for rank in stopped)
    assert first == second
