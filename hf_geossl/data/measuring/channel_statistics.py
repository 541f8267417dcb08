"""Statistics of one channel's stored values over many images, in bounded memory and in one pass."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

_SHORT = ("uint8", "uint16", "int16")  # every value has a bin of its own
_DROPPED_BITS = 12  # of float32, for all other types: bins are 1 / 2048 of a power of two wide
_MAGNITUDE = np.int64(0x7FFFFFFF)


def _codes(values: np.ndarray) -> np.ndarray:
    """The bin of each value: whole numbers in the order of the values."""
    if values.dtype.name in _SHORT:
        return values.astype(np.int64)
    with np.errstate(over="ignore"):  # of float64, what float32 cannot hold falls into the outermost bin
        bits = values.astype(np.float32).view(np.int32).astype(np.int64)
    # the bits of positive floating point numbers are ordered as the numbers are; negative ones are mirrored
    return np.where(bits >= 0, bits, -(bits & _MAGNITUDE)) >> _DROPPED_BITS


def _edge(code: int) -> float:
    """The smallest value of a bin of floating point numbers."""
    bits = code << _DROPPED_BITS
    magnitude = float(np.array(abs(bits), dtype=np.int32).view(np.float32))
    return math.copysign(magnitude, bits)


@dataclass
class ChannelStatistics:
    """Counts, extremes, mean, deviation and percentiles of the values of one channel.

    Values of 8 and 16 bits are counted one by one, so that all results are exact. Others are counted in bins that are
    1 / 2048 of a power of two wide, so that percentiles are within 0.05 % of the value; extremes, mean and deviation are
    exact there too. At most 2^20 bins (8 MiB) are needed, mostly a few thousand.

    Args:
        dtype (`str`): stored type of the values.
        count (`int`): finite values so far.
        without_value (`int`): values that are not finite, or mean "no value".
        low, high (`float`): smallest and largest value.
        mean (`float`): of the values.
        squares (`float`): sum of the squared distances from the mean.
        first_bin (`int`), bins (`numpy.ndarray`): counts of values, from a bin on.
    """

    dtype: str
    count: int = 0
    without_value: int = 0
    low: float = math.inf
    high: float = -math.inf
    mean: float = 0.0
    squares: float = 0.0
    first_bin: int = 0
    bins: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def add(self, values: np.ndarray, nodata: float | None = None, step: int = 1) -> None:
        """Adds the values of one image.

        Args:
            values (`numpy.ndarray` of any shape): of the channel.
            nodata (`float`, *optional*): value that means "no value".
            step (`int`, *optional*, defaults to 1): every how many-th value is counted; extremes are those of all.
        """
        known = values.ravel()
        if known.dtype.kind == "f":
            known = known[np.isfinite(known)]
        if nodata is not None and math.isfinite(nodata):
            known = known[known != (known.dtype.type(nodata) if known.dtype.kind == "f" else nodata)]
        self.without_value += values.size - known.size
        if known.size == 0:
            return
        self.low, self.high = min(self.low, float(known.min())), max(self.high, float(known.max()))
        known = known[::step]
        codes = _codes(known)
        first = int(codes.min())
        counts = np.bincount(codes - first)
        numbers, weights = known.astype(np.float64), np.ones(1)
        if self.dtype in _SHORT:  # the counts have it all
            present = np.flatnonzero(counts)
            numbers, weights = (present + first).astype(np.float64), counts[present].astype(np.float64)
        with np.errstate(over="ignore"):  # of values near the end of float64, whose deviation is infinite
            mean = float((numbers * weights).sum() / known.size)
            squares = float((np.square(numbers - mean) * weights).sum())
        self._merge_moments(known.size, mean, squares)
        self._add_bins(first, counts)

    def _merge_moments(self, count: int, mean: float, squares: float) -> None:
        distance, total = mean - self.mean, self.count + count
        self.squares += squares + distance**2 * self.count * count / total  # Chan, Golub and LeVeque 1979
        self.mean += distance * count / total
        self.count = total

    def _add_bins(self, first: int, counts: np.ndarray) -> None:
        if self.bins.size == 0:
            self.first_bin, self.bins = first, counts.astype(np.int64)
            return
        start = min(first, self.first_bin)
        end = max(first + counts.size, self.first_bin + self.bins.size)
        if (start, end) != (self.first_bin, self.first_bin + self.bins.size):
            wider = np.zeros(end - start, np.int64)
            wider[self.first_bin - start :][: self.bins.size] = self.bins
            self.first_bin, self.bins = start, wider
        self.bins[first - start :][: counts.size] += counts

    @property
    def std(self) -> float:
        """Standard deviation of the values."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0

    def percentile(self, percent: float) -> float:
        """The value that `percent` % of the values do not exceed, between two of them as NumPy's default has it.

        Raises:
            ValueError: if there are no values, or `percent` lies outside 0 to 100.
        """
        if not 0 <= percent <= 100:
            raise ValueError(f"a percentile must lie in [0, 100], got {percent}")
        if self.count == 0:
            raise ValueError("there are no values")
        rank = (self.count - 1) * percent / 100
        below, above = self._at_rank(math.floor(rank)), self._at_rank(math.ceil(rank))
        return below + (above - below) * (rank - math.floor(rank))

    def _at_rank(self, rank: int) -> float:
        """The value with `rank` values before it."""
        if rank in (0, self.count - 1):
            return self.high if rank else self.low
        cumulative = np.cumsum(self.bins)
        index = int(np.searchsorted(cumulative, rank, side="right"))
        code = self.first_bin + index
        if self.dtype in _SHORT:
            return float(code)
        inside = (rank - (cumulative[index] - self.bins[index]) + 0.5) / self.bins[index]
        low, high = max(_edge(code), self.low), min(_edge(code + 1), self.high)
        return float(low + (high - low) * inside) if low < high else float(min(max(low, self.low), self.high))

    def merge(self, other: "ChannelStatistics") -> None:
        """Adds what another has counted, of the same type."""
        if other.count:
            self._merge_moments(other.count, other.mean, other.squares)
            self.low, self.high = min(self.low, other.low), max(self.high, other.high)
            self._add_bins(other.first_bin, other.bins)
        self.without_value += other.without_value

    def state_dict(self) -> dict[str, object]:
        """Returns plain values for JSON; of the bins those that are not empty, as pairs of gap and count."""
        occupied = np.flatnonzero(self.bins)
        gaps = np.diff(occupied, prepend=0)
        state = {name: value for name, value in vars(self).items() if name not in ("bins", "low", "high")}
        limits = {"low": self.low, "high": self.high} if self.count else {}
        return {**state, **limits, "bins": np.stack([gaps, self.bins[occupied]], 1).ravel().tolist()}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, object]) -> "ChannelStatistics":
        """Makes the statistics of what `state_dict` returned."""
        pairs = np.array(state["bins"], dtype=np.int64).reshape(-1, 2)
        places = np.cumsum(pairs[:, 0])
        bins = np.zeros(int(places[-1]) + 1 if len(places) else 0, np.int64)
        bins[places] = pairs[:, 1]
        return cls(**{**state, "bins": bins})  # type: ignore[arg-type]
