"""Draws a scene's description: image and exact truth, at any size and time.

Everything is painted far to near into one buffer of material numbers (Pillow fills the polygons), so that occlusion, masks and boxes are
exact. Colour is then computed for all pixels at once: each material has an affine map from the plane to the texels of its tile, and the plane
is the image, or, on the ground, the world behind the pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_geossl.data.scenes.arguments import check_size
from hf_geossl.data.scenes.description import CAMERA_HEIGHT, FARTHEST, THING_CLASSES, Light, Scene
from hf_geossl.data.scenes.painting import FIRST_GROUND, Materials, View, center_of, paint_scene
from hf_geossl.data.scenes.textures import LEVEL_OFFSETS, MIP_LEVELS, TILE_SIZE, TILE_STRIDE, texture_bank

Float = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]
Plane = tuple[Float, Float]  # coordinates p, q of each pixel, flat: the image's own, or the world's on the ground
_LEVEL_OFFSETS = LEVEL_OFFSETS[:MIP_LEVELS].astype(np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class RenderedScene:
    """A picture of a scene with its truth.

    Attributes:
        image (`numpy.ndarray` of shape `(size, size, 3)`, uint8): RGB.
        semantic (`numpy.ndarray` of shape `(size, size)`, uint8): index into `SEMANTIC_CLASSES`.
        instance (`numpy.ndarray` of shape `(size, size)`, uint8): id of the thing, 0 where there is none.
        depth (`numpy.ndarray` of shape `(size, size)`, float32): metres along the viewing axis, at most 80.
        label (`int`): scene class (`SCENE_CLASSES`), or the thing's class (`THING_CLASSES`) with `mode="object"`.
        multi_label (`numpy.ndarray` of shape `(10,)`, uint8): 1 for each of `THING_CLASSES` of which a pixel is visible.
        objects (`list[dict]`): the visible things, by id: "id", "category" (index into `THING_CLASSES`), "bbox" (x1, y1, x2, y2 in
            pixels, the last two exclusive) and "area" (pixels) of the visible part, "angle" (radians in [-pi, pi), counter-clockwise from
            upright or, from above, from up in the image), "mirror", "center" (x, y in pixels of the center of the entire thing, hidden or
            cut off parts included), "depth" (metres).
    """

    image: npt.NDArray[np.uint8]
    semantic: npt.NDArray[np.uint8]
    instance: npt.NDArray[np.uint8]
    depth: Float
    label: int
    multi_label: npt.NDArray[np.uint8]
    objects: list[dict[str, Any]]


def render(scene: Scene, size: int = 96, t: float = 0.0) -> RenderedScene:
    """Draws a scene.

    Args:
        scene (`Scene`): the description from `sample_scene`.
        size (`int`, *optional*, defaults to 96): side of the square image in pixels, 8 to 4096.
        t (`float`, *optional*, defaults to 0.0): seconds; things and camera move, ids stay.

    Returns:
        `RenderedScene`: image and truth; bit-equal for equal arguments.

    Raises:
        ValueError: if `size` is out of range or `t` not finite.
    """
    size = check_size(size)
    if not math.isfinite(t):
        raise ValueError(f"t must be a finite number of seconds, got {t}")
    view = View(scene, size, t)
    materials = Materials([], [], [], [], [])
    paint, shadows = paint_scene(view, materials)
    plane, row_depths = _lay_ground(view, paint)
    flat = paint.ravel()
    on_ground = (flat >= FIRST_GROUND) & (flat <= view.last_ground)

    depths = np.array(materials.depths, np.float32)
    depth, clear = np.take(depths, flat), np.take(_transmittance(scene.light, depths), flat)
    if scene.mode == "scene":
        start = view.first_ground_row * size
        row_of_pixel = on_ground[start:].reshape(-1, size)
        np.copyto(depth[start:].reshape(-1, size), row_depths[:, None], where=row_of_pixel)
        np.copyto(clear[start:].reshape(-1, size), _transmittance(scene.light, row_depths)[:, None], where=row_of_pixel)

    color = _shade(view, materials, flat, on_ground, plane, depth)
    if shadows is not None:
        color *= np.where(shadows.ravel().astype(bool) & on_ground, np.float32(scene.light.shadow), np.float32(1))
    image = _develop(scene.light, color, clear, size, t)
    semantic = np.take(np.array(materials.classes, np.uint8), flat).reshape(size, size)
    instance = np.take(np.array(materials.instances, np.uint8), flat).reshape(size, size)
    objects = _measure(view, instance)
    multi_label = np.zeros(len(THING_CLASSES), np.uint8)
    multi_label[[item["category"] for item in objects]] = 1
    return RenderedScene(image, semantic, instance, depth.reshape(size, size), scene.label, multi_label, objects)


def _line(size: int) -> Float:
    """Centers of the pixels along one side, in image widths."""
    return ((np.arange(size) + 0.5) / size).astype(np.float32)


def _transmittance(light: Light, depths: Float) -> Float:
    """Share of the light that comes through the air.

    Taken in double precision of a few numbers, so that the single-precision value has the same bits on every processor.
    """
    return np.exp(-light.fog * depths.astype(np.float64)).astype(np.float32)


def _lay_ground(view: View, paint: Integers) -> tuple[Plane, Float]:
    """Lays the regions over the ground in `paint`; returns the pixels' plane coordinates and the depth of each ground row."""
    scene, size, first = view.scene, view.size, view.first_ground_row
    line = _line(size)
    p, q = np.empty((size, size), np.float32), np.empty((size, size), np.float32)
    p[:], q[:] = line[None, :], line[:, None]
    # The width of the world that the image shows at each row.
    if view.plan:
        rows = np.full(size, scene.altitude, np.float32)
        down = ((view.center_y - line.astype(np.float64)) * scene.altitude).astype(np.float32)
    else:
        below = line[first:].astype(np.float64) - view.center_y
        rows = np.minimum(CAMERA_HEIGHT / np.maximum(below, 1e-9), FARTHEST).astype(np.float32)
        down = rows
    if not len(rows):
        return (p.ravel(), q.ravel()), rows
    ground_p = (line[None, :] - np.float32(view.center_x)) * rows[:, None]
    ground_q = np.broadcast_to(down[:, None], ground_p.shape)
    painted = paint[first:]
    is_ground = painted == FIRST_GROUND
    for number, region in enumerate(scene.regions, FIRST_GROUND + 1):
        np.copyto(painted, number, where=is_ground & region.contains(ground_p, ground_q))
    np.copyto(p[first:], ground_p, where=is_ground)
    np.copyto(q[first:], ground_q, where=is_ground)
    return (p.ravel(), q.ravel()), rows


