"""`mode="scene"`: a pinhole camera above a ground plane, with a horizon, a backdrop and things standing on the ground."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from hf_geossl.data.scenes.appearance import sample_light, sample_surface, scaled
from hf_geossl.data.scenes.description import (
    CAMERA_HEIGHT,
    FARTHEST,
    SCENE_CLASSES,
    STUFF_CLASSES,
    Backdrop,
    Band,
    Patch,
    Polygon,
    Region,
    Scene,
    Surface,
    Thing,
)
from hf_geossl.data.scenes.grammar import BACKDROP_STUFF, SCENE_GRAMMAR, STRAY_RATE, STRIP_STUFF, Weights
from hf_geossl.data.scenes.objects import (
    AFLOAT,
    AIRBORNE,
    CLIP_SECONDS,
    sample_counts,
    sample_speed,
    sample_spin,
    sample_thing,
    sample_tilt,
)
from hf_geossl.data.scenes.shapes import box, disc

_WATER = STUFF_CLASSES.index("water")
_GROUND_TEXELS = 32.0  # a metre
_IMAGE_TEXELS = 220.0  # an image width
_TRIES = 6
_BACKDROP_DEPTHS = {"hills": (55, 78), "island": (55, 78), "leaves": (14, 30), "houses": (18, 35)}  # metres


def choose(rng: np.random.Generator, weights: Weights) -> str:
    """One of the names, with the given probabilities."""
    draw = rng.random() * sum(weights.values())
    for name, weight in weights.items():
        draw -= weight
        if draw < 0:
            return name
    return name  # where rounding leaves a rest


def any_of(rng: np.random.Generator, names: tuple[str, ...]) -> str:
    """One of the names, all equally likely."""
    return names[int(rng.integers(len(names)))]


def winding_band(
    rng: np.random.Generator, surface: Surface, direction: float, offset: float, half_width: float, swing: float
) -> Band:
    """A band across `direction`, radians; its winding is drawn."""
    normal = (math.cos(direction), math.sin(direction))
    shortest = 6 if math.isinf(half_width) else 8
    return Band(surface, normal, offset, half_width, swing, float(rng.uniform(shortest, 20)), float(rng.random()))


def is_water(regions: tuple[Region, ...], p: float, q: float) -> bool:
    """Whether the topmost region at a ground point is water."""
    for region in reversed(regions):
        if region.contains(p, q):
            return region.surface.stuff == _WATER
    return False


def belongs(category: str, regions: tuple[Region, ...], p: float, q: float) -> bool:
    """Whether a thing may be at a ground point: boats on water, what flies anywhere, everything else on land."""
    return category in AIRBORNE or is_water(regions, p, q) == (category in AFLOAT)


def sample_sideview(rng: np.random.Generator, split: str, index: int, seed: int) -> Scene:
    """A scene seen from the side, all chance from `rng`."""
    label = int(rng.integers(len(SCENE_CLASSES)))
    grammar = SCENE_GRAMMAR[SCENE_CLASSES[label]]
    horizon = float(rng.uniform(0.22, 0.5))
    backdrop = choose(rng, grammar.backdrops)
    strip = choose(rng, grammar.strips)
    far = sample_surface(rng, "sky", _IMAGE_TEXELS, 0.0)
    ground = sample_surface(rng, choose(rng, grammar.grounds), _GROUND_TEXELS, float(rng.uniform(0, 2 * math.pi)))
    regions = _sample_regions(rng, backdrop, strip)
    backdrops = _sample_backdrops(rng, backdrop, horizon)
    limit = min((item.depth for item in backdrops), default=FARTHEST)
    side = math.pi * (0.25 if rng.random() < 0.5 else 0.75)
    return Scene(
        mode="scene",
        split=split,
        index=index,
        seed=seed,
        label=label,
        horizon=horizon,
        far=far,
        far_depth=FARTHEST,
        ground=ground,
        regions=regions,
        backdrops=backdrops,
        things=_place_things(rng, sample_counts(rng, grammar.rates, STRAY_RATE), horizon, regions, limit),
        light=sample_light(rng, side, 40.0),
        pan=(float(rng.normal(0, 0.05)), 0.0),
    )


def _sample_regions(rng: np.random.Generator, backdrop: str, strip: str) -> tuple[Region, ...]:
    """Draws the strip and the sea, which covers it."""
    regions: list[Region] = []
    texture_turn = float(rng.uniform(0, 2 * math.pi))
    if strip != "none":
        surface = sample_surface(rng, any_of(rng, STRIP_STUFF[strip]), _GROUND_TEXELS, texture_turn)
        if strip in ("pond", "field"):
            center = (float(rng.uniform(-4, 4)), float(rng.uniform(5, 13)))
            radii = (float(rng.uniform(2.5, 6)), float(rng.uniform(2, 5)))
            regions.append(Patch(surface, center, radii, float(rng.uniform(-0.4, 0.4)), strip == "field"))
        else:
            low, high = {"road": (1.6, 3.2), "path": (0.6, 1.3), "river": (1.2, 3.5)}[strip]
            bend = 0.0 if strip == "road" else float(rng.uniform(0.3, 1.2))
            if rng.random() < 0.6:  # it runs away from the camera
                direction, offset = float(rng.normal(0, 0.25)), float(rng.uniform(-3, 3))
            else:  # it crosses the view
                direction, offset = math.pi / 2 + float(rng.normal(0, 0.25)), float(rng.uniform(5, 12))
            regions.append(winding_band(rng, surface, direction, offset, float(rng.uniform(low, high)), bend))
    if backdrop in ("sea", "island"):
        surface = sample_surface(rng, "water", _GROUND_TEXELS / 2, float(rng.normal(0, 0.15)))
        direction = math.pi / 2 + float(rng.normal(0, 0.35))
        shore, swing = float(rng.uniform(4, 11)), float(rng.uniform(0, 0.8))
        regions.append(winding_band(rng, surface, direction, shore, math.inf, swing))
    return tuple(regions)


def _sample_backdrops(rng: np.random.Generator, kind: str, horizon: float) -> tuple[Backdrop, ...]:
    if kind not in BACKDROP_STUFF:
        return ()
    surface = sample_surface(rng, any_of(rng, BACKDROP_STUFF[kind]), _IMAGE_TEXELS, 0.0)
    # All four are drawn, so that what follows does not depend on the kind.
    depths = {kind: float(rng.uniform(*ends)) for kind, ends in _BACKDROP_DEPTHS.items()}
    depth = depths[kind]
    reach = 1.5 * depth  # half the width that stays filled while the camera pans
    if kind in ("hills", "island"):
        height = depth * float(rng.uniform(0.05, 0.16)) * (0.6 if kind == "island" else 1.0)
        polygons, shades = _hills(rng, reach, height, kind == "island")
    elif kind == "leaves":
        polygons, shades = _leaves(rng, reach, depth * (horizon * float(rng.uniform(0.35, 1.1))))
    else:
        polygons, shades = _houses(rng, reach, depth * horizon * 0.8)
    return (Backdrop(depth, surface, tuple(polygons), tuple(scaled(surface.color, shade) for shade in shades)),)


def _hills(rng: np.random.Generator, reach: float, height: float, island: bool) -> tuple[list[Polygon], list[float]]:
    """Two ridges, the farther one lighter; an island is cut off at a random place."""
    polygons = []
    for ridge in range(2):
        x = np.linspace(-reach, reach, 61)
        y = np.zeros_like(x)
        for _ in range(4):
            y += rng.uniform(0.2, 1.0) * np.sin(x / reach * rng.uniform(4, 22) + rng.uniform(0, 2 * np.pi))
        y = height * (1.15 - 0.45 * ridge) * np.clip(0.55 + 0.22 * y, 0.05, None)
        if island:
            center, breadth = rng.uniform(-0.3, 0.3) * reach, rng.uniform(0.15, 0.4) * reach
            y *= np.clip(1.3 - ((x - center) / breadth) ** 2, 0.0, 1.0)
        polygons.append(np.concatenate([np.stack([x, y], 1), [[reach, 0.0], [-reach, 0.0]]]))
    return polygons, [1.15, 0.85]


def _leaves(rng: np.random.Generator, reach: float, height: float) -> tuple[list[Polygon], list[float]]:
    """A hedge of overlapping round crowns."""
    polygons, shades = [box(-reach, 0, reach, height * 0.75)], [0.75]
    step = height * float(rng.uniform(0.35, 0.6)) + 0.5
    for x in np.arange(-0.75 * reach, 0.75 * reach, step):
        radius = step * rng.uniform(0.7, 1.1)
        polygons.append(disc(float(x), height * rng.uniform(0.55, 0.85), radius, radius * rng.uniform(0.7, 1.2), 11))
        shades.append(float(rng.uniform(0.75, 1.2)))
    return polygons, shades


def _houses(rng: np.random.Generator, reach: float, height: float) -> tuple[list[Polygon], list[float]]:
    """A closed row of house fronts with windows."""
    polygons, shades = [box(-reach, 0, reach, height * 0.4)], [1.0]
    x = -0.72 * reach
    while x < 0.72 * reach:
        width, top = height * float(rng.uniform(0.5, 1.1)), height * float(rng.uniform(0.55, 1.1))
        shade = float(rng.uniform(0.7, 1.25))
        polygons.append(box(x, 0, x + width, top))
        shades.append(shade)
        if rng.random() < 0.5:
            polygons.append(np.array([[x, top], [x + width, top], [x + width / 2, top + width * 0.4]]))
            shades.append(shade * 0.65)
        columns, rows = int(rng.integers(2, 4)), int(rng.integers(1, 4))
        for column in range(columns):
            left = x + width * (column + 0.25) / columns
            for row in range(rows):
                low = top * (row + 0.35) / rows
                polygons.append(box(left, low, left + 0.5 * width / columns, low + 0.4 * top / rows))
                shades.append(shade * 0.45)
        x += width
    return polygons, shades


def _place_things(
    rng: np.random.Generator, categories: list[str], horizon: float, regions: tuple[Region, ...], limit: float
) -> tuple[Thing, ...]:
    """Puts things where they belong; one that finds no place in a few tries is left out."""
    placed: list[Thing] = []
    for category in categories:
        thing = sample_thing(rng, category, plan=False)
        for _ in range(_TRIES):
            candidate = _pose(rng, thing, category, horizon, limit)
            if _fits(candidate, category, regions, placed):
                speed, spin = sample_speed(rng, category), sample_spin(rng, category)
                heading = -1.0 if candidate.mirror else 1.0  # it moves in the direction that it faces
                velocity = (heading * speed, 0.15 * speed * float(rng.normal()), spin)
                candidate = replace(candidate, id=len(placed) + 1, velocity=velocity)
                if not _stays(candidate, category, regions, limit):
                    candidate = replace(candidate, velocity=(0.0, 0.0, spin))
                placed.append(candidate)
                break
        if len(placed) == 255:
            break
    return tuple(placed)


def _pose(rng: np.random.Generator, thing: Thing, category: str, horizon: float, limit: float) -> Thing:
    left, bottom, right, top = thing.extent
    height = top - bottom
    if category in AIRBORNE:
        z = float(rng.uniform(5, min(16.0, limit - 1)))
        on_screen = float(rng.uniform(0.06, max(0.1, horizon - 0.04)))
        y = CAMERA_HEIGHT + (horizon - on_screen) * z
    else:
        size = max(height, 0.7 * (right - left))
        nearest, farthest = max(2.6, 1.25 * size), min(14 * size, limit - 1, 55.0)
        z = nearest * (max(farthest, nearest + 0.5) / nearest) ** float(rng.random())
        y = 0.0
    angle = sample_tilt(rng, category)
    x = (float(rng.uniform(-0.08, 1.08)) - 0.5) * z
    return replace(thing, x=x, y=y, z=z, angle=angle)


def _fits(thing: Thing, category: str, regions: tuple[Region, ...], placed: list[Thing]) -> bool:
    if category in AIRBORNE:
        return True
    if not belongs(category, regions, thing.x, thing.z):
        return False
    half = (thing.extent[2] - thing.extent[0]) / 2
    # No two stand inside each other.
    return all(
        abs(other.z - thing.z) > 0.6
        or abs(other.x - thing.x) > 0.8 * (half + (other.extent[2] - other.extent[0]) / 2)
        or other.y > 0
        for other in placed
    )


def _stays(thing: Thing, category: str, regions: tuple[Region, ...], limit: float) -> bool:
    """Whether it stays in front of the camera, before the backdrop, and on land or water, as it should, while it moves."""
    for t in (CLIP_SECONDS / 2, CLIP_SECONDS):
        x, z = thing.x + thing.velocity[0] * t, thing.z + thing.velocity[1] * t
        if not 1.5 < z < limit or not belongs(category, regions, x, z):
            return False
    return True
