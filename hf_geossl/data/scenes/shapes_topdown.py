"""The ten things as arrangements of polygons, seen from above.

Local axes: y is the heading (the nose), x to its right; the origin is the middle. Roles and primitives are those of `shapes`.
"""

from __future__ import annotations

import numpy as np

from hf_geossl.data.scenes.description import THING_CLASSES
from hf_geossl.data.scenes.shapes import DARK, LIGHT, MAIN, SECOND, SHADED, Shape, blob, box, disc, stick, triangle


def _tree(rng: np.random.Generator) -> Shape:
    radius = rng.uniform(1.0, 2.2)
    parts: Shape = [(blob(rng, 0, 0, radius, radius, 0.13, 17), SHADED)]
    for _ in range(int(rng.integers(2, 5))):
        x, y = rng.uniform(-0.4, 0.4, 2) * radius
        parts.append((blob(rng, x, y, radius * 0.5, radius * 0.5, 0.15, 11), MAIN))
    # One limb out of the crown: without it a round crown would have no heading.
    parts.append((stick(0, 0, 0, radius * 1.15, 0.16), SECOND))
    return parts


def _rock(rng: np.random.Generator) -> Shape:
    radius = rng.uniform(0.5, 1.3)
    ring = blob(rng, 0, 0, radius * 0.75, radius, 0.18, 9)
    return [(ring, MAIN), (np.stack([ring[1], ring[2], ring[3], 0.1 * ring[6]]), SHADED)]


def _person(rng: np.random.Generator) -> Shape:
    breadth = rng.uniform(0.36, 0.46)
    stride = rng.uniform(0.1, 0.3)
    return [
        (stick(-0.14, 0, -0.14, stride + 0.12, 0.17), SECOND),
        (stick(0.14, 0, 0.14, -stride - 0.12, 0.17), SECOND),
        (disc(0, 0, breadth, 0.22, 12), MAIN),
        (disc(0, 0.04, 0.17, corners=10), LIGHT),
    ]


def _car(rng: np.random.Generator) -> Shape:
    half, breadth = rng.uniform(1.7, 2.5), rng.uniform(0.8, 1.0)
    nose = rng.uniform(0.15, 0.4)
    x = np.array([-1, 1, 1, 0.7, -0.7, -1]) * breadth
    body = np.stack([x, [-half, -half, half - nose, half, half, half - nose]], axis=1)
    front, rear = half * rng.uniform(0.25, 0.45), -half * rng.uniform(0.5, 0.75)
    return [
        (body, MAIN),
        (box(-breadth * 0.85, rear, breadth * 0.85, front, 0.08), DARK),
        (box(-breadth * 0.7, rear + 0.25, breadth * 0.7, front - 0.55, 0.04), MAIN),
        (disc(-breadth * 0.6, half * 0.93, 0.18, 0.12, 8), LIGHT),
        (disc(breadth * 0.6, half * 0.93, 0.18, 0.12, 8), LIGHT),
    ]


def _house(rng: np.random.Generator) -> Shape:
    half, breadth = rng.uniform(2.2, 3.8), rng.uniform(1.6, 2.8)
    ridge = half * rng.choice([1.0, 0.5])
    parts: Shape = []
    if rng.random() < 0.4:
        parts.append((box(0, -half * 0.9, breadth * 1.7, -half * 0.1), SHADED))
    parts.append((np.array([[-breadth, -half], [0, -ridge], [0, ridge], [-breadth, half]]), MAIN))
    parts.append((np.array([[breadth, -half], [0, -ridge], [0, ridge], [breadth, half]]), SHADED))
    parts.append((triangle(-breadth, half, breadth, half, 0, ridge - 0.01), SECOND))
    parts.append((triangle(-breadth, -half, breadth, -half, 0, 0.01 - ridge), SECOND))
    x, y = breadth * 0.4, half * 0.55
    parts.append((box(x - 0.3, y - 0.3, x + 0.3, y + 0.3), DARK))
    return parts


def _lamp(rng: np.random.Generator) -> Shape:
    arm = rng.uniform(0.8, 1.5)
    return [
        (disc(0, 0, 0.3, corners=8), DARK),
        (stick(0, 0, 0, arm, 0.2), SECOND),
        (disc(0, arm, 0.36, 0.45, 10), LIGHT),
    ]


def _boat(rng: np.random.Generator) -> Shape:
    half, breadth = rng.uniform(1.3, 2.8), rng.uniform(0.28, 0.42)
    ratio = half * breadth
    outline = np.array([[-0.8, -1], [0.8, -1], [1.0, -0.2], [0.75, 0.5], [0, 1], [-0.75, 0.5], [-1.0, -0.2]])
    hull = outline * (ratio, half)
    parts: Shape = [(hull, MAIN), (hull * (0.7, 0.8), LIGHT)]
    if rng.random() < 0.5:
        parts.append((box(-ratio * 0.5, -half * 0.55, ratio * 0.5, half * 0.1, 0.05), SECOND))
    else:
        parts.append((stick(-ratio * 0.6, -half * 0.8, 0, half * 0.3, 0.25), SECOND))
        parts.append((disc(0, half * 0.3, 0.14, corners=8), DARK))
    return parts


def _animal(rng: np.random.Generator) -> Shape:
    half = rng.uniform(0.55, 0.95)
    girth = half * rng.uniform(0.4, 0.55)
    return [
        (stick(0, -half * 0.9, rng.uniform(-0.15, 0.15), -half * 1.5, 0.12), SECOND),
        (disc(0, 0, girth, half), MAIN),
        (disc(0, half * 1.1, girth * 0.6, half * 0.4, 10), SECOND),
        (disc(-girth * 0.55, half * 0.95, 0.12, corners=6), DARK),
        (disc(girth * 0.55, half * 0.95, 0.12, corners=6), DARK),
    ]


def _sign(rng: np.random.Generator) -> Shape:
    half = rng.uniform(0.5, 0.9)
    return [
        (box(-half, -0.06, half, 0.2), MAIN),
        (box(-half, 0.08, half, 0.2), LIGHT),
        (disc(0, -0.12, 0.13, corners=8), DARK),
    ]


def _kite(rng: np.random.Generator) -> Shape:
    width, up, down = rng.uniform(0.6, 0.9), rng.uniform(0.5, 0.8), rng.uniform(0.8, 1.3)
    return [
        (stick(0, -down, rng.uniform(-0.2, 0.2), -down - 1.0, 0.12), DARK),
        (triangle(-width, 0, 0, -down, 0, up), MAIN),
        (triangle(width, 0, 0, -down, 0, up), SECOND),
        (triangle(-0.22, -down - 0.3, 0.22, -down - 0.3, 0, -down - 0.55), LIGHT),
    ]


TOPDOWN_SHAPES = dict(
    zip(THING_CLASSES, (_tree, _rock, _person, _car, _house, _lamp, _boat, _animal, _sign, _kite), strict=True)
)
# Metres from the ground to the top, which orders things seen from above and gives their depth.
TOPDOWN_HEIGHTS: dict[str, tuple[float, float]] = {
    "tree": (3.0, 6.5),
    "rock": (0.5, 1.3),
    "person": (1.5, 1.95),
    "car": (1.3, 1.9),
    "house": (3.6, 6.8),
    "lamp": (3.0, 5.0),
    "boat": (0.6, 1.6),
    "animal": (0.7, 1.5),
    "sign": (2.0, 3.2),
    "kite": (6.0, 8.0),
}
