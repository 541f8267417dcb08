"""What a scene is: its classes and its description, free of pixels. The same description renders at any size and time.

Coordinates. Image plane: x to the right and y down in units of the image width (the image is the square [0, 1] x [0, 1]).
World of the side views: X right, Y up from the ground, Z away from the camera, metres; the focal length is one image width.
World of the plan views: X right, Y up in the image, metres; the view is `altitude` metres wide.
Angles are radians, counter-clockwise as seen in the image, 0 = the thing's own y axis points up in the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

SCENES_VERSION = "1.0.0"

SCENE_CLASSES = ("meadow", "beach", "street", "forest", "harbour", "village", "park", "desert")
STUFF_CLASSES = ("sky", "grass", "sand", "water", "paving", "wall", "foliage")
THING_CLASSES = ("tree", "rock", "person", "car", "house", "lamp", "boat", "animal", "sign", "kite")
SEMANTIC_CLASSES = STUFF_CLASSES + THING_CLASSES

# The positions are the integers that seed the generator: append, never reorder.
SPLITS = ("train", "validation", "test")
MODES = ("scene", "topdown", "object")

FARTHEST = 80.0
CAMERA_HEIGHT = 1.7
NEAREST = 0.8  # metres; what comes nearer is behind the camera's near plane and is not drawn

Color = tuple[float, float, float]
Polygon = npt.NDArray[np.float64]  # corners, of shape (corners, 2)
Numbers = TypeVar("Numbers", float, npt.NDArray[np.float64])
Coordinates = float | npt.NDArray[np.float32] | npt.NDArray[np.float64]
Inside = bool | npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Surface:
    """The appearance of a region."""

    stuff: int  # index into `STUFF_CLASSES`
    color: Color  # RGB in [0, 1]
    tile: int  # row of the texture bank
    scale: float  # texels per unit of the plane it lies on (metres on the ground, image widths elsewhere)
    turn: float  # rotation of the texture, radians
    contrast: float  # strength of the texture, 0.12 to 0.4
    offset: tuple[float, float]  # texels by which the texture is moved


@dataclass(frozen=True, slots=True)
class Band:
    """A winding strip of the ground (road, river), or all that lies beyond a shore line when `half_width` is infinite."""

    surface: Surface
    normal: tuple[float, float]  # unit vector across the strip in ground coordinates
    offset: float  # distance of the center line (of the shore) from the origin, along `normal`, metres
    half_width: float  # metres; `math.inf` for everything beyond the line
    swing: float  # amplitude of the winding, metres
    period: float  # length of one winding, metres
    phase: float  # 0 to 1

    def contains(self, p: Coordinates, q: Coordinates) -> Inside:
        """Whether ground points lie in the strip; numbers or arrays of one shape."""
        across = self.normal[0] * p + self.normal[1] * q - self.offset
        along = (self.normal[0] * q - self.normal[1] * p) * (1 / self.period) + self.phase
        # A smooth periodic curve of products alone: unlike a sine it has the same bits on every processor.
        triangle = 4 * abs(along - np.floor(along) - 0.5) - 1
        across = across - self.swing * triangle * (1.5 - 0.5 * triangle * triangle)
        if math.isinf(self.half_width):
            return across > 0
        return abs(across) < self.half_width


@dataclass(frozen=True, slots=True)
class Patch:
    """A pond (ellipse) or a field (rectangle) on the ground."""

    surface: Surface
    center: tuple[float, float]  # ground coordinates, metres
    radii: tuple[float, float]  # half sides along its own axes, metres
    turn: float  # rotation of its axes, radians
    rectangular: bool  # a rectangle instead of an ellipse

    def contains(self, p: Coordinates, q: Coordinates) -> Inside:
        """Whether ground points lie in the patch; numbers or arrays of one shape."""
        cosine, sine = math.cos(self.turn), math.sin(self.turn)
        p, q = p - self.center[0], q - self.center[1]
        a: Any = (cosine * p + sine * q) * (1 / self.radii[0])
        b: Any = (cosine * q - sine * p) * (1 / self.radii[1])
        if self.rectangular:
            return np.maximum(abs(a), abs(b)) < 1
        return a * a + b * b < 1


Region = Band | Patch


@dataclass(frozen=True, slots=True, eq=False)
class Backdrop:
    """A silhouette across the far end: hills, a row of houses, leaves."""

    depth: float  # its distance, metres
    surface: Surface  # its class and texture, over the image plane
    polygons: tuple[Polygon, ...]  # X and Y in metres at that distance, drawn in order
    colors: tuple[Color, ...]  # one for each polygon


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Thing:
    """One instance, at time 0, and how it moves."""

    id: int = 0  # 1 to 255, the value in the instance map, the same at all times
    category: int  # index into `THING_CLASSES`
    x: float = 0.0  # x, y, z: its local origin in the world, metres (plan views: z is the height of its top)
    y: float = 0.0
    z: float = 0.0
    angle: float = 0.0  # radians, counter-clockwise from upright (plan views: from up in the image)
    mirror: bool  # whether its local x axis is mirrored, before it is turned
    velocity: tuple[float, float, float] = (0.0, 0.0, 0.0)  # metres/s along X, Z (plan views: X, Y), radians/s
    polygons: tuple[Polygon, ...]  # its parts in local metres, drawn in order
    colors: tuple[Color, ...]  # one for each part
    extent: tuple[float, float, float, float]  # left, bottom, right, top of its parts, local metres
    tile: int  # tile, scale, contrast, offset: its texture, as in `Surface`, over its local axes
    scale: float
    contrast: float
    offset: tuple[float, float]

    def to_world(self, local_x: Numbers, local_y: Numbers, x: float, y: float, angle: float) -> tuple[Numbers, Numbers]:
        """World coordinates of local ones, with the thing's origin at (x, y) and turned by an angle."""
        cosine, sine = math.cos(angle), math.sin(angle)
        local_x = (-1.0 if self.mirror else 1.0) * local_x
        return x + cosine * local_x - sine * local_y, y + sine * local_x + cosine * local_y


