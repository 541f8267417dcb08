"""What a run logs, by formulas: sums and means, schedules of the step that was made, what was left out, held-out losses, and time."""

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hf_geossl.training import logs as logs_module
from hf_geossl.training.feed import EVALUATION, EVALUATION_VIEWS, seed_at
from hf_geossl.training.logs import HeldOutLosses, LogLine, LossMeter, Stopwatch, gathered_means
from hf_geossl.training.monitors.nonfinite import NonFiniteGuard
from hf_geossl.training.optimization import OptimizerPlan
from hf_geossl.training.resources import MatrixRate
from tests.helpers.gtsa_run import make_trainer, small_arguments
from tests.helpers.inputs import evaluation_inputs

ALONE: Any = SimpleNamespace(gather=lambda tensor: tensor)
CPU = torch.device("cpu")


def _parts(loss: float, **more: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in {"loss": loss, **more}.items()}


def test_a_line_is_the_mean_over_micro_batches_and_steps() -> None:
    """Steps of two micro-batches: (1, 3), (5, 7); the rotation's loss counts in the second step alone, as 8 and 0."""
    meter = LossMeter(CPU)
    for batches in ((_parts(1.0), _parts(3.0)), (_parts(5.0, rotation_loss=8.0), _parts(7.0, rotation_loss=0.0))):
        meter.begin_step()
        for parts in batches:
            meter.add(parts, 2)
        meter.count_step(skipped=False)
    assert meter.means(ALONE) == {"loss": 4.0, "rotation_loss": 2.0}


def test_a_step_that_is_left_out_leaves_no_trace_in_the_line() -> None:
    meter = LossMeter(CPU)
    meter.begin_step()
    meter.add(_parts(2.0), 1)
    meter.count_step(skipped=False)
    meter.begin_step()
    meter.add(_parts(float("nan"), new_loss=float("inf")), 1)
    meter.discard_step()
    meter.count_step(skipped=True)
    assert meter.means(ALONE) == {"loss": 2.0}
    assert (meter.steps, meter.skipped) == (1, 1)
    meter.reset()
    assert (meter.steps, meter.skipped, meter.means(ALONE)) == (0, 0, {})


def test_the_mean_of_the_run_goes_over_lines_and_the_unfinished_one() -> None:
    meter = LossMeter(CPU)
    for step, loss in enumerate((1.0, 2.0, 3.0, 6.0, 8.0)):
        meter.begin_step()
        meter.add(_parts(loss), 1)
        meter.count_step(skipped=False)
        if step in (1, 3):
            meter.means(ALONE)
            meter.reset()
    assert meter.mean_of_run(5, ALONE) == 4.0
    assert LossMeter(CPU).mean_of_run(0, ALONE) == 0.0


def test_a_resumed_line_is_the_undisturbed_one() -> None:
    """Through JSON, with bits that have no short decimal form."""
    losses = [1 / 3, 0.1, 2**-20, 7.7, 1e-30]

    def run(meter: LossMeter, part: list[float]) -> LossMeter:
        for loss in part:
            meter.begin_step()
            meter.add(_parts(loss, koleo_loss=-loss), 1)
            meter.count_step(skipped=False)
        return meter

    whole = run(LossMeter(CPU), losses)
    whole.spreads["feature_spread"] = 0.3
    first = run(LossMeter(CPU), losses[:2])
    first.spreads["feature_spread"] = 0.3
    resumed = LossMeter(CPU)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    run(resumed, losses[2:])
    assert resumed.state_dict() == whole.state_dict()
    assert resumed.means(ALONE) == whole.means(ALONE)
    assert resumed.total == whole.total
    resumed.load_state_dict(None)
    assert resumed.state_dict() == LossMeter(CPU).state_dict()


def test_a_step_that_is_left_out_right_after_a_resume_is_taken_out_alone() -> None:
    meter = LossMeter(CPU)
    meter.load_state_dict({"total": 0.0, "sums": {"loss": 3.0}, "steps": 1, "skipped": 0, "spreads": {}})
    meter.add(_parts(float("nan")), 1)
    meter.discard_step()
    assert meter.means(ALONE) == {"loss": 3.0}


