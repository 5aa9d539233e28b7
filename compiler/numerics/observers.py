"""Provide ranges of activations, from batches that come one by one; only NumPy.

Each observer keeps a few numbers or one histogram, whatever the number of samples.
"""

from collections.abc import Callable
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

Range = tuple[float, float]

ObserverName = Literal["min-max", "moving-average", "percentile", "mse", "entropy"]
OBSERVERS: tuple[str, ...] = get_args(ObserverName)

BINS = 2048
MOMENTUM = 0.1
PERCENT = 99.99
LEVELS = 256

# Values that are counted at a time.
_PART = 1 << 15


class RangeObserver(Protocol):
    """A range observer is given batches and finds a range."""

    def see(self, values: NDArray[Any]) -> None:
        """Take one batch into account."""

    def range(self) -> Range:
        """Return the range to quantize."""


class MinMax:
    """Observe the smallest and the largest value ever seen."""

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf

    def see(self, values: NDArray[Any]) -> None:
        """Widen the range."""
        self.low = min(self.low, float(values.min(initial=np.inf)))
        self.high = max(self.high, float(values.max(initial=-np.inf)))

    def range(self) -> Range:
        """Return lowest and highest."""
        return self.low, self.high


class MovingAverage:
    """Observe the exponential mean of each batch's extremes; one outlier moves it by a tenth."""

    def __init__(self) -> None:
        self.ends: Range | None = None

    def see(self, values: NDArray[Any]) -> None:
        """Move towards the extremes of this batch."""
        low, high = float(values.min()), float(values.max())
        if self.ends is not None:
            low = self.ends[0] + MOMENTUM * (low - self.ends[0])
            high = self.ends[1] + MOMENTUM * (high - self.ends[1])
        self.ends = low, high

    def range(self) -> Range:
        """Return the mean extremes."""
        assert self.ends is not None
        return self.ends


class Histogram:
    """Counts of values in equal bins, of a range that grows by doubling.

    Counts are moved whole when the range grows, two bins into one, so they stay exact counts.
    """

    def __init__(self, choose: Callable[[NDArray[np.float64], NDArray[np.float64]], Range]) -> None:
        self.choose = choose
        self.counts = np.zeros(BINS)
        self.extremes = MinMax()
        self.start = self.width = 0.0

    def see(self, values: NDArray[Any]) -> None:
        """Count one batch."""
        flat = np.asarray(values, np.float32).ravel()
        self.extremes.see(flat)
        low, high = self.extremes.range()
        if self.width == 0.0:
            if low == high == 0.0:
                # Where zeros belong is known as soon as there is a bin width.
                self.counts[0] += flat.size
                return
            zeros = self.counts[0]
            self.start, self.width = low, max(high - low, abs(high) * 1e-6) / BINS * (1 + 1e-6)
            self.counts[:] = 0
            self._grow(min(low, 0.0) if zeros else low, max(high, 0.0) if zeros else high)
            if zeros:
                self.counts[min(int(-self.start / self.width), BINS - 1)] += zeros
        self._grow(low, high)
        self._count(flat)

    def _count(self, flat: NDArray[np.float32]) -> None:
        # By parts that stay in the cache. No value is below the first bin, and none further above
        # the last one than its upper edge.
        for start in range(0, flat.size, _PART):
            place = np.subtract(flat[start : start + _PART], self.start, dtype=np.float64)
            place /= self.width
            counts = np.bincount(place.astype(np.intp), minlength=BINS + 1)
            self.counts += counts[:BINS]
            self.counts[-1] += counts[BINS]

    def _grow(self, low: float, high: float) -> None:
        while low < self.start or high > self.start + BINS * self.width:
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts[:] = 0
            half = BINS // 2
            if low < self.start:
                self.start -= BINS * self.width
                self.counts[half:] = merged
            else:
                self.counts[:half] = merged
            self.width *= 2

    def range(self) -> Range:
        """Return what `choose` takes from the counts and the bins' edges, within the extremes."""
        low, high = self.extremes.range()
        if self.width == 0.0:
            return low, high
        edges = self.start + self.width * np.arange(BINS + 1, dtype=np.float64)
        chosen = self.choose(self.counts, edges)
        return max(chosen[0], low), min(chosen[1], high)


