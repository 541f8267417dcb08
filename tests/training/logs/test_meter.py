"""Sums of losses over micro-batches and steps, and the seconds of a run."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hf_geossl.training.logs import meter as meter_module
from hf_geossl.training.logs.meter import LossMeter, Stopwatch, gathered_means

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
    monkeypatch.setattr(meter_module.time, "perf_counter", lambda: clock[0])
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