@dataclass(frozen=True, slots=True)
class Light:
    """Light, air and sensor."""

    gain: Color  # factor for each channel, 0.7 to 1.15 with a tint of 6 %
    direction: tuple[float, float]  # unit vector towards the light in the image plane (x right, y down)
    shading: float  # how much darker the far side of a thing is, 0 to 1
    shadow: float  # factor of the ground in shadow
    fog: float  # extinction for each metre; 0 in half of the scenes
    fog_color: Color  # RGB in [0, 1]
    blur: float  # standard deviation in pixels, 0.3 to 0.8
    noise: float  # standard deviation on the scale of [0, 1], 0 to 0.035
    noise_seed: int  # seed of the noise


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Scene:
    """A scene; `render` draws it."""

    mode: str  # one of `MODES`
    split: str  # one of `SPLITS`
    index: int  # number in the split
    seed: int  # seed of the distribution
    label: int  # index into `SCENE_CLASSES`; with `mode="object"` the thing's index into `THING_CLASSES`
    horizon: float = 0.5  # image height of the horizon in image widths (0.5 where there is none)
    altitude: float = 0.0  # plan views: width of the view and distance to the ground, metres; else 0
    far: Surface  # the sky; the plain backdrop with `mode="object"`
    far_depth: float  # its depth, metres
    ground: Surface | None = None  # the ground; none with `mode="object"`
    regions: tuple[Region, ...] = ()  # what lies on the ground, later ones on top
    backdrops: tuple[Backdrop, ...] = ()  # silhouettes
    things: tuple[Thing, ...]  # ordered by id
    light: Light  # light, air and sensor
    pan: tuple[float, float] = (0.0, 0.0)  # image widths/s that the world moves in the image, right and down
