"""`mode="topdown"`: the same world from straight above. No horizon, no gravity, and no direction is preferred."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from hf_geossl.data.scenes.appearance import sample_light, sample_surface
from hf_geossl.data.scenes.description import SCENE_CLASSES, Patch, Region, Scene, Thing
from hf_geossl.data.scenes.grammar import SCENE_GRAMMAR, STRAY_RATE, STRIP_STUFF
from hf_geossl.data.scenes.objects import AIRBORNE, CLIP_SECONDS, sample_counts, sample_speed, sample_thing
from hf_geossl.data.scenes.shapes_topdown import TOPDOWN_HEIGHTS
from hf_geossl.data.scenes.sideview import any_of, belongs, choose, winding_band

_TEXELS = 14.0  # a metre
_FIELD_RATE = 1.2
_TRIES = 6


def sample_topdown(rng: np.random.Generator, split: str, index: int, seed: int) -> Scene:
    """A plan view, all chance from `rng`. Roads and fields share one uniform base rotation; every heading is uniform by itself."""
    label = int(rng.integers(len(SCENE_CLASSES)))
    grammar = SCENE_GRAMMAR[SCENE_CLASSES[label]]
    width = float(rng.uniform(11, 20))
    base = float(rng.uniform(0, 2 * math.pi))
    ground = sample_surface(rng, choose(rng, grammar.grounds), _TEXELS, base)
    regions = _sample_regions(rng, choose(rng, grammar.backdrops), choose(rng, grammar.strips), width, base)
    things = _place_things(rng, sample_counts(rng, grammar.rates, STRAY_RATE), width, regions)
    drift = float(rng.uniform(0, 2 * math.pi))
    speed = 0.05 * float(rng.random())
    return Scene(
        mode="topdown",
        split=split,
        index=index,
        seed=seed,
        label=label,
        altitude=width,
        far=ground,
        far_depth=width,
        ground=ground,
        regions=regions,
        things=things,
        light=sample_light(rng, float(rng.uniform(0, 2 * math.pi)), 60.0),
        pan=(speed * math.cos(drift), speed * math.sin(drift)),
    )


def _sample_regions(
    rng: np.random.Generator, backdrop: str, strip: str, width: float, base: float
) -> tuple[Region, ...]:
    """Fields, the strip of the grammar, and the sea where the side view would have one."""
    regions: list[Region] = []
    half = width / 2

    def patch(stuff: str, rectangular: bool) -> Patch:
        center = (float(rng.uniform(-half, half)), float(rng.uniform(-half, half)))
        radii = (half * float(rng.uniform(0.2, 0.55)), half * float(rng.uniform(0.2, 0.55)))
        surface = sample_surface(rng, stuff, _TEXELS, float(rng.uniform(0, 2 * math.pi)))
        return Patch(surface, center, radii, base + float(rng.normal(0, 0.1)), rectangular)

    for _ in range(int(rng.poisson(_FIELD_RATE))):
        regions.append(patch(any_of(rng, STRIP_STUFF["field"]), rectangular=True))
    if strip in ("pond", "field"):
        regions.append(patch(any_of(rng, STRIP_STUFF[strip]), rectangular=strip == "field"))
    elif strip != "none":
        surface = sample_surface(rng, any_of(rng, STRIP_STUFF[strip]), _TEXELS, base)
        low, high = {"road": (1.5, 2.8), "path": (0.5, 1.0), "river": (1.2, 3.0)}[strip]
        half_width = float(rng.uniform(low, high))
        for crossing in range(2 if strip == "road" and rng.random() < 0.4 else 1):
            direction = base + crossing * math.pi / 2
            offset = half * float(rng.uniform(-0.6, 0.6))
            bend = 0.0 if strip == "road" else float(rng.uniform(0.3, 1.2))
            regions.append(winding_band(rng, surface, direction, offset, half_width, bend))
    if backdrop in ("sea", "island"):
        surface = sample_surface(rng, "water", _TEXELS, float(rng.uniform(0, 2 * math.pi)))
        direction = float(rng.uniform(0, 2 * math.pi))
        shore, swing = half * float(rng.uniform(-0.25, 0.5)), float(rng.uniform(0, 1.0))
        regions.append(winding_band(rng, surface, direction, shore, math.inf, swing))
    elif backdrop == "houses":  # the row's yard
        regions.append(patch("wall", rectangular=True))
    elif backdrop == "leaves":  # a copse
        regions.append(patch("foliage", rectangular=False))
    return tuple(regions)


def _place_things(
    rng: np.random.Generator, categories: list[str], width: float, regions: tuple[Region, ...]
) -> tuple[Thing, ...]:
    placed: list[Thing] = []
    for category in categories:
        low, high = TOPDOWN_HEIGHTS[category]
        thing = replace(sample_thing(rng, category, plan=True), z=float(rng.uniform(low, high)))
        for _ in range(_TRIES):
            x, y = (float(value) for value in rng.uniform(-0.52 * width, 0.52 * width, 2))
            if not belongs(category, regions, x, y) or (category not in AIRBORNE and _overlaps(thing, x, y, placed)):
                continue
            angle = float(rng.uniform(-math.pi, math.pi))
            speed = sample_speed(rng, category)
            # It moves along its nose: local y, turned counter-clockwise by the angle.
            spin = float(rng.normal(0, 0.5)) if category in AIRBORNE else 0.0
            velocity = (-speed * math.sin(angle), speed * math.cos(angle), spin)
            thing = replace(thing, id=len(placed) + 1, x=x, y=y, angle=angle)
            placed.append(replace(thing, velocity=velocity) if _stays(thing, velocity, category, regions) else thing)
            break
        if len(placed) == 255:
            break
    return tuple(placed)


def _overlaps(thing: Thing, x: float, y: float, placed: list[Thing]) -> bool:
    def radius(thing: Thing) -> float:
        left, bottom, right, top = thing.extent
        return (right - left + top - bottom) / 4

    return any(math.hypot(x - other.x, y - other.y) < 0.7 * (radius(thing) + radius(other)) for other in placed)


def _stays(thing: Thing, velocity: tuple[float, float, float], category: str, regions: tuple[Region, ...]) -> bool:
    return all(
        belongs(category, regions, thing.x + velocity[0] * t, thing.y + velocity[1] * t)
        for t in (CLIP_SECONDS / 2, CLIP_SECONDS)
    )
