"""Statistics of channels against NumPy over all values at once."""

import json

import numpy as np
import pytest

from hf_geossl.data.measuring.channel_statistics import ChannelStatistics

DRAW = np.random.default_rng(0)
VALUES = {
    "uint8": DRAW.integers(0, 256, 5000).astype(np.uint8),
    "uint16": DRAW.integers(300, 4096, 5000).astype(np.uint16),
    "int16": DRAW.normal(-200, 900, 5000).astype(np.int16),
    "uint32": DRAW.integers(0, 2**32, 5000).astype(np.uint32),
    "int32": DRAW.integers(-(2**20), 2**24, 5000).astype(np.int32),
    "float16": DRAW.normal(0, 3, 5000).astype(np.float16),
    "float32": DRAW.normal(280, 12, 5000).astype(np.float32),
    "float64": DRAW.lognormal(-3, 4, 5000),
}
EXACT = ("uint8", "uint16", "int16")


def measured(values: np.ndarray, pieces: int = 7, **options: object) -> ChannelStatistics:
    statistics = ChannelStatistics(values.dtype.name)
    for piece in np.array_split(values, pieces):
        statistics.add(piece, **options)  # type: ignore[arg-type]
    return statistics


@pytest.mark.parametrize("dtype", VALUES)
def test_moments_extremes_and_percentiles_are_those_of_all_values(dtype):
    values = VALUES[dtype]
    statistics, wide = measured(values), values.astype(np.float64)
    assert (statistics.count, statistics.low, statistics.high) == (5000, wide.min(), wide.max())
    assert statistics.mean == pytest.approx(wide.mean(), rel=1e-12)
    assert statistics.std == pytest.approx(wide.std(), rel=1e-12)
    for percent in (0, 0.1, 1, 25, 50, 99, 99.9, 100):
        expected = np.percentile(wide, percent)
        # between two values the bins of floating point numbers are known to 1 / 2048 of the value
        tolerance = 1e-9 if dtype in EXACT else 1 / 2048
        assert statistics.percentile(percent) == pytest.approx(expected, rel=tolerance, abs=1e-3), percent


def test_values_that_are_none_are_counted_apart():
    statistics = ChannelStatistics("float32")
    statistics.add(np.array([1, np.nan, 2, np.inf, -9999, 3], np.float32), nodata=-9999)
    assert (statistics.count, statistics.without_value, statistics.low, statistics.high) == (3, 3, 1, 3)
    assert statistics.mean == 2


def test_a_sample_keeps_the_extremes_of_all_values():
    values = np.zeros(1000, np.uint16)
    values[[501, 777]] = 9, 4000
    statistics = measured(values, pieces=1, step=100)
    assert (statistics.count, statistics.low, statistics.high) == (10, 0, 4000)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_merging_and_saving_lose_nothing(dtype):
    values = VALUES[dtype]
    whole, first, second = measured(values), measured(values[:1234]), measured(values[1234:])
    first.merge(second)
    again = ChannelStatistics.from_state_dict(json.loads(json.dumps(first.state_dict())))
    assert (again.count, again.low, again.high) == (whole.count, whole.low, whole.high)
    assert np.array_equal(again.bins, whole.bins)
    assert again.first_bin == whole.first_bin
    assert again.mean == pytest.approx(whole.mean, rel=1e-12)
    assert again.std == pytest.approx(whole.std, rel=1e-12)


def test_memory_is_bounded_whatever_the_values():
    statistics = ChannelStatistics("float64")
    statistics.add(np.array([-1e300, -1e-300, 0.0, 1e-300, 1e300]))
    assert statistics.bins.size <= 2**20
    assert statistics.percentile(0) == -1e300
    assert statistics.percentile(100) == 1e300


def test_nothing_has_no_percentiles():
    with pytest.raises(ValueError, match="there are no values"):
        ChannelStatistics("uint8").percentile(50)
