"""Schedules: the authors' numbers, and the formulas written out as tables."""

import math

import numpy as np
import pytest

from hf_geossl.training.schedules import cosine, from_step, linear_warmup_cosine, steps_of, warmup_cosine
from tests.helpers.golden import golden_json


@pytest.mark.parametrize("case", range(2))
def test_schedules_are_the_gtsa_authors(case: int) -> None:
    record = golden_json("schedules.json")[case]
    setting, total = record["config"], record["total_steps"]
    peak = setting["blr"] * setting["eff_batch"] / 256
    assert peak == pytest.approx(record["peak_lr"], rel=1e-12)
    for value in record["values"]:
        step = value["step"]
        warmup = setting["warmup"] * setting["n"]
        assert warmup_cosine(step, total, warmup, peak, setting["min_lr"]) == pytest.approx(value["lr"], rel=1e-9)
        assert cosine(step, total, setting["wd"], setting["wd_end"]) == pytest.approx(value["weight_decay"], rel=1e-9)
        assert cosine(step, total, setting["m"], 1.0) == pytest.approx(value["momentum"], rel=1e-9)
        first = (setting["warmup"] + 1) * setting["n"]
        assert from_step(step, first, 0.5) == value["pc_coef"]


def test_cosine_is_constant_before_and_after() -> None:
    assert [cosine(step, 4, 3.0, 1.0) for step in (-2, 0, 2, 4, 9)] == pytest.approx([3.0, 3.0, 2.0, 1.0, 1.0])
    assert cosine(1, 4, 3.0, 1.0) == pytest.approx(2 + math.sqrt(0.5))


@pytest.mark.parametrize(("total", "warmup"), [(10, 4), (10, 0), (10, 1), (3, 3), (2, 5)])
def test_warmup_cosine_is_the_table_of_the_dino_authors(total: int, warmup: int) -> None:
    """`np.linspace` over the warm-up, both ends included, then half a cosine that does not reach its end."""
    rest = np.arange(max(total - warmup, 0))
    table = np.concatenate([np.linspace(0, 2.0, warmup), 0.5 + 0.75 * (1 + np.cos(np.pi * rest / max(len(rest), 1)))])
    found = [warmup_cosine(step, total, warmup, 2.0, 0.5) for step in range(total)]
    assert found == pytest.approx(table[:total].tolist(), abs=1e-12)
    assert warmup_cosine(total + 3, total, warmup, 2.0, 0.5) == pytest.approx(0.5) or warmup > total


def test_linear_warmup_cosine_reaches_its_peak_once() -> None:
    found = [linear_warmup_cosine(step, 8, 4, 2.0, 0.0) for step in range(9)]
    assert found[:5] == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0])
    assert found[5:] == pytest.approx([1 + math.cos(math.pi * step / 4) for step in range(1, 5)])
    assert linear_warmup_cosine(0, 10, 0, 2.0, 0.0) == 2.0
    assert linear_warmup_cosine(99, 10, 2, 2.0, 0.3) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("given", "total", "expected"),
    [
        (7, 100, 7),
        (1, 100, 1),
        (0, 100, 0),
        (0.1, 100, 10),
        (0.11, 100, 11),
        (0.101, 100, 11),
        (0.3, 10, 3),
        (2.9, 9, 2),
    ],
)
def test_steps_are_a_number_or_a_share_rounded_up(given: float, total: int, expected: int) -> None:
    """0.3 * 10 and 0.11 * 100 are a hair above 3 and 11 in floating point, and are these."""
    assert steps_of(given, total) == expected


def test_a_weight_begins_with_its_step() -> None:
    assert [from_step(step, 2, 0.5) for step in range(4)] == [0.0, 0.0, 0.5, 0.5]
