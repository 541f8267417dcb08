"""`mode="object"`: the object-centric twin. One object on 35 to 70 % of the area before a plain backdrop.

Slender things are made stouter, and where that is not enough they are cut off at the frame.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from hf_geossl.data.scenes.appearance import sample_light, sample_surface
from hf_geossl.data.scenes.description import STUFF_CLASSES, THING_CLASSES, Polygon, Scene, Thing
from hf_geossl.data.scenes.objects import AIRBORNE, sample_speed, sample_spin, sample_thing, sample_tilt

_LOWEST, _HIGHEST = 0.41, 0.66  # of the area; room is left for rounding at other sizes
_GRID = 64  # pixels a side of the mask on which the area is measured
_DEPTH = 8.0
_CLOSEST = 1.6  # times the zoom at which the whole thing fits
_STEPS = 10
_TRIES = 50


def sample_object(rng: np.random.Generator, split: str, index: int, seed: int) -> Scene:
    """An object-centric scene, all chance from `rng`. The label is the thing's class."""
    category = int(rng.integers(len(THING_CLASSES)))
    name = THING_CLASSES[category]
    far = sample_surface(rng, STUFF_CLASSES[int(rng.integers(len(STUFF_CLASSES)))], 120.0, 0.0)
    thing = _sample_subject(rng, name)
    speed = 0.2 * sample_speed(rng, name) * (-1 if thing.mirror else 1)
    return Scene(
        mode="object",
        split=split,
        index=index,
        seed=seed,
        label=category,
        far=replace(far, contrast=0.05),
        far_depth=_DEPTH + float(rng.uniform(2, 12)),
        things=(replace(thing, velocity=(speed, 0.0, sample_spin(rng, name))),),
        light=sample_light(rng, math.pi * (0.25 if rng.random() < 0.5 else 0.75), 0.0),
    )


def _sample_subject(rng: np.random.Generator, name: str) -> Thing:
    """A thing zoomed to its share of the area: whole or nearly so where that is enough."""
    for _ in range(_TRIES):
        thing = _stouter(sample_thing(rng, name, plan=False), name)
        angle = sample_tilt(rng, name)
        shift = rng.uniform(-0.03, 0.03, 2)
        fitting = _fitting_zoom(thing, angle)
        full = _coverage(_posed(thing, angle, shift, fitting))
        target = _LOWEST + (min(max(1.3 * full, _LOWEST), _HIGHEST) - _LOWEST) * float(rng.random())
        low, high = 0.2 * fitting, _CLOSEST * fitting
        for _ in range(_STEPS):  # bisection: the covered area grows with the zoom
            middle = math.sqrt(low * high)
            low, high = (middle, high) if _coverage(_posed(thing, angle, shift, middle)) < target else (low, middle)
        posed = _posed(thing, angle, shift, math.sqrt(low * high))
        if abs(_coverage(posed) - target) < 0.02:
            return posed
    raise RuntimeError(f"no {name} covered {_LOWEST:.0%} of the view in {_TRIES} tries; widen its shape in _stouter")


def _fitting_zoom(thing: Thing, angle: float) -> float:
    """The zoom at which the whole thing just fits the view."""
    left, bottom, right, top = thing.extent
    width, height = right - left, top - bottom
    cosine, sine = abs(math.cos(angle)), abs(math.sin(angle))
    return 0.92 * _DEPTH / max(cosine * width + sine * height, sine * width + cosine * height)


def _posed(thing: Thing, angle: float, shift: npt.NDArray[np.float64], zoom: float) -> Thing:
    """The thing magnified and turned, its middle in the middle of the view but for `shift` (image widths)."""
    left, bottom, right, top = thing.extent
    x, y = zoom * (left + right) / 2 * (-1 if thing.mirror else 1), zoom * (bottom + top) / 2
    cosine, sine = math.cos(angle), math.sin(angle)
    return replace(
        thing,
        id=1,
        x=float(shift[0]) * _DEPTH - (cosine * x - sine * y),
        y=float(shift[1]) * _DEPTH - (sine * x + cosine * y),
        z=_DEPTH,
        angle=angle,
        polygons=tuple(polygon * zoom for polygon in thing.polygons),
        extent=(left * zoom, bottom * zoom, right * zoom, top * zoom),
        scale=thing.scale / zoom,
    )


def _stouter(thing: Thing, name: str) -> Thing:
    """Shortens poles and tails and widens what is slender, at most 1.8 times.

    A street lamp of its true proportions could not fill a third of a square.
    """
    left, bottom, right, top = thing.extent
    polygons = thing.polygons
    if name in ("lamp", "sign"):
        polygons = tuple(_with_y(polygon, _shortened(polygon[:, 1], 0.3, top - 1.3, 0.12)) for polygon in polygons)
    elif name in AIRBORNE:
        tail = -min(float(polygon[:, 1].min()) for polygon in polygons[1:3])
        polygons = tuple(_with_y(polygon, -_shortened(-polygon[:, 1], tail, math.inf, 0.35)) for polygon in polygons)
    corners = np.concatenate(polygons)
    (left, bottom), (right, top) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    wide = min(1.8, max(1.0, 0.9 * (top - bottom) / (right - left)))
    polygons = tuple(polygon * (wide, 1.0) for polygon in polygons)
    return replace(thing, polygons=polygons, extent=(left * wide, bottom, right * wide, top))


def _with_y(polygon: Polygon, y: npt.NDArray[np.float64]) -> Polygon:
    return np.stack([polygon[:, 0], y], axis=1)


def _shortened(y: npt.NDArray[np.float64], low: float, high: float, factor: float) -> npt.NDArray[np.float64]:
    """Heights with the stretch from `low` to `high` shrunk by a factor."""
    return y - (1 - factor) * (np.clip(y, low, max(low, high)) - low)


def _coverage(thing: Thing) -> float:
    """Share of the view covered, measured on a coarse mask."""
    canvas = Image.new("L", (_GRID, _GRID), 0)
    draw = ImageDraw.Draw(canvas)
    for polygon in thing.polygons:
        x, y = thing.to_world(polygon[:, 0], polygon[:, 1], thing.x, thing.y, thing.angle)
        corners = np.stack([0.5 + x / thing.z, 0.5 - y / thing.z], 1)
        draw.polygon((corners * _GRID - 0.5).ravel().tolist(), fill=1)
    return float(np.asarray(canvas).mean())