def _shade(
    view: View, materials: Materials, flat: Integers, on_ground: npt.NDArray[np.bool_], plane: Plane, depth: Float
) -> Float:
    """Colour of each pixel before the air, shape `(3, pixels)`: material colour x texture x side shading."""
    p, q = plane
    size = view.size
    table = np.array(materials.rows, np.float64).astype(np.float32).T.copy()

    def each(column: int) -> Float:
        return np.take(table[column], flat)

    u = each(0) * p + each(1) * q + each(2)
    v = each(3) * p + each(4) * q + each(5)
    # Texels a pixel spans: the mip level is the next power of two; `frexp` is exact.
    span = table[13] * np.float32(1 / size)
    if view.plan:
        span[FIRST_GROUND : view.last_ground + 1] *= np.float32(view.scene.altitude)
    level = np.take(_mip_level(span), flat)
    if view.scene.mode == "scene":
        # On the ground a pixel spans depth metres across and depth^2 / camera height away from the camera: the geometric mean.
        ground_span = np.take(span, flat) * depth * np.sqrt(np.maximum(depth * np.float32(1 / CAMERA_HEIGHT), 1))
        np.copyto(level, _mip_level(ground_span), where=on_ground)
    side = np.right_shift(np.int32(TILE_SIZE), level)
    column = np.right_shift(np.floor(u).astype(np.int32) & (TILE_SIZE - 1), level)
    row = np.right_shift(np.floor(v).astype(np.int32) & (TILE_SIZE - 1), level)
    start = np.take(np.array(materials.tiles, np.int32) * np.int32(TILE_STRIDE), flat)
    grey = np.take(texture_bank().ravel(), start + np.take(_LEVEL_OFFSETS, level) + row * side + column)
    brightness = 1 + each(6) * (grey.astype(np.float32) * np.float32(1 / 127.5) - 1)
    shading = each(7) * np.tile(_line(size), size) + each(8) * np.repeat(_line(size), size) + each(9)
    brightness *= np.clip(shading, np.float32(0.4), np.float32(1.25))
    return np.stack([each(10 + channel) * brightness for channel in range(3)])


