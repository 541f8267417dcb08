"""The ten things as arrangements of polygons, seen from the side.

A shape is a list of parts, drawn in order; a part is a polygon in metres and the role of its colour. The parts are shared primitives
(discs, boxes, sticks, triangles), so that a class is an arrangement of parts and not a patch.
Local axes: x to the right, y up; standing things have their foot at (0, 0), kites their centre.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from hf_geossl.data.scenes.description import THING_CLASSES, Polygon


class Role(IntEnum):
    """Which of a thing's colours a part takes."""

    MAIN = 0
    SECOND = 1
    DARK = 2
    LIGHT = 3
    SHADED = 4  # the main colour in shade: the far side of a roof, a fold


MAIN, SECOND, DARK, LIGHT, SHADED = Role

Part = tuple[Polygon, Role]
Shape = list[Part]


def disc(x: float, y: float, radius_x: float, radius_y: float | None = None, corners: int = 14) -> Polygon:
    """An ellipse around (x, y); radii in metres; shape `(corners, 2)`."""
    angle = np.arange(corners) * (2 * np.pi / corners)
    radius_y = radius_x if radius_y is None else radius_y
    return np.stack([x + radius_x * np.cos(angle), y + radius_y * np.sin(angle)], axis=1)


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
    across = np.array([-(y2 - y1) / length * width / 2, (x2 - x1) / length * width / 2])
    return np.array([[x1, y1], [x2, y2], [x2, y2], [x1, y1]]) + np.outer((1, 1, -1, -1), across)


def triangle(*corners: float) -> Polygon:
    """A triangle from x1, y1, x2, y2, x3, y3; shape `(3, 2)`."""
    return np.array(corners).reshape(3, 2)


def _tree(rng: np.random.Generator) -> Shape:
    height = rng.uniform(3.0, 6.5)
    trunk, width = height * rng.uniform(0.22, 0.4), height * rng.uniform(0.2, 0.32)
    parts: Shape = [(box(-0.06 * height, 0, 0.06 * height, trunk + 0.15 * height, 0.02 * height), SECOND)]
    if rng.random() < 0.4:
        layers = int(rng.integers(2, 5))
        step = (height - trunk) / (layers + 0.6)
        for layer in range(layers):
            reach, base = width * (1 - 0.75 * layer / layers), trunk + layer * step
            parts.append((triangle(-reach, base, reach, base, 0, base + 1.6 * step), SHADED if layer % 2 else MAIN))
        return parts
    middle = (trunk + height) / 2
    crown = (height - trunk) / 2
    parts.append((blob(rng, 0, middle, width, crown, 0.14, 16), SHADED))
    for _ in range(int(rng.integers(1, 4))):
        x, y = rng.uniform(-0.4, 0.4) * width, middle + rng.uniform(-0.25, 0.4) * crown
        parts.append((blob(rng, x, y, width * 0.62, crown * 0.58, 0.14), MAIN))
    return parts


def _rock(rng: np.random.Generator) -> Shape:
    width, height = rng.uniform(0.6, 1.6), rng.uniform(0.5, 1.3)
    ring = blob(rng, 0, 0.35 * height, width, 0.75 * height, 0.2, 9)
    ring[:, 1] = np.maximum(ring[:, 1], 0.0)
    facet = np.stack([ring[1], ring[2], ring[3], [rng.uniform(-0.3, 0.2) * width, 0.4 * height]])
    return [(ring, MAIN), (facet, LIGHT if rng.random() < 0.3 else SHADED)]


def _person(rng: np.random.Generator) -> Shape:
    height = rng.uniform(1.5, 1.95)
    hip, shoulder, breadth = 0.46 * height, 0.8 * height, height * rng.uniform(0.12, 0.16)
    stride, swing = rng.uniform(0.02, 0.16) * height, rng.uniform(0.05, 0.3) * height
    raised = shoulder + 0.25 * height if rng.random() < 0.2 else hip + 0.03 * height
    limb = 0.075 * height
    return [
        (stick(-breadth / 2, hip, -breadth / 2 - stride, 0, limb), SECOND),
        (stick(breadth / 2, hip, breadth / 2 + stride, 0, limb), SECOND),
        (stick(-breadth, shoulder - 0.03, -breadth - swing, hip, limb * 0.8), MAIN),
        (stick(breadth, shoulder - 0.03, breadth + swing, raised, limb * 0.8), MAIN),
        (box(-breadth * 0.8, hip - 0.03, breadth * 0.8, shoulder, -breadth * 0.3), MAIN),
        (disc(0, 0.9 * height, 0.075 * height, 0.095 * height, 10), LIGHT),
    ]


