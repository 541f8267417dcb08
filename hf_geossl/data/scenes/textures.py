"""The texture bank of the scenes: 9 families of 12 seamless grey tiles, with their mip levels, from a fixed seed.

Tiles carry structure only; colour and contrast are given by the surface that wears them. A class never owns a family alone, so a
texture is a weak cue.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

TEXTURE_FAMILIES = ("cloud", "grain", "blade", "leaf", "wave", "tile", "brick", "plain", "stripe")
TILES_PER_FAMILY = 12
TILE_SIZE = 256
MIP_LEVELS = 9  # 256, 128, ..., 1
# Where each mip level starts in the flat store of a tile: level l has (256 >> l) ** 2 texels.
LEVEL_OFFSETS = np.cumsum([0, *((TILE_SIZE >> level) ** 2 for level in range(MIP_LEVELS))])
TILE_STRIDE = int(LEVEL_OFFSETS[-1])

_BANK_SEED = 20240
_Grey = npt.NDArray[np.float64]


def tile_index(family: str, number: int) -> int:
    """Row of `texture_bank()`, 0 to 107, of a family's tile, 0 to 11."""
    return TEXTURE_FAMILIES.index(family) * TILES_PER_FAMILY + number


@lru_cache(maxsize=1)
def texture_bank() -> npt.NDArray[np.uint8]:
    """All tiles with their mip levels, `(108, TILE_STRIDE)`, uint8, read-only; made once per process.

    Each row holds the levels 256 x 256, 128 x 128, ..., 1 x 1 of a tile, flat, level `l` starting at `LEVEL_OFFSETS[l]`. Grey
    values are centred at 127.5.
    """
    bank = np.empty((len(TEXTURE_FAMILIES) * TILES_PER_FAMILY, TILE_STRIDE), np.uint8)
    for family_number, (family, draw) in enumerate(zip(TEXTURE_FAMILIES, _FAMILIES, strict=True)):
        for number in range(TILES_PER_FAMILY):
            rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([_BANK_SEED, family_number, number])))
            level = np.clip(_standardise(draw(rng), 0.2 if family == "plain" else 0.42), -1, 1)
            row = bank[tile_index(family, number)]
            for mip in range(MIP_LEVELS):
                row[LEVEL_OFFSETS[mip] : LEVEL_OFFSETS[mip + 1]] = np.rint(127.5 + 127.5 * level).ravel()
                if mip + 1 < MIP_LEVELS:
                    half = level.shape[0] // 2
                    level = level.reshape(half, 2, half, 2).mean(axis=(1, 3))
    bank.setflags(write=False)
    return bank


def _standardise(tile: _Grey, deviation: float) -> _Grey:
    """Zero mean and the given standard deviation, on a scale where -1 is black and 1 white."""
    return (tile - tile.mean()) * (deviation / max(float(tile.std()), 1e-9))


def _coordinates() -> tuple[_Grey, _Grey]:
    """Column and row of each texel in [0, 1)."""
    line = np.arange(TILE_SIZE) / TILE_SIZE
    return line[None, :], line[:, None]


def _spectral_noise(rng: np.random.Generator, amplitude: _Grey) -> _Grey:
    """Periodic Gaussian noise with the given amplitude for each frequency, shape `(256, 129)`."""
    white = np.fft.rfft2(rng.standard_normal((TILE_SIZE, TILE_SIZE)))
    return np.fft.irfft2(white * amplitude, s=(TILE_SIZE, TILE_SIZE))


