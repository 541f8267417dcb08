"""Scenes from above: no direction is preferred."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import chain

import numpy as np

from hf_geossl.data import STUFF_CLASSES, THING_CLASSES, render, sample_scene
from hf_geossl.data.scenes.description import Band, Patch
from tests.helpers.scenes import many


def test_heading_is_the_axis_of_the_mask() -> None:
    tested = 0
    for scene, _ in many("topdown", 80, 8):
        for thing in scene.things:
            item = (render(replace(scene, things=(thing,)), 160).objects or [None])[0]
            if (
                THING_CLASSES[thing.category] != "car"
                or item is None
                or min(item["bbox"][:2]) < 1
                or max(item["bbox"][2:]) > 159
            ):
                continue
            rows, columns = np.nonzero(render(replace(scene, things=(thing,)), 160).instance)
            x, y = columns - columns.mean(), rows.mean() - rows  # y up
            # The long axis, as an angle from the x axis; a heading of 0 points up.
            axis = 0.5 * math.atan2(2 * (x * y).mean(), (x * x).mean() - (y * y).mean())
            difference = (item["angle"] + math.pi / 2 - axis) % math.pi
            assert min(difference, math.pi - difference) < 0.06
            tested += 1
    assert tested > 15


def assert_uniform(angles: list[float]) -> None:
    """Kolmogorov-Smirnov test of angles against the uniform distribution on the circle, level 0.1 %."""
    assert len(angles) > 50
    ordered = np.sort(np.mod(angles, 2 * math.pi)) / (2 * math.pi)
    ranks = np.arange(len(ordered) + 1) / len(ordered)
    assert max((ranks[1:] - ordered).max(), (ordered - ranks[:-1]).max()) < 1.95 / math.sqrt(len(ordered))


def test_topdown_headings_and_everything_else_are_uniform() -> None:
    scenes = [sample_scene("train", index, mode="topdown") for index in range(250)]
    by_category: dict[int, list[float]] = {}
    for scene in scenes:
        for thing in scene.things:
            by_category.setdefault(thing.category, []).append(thing.angle)
    assert len(by_category) == len(THING_CLASSES)
    for angles in [*by_category.values(), list(chain(*by_category.values()))]:
        assert_uniform(angles)
    # Nor does anything else prefer a direction: light, ground texture, drift of the view, roads and shores, fields.
    assert_uniform([math.atan2(scene.light.direction[1], scene.light.direction[0]) for scene in scenes])
    assert_uniform([math.atan2(scene.pan[1], scene.pan[0]) for scene in scenes])
    assert_uniform([scene.ground.turn for scene in scenes if scene.ground])
    # One of a scene: its roads and fields share the base rotation.
    bands = [next((region for region in scene.regions if isinstance(region, Band)), None) for scene in scenes]
    patches = [next((region for region in scene.regions if isinstance(region, Patch)), None) for scene in scenes]
    assert_uniform([math.atan2(band.normal[1], band.normal[0]) for band in bands if band])
    assert_uniform([patch.turn for patch in patches if patch])
    assert_uniform([region.surface.turn for region in chain(bands, patches) if region])


def anisotropy(mode: str, count: int) -> tuple[float, float]:
    """Lengths of the mean direction of the grey gradient (1 = all alike) and of the mean doubled direction (edges along one axis)."""
    line = np.arange(62) - 30.5
    disc = line[:, None] ** 2 + line[None, :] ** 2 < 30**2  # a disc prefers no direction; a square does
    once, twice = [], []
    for _, rendered in many(mode, count, 64):
        grey = rendered.image.mean(axis=2)
        down, across = (grey[2:, 1:-1] - grey[:-2, 1:-1])[disc], (grey[1:-1, 2:] - grey[1:-1, :-2])[disc]
        gradient = across + 1j * down
        power = (np.abs(gradient) ** 2).sum()
        once.append(gradient.sum() / math.sqrt(power * len(gradient)))
        twice.append((gradient**2).sum() / power)
    return abs(np.mean(once)), abs(np.mean(twice))


def test_topdown_images_prefer_no_direction_and_scenes_do() -> None:
    once, twice = anisotropy("topdown", 250)
    # Means of 250 independent directions of rms length about 0.1 and 0.25: three standard errors are 0.02 and 0.05.
    assert once < 0.02
    assert twice < 0.05
    assert anisotropy("scene", 60)[1] > 0.1  # gravity shows: the measure can tell


def test_topdown_has_no_sky_and_no_far_end() -> None:
    for scene, rendered in many("topdown", 30, 48):
        assert not (rendered.semantic == STUFF_CLASSES.index("sky")).any()
        assert (rendered.depth[rendered.instance == 0] == np.float32(scene.altitude)).all()
