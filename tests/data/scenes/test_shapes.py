"""Polygons of the things from the side, and the primitives that they share."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest

from hf_geossl.data import THING_CLASSES
from hf_geossl.data.scenes.shapes import SIDE_SHAPES, Role, blob, box, disc, stick, triangle


def area(polygon: np.ndarray) -> float:
    """The shoelace formula."""
    x, y = polygon[:, 0], polygon[:, 1]
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


def test_primitives_have_the_areas_of_geometry() -> None:
    # a regular polygon of n corners: n / 2 * r ** 2 * sin(2 pi / n); an ellipse stretches it
    assert area(disc(3, -2, 2.0, corners=14)) == pytest.approx(7 * 4 * math.sin(2 * math.pi / 14))
    assert area(disc(0, 0, 2.0, 0.5, corners=8)) == pytest.approx(4 * 2 * 0.5 * math.sin(math.pi / 4))
    np.testing.assert_allclose(disc(3, -2, 2.0).mean(axis=0), (3, -2), atol=1e-12)
    assert area(box(-1, 0, 3, 2)) == 8
    assert area(box(-1, 0, 3, 2, taper=0.5)) == pytest.approx((4 + 3) / 2 * 2)
    assert area(triangle(0, 0, 4, 0, 1, 3)) == 6
    assert triangle(0, 0, 4, 0, 1, 3).tolist() == [[0, 0], [4, 0], [1, 3]]


def test_a_stick_is_a_bar_of_its_length_and_width() -> None:
    bar = stick(0, 0, 3, 4, 0.5)
    assert area(bar) == pytest.approx(5 * 0.5)
    np.testing.assert_allclose((bar[0] + bar[3]) / 2, (0, 0), atol=1e-12)
    np.testing.assert_allclose((bar[1] + bar[2]) / 2, (3, 4), atol=1e-12)
    assert np.isfinite(stick(1, 1, 1, 1, 0.5)).all()


def test_a_blob_varies_its_radius_by_no_more_than_its_roughness() -> None:
    ring = blob(np.random.default_rng(0), 5.0, 6.0, 2.0, 1.0, 0.2) - (5.0, 6.0)
    radius = np.hypot(ring[:, 0] / 2, ring[:, 1])
    assert radius.shape == (13,)
    assert 0.8 <= radius.min() < 0.95
    assert 1.05 < radius.max() <= 1.2


@pytest.mark.parametrize("thing", THING_CLASSES)
def test_things_stand_on_the_ground_and_are_arrangements_of_parts(thing: str) -> None:
    assert tuple(SIDE_SHAPES) == THING_CLASSES
    for seed in range(40):
        shape = SIDE_SHAPES[thing](np.random.default_rng(seed))
        assert 2 <= len(shape) <= 9
        assert all(polygon.shape[1] == 2 and len(polygon) >= 3 for polygon, _ in shape)
        assert all(isinstance(role, Role) for _, role in shape)
        lowest = min(float(polygon[:, 1].min()) for polygon, _ in shape)
        if thing == "kite":
            assert lowest < -1.7  # its tail hangs
        else:
            assert -0.1 <= lowest <= 0.3


def test_the_shapes_of_a_seed_are_pinned() -> None:
    digest = hashlib.sha256()
    for thing in THING_CLASSES:
        for polygon, role in SIDE_SHAPES[thing](np.random.Generator(np.random.PCG64(7))):
            digest.update((np.round(polygon, 6) + 0.0).tobytes() + bytes([role]))
    assert digest.hexdigest()[:16] == "7253c8bd86aacd25"
