"""Colour, texture and light of the scenes: weak cues by design.

The hue of a class is taken with probability 0.6 to 0.65 and any hue otherwise; textures and light do not depend on the scene class.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from hf_geossl.data.scenes.description import STUFF_CLASSES, Color, Light, Surface
from hf_geossl.data.scenes.shapes import Role
from hf_geossl.data.scenes.textures import TILES_PER_FAMILY, tile_index

_HUE_CERTAINTY = 0.6

# Hue, saturation range, value range of each class when it wears its own colour; and its texture families.
_STUFF: dict[str, tuple[tuple[float, float, float, float, float], tuple[str, ...]]] = {
    "sky": ((0.57, 0.15, 0.5, 0.7, 1.0), ("cloud", "plain")),
    "grass": ((0.27, 0.3, 0.6, 0.4, 0.75), ("blade", "grain", "cloud", "leaf")),
    "sand": ((0.11, 0.2, 0.5, 0.6, 0.95), ("grain", "cloud", "wave", "plain")),
    "water": ((0.54, 0.3, 0.65, 0.4, 0.8), ("wave", "cloud", "plain", "stripe")),
    "paving": ((0.62, 0.02, 0.14, 0.35, 0.75), ("tile", "brick", "grain", "plain", "cloud")),
    "wall": ((0.05, 0.15, 0.5, 0.5, 0.9), ("brick", "plain", "stripe", "tile")),
    "foliage": ((0.34, 0.3, 0.65, 0.25, 0.6), ("leaf", "cloud", "blade", "grain")),
}
# Hues of the main and of the second colour; texture families.
_THINGS: dict[str, tuple[tuple[float, float], tuple[str, ...]]] = {
    "tree": ((0.3, 0.07), ("leaf", "cloud", "grain", "blade")),
    "rock": ((0.09, 0.1), ("cloud", "grain", "plain")),
    "person": ((0.98, 0.63), ("plain", "stripe", "tile", "cloud")),
    "car": ((0.0, 0.6), ("plain", "cloud", "stripe")),
    "house": ((0.12, 0.02), ("brick", "plain", "stripe", "tile")),
    "lamp": ((0.6, 0.58), ("plain", "grain", "stripe")),
    "boat": ((0.6, 0.12), ("plain", "stripe", "brick", "cloud")),
    "animal": ((0.07, 0.06), ("plain", "cloud", "grain", "stripe")),
    "sign": ((0.14, 0.6), ("plain", "stripe", "tile")),
    "kite": ((0.93, 0.15), ("plain", "stripe", "tile", "cloud")),
}


def hsv(hue: float, saturation: float, value: float) -> Color:
    """RGB in [0, 1] of a hue (any real, 1 = a full turn), saturation and value in [0, 1]."""

    def channel(shift: float) -> float:
        k = (shift + hue * 6) % 6
        return value - value * saturation * max(0.0, min(k, 4 - k, 1.0))

    return channel(5), channel(3), channel(1)


def scaled(color: Color, factor: float) -> Color:
    """The colour, darker or lighter by a factor, within [0, 1]."""
    return min(color[0] * factor, 1.0), min(color[1] * factor, 1.0), min(color[2] * factor, 1.0)


def sample_tile(rng: np.random.Generator, families: tuple[str, ...]) -> int:
    """A tile of one of the families; in one case of six of any family."""
    if rng.random() < 1 / 6:
        return int(rng.integers(9 * TILES_PER_FAMILY))
    return tile_index(families[int(rng.integers(len(families)))], int(rng.integers(TILES_PER_FAMILY)))


def sample_surface(rng: np.random.Generator, stuff: str, scale: float, turn: float) -> Surface:
    """The appearance of a stuff class; `scale`, in texels per unit of its plane, is varied by a factor of 0.7 to 1.4."""
    (hue, low_s, high_s, low_v, high_v), families = _STUFF[stuff]
    draws = rng.random(8)
    if draws[0] < _HUE_CERTAINTY:
        saturation, value = low_s + (high_s - low_s) * draws[2], low_v + (high_v - low_v) * draws[3]
        color = hsv(hue + 0.1 * (draws[1] - 0.5), saturation, value)
    else:
        color = hsv(draws[1], 0.05 + 0.5 * draws[2], 0.35 + 0.6 * draws[3])
    return Surface(
        stuff=STUFF_CLASSES.index(stuff),
        color=color,
        tile=sample_tile(rng, families),
        scale=scale * 2 ** float(draws[4] - 0.5),
        turn=turn,
        contrast=0.12 + 0.28 * float(draws[5]),
        offset=(float(draws[6]) * 256, float(draws[7]) * 256),
    )


def sample_thing_palette(rng: np.random.Generator, thing: str) -> dict[Role, Color]:
    """Colours of a thing's parts, by role."""
    draws = rng.random(9)
    certain = draws[0] < _HUE_CERTAINTY
    main_hue, second_hue = _THINGS[thing][0]
    grey = 0.3 if thing in ("rock", "lamp") else 1.0

    def tone(position: int, hue: float) -> Color:
        saturation, value = draws[position + 1], draws[position + 2]
        if certain:
            return hsv(hue + 0.08 * (draws[position] - 0.5), grey * (0.4 + 0.5 * saturation), 0.4 + 0.5 * value)
        return hsv(draws[position], 0.1 + 0.75 * saturation, 0.3 + 0.65 * value)

    main = tone(1, main_hue)
    return {
        Role.MAIN: main,
        Role.SECOND: tone(4, second_hue),
        Role.DARK: hsv(0.6, 0.2, 0.1 + 0.15 * float(draws[7])),
        Role.LIGHT: hsv(float(draws[7]) * 0.2, 0.1 + 0.15 * float(draws[8]), 0.85 + 0.15 * float(draws[8])),
        Role.SHADED: scaled(main, 0.72),
    }


def sample_thing_tile(rng: np.random.Generator, thing: str) -> tuple[int, float, tuple[float, float]]:
    """Tile, contrast and offset of a thing's texture."""
    draws = rng.random(3)
    tile = sample_tile(rng, _THINGS[thing][1])
    return tile, 0.12 + 0.2 * float(draws[0]), (float(draws[1]) * 256, float(draws[2]) * 256)


def sample_light(rng: np.random.Generator, azimuth: float, fog_reach: float) -> Light:
    """Light, air and sensor of one scene.

    The light comes from `azimuth` in the image plane, radians counter-clockwise from the right. Fog becomes visible at
    `fog_reach` metres (its extinction goes with 1 / reach); 0: no fog ever.
    """
    draws: npt.NDArray[np.float64] = rng.random(12)
    gain = 0.7 + 0.45 * draws[0]
    haze = 0.65 + 0.3 * draws[8]
    return Light(
        gain=tuple(float(gain * (1 + 0.06 * (2 * draws[1 + channel] - 1))) for channel in range(3)),  # type: ignore[arg-type]
        direction=(math.cos(azimuth), -math.sin(azimuth)),
        shading=0.15 + 0.25 * float(draws[4]),
        shadow=0.5 + 0.25 * float(draws[5]),
        fog=(0.25 + 1.25 * float(draws[7])) / fog_reach if fog_reach and draws[6] < 0.5 else 0.0,
        fog_color=hsv(float(draws[9]), 0.08, float(haze)),
        blur=0.3 + 0.5 * float(draws[10]),
        noise=0.035 * float(draws[11]),
        noise_seed=int(rng.integers(2**32)),
    )