def percentile_range(counts: NDArray[np.float64], edges: NDArray[np.float64]) -> Range:
    """Return the range without the outermost (100 - PERCENT) percent, half of them at each end."""
    outside = (100 - PERCENT) / 200 * counts.sum()
    below = np.cumsum(counts)
    above = np.cumsum(counts[::-1])[::-1]
    first = int(np.argmax(below > outside))
    last = len(counts) - 1 - int(np.argmax(above[::-1] > outside))
    return float(edges[first]), float(edges[last + 1])


def mse_range(counts: NDArray[np.float64], edges: NDArray[np.float64]) -> Range:
    """Return the clipped range of least squared error.

    Values inside are off by step^2 / 12 in the mean, values outside by their distance from it.
    """
    centres = (edges[:-1] + edges[1:]) / 2

    def cost(low: float, high: float) -> float:
        step = (max(high, 0.0) - min(low, 0.0)) / (LEVELS - 1)
        outside = np.maximum(low - centres, 0) + np.maximum(centres - high, 0)
        inside = (outside == 0) * step**2 / 12
        return float((counts * (np.square(outside) + inside)).sum())

    return _search(counts, edges, cost)


def entropy_range(counts: NDArray[np.float64], edges: NDArray[np.float64]) -> Range:
    """Return the clipped range of least Kullback-Leibler divergence (Migacz 2017).

    The histogram, with what is outside added to the outermost bins, is compared with itself
    reduced to `LEVELS` levels and spread evenly over the bins that are not empty. The bin of 0 is
    left out: 0 is a code by itself, and after a ReLU it is most of the values.
    """
    counts = np.where((edges[:-1] <= 0) & (edges[1:] > 0), 0.0, counts)
    if not counts.any():
        return float(edges[0]), float(edges[-1])

    def cost(low: float, high: float) -> float:
        first = int(np.searchsorted(edges, low, side="right")) - 1
        last = int(np.searchsorted(edges, high, side="left"))
        inside = counts[first:last]
        if len(inside) < LEVELS:
            return np.inf
        clipped = inside.copy()
        clipped[0] += counts[:first].sum()
        clipped[-1] += counts[last:].sum()
        level = np.arange(len(inside)) * LEVELS // len(inside)
        filled = inside > 0
        total = np.bincount(level, inside, LEVELS)
        bins = np.bincount(level, filled, LEVELS)
        spread = np.where(filled, (total / np.maximum(bins, 1))[level], 0.0)
        p, q = clipped / clipped.sum(), spread / max(spread.sum(), 1.0)
        # A bin that only clipping filled has q = 0: a small probability instead, as Migacz does.
        q = np.where(q > 0, q, 1e-7)
        return float((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum())

    low, high = _search(counts, edges, cost)
    return min(low, 0.0), max(high, 0.0)


def _search(
    counts: NDArray[np.float64],
    edges: NDArray[np.float64],
    cost: Callable[[float, float], float],
) -> Range:
    """Shrink the ends, each in turn, to the cheapest range; an end at 0 stays there."""
    seen = np.flatnonzero(counts)
    low, high = float(edges[seen[0]]), float(edges[seen[-1] + 1])
    shares = np.linspace(0.1, 1.0, 91)[::-1]
    for _ in range(2):
        if high > 0:
            tops = high * shares
            high = float(tops[int(np.argmin([cost(low, top) for top in tops]))])
        if low < 0:
            bottoms = low * shares
            low = float(bottoms[int(np.argmin([cost(bottom, high) for bottom in bottoms]))])
    return low, high


def make_observer(name: ObserverName) -> RangeObserver:
    """Return a new observer."""
    makers: dict[ObserverName, Callable[[], RangeObserver]] = {
        "min-max": MinMax,
        "moving-average": MovingAverage,
        "percentile": lambda: Histogram(percentile_range),
        "mse": lambda: Histogram(mse_range),
        "entropy": lambda: Histogram(entropy_range),
    }
    return makers[name]()
