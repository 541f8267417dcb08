"""The ten things as arrangements of polygons, seen from the side.

A shape is a list of parts, drawn in order; a part is a polygon in metres and the role of its colour. The parts are shared primitives
(discs, boxes, sticks, triangles), so that a class is an arrangement of parts and not a patch.
Local axes: x to the right, y up; standing things have their foot at (0, 0), kites their centre.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

import numpy as np
import numpy.typing as npt

Polygon = npt.NDArray[np.float64]


class Role(IntEnum):
    """Which of a thing's colours a part takes."""

    MAIN = 0
    SECOND = 1
    DARK = 2
    LIGHT = 3
    SHADED = 4  # the main colour in shade: the far side of a roof, a fold


Part = tuple[Polygon, Role]
Shape = list[Part]


def disc(x: float, y: float, radius_x: float, radius_y: float | None = None, corners: int = 14) -> Polygon:
    """An ellipse around (x, y); radii in metres; shape `(corners, 2)`."""
    angle = np.arange(corners) * (2 * np.pi / corners)
    return np.stack(
        [x + radius_x * np.cos(angle), y + (radius_x if radius_y is None else radius_y) * np.sin(angle)], axis=1
    )


def blob(
    rng: np.random.Generator, x: float, y: float, radius_x: float, radius_y: float, roughness: float, corners: int = 13
) -> Polygon:
    """An ellipse whose radius varies by up to +-`roughness` from corner to corner; shape `(corners, 2)`."""
    ring = disc(0.0, 0.0, radius_x, radius_y, corners) * rng.uniform(1 - roughness, 1 + roughness, (corners, 1))
    return ring + np.array([x, y])


def box(left: float, bottom: float, right: float, top: float, taper: float = 0.0) -> Polygon:
    """A rectangle, its top edge shorter by `taper` metres on each side; shape `(4, 2)`."""
    return np.array([[left, bottom], [right, bottom], [right - taper, top], [left + taper, top]])


def stick(x1: float, y1: float, x2: float, y2: float, width: float) -> Polygon:
    """A bar from (x1, y1) to (x2, y2) of the given width; shape `(4, 2)`."""
    length = max(float(np.hypot(x2 - x1, y2 - y1)), 1e-6)
    across_x, across_y = -(y2 - y1) / length * width / 2, (x2 - x1) / length * width / 2
    return np.array(
        [
            [x1 + across_x, y1 + across_y],
            [x2 + across_x, y2 + across_y],
            [x2 - across_x, y2 - across_y],
            [x1 - across_x, y1 - across_y],
        ]
    )


def triangle(*corners: float) -> Polygon:
    """A triangle from x1, y1, x2, y2, x3, y3; shape `(3, 2)`."""
    return np.array(corners).reshape(3, 2)


def _tree(rng: np.random.Generator) -> Shape:
    height = rng.uniform(3.0, 6.5)
    trunk, width = height * rng.uniform(0.22, 0.4), height * rng.uniform(0.2, 0.32)
    parts: Shape = [(box(-0.06 * height, 0, 0.06 * height, trunk + 0.15 * height, 0.02 * height), Role.SECOND)]
    if rng.random() < 0.4:
        layers = int(rng.integers(2, 5))
        step = (height - trunk) / (layers + 0.6)
        for layer in range(layers):
            reach, base = width * (1 - 0.75 * layer / layers), trunk + layer * step
            role = Role.MAIN if layer % 2 == 0 else Role.SHADED
            parts.append((triangle(-reach, base, reach, base, 0, base + 1.6 * step), role))
        return parts
    middle = (trunk + height) / 2
    crown = (height - trunk) / 2
    parts.append((blob(rng, 0, middle, width, crown, 0.14, 16), Role.SHADED))
    for _ in range(int(rng.integers(1, 4))):
        x, y = rng.uniform(-0.4, 0.4) * width, middle + rng.uniform(-0.25, 0.4) * crown
        parts.append((blob(rng, x, y, width * 0.62, crown * 0.58, 0.14), Role.MAIN))
    return parts


def _rock(rng: np.random.Generator) -> Shape:
    width, height = rng.uniform(0.6, 1.6), rng.uniform(0.5, 1.3)
    ring = blob(rng, 0, 0.35 * height, width, 0.75 * height, 0.2, 9)
    ring[:, 1] = np.maximum(ring[:, 1], 0.0)
    facet = np.stack([ring[1], ring[2], ring[3], [rng.uniform(-0.3, 0.2) * width, 0.4 * height]])
    return [(ring, Role.MAIN), (facet, Role.LIGHT if rng.random() < 0.3 else Role.SHADED)]