def _car(rng: np.random.Generator) -> Shape:
    length, body, cabin = rng.uniform(3.2, 5.0), rng.uniform(0.75, 1.0), rng.uniform(0.55, 0.9)
    wheel, half = rng.uniform(0.3, 0.4), length / 2
    rear, front = -half * rng.uniform(0.6, 0.98), half * rng.uniform(0.3, 0.6)
    slope = rng.uniform(0.2, 0.5)
    base = wheel * 0.7
    return [
        (box(rear, body, front, body + cabin, slope), MAIN),
        (box(rear + 0.2, body, front - 0.2, body + cabin - 0.12, slope), DARK if rng.random() < 0.5 else LIGHT),
        (box(-half, base, half, body + 0.06, 0.1), MAIN),
        (box(-half, base, half, base + 0.2), SHADED),
        (disc(-half * 0.6, wheel, wheel), DARK),
        (disc(half * 0.6, wheel, wheel), DARK),
        (disc(half * 0.94, body * 0.75, 0.12, corners=8), LIGHT),
    ]


def _house(rng: np.random.Generator) -> Shape:
    width, wall, roof = rng.uniform(4.0, 7.5), rng.uniform(2.4, 4.2), rng.uniform(1.2, 2.6)
    half, eaves = width / 2, rng.uniform(0.2, 0.5)
    ridge = half * rng.choice([0.0, 0.45])
    door, window = rng.uniform(-0.3, 0.3) * width, rng.uniform(0.8, 1.2)
    chimney = half * 0.5
    slopes = np.array([[-half - eaves, wall], [half + eaves, wall], [ridge, wall + roof], [-ridge, wall + roof]])
    parts: Shape = [
        (box(chimney - 0.3, wall, chimney + 0.3, wall + roof * 1.15), SHADED),
        (box(-half, 0, half, wall), MAIN),
        (slopes, SECOND),
        (box(door - 0.5, 0, door + 0.5, min(2.1, wall * 0.8)), DARK),
    ]
    for side in (-0.62, 0.62):
        if abs(side * half - door) > 0.5 + window / 2 + 0.1:
            x, y = side * half, wall * 0.5
            parts.append((box(x - window / 2, y - window / 2, x + window / 2, y + window / 2), LIGHT))
    return parts


def _lamp(rng: np.random.Generator) -> Shape:
    height, arm, pole = rng.uniform(3.0, 5.0), rng.uniform(0.5, 1.2), rng.uniform(0.14, 0.24)
    parts: Shape = [
        (box(-pole * 1.4, 0, pole * 1.4, 0.3, pole * 0.5), DARK),
        (stick(0, 0, 0, height, pole), SECOND),
    ]
    kind = int(rng.integers(3))
    if kind == 0:  # a globe
        parts.append((disc(0, height + 0.25, rng.uniform(0.32, 0.5)), LIGHT))
    elif kind == 1:  # an arm with a shade
        parts.append((stick(0, height - 0.05, arm, height + 0.15, pole * 0.8), SECOND))
        parts.append((box(arm - 0.45, height - 0.25, arm + 0.45, height + 0.25, 0.25), LIGHT))
    else:  # two arms with discs
        parts.append((stick(-arm, height, arm, height, pole * 0.8), SECOND))
        parts.extend((disc(side * arm, height - 0.1, 0.32, corners=10), LIGHT) for side in (-1, 1))
    return parts


