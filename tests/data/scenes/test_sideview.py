"""Scenes from the side: where things are placed, and how they stand and move."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from hf_geossl.data import STUFF_CLASSES, THING_CLASSES, render, sample_scene
from hf_geossl.data.scenes.sideview import any_of, choose, is_water
from tests.helpers.scenes import many


def test_boats_float_and_everything_else_stays_on_land_also_while_it_moves() -> None:
    water = STUFF_CLASSES.index("water")
    afloat = ashore = 0
    for scene, _ in many("scene", 120, 8):
        for t in (0.0, 2.0):
            empty = render(replace(scene, things=(), backdrops=(), pan=(0.0, 0.0)), 128).semantic
            for thing in scene.things:
                name = THING_CLASSES[thing.category]
                x, z = thing.x + thing.velocity[0] * t, thing.z + thing.velocity[1] * t
                column, row = int(128 * (0.5 + x / z)), int(128 * (scene.horizon + 1.7 / z))
                near = empty[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
                # A shore may run through the neighbourhood of the foot: only clear cases count.
                if (
                    name == "kite"
                    or not (1 <= row < 127 and 1 <= column < 127)
                    or len(set((near == water).ravel())) > 1
                ):
                    continue
                assert bool(near[0, 0] == water) == (name == "boat")
                afloat, ashore = afloat + (name == "boat"), ashore + (name != "boat")
    assert afloat > 20
    assert ashore > 500


def test_kites_point_where_their_angle_says() -> None:
    angles = []
    for scene, _ in many("scene", 60, 8):
        for thing in scene.things:
            if THING_CLASSES[thing.category] != "kite" or thing.z > 10:
                continue
            rendered = render(replace(scene, things=(thing,), backdrops=()), 192)
            item = (rendered.objects or [None])[0]
            if item is None or min(item["bbox"][:2]) < 1 or max(item["bbox"][2:]) > 191:
                continue
            rows, columns = np.nonzero(rendered.instance)
            # The sail is heavier than the tail: from the middle of the extent the mass lies towards the tip.
            towards = np.array([columns.mean() + 0.5, rows.mean() + 0.5]) - item["center"]
            tip = np.array([-math.sin(item["angle"]), -math.cos(item["angle"])])
            assert towards @ tip / np.linalg.norm(towards) > 0.8
            angles.append(item["angle"])
    assert len(angles) > 8
    assert max(angles) > 2
    assert min(angles) < -2


def test_names_are_drawn_with_their_probabilities() -> None:
    rng = np.random.default_rng(0)
    weights = {"road": 0.5, "river": 0.3, "none": 0.2}
    counts = Counter(choose(rng, weights) for _ in range(10_000))
    for name, share in weights.items():
        # five standard deviations of a binomial of 10,000
        assert counts[name] / 10_000 == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / 10_000))
    even = Counter(any_of(rng, ("a", "b", "c", "d")) for _ in range(10_000))
    assert all(abs(count - 2500) < 5 * math.sqrt(10_000 * 0.25 * 0.75) for count in even.values())


def test_the_topmost_region_decides_what_is_water() -> None:
    scene = next(s for s in (sample_scene("train", i) for i in range(200)) if len(s.regions) == 2)
    road, sea = (replace(region, surface=replace(region.surface, stuff=stuff)) for region, stuff in zip(
        scene.regions, (STUFF_CLASSES.index("paving"), STUFF_CLASSES.index("water")), strict=True
    ))  # fmt: skip
    both = next(
        (x, z) for x in np.linspace(-20, 20, 81) for z in np.linspace(1, 60, 119)
        if road.contains(x, z) and sea.contains(x, z)
    )  # fmt: skip
    assert is_water((road, sea), *both)
    assert not is_water((sea, road), *both)
    assert not is_water((), *both)