def test_processes_are_meant_in_one_exchange() -> None:
    exchanges: list[torch.Tensor] = []

    def gather(tensor: torch.Tensor) -> torch.Tensor:
        exchanges.append(tensor)
        return torch.cat([tensor, tensor + 2])

    sums = {"loss": torch.tensor(8.0), "a_loss": torch.tensor(2.0)}
    assert gathered_means(sums, 2, SimpleNamespace(gather=gather)) == {"loss": 5.0, "a_loss": 2.0}  # type: ignore[arg-type]
    assert len(exchanges) == 1


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands where its first entry says."""
    clock = [1000.0]
    monkeypatch.setattr(logs_module.time, "perf_counter", lambda: clock[0])
    return clock


def test_seconds_add_up_over_resumes(now: list[float]) -> None:
    stopwatch = Stopwatch()
    now[0] += 5  # before the training
    assert (stopwatch.trained, stopwatch.since_start) == (0.0, 0.0)
    stopwatch.start(40.0)
    now[0] += 3
    assert (stopwatch.trained, stopwatch.since_start) == (43.0, 3.0)
    stopwatch.stop()
    now[0] += 100  # the export
    assert (stopwatch.trained, stopwatch.since_start) == (43.0, 0.0)
    stopwatch.start(stopwatch.trained)
    now[0] += 7
    assert (stopwatch.trained, stopwatch.since_start) == (50.0, 7.0)


def test_speed_and_waiting_are_of_the_line(now: list[float]) -> None:
    """4 steps of 16 images in 10 seconds, 2.5 of which the steps waited for data."""
    stopwatch = Stopwatch()
    stopwatch.start(0.0)
    now[0] += 50
    stopwatch.reset()
    for wait in (1.0, 0.5, 0.0, 1.0):
        with stopwatch.waiting():
            now[0] += wait
        now[0] += 2.5 - wait
        stopwatch.count_step()
    assert stopwatch.describe(16) == {"images_per_second": pytest.approx(6.4), "data_wait": pytest.approx(0.25)}


@pytest.fixture
def line(tmp_path: Path, now: list[float]) -> LogLine:
    args = small_arguments(
        tmp_path, max_steps=8, weight_decay=0.1, weight_decay_end=0.3, teacher_momentum=0.5, teacher_momentum_end=0.9
    )
    alone: Any = SimpleNamespace(gather=lambda tensor: tensor)
    checkpointer: Any = SimpleNamespace(failed=0)
    stopwatch = Stopwatch()
    stopwatch.start(0.0)
    meter, guard = LossMeter(torch.device("cpu")), NonFiniteGuard(3, tmp_path)
    return LogLine(OptimizerPlan(args), meter, stopwatch, guard, checkpointer, alone, MatrixRate(args))


def _make_step(line: LogLine, loss: float) -> None:
    line.meter.begin_step()
    line.meter.add({"loss": torch.tensor(loss), "crop_loss": torch.tensor(loss / 2)}, 1)
    line.meter.count_step(skipped=False)
    line.stopwatch.count_step()


def test_a_line_has_what_the_step_before_it_used(line: LogLine, now: list[float]) -> None:
    """transformers' own mean of the loss gives way; schedules are those of step 4, counted from 0, of 5 steps made."""
    for loss in (1.0, 2.0, 6.0):
        _make_step(line, loss)
        now[0] += 0.5
    line.meter.spreads["feature_spread"] = 0.25
    logs = {"loss": 99.0, "grad_norm": 2.0, "learning_rate": 1e-3}
    line.extend(logs, 5, has_teacher=True, skipped_images=7)
    assert logs == {
        "loss": 3.0,
        "crop_loss": 1.5,
        "grad_norm": 2.0,
        "learning_rate": 1e-3,
        "weight_decay": pytest.approx(0.2),  # half-way
        "teacher_momentum": pytest.approx(0.7),
        "feature_spread": 0.25,
        "skipped_images": 7,
        "skipped_steps": 0,
        "images_per_second": pytest.approx(8.0),  # 3 steps of 4 images in 1.5 s
        "data_wait": 0.0,
    }
    _make_step(line, 5.0)
    now[0] += 1
    second = {"loss": 99.0}
    line.extend(second, 6, has_teacher=False, skipped_images=7)
    assert (second["loss"], second["images_per_second"]) == (5.0, pytest.approx(4.0))
    assert not {"teacher_momentum", "feature_spread", "failed_saves", "memory_mb"} & set(second)