def _person(rng: np.random.Generator) -> Shape:
    height = rng.uniform(1.5, 1.95)
    hip, shoulder, breadth = 0.46 * height, 0.8 * height, height * rng.uniform(0.12, 0.16)
    stride, swing = rng.uniform(0.02, 0.16) * height, rng.uniform(0.05, 0.3) * height
    raised = shoulder + 0.25 * height if rng.random() < 0.2 else hip + 0.03 * height
    limb = 0.075 * height
    return [
        (stick(-breadth / 2, hip, -breadth / 2 - stride, 0, limb), Role.SECOND),
        (stick(breadth / 2, hip, breadth / 2 + stride, 0, limb), Role.SECOND),
        (stick(-breadth, shoulder - 0.03, -breadth - swing, hip, limb * 0.8), Role.MAIN),
        (stick(breadth, shoulder - 0.03, breadth + swing, raised, limb * 0.8), Role.MAIN),
        (box(-breadth * 0.8, hip - 0.03, breadth * 0.8, shoulder, -breadth * 0.3), Role.MAIN),
        (disc(0, 0.9 * height, 0.075 * height, 0.095 * height, 10), Role.LIGHT),
    ]


def _car(rng: np.random.Generator) -> Shape:
    length, body, cabin = rng.uniform(3.2, 5.0), rng.uniform(0.75, 1.0), rng.uniform(0.55, 0.9)
    wheel, half = rng.uniform(0.3, 0.4), length / 2
    rear, front = -half * rng.uniform(0.6, 0.98), half * rng.uniform(0.3, 0.6)
    slope = rng.uniform(0.2, 0.5)
    base = wheel * 0.7
    return [
        (box(rear, body, front, body + cabin, slope), Role.MAIN),
        (
            box(rear + 0.2, body, front - 0.2, body + cabin - 0.12, slope),
            Role.DARK if rng.random() < 0.5 else Role.LIGHT,
        ),
        (box(-half, base, half, body + 0.06, 0.1), Role.MAIN),
        (box(-half, base, half, base + 0.2), Role.SHADED),
        (disc(-half * 0.6, wheel, wheel), Role.DARK),
        (disc(half * 0.6, wheel, wheel), Role.DARK),
        (disc(half * 0.94, body * 0.75, 0.12, corners=8), Role.LIGHT),
    ]


def _house(rng: np.random.Generator) -> Shape:
    width, wall, roof = rng.uniform(4.0, 7.5), rng.uniform(2.4, 4.2), rng.uniform(1.2, 2.6)
    half, eaves = width / 2, rng.uniform(0.2, 0.5)
    ridge = half * rng.choice([0.0, 0.45])
    door, window = rng.uniform(-0.3, 0.3) * width, rng.uniform(0.8, 1.2)
    chimney = half * 0.5
    parts: Shape = [
        (box(chimney - 0.3, wall, chimney + 0.3, wall + roof * 1.15), Role.SHADED),
        (box(-half, 0, half, wall), Role.MAIN),
        (
            np.array([[-half - eaves, wall], [half + eaves, wall], [ridge, wall + roof], [-ridge, wall + roof]]),
            Role.SECOND,
        ),
        (box(door - 0.5, 0, door + 0.5, min(2.1, wall * 0.8)), Role.DARK),
    ]
    for side in (-0.62, 0.62):
        if abs(side * half - door) > 0.5 + window / 2 + 0.1:
            x, y = side * half, wall * 0.5
            parts.append((box(x - window / 2, y - window / 2, x + window / 2, y + window / 2), Role.LIGHT))
    return parts


def _lamp(rng: np.random.Generator) -> Shape:
    height, arm, pole = rng.uniform(3.0, 5.0), rng.uniform(0.5, 1.2), rng.uniform(0.14, 0.24)
    parts: Shape = [
        (box(-pole * 1.4, 0, pole * 1.4, 0.3, pole * 0.5), Role.DARK),
        (stick(0, 0, 0, height, pole), Role.SECOND),
    ]
    kind = int(rng.integers(3))
    if kind == 0:  # a globe
        parts.append((disc(0, height + 0.25, rng.uniform(0.32, 0.5)), Role.LIGHT))
    elif kind == 1:  # an arm with a shade
        parts.append((stick(0, height - 0.05, arm, height + 0.15, pole * 0.8), Role.SECOND))
        parts.append((box(arm - 0.45, height - 0.25, arm + 0.45, height + 0.25, 0.25), Role.LIGHT))
    else:  # two arms with discs
        parts.append((stick(-arm, height, arm, height, pole * 0.8), Role.SECOND))
        parts.extend((disc(side * arm, height - 0.1, 0.32, corners=10), Role.LIGHT) for side in (-1, 1))
    return parts


