"""Tiles cover an image, their shares add up to one, and what is blended of an image's own parts is the image."""

import tracemalloc

import numpy as np
import pytest

from hf_geossl.tasks.prediction.tiling import Axis, Tiling, blend


def test_blending_the_parts_of_a_map_gives_the_map_once() -> None:
    draw = np.random.default_rng(0)
    for _ in range(300):
        tile = tuple(int(side) for side in draw.integers(8, 60, 2))
        overlap = int(draw.integers(0, min(tile) // 3 + 1))
        height, width = (int(side) for side in draw.integers(1, 200, 2))
        tiling = Tiling.of((height, width), tile, overlap)
        for axis in (tiling.rows, tiling.columns):
            shares = np.zeros(axis.length)
            for index, start in enumerate(axis.starts):
                shares[start : start + axis.size] += axis.shares(index)
                assert index == 0 or start - axis.starts[index - 1] <= axis.tile - overlap
            np.testing.assert_allclose(shares, 1, atol=1e-6)
        stored = draw.random((2, height, width)).astype(np.float32)
        joined = np.full(stored.shape, np.nan, np.float32)
        parts = (stored[:, top : top + high, left : left + wide] for top, left, high, wide in tiling.boxes)
        for (top, left, high, wide), values in blend(tiling, parts):
            assert np.isnan(joined[:, top : top + high, left : left + wide]).all()
            joined[:, top : top + high, left : left + wide] = values
        np.testing.assert_allclose(joined, stored, atol=1e-6)


def test_the_outer_quarters_of_an_overlap_are_of_one_tile() -> None:
    axis = Axis(90, 50, 10)  # tiles at 0 and 40, which share 40 to 50
    assert axis.starts == [0, 40]
    assert axis.spans() == [(0, 0, 42, 48), (42, 48, 90, 90)]
    first, second = axis.shares(0), axis.shares(1)
    assert first[:42].tolist() == [1] * 42
    np.testing.assert_allclose(first[42:48], [11 / 12, 9 / 12, 7 / 12, 5 / 12, 3 / 12, 1 / 12], atol=1e-6)
    assert first[48:].tolist() == [0, 0]
    assert second[:2].tolist() == [0, 0]
    assert second[8:].tolist() == [1] * 42


def test_an_overlap_of_more_than_a_third_is_refused() -> None:
    with pytest.raises(ValueError, match="tile_overlap must be 0 to 20, a third of the tile of 60 pixels, got 21"):
        Axis(100, 60, 21)


def test_what_waits_for_the_next_row_is_in_memory_once():
    tiling = Tiling.of((2048, 4096), (256, 256), 64)
    tiles = (np.ones((16, 256, 256), np.float32) for _ in tiling.boxes)
    tracemalloc.start()
    for _ in blend(tiling, tiles):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.2 * tiling.mixed_values() * 16 * 4  # by which the settings refuse what would not fit
