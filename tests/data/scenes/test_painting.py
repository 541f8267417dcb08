"""The camera: where things appear in the image, how they turn and move."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from hf_geossl.data import THING_CLASSES, render, sample_scene
from hf_geossl.data.scenes.painting import Materials, View
from hf_geossl.data.scenes.textures import tile_index
from tests.helpers.scenes import many, still


def test_center_is_the_middle_of_the_whole_thing() -> None:
    tested = 0
    for scene, _ in many("scene", 60, 8):
        for thing in scene.things:
            if THING_CLASSES[thing.category] in (
                "car",
                "house",
            ):  # upright, so that the box of the mask is that of the thing
                item = (render(replace(scene, things=(thing,)), 128).objects or [None])[0]
                if item is None or min(item["bbox"][:2]) < 1 or max(item["bbox"][2:]) > 127:
                    continue
                assert item["angle"] == 0
                middle = (item["bbox"][0] + item["bbox"][2]) / 2, (item["bbox"][1] + item["bbox"][3]) / 2
                np.testing.assert_allclose(item["center"], middle, atol=1.0)
                tested += 1
    assert tested > 15


def test_texture_turns_with_the_thing() -> None:
    scene = still(
        next(
            s for s in (sample_scene("train", i, mode="object") for i in range(99)) if THING_CLASSES[s.label] == "house"
        )
    )
    left, bottom, right, top = scene.things[0].extent
    # About the middle of the view, where a quarter turn maps pixels to pixels.
    polygons = tuple(polygon - ((left + right) / 2, (bottom + top) / 2) for polygon in scene.things[0].polygons)
    half = ((left - right) / 2, (bottom - top) / 2, (right - left) / 2, (top - bottom) / 2)
    grey = ((0.5, 0.5, 0.5),) * len(polygons)  # nothing to see but the texture
    look = {"colors": grey, "tile": tile_index("leaf", 0), "contrast": 0.4}
    thing = replace(scene.things[0], x=0.0, y=0.0, angle=0.0, polygons=polygons, extent=half, **look)
    upright = render(replace(scene, things=(thing,)), 96)
    turned = render(replace(scene, things=(replace(thing, angle=math.pi / 2),)), 96)
    expected, both = np.rot90(upright.image), np.rot90(upright.instance > 0) & (turned.instance > 0)
    inner = both & np.roll(both, 4, 0) & np.roll(both, -4, 0) & np.roll(both, 4, 1) & np.roll(both, -4, 1)
    error = np.abs(expected.astype(int) - turned.image)[inner].mean()
    contrast = np.abs(expected.astype(int) - np.rot90(expected, 2))[inner].mean()
    assert error < 0.25 * contrast


def test_clip_moves_things_by_their_velocity_and_keeps_their_ids() -> None:
    moved = 0
    for index in range(40):
        scene = sample_scene("train", index)
        before, after = render(scene, 96), render(scene, 96, t=0.5)
        was = {item["id"]: item for item in before.objects}
        velocity = {thing.id: thing.velocity for thing in scene.things}
        for item in after.objects:
            if item["id"] not in was:
                continue
            first, (vx, vz, spin) = was[item["id"]], velocity[item["id"]]
            assert item["category"] == first["category"]
            assert item["depth"] - first["depth"] == pytest.approx(vz * 0.5, abs=1e-4)
            turn = (item["angle"] - first["angle"] - spin * 0.5) % (2 * math.pi)
            assert min(turn, 2 * math.pi - turn) < 1e-9
            if spin == 0:
                # Back from the image to metres: X = (x - center) Z.
                x_before = (first["center"][0] / 96 - 0.5) * first["depth"]
                x_after = (item["center"][0] / 96 - 0.5 - 0.5 * scene.pan[0]) * item["depth"]
                assert x_after - x_before == pytest.approx(vx * 0.5, abs=1e-3)
                moved += vx != 0
    assert moved > 30


def test_masks_follow_the_motion() -> None:
    scene = next(
        s
        for s in (sample_scene("train", i) for i in range(200))
        if any(abs(thing.velocity[0]) > 2 for thing in s.things)
    )
    car = next(thing for thing in scene.things if abs(thing.velocity[0]) > 2)
    scene = replace(
        scene, things=(replace(car, x=0.0, z=12.0, velocity=(3.0, 0.0, 0.0)),), backdrops=(), pan=(0.0, 0.0)
    )
    middles = [np.nonzero(render(scene, 96, t=t).instance == car.id)[1].mean() for t in (0.0, 0.25, 0.5)]
    # 3 m/s at 12 m: a quarter of an image width a second, 6 pixels a quarter second.
    np.testing.assert_allclose(np.diff(middles), [6, 6], atol=0.5)


def test_points_are_projected_as_by_a_pinhole_camera() -> None:
    scene = replace(sample_scene("train", 0), horizon=0.4, pan=(0.1, 0.0))
    view = View(scene, 100, t=2.0)
    # f = 1 image width, 1.7 m above the ground: the foot of a thing 10 m away lies 0.17 below the horizon
    assert view.project(3.0, 0.0, 10.0) == pytest.approx((0.5 + 0.2 + 0.3, 0.4 + 0.17))
    assert view.project(0.0, 1.7, 25.0) == pytest.approx((0.7, 0.4))
    assert view.flat(np.array([0.0, 1.0]), np.array([0.5, 0.25])) == [-0.5, 49.5, 99.5, 24.5]
    # rows 40, 41, ...: the first whose center, 40.5 / 100, lies below the horizon
    assert view.first_ground_row == 40
    above = View(sample_scene("train", 0, mode="topdown"), 100, t=0.0)
    assert above.first_ground_row == 0
    assert above.project(0.0, above.scene.altitude / 2, above.scene.altitude) == (0.5, 0.0)


def test_things_are_painted_far_to_near_and_none_behind_the_camera() -> None:
    for index in range(20):
        scene = sample_scene("train", index)
        depths = [placed.depth for placed in View(scene, 32, t=0.0).things]
        assert depths == sorted((thing.z for thing in scene.things), reverse=True)
    gone = replace(scene, things=tuple(replace(thing, z=0.5) for thing in scene.things))
    assert View(gone, 32, t=0.0).things == []


def test_materials_are_numbered_from_zero() -> None:
    materials = Materials([], [], [], [], [])
    assert [materials.add((float(number),), number, 5, 0, 1.5) for number in range(3)] == [0, 1, 2]
    assert materials.tiles == [0, 1, 2]
    assert materials.classes == [5, 5, 5]