def _frequencies() -> tuple[_Grey, _Grey, _Grey]:
    """Horizontal, vertical and radial frequency in cycles per tile."""
    horizontal = np.arange(TILE_SIZE // 2 + 1, dtype=np.float64)[None, :]
    vertical = np.asarray(np.fft.fftfreq(TILE_SIZE, 1 / TILE_SIZE), np.float64)[:, None]
    return horizontal, vertical, np.hypot(horizontal, vertical)


def _power_law(rng: np.random.Generator, exponent: float, lowest: float = 1.0) -> _Grey:
    _, _, radius = _frequencies()
    return _spectral_noise(rng, np.where(radius < lowest, 0.0, np.maximum(radius, 1.0) ** -exponent))


def _cloud(rng: np.random.Generator) -> _Grey:
    return _power_law(rng, rng.uniform(1.2, 1.8))


def _grain(rng: np.random.Generator) -> _Grey:
    _, _, radius = _frequencies()
    return _spectral_noise(rng, np.exp(-((radius / rng.uniform(30, 90)) ** 2)))


def _blade(rng: np.random.Generator) -> _Grey:
    horizontal, vertical, radius = _frequencies()
    across, along = rng.uniform(25, 60), rng.uniform(3, 9)
    streaks = _spectral_noise(rng, np.exp(-((horizontal / across) ** 2) - (vertical / along) ** 2) * (radius > 2))
    return _standardise(streaks, 1.0) + 0.5 * _standardise(_power_law(rng, 1.5), 1.0)


def _leaf(rng: np.random.Generator) -> _Grey:
    canvas = Image.new("L", (TILE_SIZE, TILE_SIZE), 60)
    draw = ImageDraw.Draw(canvas)
    reach = rng.uniform(7, 16)
    outline = np.linspace(0, 2 * np.pi, 8, endpoint=False)
    for _ in range(int(5 * TILE_SIZE**2 / reach**2 / 4)):
        center, turn, grey = rng.uniform(0, TILE_SIZE, 2), rng.uniform(0, np.pi), int(rng.integers(20, 256))
        x, y = reach * np.cos(outline), reach * rng.uniform(0.35, 0.6) * np.sin(outline)
        leaf = np.stack([np.cos(turn) * x - np.sin(turn) * y, np.sin(turn) * x + np.cos(turn) * y], 1) + center
        # Leaves over an edge come back on the other side, so that the tile stays seamless.
        for dx in (-TILE_SIZE, 0, TILE_SIZE):
            for dy in (-TILE_SIZE, 0, TILE_SIZE):
                if -reach < center[0] + dx < TILE_SIZE + reach and -reach < center[1] + dy < TILE_SIZE + reach:
                    draw.polygon((leaf + np.array([dx, dy])).ravel().tolist(), fill=grey)
    return np.asarray(canvas, np.float64)


def _wave(rng: np.random.Generator) -> _Grey:
    x, y = _coordinates()
    total = np.zeros((TILE_SIZE, TILE_SIZE))
    warp = 0.6 * _standardise(_power_law(rng, 2.0), 1.0)
    for _ in range(5):
        cycles_y, cycles_x = int(rng.integers(4, 15)), int(rng.integers(-3, 4))
        phase = 2 * np.pi * (cycles_x * x + cycles_y * y + rng.uniform())
        total += np.sin(phase + warp) / cycles_y**0.5
    return total


def _grid(rng: np.random.Generator, rows: int, columns: int, shift: float) -> _Grey:
    """Rectangles of random grey between dark joints; each second row moved by `shift` of a rectangle."""
    x, y = _coordinates()
    joint = rng.uniform(0.04, 0.1)
    row = np.floor(y * rows)
    along = x * columns + shift * (row % 2)
    column = np.floor(along) % columns
    grey = rng.uniform(0.35, 1.0, (rows, columns))[row.astype(int), column.astype(int)]
    thick_y, thick_x = joint, joint * columns / rows
    is_joint = (y * rows - row < thick_y) | (along - np.floor(along) < thick_x)
    return np.where(is_joint, 0.0, grey) + 0.1 * _standardise(_power_law(rng, 1.0), 1.0)


def _tile(rng: np.random.Generator) -> _Grey:
    side = int(rng.integers(5, 13))
    return _grid(rng, side, side, 0.0)


def _brick(rng: np.random.Generator) -> _Grey:
    rows = 2 * int(rng.integers(4, 10))
    return _grid(rng, rows, rows // 2, 0.5)


def _plain(rng: np.random.Generator) -> _Grey:
    return _power_law(rng, rng.uniform(2.0, 3.0))


def _stripe(rng: np.random.Generator) -> _Grey:
    x, y = _coordinates()
    cycles = int(rng.integers(5, 18))
    wave = np.sin(2 * np.pi * (cycles * x + rng.uniform()) + 0 * y)
    return np.tanh(rng.uniform(1, 5) * (wave + rng.uniform(-0.4, 0.4))) + 0.2 * _standardise(_power_law(rng, 1.2), 1.0)


_FAMILIES = (_cloud, _grain, _blade, _leaf, _wave, _tile, _brick, _plain, _stripe)  # as in TEXTURE_FAMILIES
