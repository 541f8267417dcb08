"""Tiles cover an image, each pixel at least once, and share what they should."""

from itertools import pairwise

import numpy as np
import pytest

from hf_geossl.tasks.embedding.tiles import tile_boxes


@pytest.mark.parametrize(("width", "height"), [(100, 70), (32, 32), (31, 90), (33, 32), (5, 5)])
@pytest.mark.parametrize("overlap", [0, 7])
def test_every_pixel_is_covered(width, height, overlap):
    covered = np.zeros((height, width), int)
    boxes = tile_boxes(width, height, 32, overlap)
    for left, top, right, bottom in boxes:
        assert (right - left, bottom - top) == (min(width, 32), min(height, 32))
        covered[top:bottom, left:right] += 1
    assert covered.min() >= 1
    starts = sorted({box[0] for box in boxes})
    assert all(32 - (b - a) >= overlap for a, b in pairwise(starts))


def test_without_a_tile_an_image_stays_whole():
    assert tile_boxes(1000, 10, None) == [(0, 0, 1000, 10)]
