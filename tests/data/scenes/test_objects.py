"""Single things: extents, numbers, speeds."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from hf_geossl.data import THING_CLASSES
from hf_geossl.data.scenes.objects import AFLOAT, AIRBORNE, sample_counts, sample_speed, sample_spin, sample_thing


@pytest.mark.parametrize("plan", [False, True])
def test_the_extent_is_that_of_all_corners_and_the_texture_fits_it(plan: bool) -> None:
    for number, category in enumerate(THING_CLASSES):
        thing = sample_thing(np.random.default_rng(number), category, plan=plan)
        corners = np.concatenate(thing.polygons)
        assert thing.extent == (*corners.min(axis=0), *corners.max(axis=0))
        assert thing.category == number
        assert len(thing.colors) == len(thing.polygons)
        assert (thing.id, thing.x, thing.y, thing.z, thing.angle, thing.velocity) == (0, 0, 0, 0, 0, (0, 0, 0))
        left, bottom, right, top = thing.extent
        assert 90 <= thing.scale * max(right - left, top - bottom) <= 200  # texels


def test_one_thing_in_two_is_mirrored() -> None:
    rng = np.random.default_rng(0)
    mirrored = np.mean([sample_thing(rng, "sign", plan=True).mirror for _ in range(2000)])
    assert mirrored == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(2000))


def test_numbers_of_things_are_poisson_with_the_rates_of_the_grammar() -> None:
    rng, draws = np.random.default_rng(1), 6000
    totals: Counter[str] = Counter()
    numbers = []
    for _ in range(draws):
        counts = Counter(sample_counts(rng, {"tree": 2.0, "car": 0.5}, 0.04))
        totals.update(counts)
        numbers.append(counts["tree"])
    # the density is uniform in [0.6, 1.4], so that its mean is 1 and its variance 0.64 / 12
    for category in THING_CLASSES:
        rate = {"tree": 2.0, "car": 0.5}.get(category, 0.04)
        deviation = math.sqrt((rate + rate**2 * 0.64 / 12) / draws)
        assert totals[category] / draws == pytest.approx(rate, abs=5 * deviation)
    assert np.var(numbers) == pytest.approx(2.0 + 4.0 * 0.64 / 12, rel=0.1)


def test_the_order_of_things_is_random() -> None:
    rng = np.random.default_rng(2)
    first = Counter(sample_counts(rng, {"tree": 5.0, "car": 5.0}, 0.0)[0] for _ in range(1000))
    assert first["tree"] == pytest.approx(500, abs=5 * math.sqrt(250))


def test_only_what_can_move_moves() -> None:
    rng = np.random.default_rng(3)
    for category in THING_CLASSES:
        speeds = [sample_speed(rng, category) for _ in range(200)]
        low, high = {
            "person": (0.5, 1.6), "car": (2.0, 6.0), "boat": (0.5, 2.0), "animal": (0.5, 2.0), "kite": (0.5, 1.5)
        }.get(category, (0.0, 0.0))  # fmt: skip
        assert low <= min(speeds) <= max(speeds) <= high
        spins = [sample_spin(rng, category) for _ in range(200)]
        expected = 0.5 if category in AIRBORNE else 0.04 if category in AFLOAT else 0.0
        assert np.std(spins) == pytest.approx(expected, rel=0.25)
