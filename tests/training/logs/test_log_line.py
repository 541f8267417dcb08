"""A log line: means, schedules of the step that was made, spreads, what was left out, and speed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hf_geossl.training.logs import meter as meter_module
from hf_geossl.training.logs.log_line import LogLine
from hf_geossl.training.logs.meter import LossMeter, Stopwatch
from hf_geossl.training.monitors.non_finite import NonFiniteGuard
from hf_geossl.training.optimization import OptimizerPlan
from tests.helpers.gtsa_run import make_trainer, small_arguments


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [1000.0]
    monkeypatch.setattr(meter_module.time, "perf_counter", lambda: clock[0])
    return clock


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
    return LogLine(OptimizerPlan(args), meter, stopwatch, guard, checkpointer, alone)


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
    assert not {"teacher_momentum", "feature_spread", "failed_saves"} & set(second)


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