def _mip_level(span: Float) -> Integers:
    return np.clip(np.frexp(span)[1], 0, MIP_LEVELS - 1).astype(np.int32)


def _develop(light: Light, color: Float, clear: Float, size: int, t: float) -> npt.NDArray[np.uint8]:
    """Air, gain, blur and noise; `(3, pixels)` -> `(size, size, 3)` uint8."""
    if light.fog:
        fog = np.array(light.fog_color, np.float32)[:, None]
        color = fog + (color - fog) * clear
    color *= np.array(light.gain, np.float32)[:, None]
    planes = _blur(color.reshape(3, size, size), light.blur)
    if light.noise:
        # A clip has fresh noise in each frame: the time, in microseconds, is part of the seed.
        moment = round(t * 1e6) % 2**63
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([light.noise_seed, moment])))
        planes += np.float32(light.noise) * rng.standard_normal(planes.shape, dtype=np.float32)
    pixels = np.clip(planes * np.float32(255) + np.float32(0.5), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def _blur(planes: Float, sigma: float) -> Float:
    """Gaussian of 5 taps along both axes, edges repeated; `(3, size, size)`."""
    near, far = math.exp(-0.5 / sigma**2), math.exp(-2.0 / sigma**2)
    total = 1 + 2 * near + 2 * far
    taps = np.float32(1 / total), np.float32(near / total), np.float32(far / total)
    size = planes.shape[1]
    padded = np.pad(planes, ((0, 0), (2, 2), (0, 0)), mode="edge")
    rows = taps[0] * padded[:, 2 : size + 2]
    rows += taps[1] * (padded[:, 1 : size + 1] + padded[:, 3 : size + 3])
    rows += taps[2] * (padded[:, :size] + padded[:, 4:])
    padded = np.pad(rows, ((0, 0), (0, 0), (2, 2)), mode="edge")
    result = taps[0] * padded[..., 2 : size + 2]
    result += taps[1] * (padded[..., 1 : size + 1] + padded[..., 3 : size + 3])
    result += taps[2] * (padded[..., :size] + padded[..., 4:])
    return result


def _measure(view: View, instance: npt.NDArray[np.uint8]) -> list[dict[str, Any]]:
    """The visible things, from the instance map."""
    size = view.size
    areas = np.bincount(instance.ravel(), minlength=256)
    in_row, in_column = np.zeros((256, size), bool), np.zeros((256, size), bool)
    rows, columns = np.nonzero(instance)
    ids = instance[rows, columns]
    in_row[ids, rows] = True
    in_column[ids, columns] = True
    objects = []
    for placed in sorted(view.things, key=lambda item: item[0].id):
        thing, _, _, angle, depth, _ = placed
        if not areas[thing.id]:
            continue
        across, down = in_column[thing.id], in_row[thing.id]
        x, y = center_of(view, placed)
        x1, y1 = int(across.argmax()), int(down.argmax())
        x2, y2 = size - int(across[::-1].argmax()), size - int(down[::-1].argmax())
        objects.append(
            {
                "id": thing.id,
                "category": thing.category,
                "bbox": (x1, y1, x2, y2),
                "area": int(areas[thing.id]),
                "angle": (angle + math.pi) % (2 * math.pi) - math.pi,
                "mirror": thing.mirror,
                "center": (x * size, y * size),
                "depth": float(np.float32(depth)),
            }
        )
    return objects
