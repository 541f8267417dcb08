"""Classes, and which ground points lie in bands and patches."""

from __future__ import annotations

import math

import numpy as np

from hf_geossl.data import SCENE_CLASSES, SEMANTIC_CLASSES, STUFF_CLASSES, THING_CLASSES
from hf_geossl.data.scenes.description import Band, Patch, Surface
from tests.helpers.scenes import many


def test_classes_are_those_of_the_specification() -> None:
    assert (len(SCENE_CLASSES), len(STUFF_CLASSES), len(THING_CLASSES), len(SEMANTIC_CLASSES)) == (8, 7, 10, 17)
    assert SEMANTIC_CLASSES == STUFF_CLASSES + THING_CLASSES
    assert {rendered.label for _, rendered in many("scene", 80, 16)} == set(range(8))


SURFACE = Surface(stuff=3, color=(0.2, 0.4, 0.6), tile=0, scale=32.0, turn=0.0, contrast=0.2, offset=(0.0, 0.0))


def test_a_straight_road_is_the_points_within_half_its_width() -> None:
    road = Band(SURFACE, normal=(1.0, 0.0), offset=2.0, half_width=1.5, swing=0.0, period=10.0, phase=0.0)
    across = np.array([0.4, 0.6, 2.0, 3.4, 3.6])
    for along in (-7.0, 0.0, 30.0):
        assert road.contains(across, np.full(5, along)).tolist() == [False, True, True, True, False]
    assert road.contains(2.0, 5.0)
    assert not road.contains(0.0, 5.0)


def test_a_river_winds_by_its_swing_once_a_period() -> None:
    river = Band(SURFACE, normal=(1.0, 0.0), offset=0.0, half_width=0.01, swing=2.0, period=8.0, phase=0.0)

    def center(along: float) -> float:
        line = np.linspace(-3, 3, 6001)
        return float(line[river.contains(line, np.full_like(line, along))].mean())

    # the triangle wave of phase 0 starts at its top: 4 * |0 - 0.5| - 1 = 1, rounded to 1 * (1.5 - 0.5)
    assert [round(center(along), 2) for along in (0, 2, 4, 6, 8)] == [2.0, 0.0, -2.0, 0.0, 2.0]


def test_the_sea_is_everything_beyond_its_shore() -> None:
    sea = Band(SURFACE, normal=(0.0, 1.0), offset=6.0, half_width=math.inf, swing=0.0, period=9.0, phase=0.3)
    assert [bool(sea.contains(1.0, z)) for z in (5.9, 6.1, 1000.0)] == [False, True, True]


def test_ponds_are_ellipses_and_fields_rectangles_about_their_turned_axes() -> None:
    # turned by a quarter: the first half side of 3 m lies along the second axis of the ground
    pond = Patch(SURFACE, center=(10.0, 5.0), radii=(3.0, 1.0), turn=math.pi / 2, rectangular=False)
    field = Patch(SURFACE, center=(10.0, 5.0), radii=(3.0, 1.0), turn=math.pi / 2, rectangular=True)
    p, q = np.array([10.0, 10.0, 11.1, 10.9]), np.array([7.9, 8.1, 5.0, 7.9])
    assert pond.contains(p, q).tolist() == [True, False, False, False]
    assert field.contains(p, q).tolist() == [True, False, False, True]
