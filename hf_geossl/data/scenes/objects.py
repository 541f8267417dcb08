"""Draws single things: their shape, colours, texture and motion."""

from __future__ import annotations

import math

import numpy as np

from hf_geossl.data.scenes.appearance import sample_thing_palette, sample_thing_tile
from hf_geossl.data.scenes.description import THING_CLASSES, Thing
from hf_geossl.data.scenes.grammar import Weights
from hf_geossl.data.scenes.shapes import SIDE_SHAPES
from hf_geossl.data.scenes.shapes_topdown import TOPDOWN_SHAPES

# Things that float; everything else of the ground stays on land.
AFLOAT = ("boat",)
AIRBORNE = ("kite",)
# Seconds for which motion is checked: until then land things stay on land and boats on water.
CLIP_SECONDS = 2.0

_SPEEDS: dict[str, tuple[float, float]] = {
    "person": (0.5, 1.6),
    "car": (2.0, 6.0),
    "boat": (0.5, 2.0),
    "animal": (0.5, 2.0),
    "kite": (0.5, 1.5),
}


def sample_thing(rng: np.random.Generator, category: str, *, plan: bool) -> Thing:
    """A thing at the origin, at rest, upright, with id 0; `dataclasses.replace` puts it into a scene. `plan`: from above."""
    shape = (TOPDOWN_SHAPES if plan else SIDE_SHAPES)[category](rng)
    palette = sample_thing_palette(rng, category)
    tile, contrast, offset = sample_thing_tile(rng, category)
    corners = np.concatenate([polygon for polygon, _ in shape])
    (left, bottom), (right, top) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    return Thing(
        category=THING_CLASSES.index(category),
        mirror=bool(rng.random() < 0.5),
        polygons=tuple(polygon for polygon, _ in shape),
        colors=tuple(palette[role] for _, role in shape),
        extent=(left, bottom, right, top),
        tile=tile,
        scale=float(rng.uniform(90, 200)) / max(right - left, top - bottom),
        contrast=contrast,
        offset=offset,
    )


def sample_speed(rng: np.random.Generator, category: str) -> float:
    """Metres a second; 0 for what does not move."""
    low, high = _SPEEDS.get(category, (0.0, 0.0))
    return float(rng.uniform(low, high)) if high else 0.0


def sample_tilt(rng: np.random.Generator, category: str) -> float:
    """Radians from upright: kites hang at any angle, cars and houses stand upright, the others tilt by N(0, 4 degrees)."""
    if category in AIRBORNE:
        return float(rng.uniform(-math.pi, math.pi))
    return 0.0 if category in ("car", "house") else float(rng.normal(0, math.radians(4.0)))


def sample_spin(rng: np.random.Generator, category: str) -> float:
    """Radians a second: kites swing, boats rock."""
    if category in AIRBORNE:
        return float(rng.normal(0.0, 0.5))
    return float(rng.normal(0.0, 0.04)) if category in AFLOAT else 0.0


def sample_counts(rng: np.random.Generator, rates: Weights, stray_rate: float) -> list[str]:
    """Categories of the things to place: Poisson numbers at the given rates times one density from U(0.6, 1.4).

    They are in random order, so that no class is placed first.
    """
    density = float(rng.uniform(0.6, 1.4))
    counts = rng.poisson([density * rates.get(category, stray_rate) for category in THING_CLASSES])
    wanted = [category for category, count in zip(THING_CLASSES, counts.tolist(), strict=True) for _ in range(count)]
    return [wanted[position] for position in rng.permutation(len(wanted)).tolist()]
