"""Measurements come every so many steps, or as often as their share of the run's time allows."""

import logging

import pytest

from hf_geossl.training.monitors.schedule import ProbeSchedule


def _run(seconds: float, share: float = 0.02, every: int = 10, steps: int = 500) -> list[int]:
    """The steps that are measured in a run of one second a step."""
    schedule, measured, trained = ProbeSchedule(every, share, steps), [], 0.0
    for step in range(1, steps + 1):
        trained += 1.0
        if not schedule.is_due(step):
            continue
        if not measured and not schedule.affords(2 * seconds, step, trained):
            continue
        measured.append(step)
        cost = seconds * (2 if len(measured) == 1 else 1)  # floors
        trained += cost
        schedule.add(cost)
        schedule.count(seconds, step, trained)
    assert share == 1 or schedule.spent <= share * trained
    return measured


def test_cheap_measurements_come_at_every_interval_and_at_the_end() -> None:
    assert _run(0.1) == list(range(10, 501, 10))
    assert _run(0.1, every=150, steps=500) == [150, 300, 450, 500]
    assert _run(50.0, share=1, every=100) == [100, 200, 300, 400, 500]
    assert _run(0.1, every=0) == []


def test_expensive_ones_come_less_often_with_a_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        measured = _run(1.0)
    assert measured[0] == 10
    assert measured[-1] == 500
    assert 7 <= len(measured) <= 10  # 2 % of 500 seconds, less the floors
    assert "instead of every 10 (probe_every_steps)" in caplog.text
    assert caplog.text.count("features are measured") == 1


def test_what_would_take_too_long_is_left_out_with_a_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert _run(6.0) == []
    assert "about 12.0 s, more than 2 % of the 500 s of the run" in caplog.text
    assert len(caplog.records) == 1


def test_state_goes_on() -> None:
    schedule = ProbeSchedule(10, 0.02, 500)
    schedule.add(3.0)
    schedule.count(1.0, 10, 10.0)
    other = ProbeSchedule(10, 0.02, 500)
    other.load_state_dict(schedule.state_dict())
    assert (other.spent, other.next_step) == (schedule.spent, schedule.next_step) == (3.0, 80)
    assert next(step for step in range(500) if other.is_due(step)) == 80
