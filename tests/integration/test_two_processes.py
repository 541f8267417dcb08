"""Two real processes on loopback: disjoint images, equal teachers, losses meant over both, and an exact resume."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import forked
from tests.helpers.photographs import write_folder

pytestmark = pytest.mark.slow

SCRIPT = """
import importlib, json, os, signal, sys
import torch


def run(method, stop_at, resume, report, **settings):
    trainer = importlib.import_module(f"tests.helpers.{method}_run").make_trainer(**settings)
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
    evaluated = [] if resume else [trainer.evaluate(images) for _ in range(2)]
    history = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    found = {"keys": seen, "losses": own, "weights": weights, "history": history, "evaluated": evaluated, "steps": steps}
    with open(f"{report}_{trainer.args.process_index}.json", "w") as file:
        json.dump({**found, "tokens": drawn}, file)
    return trainer


for settings in json.loads(sys.argv[1]):
    trainer = run(**settings)
trainer.end_processes()
assert not [t for t in os.listdir("/proc/self/task") if "gloo" in open(f"/proc/self/task/{t}/comm").read()]
"""
METHODS = ["gtsa", "loca", "equicoherent"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all runs leave, one after the other in the same two processes, which take longer to start than to train."""
    folder = tmp_path_factory.mktemp("two")
    data, runs = write_folder(folder / "images", 48), []
    for method in METHODS:
        settings = {
            "method": method,
            "output_dir": str(folder / method),
            "data": str(data),
            "resume": None,
            "stop_at": -1,
            "per_device_eval_batch_size": 1,
            "report": str(folder / f"{method}_whole"),
            "max_steps": 6,
            "save_steps": 3,
            "logging_steps": 1,
        }
        resumed = {"resume": str(folder / method / "checkpoint-3"), "report": str(folder / f"{method}_resumed")}
        runs += [settings, {**settings, **resumed}]
    stopped = {"output_dir": str(folder / "stopped"), "report": str(folder / "gtsa_stopped"), "stop_at": 2}
    runs.append({**runs[0], **stopped})
    forked.run(SCRIPT, json.dumps(runs), output=folder / "output.txt", world_size=2)
    return folder


def _reports(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{name}_{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(params=METHODS)
def runs(request: pytest.FixtureRequest, folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {name: _reports(folder, f"{request.param}_{name}") for name in ("whole", "resumed")}


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


def test_a_signal_to_one_stops_both_at_the_same_step(folder: Path) -> None:
    stopped = _reports(folder, "gtsa_stopped")
    assert [rank["steps"] for rank in stopped] == [3, 3]
    first, second = (rank["weights"] for rank in stopped)
    assert first == second
