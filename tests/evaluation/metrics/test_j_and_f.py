"""J and F by slow formulas."""

import math

import numpy as np
import pytest
import torch
from skimage.morphology import dilation, disk

from hf_geossl.evaluation.metrics import (
    JAndF,
)
from hf_geossl.evaluation.metrics.j_and_f import boundary_measure, region_similarity
from tests.helpers.metric_cases import random_videos


def test_boundary_measure_of_shifted_halves_by_hand() -> None:
    """In 100 x 100 pixels the tolerance is 0.008 * 141.4 = 1.13, so 2 pixels: edges 2 apart agree, 3 apart do not."""
    columns = np.arange(100)[None].repeat(100, axis=0)
    for shift, expected in ((0, 1.0), (1, 1.0), (2, 1.0), (3, 0.0), (20, 0.0)):
        assert boundary_measure(columns < 50 + shift, columns < 50) == expected, shift
        assert region_similarity(columns < 50 + shift, columns < 50) == 50 / (50 + shift)
    # a strip of 10 columns has edges at 49 and 59; one of 30 columns at 49 and 79: half of each is found
    assert boundary_measure((columns > 49) & (columns < 80), (columns > 49) & (columns < 60)) == 0.5
    wide = np.zeros((100, 100), dtype=bool)
    wide[:, :50] = True
    empty = np.zeros_like(wide)
    assert boundary_measure(empty, empty) == region_similarity(empty, empty) == 1
    assert boundary_measure(empty, wide) == boundary_measure(wide, empty) == region_similarity(empty, wide) == 0


def _slow_edges(mask: np.ndarray) -> np.ndarray:
    height, width = mask.shape
    edges = np.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            around = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
            edges[y, x] = any(mask[v, u] != mask[y, x] for v, u in around if v < height and u < width)
    return edges


@pytest.mark.parametrize("seed", range(4))
def test_j_and_f_by_slow_formulas(seed: int) -> None:
    generator = np.random.default_rng(seed)
    shape = (70, 130 + 60 * seed)  # tolerances of 2 and 3 pixels
    noise = [torch.nn.functional.interpolate(torch.tensor(generator.normal(size=(1, 1, 6, 9))), shape) for _ in "ab"]
    first, second = ((n + 0.8 * noise[0] > 0.1)[0, 0].numpy() for n in noise)
    radius = math.ceil(0.008 * math.hypot(*shape))
    f, t = _slow_edges(first), _slow_edges(second)
    precision = (f & dilation(t, disk(radius))).sum() / f.sum()
    recall = (t & dilation(f, disk(radius))).sum() / t.sum()
    assert 0.05 < precision < 1
    assert boundary_measure(first, second) == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-12)
    points, others = np.argwhere(f), np.argwhere(t)
    near = (((points[:, None] - others[None]) ** 2).sum(axis=-1) <= radius**2).any(axis=1).mean()
    assert near == pytest.approx(precision)
    assert region_similarity(first, second) == (first & second).sum() / (first | second).sum()


def test_j_and_f_averages_frames_then_objects() -> None:
    (guess, *_), (truth, *_) = random_videos(np.random.default_rng(6))
    two_guess, two_truth = (videos[1] for videos in random_videos(np.random.default_rng(7)))
    result = JAndF().compute(predictions=[guess, two_guess], references=[truth, two_truth])
    expected = []
    for g, t, index in ((guess, truth, 1), (two_guess, two_truth, 1), (two_guess, two_truth, 2)):
        frames = [((g[k] == index) & (t[k] != 255), t[k] == index) for k in (1, 2, 3)]  # neither the first nor the last
        expected.append([np.mean([measure(*f) for f in frames]) for measure in (region_similarity, boundary_measure)])
    j, f = np.array(expected).T
    assert result["j_per_object"] == pytest.approx(j)
    assert result["f_per_object"] == pytest.approx(f)
    assert result["j_mean"] == pytest.approx(j.mean())
    assert result["f_mean"] == pytest.approx(f.mean())
    assert result["j_and_f_mean"] == pytest.approx((j.mean() + f.mean()) / 2)
    whole = JAndF(inner_frames_only=False).compute(predictions=[guess], references=[truth])
    frames = [region_similarity((g == 1) & (t != 255), t == 1) for g, t in zip(guess, truth, strict=True)]
    assert whole["j_mean"] == pytest.approx(np.mean(frames))
    perfect = JAndF().compute(predictions=[np.where(truth == 255, 1, truth)], references=[truth])
    assert perfect["j_and_f_mean"] == 1  # what is predicted where a pixel does not count is no error
    other_id = JAndF().compute(predictions=[np.where(guess == 1, 7, guess)], references=[truth])
    assert other_id["j_mean"] == other_id["f_mean"] == 0