def _boat(rng: np.random.Generator) -> Shape:
    length, depth = rng.uniform(2.6, 5.5), rng.uniform(0.5, 0.9)
    half = length / 2
    hull = np.array([[-half * 0.8, 0], [half * 0.7, 0], [half, depth * 1.15], [-half, depth]])
    parts: Shape = [(hull, Role.MAIN), (box(-half * 0.95, depth * 0.72, half * 0.92, depth * 0.95), Role.LIGHT)]
    if rng.random() < 0.65:
        mast = length * rng.uniform(0.7, 1.1)
        foot = rng.uniform(-0.1, 0.2) * half
        parts.append((stick(foot, depth, foot, depth + mast, 0.12), Role.DARK))
        parts.append(
            (
                triangle(foot - 0.1, depth + 0.25, foot - half * 0.85, depth + 0.25, foot - 0.1, depth + mast),
                Role.SECOND,
            )
        )
        if rng.random() < 0.7:
            parts.append(
                (
                    triangle(foot + 0.12, depth + 0.3, half * 0.85, depth + 0.3, foot + 0.12, depth + mast * 0.85),
                    Role.LIGHT,
                )
            )
    else:
        cabin = rng.uniform(0.6, 1.0)
        parts.append((box(-half * 0.5, depth, half * 0.25, depth + cabin, 0.12), Role.SECOND))
        parts.append((box(-half * 0.4, depth + 0.3 * cabin, half * 0.12, depth + 0.75 * cabin), Role.DARK))
        parts.append((box(-half * 0.3, depth + cabin, -half * 0.1, depth + cabin * 1.6), Role.SHADED))
    return parts


def _animal(rng: np.random.Generator) -> Shape:
    length, leg = rng.uniform(0.9, 1.7), rng.uniform(0.35, 0.7)
    half, girth = length / 2, length * rng.uniform(0.17, 0.26)
    back = leg + girth
    limb, head = max(0.09, 0.09 * length), length * rng.uniform(0.14, 0.2)
    neck = rng.uniform(0.0, 0.5)
    head_x, head_y = half + head * 0.7, back + girth * 0.5 + neck
    parts: Shape = [
        (
            stick(x * half, back, x * half + rng.uniform(-0.08, 0.08), 0, limb),
            Role.SHADED if x in (-0.6, 0.6) else Role.MAIN,
        )
        for x in (-0.6, 0.6, -0.78, 0.78)
    ]
    parts.append(
        (
            stick(-half * 0.9, back, -half - rng.uniform(0.1, 0.3), back + rng.uniform(-0.3, 0.4), limb * 0.7),
            Role.SECOND,
        )
    )
    parts.append((disc(0, back, half, girth), Role.MAIN))
    parts.append((stick(half * 0.7, back, head_x, head_y, head * 1.1), Role.MAIN))
    parts.append((disc(head_x + 0.06, head_y, head * 1.25, head * 0.8, 10), Role.SECOND))
    return parts


def _sign(rng: np.random.Generator) -> Shape:
    height, size = rng.uniform(1.6, 2.6), rng.uniform(0.45, 0.8)
    top = height + size
    parts: Shape = [(stick(0, 0, 0, top, 0.13), Role.SECOND)]
    kind = int(rng.integers(4))
    for scale, role in ((1.0, Role.MAIN), (0.7, Role.LIGHT)):
        radius = size * scale
        if kind == 0:
            plate = triangle(-radius * 1.1, top - radius * 0.7, radius * 1.1, top - radius * 0.7, 0, top + radius * 1.1)
        elif kind == 1:
            plate = disc(0, top, radius, corners=8)
        elif kind == 2:
            plate = box(-radius * 1.3, top - radius * 0.75, radius * 1.3, top + radius * 0.75)
        else:
            plate = np.array(
                [
                    [-radius * 1.2, top - radius * 0.6],
                    [radius * 0.7, top - radius * 0.6],
                    [radius * 1.4, top],
                    [radius * 0.7, top + radius * 0.6],
                    [-radius * 1.2, top + radius * 0.6],
                ]
            )
        parts.append((plate, role))
    if rng.random() < 0.6:
        parts.append((box(-size * 0.45, top - 0.12 * size, size * 0.45, top + 0.12 * size), Role.DARK))
    return parts


def _kite(rng: np.random.Generator) -> Shape:
    width, up, down = rng.uniform(0.5, 0.8), rng.uniform(0.5, 0.8), rng.uniform(0.8, 1.3)
    parts: Shape = [
        (stick(0, -down, rng.uniform(-0.2, 0.2), -down - 1.0, 0.09), Role.DARK),
        (triangle(-width, 0, 0, -down, 0, up), Role.MAIN),
        (triangle(width, 0, 0, -down, 0, up), Role.SECOND),
    ]
    for step in (0.35, 0.7):
        y = -down - step
        parts.append((triangle(-0.2, y + 0.1, -0.2, y - 0.1, 0, y), Role.LIGHT))
        parts.append((triangle(0.2, y + 0.1, 0.2, y - 0.1, 0, y), Role.LIGHT))
    return parts


SIDE_SHAPES: dict[str, Callable[[np.random.Generator], Shape]] = {
    "tree": _tree,
    "rock": _rock,
    "person": _person,
    "car": _car,
    "house": _house,
    "lamp": _lamp,
    "boat": _boat,
    "animal": _animal,
    "sign": _sign,
    "kite": _kite,
}
