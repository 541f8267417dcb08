"""Polygons of the things from above: each has a heading, and a height that orders it."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from PIL import Image, ImageDraw

from hf_geossl.data import THING_CLASSES
from hf_geossl.data.scenes.shapes import Shape
from hf_geossl.data.scenes.shapes_topdown import TOPDOWN_HEIGHTS, TOPDOWN_SHAPES


def drawn(shape: Shape) -> np.ndarray:
    """The roles of a shape on a grid of 128 pixels, 0 outside; up is the heading."""
    reach = max(float(np.abs(polygon).max()) for polygon, _ in shape) * 1.05
    canvas = Image.new("L", (128, 128), 0)
    for polygon, role in shape:
        corners = np.stack([polygon[:, 0], -polygon[:, 1]], axis=1) / reach * 63 + 63.5
        ImageDraw.Draw(canvas).polygon(corners.ravel().tolist(), fill=int(role) + 1)
    return np.asarray(canvas)


@pytest.mark.parametrize("thing", THING_CLASSES)
def test_a_half_turn_shows_so_that_every_thing_has_a_heading(thing: str) -> None:
    assert tuple(TOPDOWN_SHAPES) == THING_CLASSES
    for seed in range(20):
        upright = drawn(TOPDOWN_SHAPES[thing](np.random.default_rng(seed)))
        turned = np.rot90(upright, 2)
        assert (upright != turned).sum() > 0.02 * (upright > 0).sum()


def test_the_nose_of_a_car_is_narrower_than_its_tail() -> None:
    for seed in range(10):
        body = TOPDOWN_SHAPES["car"](np.random.default_rng(seed))[0][0]
        front, rear = body[body[:, 1] == body[:, 1].max()], body[body[:, 1] == body[:, 1].min()]
        assert np.ptp(front[:, 0]) == pytest.approx(0.7 * np.ptp(rear[:, 0]))


def test_things_are_ordered_by_height() -> None:
    assert tuple(TOPDOWN_HEIGHTS) == THING_CLASSES
    assert all(0 < low < high for low, high in TOPDOWN_HEIGHTS.values())
    lowest_kite = TOPDOWN_HEIGHTS["kite"][0]
    assert all(low < lowest_kite for thing, (low, _) in TOPDOWN_HEIGHTS.items() if thing != "kite")
    assert max(high for _, high in TOPDOWN_HEIGHTS.values()) < 11  # below the lowest altitude of a view


def test_the_shapes_of_a_seed_are_pinned() -> None:
    digest = hashlib.sha256()
    for thing in THING_CLASSES:
        for polygon, role in TOPDOWN_SHAPES[thing](np.random.Generator(np.random.PCG64(7))):
            digest.update((np.round(polygon, 6) + 0.0).tobytes() + bytes([role]))
    assert digest.hexdigest()[:16] == "f9062ce79d4423c4"
