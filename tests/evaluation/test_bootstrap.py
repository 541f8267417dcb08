"""Confidence intervals: against scipy, against computing anew, and by how often they hold the truth."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, jaccard_score, r2_score

from hf_geossl.evaluation import bootstrap
from hf_geossl.evaluation.bootstrap import interval, interval_by_rows, metric_intervals
from hf_geossl.evaluation.metrics import R2, Accuracy, MeanIoU
from hf_geossl.evaluation.metrics.metric import Metric


def _mean(sums: np.ndarray) -> dict[str, float]:
    return {"mean": float(sums[0] / sums[1])}


def _with_ones(values: np.ndarray) -> np.ndarray:
    return np.stack([values, np.ones_like(values)], axis=1)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    held = {0.95: 0, 0.5: 0}
    for seed in range(400):
        sums = _with_ones(generator.normal(3, 2, size=80))
        for level in held:
            low, high = interval(_mean, sums, repeats=250, seed=seed, level=level)["mean"]
            held[level] += low <= 3 <= high
    assert held[0.95] / 400 == pytest.approx(0.94, abs=0.03)  # the percentile interval of 80 is a little short
    assert held[0.5] / 400 == pytest.approx(0.49, abs=0.07)


def test_intervals_are_scipys() -> None:
    values = np.random.default_rng(1).exponential(size=60)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=20000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    low, high = interval(_mean, _with_ones(values), repeats=20000)["mean"]
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.02 * values.std())


def test_sums_and_rows_agree() -> None:
    generator = np.random.default_rng(3)
    truth = generator.integers(0, 6, size=50)
    scores = generator.normal(size=(50, 6)) + np.eye(6)[truth]
    targets = generator.normal(size=(50, 2))
    guess = targets + generator.normal(size=(50, 2))
    maps, true_maps = generator.integers(0, 3, (50, 4, 4)), generator.integers(0, 3, (50, 4, 4))
    # (metric, its inputs, the same numbers of drawn images by scikit-learn)
    cases: list[tuple[Metric[np.ndarray], np.ndarray, np.ndarray, dict[str, Callable[..., float]]]] = [
        (Accuracy(num_classes=6), scores, truth, {"accuracy": lambda p, r: accuracy_score(r, p.argmax(axis=1))}),
        (
            R2(),
            guess,
            targets,
            {
                "r2": lambda p, r: r2_score(r, p, multioutput="uniform_average"),
                "r2_variance_weighted": lambda p, r: r2_score(r, p, multioutput="variance_weighted"),
            },
        ),
        (
            MeanIoU(num_classes=3),
            maps,
            true_maps,
            {
                "mean_iou": lambda p, r: jaccard_score(r.ravel(), p.ravel(), average="macro"),
                "pixel_accuracy": lambda p, r: accuracy_score(r.ravel(), p.ravel()),
            },
        ),
    ]
    for metric, predictions, references, peers in cases:
        sums = metric_intervals(metric, metric.rows_of(predictions, references), repeats=40, seed=0)

        def compute(
            rows: np.ndarray,
            predictions: np.ndarray = predictions,
            references: np.ndarray = references,
            peers: dict[str, Callable[..., float]] = peers,
        ) -> dict[str, float]:
            return {name: float(peer(predictions[rows], references[rows])) for name, peer in peers.items()}

        for name, ends in interval_by_rows(compute, 50, repeats=40).items():
            assert sums[name] == pytest.approx(ends, rel=1e-5), name
            assert ends[0] < ends[1]
    assert metric_intervals(R2(), np.ones((3, 4)), repeats=0, seed=0) == {}


def test_rows_that_do_not_add_up_are_drawn_whole() -> None:
    class Median:
        def summarize(self, total: list[float]) -> dict[str, float]:
            return {"median": float(np.median(total))}

        def resampler(self, rows: list[float]) -> Callable[[np.ndarray], dict[str, float]]:
            return lambda images: self.summarize([rows[index] for index in images])

    values = np.random.default_rng(6).normal(size=21)
    expected = interval_by_rows(lambda rows: {"median": float(np.median(values[rows]))}, 21, repeats=30, seed=2)
    assert metric_intervals(Median(), values.tolist(), repeats=30, seed=2) == expected


def test_seed_decides_and_blocks_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    sums = np.random.default_rng(4).integers(0, 50, size=(30, 16)).astype(np.int32)
    first = interval(MeanIoU(num_classes=4).summarize, sums, repeats=100)
    assert interval(MeanIoU(num_classes=4).summarize, sums, repeats=100) == first
    assert interval(MeanIoU(num_classes=4).summarize, sums, repeats=100, seed=1) != first
    monkeypatch.setattr(bootstrap, "_BLOCK", 64)  # two repeats, two columns at a time
    assert interval(MeanIoU(num_classes=4).summarize, sums, repeats=100) == first


def test_wider_levels_hold_narrower_ones() -> None:
    sums = _with_ones(np.random.default_rng(5).normal(size=40))
    narrow, wide = (interval(_mean, sums, level=level)["mean"] for level in (0.5, 0.99))
    assert wide[0] < narrow[0] < sums[:, 0].mean() < narrow[1] < wide[1]


@pytest.mark.filterwarnings("error")
def test_numbers_that_are_not_defined_in_a_repeat_are_left_out() -> None:
    values = np.array([np.nan, 1.0, 2.0, 3.0])

    def compute(rows: np.ndarray) -> dict[str, float]:
        drawn = values[rows]
        return {"mean": float(drawn.mean()), "never": float("nan"), **({"three": 3.0} if 3.0 in drawn else {})}

    result = interval_by_rows(compute, 4, repeats=200)
    assert 1 <= result["mean"][0] < result["mean"][1] <= 3
    assert np.isnan(result["never"]).all()
    assert result["three"] == (3.0, 3.0)
    sums = np.array([[2, 0, 5, 0], [0, 5, 0, 5]], dtype=np.uint8)  # each class in one image alone
    ends = interval(Accuracy(num_classes=2).summarize, sums, repeats=50)
    assert set(ends) == {"accuracy", "mean_per_class_accuracy"}
    assert np.isfinite(list(ends.values())).all()


def test_small_integers_do_not_overflow() -> None:
    ends = interval(_mean, np.full((300, 2), 200, dtype=np.uint8), repeats=5)
    assert ends["mean"] == (1.0, 1.0)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sums must have shape \(images, k\), got \(3,\)"):
        interval(_mean, np.ones(3))
    with pytest.raises(ValueError, match="images must be 1 or more, got 0"):
        interval(_mean, np.ones((0, 2)))
    with pytest.raises(ValueError, match="level must lie between 0 and 1, got 95"):
        interval(_mean, np.ones((3, 2)), level=95)
    with pytest.raises(ValueError, match="repeats must be 1 or more, got 0"):
        interval_by_rows(lambda rows: {}, 3, repeats=0)