def _boat(rng: np.random.Generator) -> Shape:
    length, depth = rng.uniform(2.6, 5.5), rng.uniform(0.5, 0.9)
    half = length / 2
    hull = np.array([[-half * 0.8, 0], [half * 0.7, 0], [half, depth * 1.15], [-half, depth]])
    parts: Shape = [(hull, MAIN), (box(-half * 0.95, depth * 0.72, half * 0.92, depth * 0.95), LIGHT)]
    if rng.random() < 0.65:
        mast = length * rng.uniform(0.7, 1.1)
        foot = rng.uniform(-0.1, 0.2) * half
        parts.append((stick(foot, depth, foot, depth + mast, 0.12), DARK))
        sail, boom = foot - 0.1, depth + 0.25
        parts.append((triangle(sail, boom, foot - half * 0.85, boom, sail, depth + mast), SECOND))
        if rng.random() < 0.7:
            jib, tack = foot + 0.12, depth + 0.3
            parts.append((triangle(jib, tack, half * 0.85, tack, jib, depth + mast * 0.85), LIGHT))
    else:
        cabin = rng.uniform(0.6, 1.0)
        parts.append((box(-half * 0.5, depth, half * 0.25, depth + cabin, 0.12), SECOND))
        parts.append((box(-half * 0.4, depth + 0.3 * cabin, half * 0.12, depth + 0.75 * cabin), DARK))
        parts.append((box(-half * 0.3, depth + cabin, -half * 0.1, depth + cabin * 1.6), SHADED))
    return parts


def _animal(rng: np.random.Generator) -> Shape:
    length, leg = rng.uniform(0.9, 1.7), rng.uniform(0.35, 0.7)
    half, girth = length / 2, length * rng.uniform(0.17, 0.26)
    back = leg + girth
    limb, head = max(0.09, 0.09 * length), length * rng.uniform(0.14, 0.2)
    neck = rng.uniform(0.0, 0.5)
    head_x, head_y = half + head * 0.7, back + girth * 0.5 + neck
    parts: Shape = [
        (stick(x * half, back, x * half + rng.uniform(-0.08, 0.08), 0, limb), role)
        for x, role in ((-0.6, SHADED), (0.6, SHADED), (-0.78, MAIN), (0.78, MAIN))
    ]
    tail_x, tail_y = -half - rng.uniform(0.1, 0.3), back + rng.uniform(-0.3, 0.4)
    parts.append((stick(-half * 0.9, back, tail_x, tail_y, limb * 0.7), SECOND))
    parts.append((disc(0, back, half, girth), MAIN))
    parts.append((stick(half * 0.7, back, head_x, head_y, head * 1.1), MAIN))
    parts.append((disc(head_x + 0.06, head_y, head * 1.25, head * 0.8, 10), SECOND))
    return parts


def _sign(rng: np.random.Generator) -> Shape:
    height, size = rng.uniform(1.6, 2.6), rng.uniform(0.45, 0.8)
    top = height + size
    parts: Shape = [(stick(0, 0, 0, top, 0.13), SECOND)]
    kind = int(rng.integers(4))
    for scale, role in ((1.0, MAIN), (0.7, LIGHT)):
        radius = size * scale
        if kind == 0:
            plate = triangle(-radius * 1.1, top - radius * 0.7, radius * 1.1, top - radius * 0.7, 0, top + radius * 1.1)
        elif kind == 1:
            plate = disc(0, top, radius, corners=8)
        elif kind == 2:
            plate = box(-radius * 1.3, top - radius * 0.75, radius * 1.3, top + radius * 0.75)
        else:
            arrow = np.array([[-1.2, -0.6], [0.7, -0.6], [1.4, 0.0], [0.7, 0.6], [-1.2, 0.6]])
            plate = radius * arrow + (0.0, top)
        parts.append((plate, role))
    if rng.random() < 0.6:
        parts.append((box(-size * 0.45, top - 0.12 * size, size * 0.45, top + 0.12 * size), DARK))
    return parts


def _kite(rng: np.random.Generator) -> Shape:
    width, up, down = rng.uniform(0.5, 0.8), rng.uniform(0.5, 0.8), rng.uniform(0.8, 1.3)
    parts: Shape = [
        (stick(0, -down, rng.uniform(-0.2, 0.2), -down - 1.0, 0.09), DARK),
        (triangle(-width, 0, 0, -down, 0, up), MAIN),
        (triangle(width, 0, 0, -down, 0, up), SECOND),
    ]
    for step in (0.35, 0.7):
        y = -down - step
        parts += [(triangle(x, y + 0.1, x, y - 0.1, 0, y), LIGHT) for x in (-0.2, 0.2)]
    return parts


SIDE_SHAPES = dict(
    zip(THING_CLASSES, (_tree, _rock, _person, _car, _house, _lamp, _boat, _animal, _sign, _kite), strict=True)
)
