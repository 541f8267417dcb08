"""The camera, and the painting of a scene into one buffer of material numbers, far to near.

Painting entire polygons in the order of their depth makes occlusion, masks and boxes exact. What a material looks like is looked up later,
for all pixels at once (`render`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from hf_geossl.data.scenes.description import (
    CAMERA_HEIGHT,
    NEAREST,
    STUFF_CLASSES,
    Color,
    Numbers,
    Scene,
    Surface,
    Thing,
)

# Material numbers: 0 is the sky or backdrop, 1 the ground, 2, 3, ... the regions on it.
FIRST_GROUND = 1

_SKY_SHADE = 0.25  # the zenith is darker than the horizon by this share
_RING = np.stack([np.cos(np.arange(14) * (2 * np.pi / 14)), np.sin(np.arange(14) * (2 * np.pi / 14))], axis=1)


class Placed(NamedTuple):
    """A thing at one time: world x and y, angle, depth, and the distance by which the world is divided to give the image."""

    thing: Thing
    x: float
    y: float
    angle: float
    depth: float
    distance: float


@dataclass(slots=True)
class Materials:
    """The table of looks that the pixels index: one row for each differently coloured part.

    A row has 14 numbers: column, row of the texel as affine maps of the plane (a p + b q + c: 0-2 and 3-5), contrast (6),
    brightness as an affine map of the image (7-9), RGB (10-12), texels per unit of the image or the ground (13).
    """

    rows: list[tuple[float, ...]]
    tiles: list[int]  # row of the texture bank
    classes: list[int]  # index into `SEMANTIC_CLASSES`
    instances: list[int]  # id of the thing, 0 for stuff
    depths: list[float]  # metres; ignored where the ground is seen in perspective

    def add(self, row: tuple[float, ...], tile: int, semantic: int, instance: int, depth: float) -> int:
        """Appends a material; returns its number."""
        self.rows.append(row)
        self.tiles.append(tile)
        self.classes.append(semantic)
        self.instances.append(instance)
        self.depths.append(depth)
        return len(self.tiles) - 1


class View:
    """The camera at one time: projection of the world into the unit image."""

    def __init__(self, scene: Scene, size: int, t: float) -> None:
        self.scene, self.size, self.t = scene, size, t
        self.plan = scene.mode == "topdown"
        self.center_x = 0.5 + scene.pan[0] * t
        self.center_y = scene.horizon + scene.pan[1] * t
        self.camera_height = CAMERA_HEIGHT if scene.mode == "scene" else 0.0
        # The ground begins at the first row of pixels whose center lies below the horizon.
        self.first_ground_row = size
        if scene.ground is not None:
            self.first_ground_row = 0 if self.plan else min(size, max(0, math.floor(self.center_y * size - 0.5) + 1))
        self.last_ground = FIRST_GROUND + len(scene.regions)
        # Things in the order they are painted, with their place, angle and distance now.
        self.things = sorted(
            (placed for placed in map(self._place, scene.things) if placed.depth > NEAREST),
            key=lambda placed: (-placed.depth, placed.thing.id),
        )

    def _place(self, thing: Thing) -> Placed:
        first, second, spin = (rate * self.t for rate in thing.velocity)
        angle = thing.angle + spin
        if self.plan:
            altitude = self.scene.altitude
            return Placed(thing, thing.x + first, thing.y + second, angle, altitude - thing.z, altitude)
        depth = thing.z + second
        return Placed(thing, thing.x + first, thing.y, angle, depth, depth)

    def project(self, x: Numbers, y: Numbers, distance: float) -> tuple[Numbers, Numbers]:
        """Projects world x, y at a distance to image coordinates (units of the image width)."""
        return self.center_x + x / distance, self.center_y + (self.camera_height - y) / distance

    def flat(self, px: npt.NDArray[np.float64], py: npt.NDArray[np.float64]) -> list[float]:
        """Returns the corners as Pillow takes them, whose coordinates count from the center of the first pixel."""
        corners = np.empty((len(px), 2))
        corners[:, 0], corners[:, 1] = px, py
        return (corners * self.size - 0.5).ravel().tolist()


def _surface_row(surface: Surface, color: Color, shade: tuple[float, float] = (0.0, 1.0)) -> tuple[float, ...]:
    """Table row of a surface; `shade` is the slope down the image and the start of its brightness."""
    a, b = surface.scale * math.cos(surface.turn), surface.scale * math.sin(surface.turn)
    texels = (a, b, surface.offset[0], -b, a, surface.offset[1])
    return (*texels, surface.contrast, 0.0, *shade, *color, surface.scale)


def paint_scene(view: View, materials: Materials) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8] | None]:
    """Fills the buffer of material numbers, far to near; also the mask of the shadows on the ground."""
    scene, size = view.scene, view.size
    far = scene.far
    zenith = (_SKY_SHADE / view.center_y, 1 - _SKY_SHADE) if scene.mode == "scene" else (0.0, 1.0)
    materials.add(_surface_row(far, far.color, zenith), far.tile, far.stuff, 0, scene.far_depth)
    canvas = Image.new("I", (size, size), 0)
    draw = ImageDraw.Draw(canvas)
    if scene.ground is not None:
        for surface in (scene.ground, *(region.surface for region in scene.regions)):
            materials.add(_surface_row(surface, surface.color), surface.tile, surface.stuff, 0, scene.altitude)
        if view.first_ground_row < size:
            draw.rectangle((0, view.first_ground_row, size, size), fill=FIRST_GROUND)
    layers: list[tuple[float, int, Any]] = [(backdrop.depth, -1, backdrop) for backdrop in scene.backdrops]
    layers += [(placed.depth, placed.thing.id, placed) for placed in view.things]
    for _, number, layer in sorted(layers, key=lambda item: (-item[0], item[1])):
        if number >= 0:
            _paint_thing(view, draw, materials, layer)
            continue
        for polygon, color in zip(layer.polygons, layer.colors, strict=True):
            material = materials.add(
                _surface_row(layer.surface, color), layer.surface.tile, layer.surface.stuff, 0, layer.depth
            )
            draw.polygon(view.flat(*view.project(polygon[:, 0], polygon[:, 1], layer.depth)), fill=material)
    shadows = None
    if scene.ground is not None and view.things:
        shadow_canvas = Image.new("L", (size, size), 0)
        shadow_draw = ImageDraw.Draw(shadow_canvas)
        for placed in view.things:
            _paint_shadow(view, shadow_draw, placed)
        shadows = np.asarray(shadow_canvas)
    return np.array(canvas, dtype=np.int32), shadows


def _paint_thing(view: View, draw: ImageDraw.ImageDraw, materials: Materials, placed: Placed) -> None:
    thing, x, y, angle, depth, distance = placed
    cosine, sine = math.cos(angle), math.sin(angle)
    sign = -1.0 if thing.mirror else 1.0
    left, bottom, right, top = thing.extent
    # From the image back to local metres: local = turn^T (world - place), world = affine (image).
    shift_x, shift_y = view.center_x * distance + x, view.camera_height - y + view.center_y * distance
    along = (cosine * distance, -sine * distance, -cosine * shift_x + sine * shift_y)
    above = (-sine * distance, -cosine * distance, sine * shift_x + cosine * shift_y)
    u = tuple(thing.scale * (sign * value) for value in along)
    v = tuple(thing.scale * value for value in above)
    # Side shading: brightness falls linearly from the lit to the far side.
    light = view.scene.light
    reach = max(right - left, top - bottom) / distance
    slope_x, slope_y = (part * light.shading / reach for part in light.direction)
    center_x, center_y = center_of(view, placed)
    shade = (slope_x, slope_y, 1 - light.shading / 2 - slope_x * center_x - slope_y * center_y)
    row = (u[0], u[1], u[2] + thing.offset[0], v[0], v[1], v[2] + thing.offset[1], thing.contrast, *shade)
    semantic = len(STUFF_CLASSES) + thing.category
    for polygon, color in zip(thing.polygons, thing.colors, strict=True):
        material = materials.add((*row, *color, thing.scale * distance), thing.tile, semantic, thing.id, depth)
        world = thing.to_world(polygon[:, 0], polygon[:, 1], x, y, angle)
        draw.polygon(view.flat(*view.project(*world, distance)), fill=material)


def center_of(view: View, placed: Placed) -> tuple[float, float]:
    """Returns the image coordinates of the center of the thing's extent."""
    thing, x, y, angle, _, distance = placed
    left, bottom, right, top = thing.extent
    return view.project(*thing.to_world((left + right) / 2, (bottom + top) / 2, x, y, angle), distance)


def _paint_shadow(view: View, draw: ImageDraw.ImageDraw, placed: Placed) -> None:
    """An ellipse at the foot, away from the light; from above: the outline, moved away from the light by the height."""
    thing, x, y, angle, depth, distance = placed
    light_x, light_y = view.scene.light.direction
    if view.plan:
        reach = 0.35 * thing.z
        for polygon in thing.polygons:
            world_x, world_y = thing.to_world(polygon[:, 0], polygon[:, 1], x, y, angle)
            shadow = view.project(world_x - reach * light_x, world_y + reach * light_y, distance)
            draw.polygon(view.flat(*shadow), fill=1)
    elif y == 0.0:
        half = (thing.extent[2] - thing.extent[0]) / 2
        ring_x = x - 0.5 * half * light_x + 1.15 * half * _RING[:, 0]
        ring_z = np.maximum(depth + min(0.5 * half, 0.7) * _RING[:, 1], NEAREST)
        px, py = view.center_x + ring_x / ring_z, view.center_y + view.camera_height / ring_z
        draw.polygon(view.flat(px, py), fill=1)
