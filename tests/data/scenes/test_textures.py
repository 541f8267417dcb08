"""The texture bank."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from hf_geossl.data.scenes.textures import (
    LEVEL_OFFSETS,
    TEXTURE_FAMILIES,
    TILE_SIZE,
    TILE_STRIDE,
    texture_bank,
    tile_index,
)


def test_tiles_are_seamless_and_their_mip_levels_are_means() -> None:
    bank = texture_bank()
    assert bank.shape[0] == 9 * 12
    base = bank[:, : LEVEL_OFFSETS[1]].reshape(-1, TILE_SIZE, TILE_SIZE).astype(float)
    half = bank[:, LEVEL_OFFSETS[1] : LEVEL_OFFSETS[2]].reshape(-1, TILE_SIZE // 2, TILE_SIZE // 2)
    means = base.reshape(-1, TILE_SIZE // 2, 2, TILE_SIZE // 2, 2).mean(axis=(2, 4))
    assert np.abs(half - means).max() <= 1.0
    for smooth in (*range(12), *range(24, 36), *range(48, 60)):  # cloud, blade, wave
        tile = base[smooth]
        inside = np.mean([np.abs(first - second).mean() for first, second in pairwise(tile)])
        assert np.abs(tile[0] - tile[-1]).mean() < 2 * inside


def test_tiles_are_found_by_family_and_number() -> None:
    numbers = [tile_index(family, number) for family in TEXTURE_FAMILIES for number in range(12)]
    assert numbers == list(range(9 * 12))
    # 256 ** 2 + 128 ** 2 + ... + 1
    assert LEVEL_OFFSETS.tolist()[:3] == [0, 65536, 81920]
    assert TILE_STRIDE == (4**9 - 1) // 3
    assert texture_bank().shape == (108, TILE_STRIDE)


def test_grey_values_are_centered_and_plain_tiles_are_faint() -> None:
    base = texture_bank()[:, : LEVEL_OFFSETS[1]].astype(float)
    assert np.abs(base.mean(axis=1) - 127.5).max() < 12  # clipping moves the mean of skewed tiles a little
    plain = slice(tile_index("plain", 0), tile_index("plain", 0) + 12)
    np.testing.assert_allclose(base[plain].std(axis=1), 0.2 * 127.5, rtol=0.02)
    with pytest.raises(ValueError, match="read-only"):
        texture_bank()[0, 0] = 1