def test_a_line_has_the_peak_of_a_gpus_memory(line: LogLine, now: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_geossl.training.logs.peak_memory", lambda device: {"memory_mb": 1000 + len(device.type)})
    _make_step(line, 1.0)
    now[0] += 1
    logs = {"loss": 1.0}
    line.extend(logs, 1, has_teacher=False, skipped_images=0)
    assert logs["memory_mb"] == 1003


def test_a_line_has_the_share_of_the_matrix_rate_of_all_gpus(
    line: LogLine, now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    line.matrix_rate.operations, line.matrix_rate.rate = 3e9, 1e11
    monkeypatch.setattr(type(line.matrix_rate.args), "world_size", 2)
    _make_step(line, 1.0)
    now[0] += 2
    logs = {"loss": 1.0}
    line.extend(logs, 1, has_teacher=False, skipped_images=0)
    assert logs["images_per_second"] == 4.0  # of both
    assert logs["matrix_rate_share"] == pytest.approx(4.0 * 3e9 / (2 * 1e11))


def test_what_is_not_finite_is_not_logged(line: LogLine, now: list[float]) -> None:
    now[0] += 1
    logs = {"loss": float("nan"), "grad_norm": float("inf")}
    line.guard.skipped = 2
    line.checkpointer.failed = 1
    line.extend(logs, 3, has_teacher=False, skipped_images=0)
    assert not {"loss", "grad_norm"} & set(logs)
    assert (logs["skipped_steps"], logs["failed_saves"], logs["images_per_second"]) == (2, 1, 0.0)


def test_the_last_line_is_of_the_whole_run(line: LogLine, now: list[float]) -> None:
    """Of steps that were made, by a clock that nobody sets; speed is of this call of `train` alone."""
    line.begin(2)
    for loss in (2.0, 4.0):
        _make_step(line, loss)
        now[0] += 2
    line.guard.skipped = 1
    logs = {"train_loss": 99.0, "train_runtime": -1.0}
    line.extend(logs, 4, has_teacher=True, skipped_images=0)
    assert logs == {
        "train_loss": 2.0,  # 6 over the 3 of 4 steps that were made
        "train_runtime": 4.0,
        "train_steps_per_second": 0.5,
        "train_samples_per_second": 2.0,
    }


def test_other_lines_stay_as_they_are(line: LogLine) -> None:
    logs = {"eval_loss": 1.0}
    line.extend(logs, 4, has_teacher=True, skipped_images=0)
    assert logs == {"eval_loss": 1.0}


def test_a_resumed_run_ends_with_the_mean_of_all_its_steps(images: Any, tmp_path: Path) -> None:
    fields = {"max_steps": 5, "save_steps": 3, "logging_steps": 2}
    whole = make_trainer(tmp_path, images, **fields).train()
    resumed = make_trainer(tmp_path, images, **fields)
    result = resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert result.training_loss == result.metrics["train_loss"] == whole.metrics["train_loss"]
    means = [entry["loss"] for entry in resumed.state.log_history if "crop_loss" in entry]
    assert len(means) == 2  # of steps 1 and 2, and 3 and 4; the fifth is in no line
    steps = make_trainer(tmp_path / "steps", images, **{**fields, "logging_steps": 1})
    steps.train()
    losses = [entry["loss"] for entry in steps.state.log_history if "crop_loss" in entry]
    assert means == pytest.approx([(losses[0] + losses[1]) / 2, (losses[2] + losses[3]) / 2], rel=1e-6)
    assert result.training_loss == pytest.approx(sum(losses) / 5, rel=1e-6)


def test_evaluation_gives_the_pretraining_loss_of_one_pass(images: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, images, per_device_eval_batch_size=10)
    trainer.eval_dataset = None
    first = trainer.evaluate(images)["eval_loss"]
    assert trainer.evaluate(images)["eval_loss"] == first
    batches = list(trainer.get_eval_dataloader(images))
    assert [len(batch["crop_boxes"]) for batch in batches] == [10, 10, 4]
    trainer.model.eval()
    losses = [trainer.model(**evaluation_inputs(trainer, batch)).loss.item() for batch in batches]  # the final weights
    assert first == pytest.approx(np.average(losses, weights=[10, 10, 4]), abs=1e-5)  # over images


class Small(torch.nn.Module):
    """A model whose loss is the mean of its images plus a number that it draws."""

    teacher = None

    def forward(self, crops: torch.Tensor) -> dict[str, torch.Tensor]:
        assert not self.training
        self.drawn = torch.rand(())
        return {"loss": crops.float().mean() + self.drawn, "a_loss": crops.float().mean()}


class Batches(list[Any]):
    """Batches that know how many images all processes have."""

    images = 7


def _measure(folder: Path, sizes: tuple[int, ...], rank: int = 0) -> tuple[dict[str, float], list[float]]:
    args: Any = SimpleNamespace(device=torch.device("cpu"), seed=3, process_index=rank)
    views: Any = SimpleNamespace(
        augment=lambda batch, generator: {"crops": batch["crops"] + torch.rand((), generator=generator).item()}
    )
    alone: Any = SimpleNamespace(gather=lambda tensor: tensor, autocast=contextlib.nullcontext)
    drawn: list[float] = []
    model: Any = Small()
    batches = [
        {"crops": torch.full((size, 2), 10.0 * number), "evaluation_batch": number} for number, size in enumerate(sizes)
    ]
    held_out = HeldOutLosses(args, views, alone)
    means = held_out.measure(
        model, Batches(batches), dict, lambda batch: batch, lambda: drawn.append(model.drawn.item())
    )
    return means, drawn


def test_means_are_over_images_from_the_same_draws_each_time(tmp_path: Path) -> None:
    """Batches of 3, 3 and 1 images with values 0, 10 and 20, each with a colour and a number drawn from its place."""
    torch.manual_seed(11)
    state = torch.get_rng_state()
    means, drawn = _measure(tmp_path, (3, 3, 1))
    assert torch.equal(torch.get_rng_state(), state)
    colours = [
        torch.rand((), generator=torch.Generator().manual_seed(seed_at(3, 0, EVALUATION_VIEWS, number))).item()
        for number in range(3)
    ]
    with torch.random.fork_rng(devices=[]):
        expected = []
        for number in range(3):
            torch.manual_seed(seed_at(3, 0, EVALUATION, number))
            expected.append(torch.rand(()).item())
    assert drawn == expected
    parts = [0 + colours[0], 10 + colours[1], 20 + colours[2]]
    assert means["a_loss"] == pytest.approx(np.average(parts, weights=[3, 3, 1]), rel=1e-6)
    assert means["loss"] == pytest.approx(np.average(np.add(parts, drawn), weights=[3, 3, 1]), rel=1e-6)
    torch.manual_seed(12)
    assert _measure(tmp_path, (3, 3, 1)) == (means, drawn)
    assert _measure(tmp_path, (3, 3, 1), rank=1)[1] != drawn


def test_the_generator_is_left_as_it_was_where_a_batch_fails(tmp_path: Path) -> None:
    torch.manual_seed(11)
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError):
        _measure(tmp_path, (3, -1))
    assert torch.equal(torch.get_rng_state(), state)


def test_no_image_gives_no_number(tmp_path: Path) -> None:
    assert _measure(tmp_path, ()) == ({}, [])
