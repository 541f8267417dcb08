"""Percentile confidence intervals by bootstrap over images."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

_BLOCK = 2**23  # numbers in memory at once beside the sums: 64 MB of float64


class Summary(Protocol):
    """What is needed of a metric here, see `hf_geossl.evaluation.metrics.metric.Metric`."""

    def summarize(self, total: Any) -> dict[str, float]:
        """The metric's numbers of contributions taken together."""

    def resampler(self, rows: Any) -> Callable[[np.ndarray], dict[str, float]]:
        """The metric's numbers of images by the indices of their rows."""


def metric_intervals(
    metric: Summary, rows: np.ndarray | Sequence[object], *, repeats: int, seed: int
) -> dict[str, tuple[float, float]]:
    """Confidence intervals of a metric's numbers, see [`interval`]; none without repeats.

    Rows are what its `rows_of` gave of all images: an array `(images, k)` adds up, of others the numbers are computed anew in each
    repeat, by `Metric.resampler`.
    """
    if not repeats:
        return {}
    if isinstance(rows, np.ndarray):
        return interval(metric.summarize, rows, repeats=repeats, seed=seed)

    return interval_by_rows(metric.resampler(rows), len(rows), repeats=repeats, seed=seed)


def interval(
    summarize: Callable[[np.ndarray], dict[str, float]],
    sums: np.ndarray,
    *,
    repeats: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Confidence intervals of numbers that follow from sums over images.

    Each repeat draws as many images as there are, with replacement, and adds them up by one matrix product.

    Args:
        summarize (`Callable`): Sums of shape `(k,)` -> numbers by name.
        sums (`np.ndarray` of shape `(images, k)`): What each image adds (hits and 1, a confusion matrix, squared residuals).
        repeats (`int`): 1 or more. Defaults to 1000.
        seed (`int`): Of the draws. Defaults to 0.
        level (`float`): Share of repeats in the interval, in 0..1. Defaults to 0.95.

    Returns:
        `dict[str, tuple[float, float]]`: Lower and upper end of each number. Repeats in which it is NaN (a class that was not
        drawn) are left out; NaN, NaN where it always is.

    Raises:
        ValueError: If sums has another shape or no image, or repeats or level are out of range.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    sums = np.asarray(sums)
    if sums.ndim != 2:
        raise ValueError(f"sums must have shape (images, k), got {sums.shape}")
    images, size = sums.shape
    drawn = _draws(images, repeats, seed, level)
    step = max(1, min(repeats, _BLOCK // max(images, size)))
    columns = max(1, _BLOCK // images)
    values: list[dict[str, float]] = []
    for start in range(0, repeats, step):
        weights = np.stack(
            [np.bincount(next(drawn), minlength=images) for _ in range(min(step, repeats - start))]
        ).astype(np.float64)  # (step, images): how often each image was drawn
        total = np.empty((len(weights), size))
        for first in range(0, size, columns):
            piece = slice(first, first + columns)
            total[:, piece] = weights @ sums[:, piece].astype(np.float64)
        values += [summarize(row) for row in total]
    return _percentiles(values, level)


def interval_by_rows(
    compute: Callable[[np.ndarray], dict[str, float]],
    images: int,
    *,
    repeats: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Confidence intervals of numbers that do not add up over images (average precision): each repeat is computed anew.

    The numbers are those of drawn images, by their indices `(images,)`, with repetitions; the rest is as in [`interval`], with the
    same draws for a seed.
    """
    return _percentiles([compute(indices) for indices in _draws(images, repeats, seed, level)], level)


def _draws(images: int, repeats: int, seed: int, level: float) -> Iterator[np.ndarray]:
    """The images of each repeat, drawn one repeat after the other."""
    if images < 1:
        raise ValueError(f"images must be 1 or more, got {images}")
    if repeats < 1:
        raise ValueError(f"repeats must be 1 or more, got {repeats}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    generator = np.random.default_rng(seed)
    return (generator.integers(images, size=images) for _ in range(repeats))


def _percentiles(values: list[dict[str, float]], level: float) -> dict[str, tuple[float, float]]:
    ends = ((1 - level) / 2, (1 + level) / 2)
    intervals = {}
    for name in dict.fromkeys(name for value in values for name in value):
        known = np.array([value.get(name, np.nan) for value in values], dtype=np.float64)
        known = known[~np.isnan(known)]
        low, high = np.quantile(known, ends) if len(known) else (np.nan, np.nan)
        intervals[name] = (float(low), float(high))
    return intervals
