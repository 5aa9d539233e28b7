"""Provide what clients count of each value, as integers whose sums give the ranges.

Without noise: a histogram whose bins are the same for everybody, so that one round is enough: 64
for each octave of the magnitude, from 2^-14 to 2^18, of either sign, and one for what is smaller.
A bin is 1/64 to 1/128 of its values wide.

With noise: the logarithm of the largest positive and of the largest negative value, clipped, in
1/65,536 of an octave. A histogram has so many bins that noise would drown their counts.
"""

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.errors import CalibrationError, UsageError
from edgec.compiler.numerics.observers import ObserverName, Range, mse_range, percentile_range
from edgec.compiler.private_calibration.session import Noise, Session

Counts = NDArray[np.int64]

_LOWEST, _HIGHEST = -14, 18
# Bits of a float32 that tell the bins of an octave apart, and those below them.
_BIN_BITS, _SHIFT = 6, 17
_BIAS = 127
_SIDE = (_HIGHEST - _LOWEST) << _BIN_BITS
_FIRST = (_LOWEST + _BIAS) << _BIN_BITS

BINS = 2 * _SIDE + 1
UNITS = 1 << 16
"""Units of an octave."""

# The mean of the clients' largest values is below the largest of all.
MARGIN_OCTAVES = 0.5

OBSERVERS: tuple[ObserverName, ...] = ("mse", "min-max", "percentile")


def vector_length(session: Session) -> int:
    """Return how many integers each client sends."""
    return len(session.values) * (BINS if session.noise is None else 2)


def count(values: NDArray[np.float32]) -> Counts:
    """Return the histogram of finite values.

    >>> int(count(np.float32([0, 1, -1, 2]))[BINS // 2])
    1
    """
    flat = np.ascontiguousarray(values, np.float32).ravel()
    bits = flat.view(np.uint32)
    place = ((bits & 0x7FFFFFFF) >> _SHIFT).astype(np.int64) - (_FIRST - 1)
    place = np.clip(place, 0, _SIDE)
    place = np.where(bits >> 31, -place, place) + _SIDE
    return np.bincount(place, minlength=BINS)


def edges() -> NDArray[np.float64]:
    """Return the edges of the bins, ascending."""
    bits = (np.arange(_FIRST, _FIRST + _SIDE + 1, dtype=np.uint32)) << _SHIFT
    positive = bits.view(np.float32).astype(np.float64)
    return np.concatenate([-positive[::-1], positive])


def range_of(counts: Counts, observer: ObserverName, name: str) -> Range:
    """Return the range that a histogram stands for.

    Args:
        counts: by bin.
        observer: `min-max`, `percentile` or `mse`.
        name: of the value, for errors.

    Raises:
        CalibrationError: nothing was counted, or values are beyond the last bins.
    """
    seen = np.flatnonzero(counts)
    if not seen.size:
        raise CalibrationError(f"no client counted any values of {name}")
    first, last = int(seen[0]), int(seen[-1])
    if first == 0 or last == BINS - 1:
        raise CalibrationError(
            f"{name} has values beyond {2**_HIGHEST:,}, which private calibration does not count; "
            "scale the model's inputs"
        )
    bounds = edges()
    low = 0.0 if first == _SIDE else float(bounds[first])
    high = 0.0 if last == _SIDE else float(bounds[last + 1])
    if observer == "min-max" or first == last == _SIDE:
        return low, high
    choose = {"mse": mse_range, "percentile": percentile_range}.get(observer)
    if choose is None:
        raise UsageError(f"observer {observer} needs samples; take {', '.join(OBSERVERS)}")
    chosen = choose(counts[first : last + 1].astype(np.float64), bounds[first : last + 2])
    return max(chosen[0], low), min(chosen[1], high)


class LargestValues:
    """Largest values remember the largest magnitude of either sign."""

    def __init__(self) -> None:
        self._high = self._low = 0.0

    def see(self, values: NDArray[np.float32]) -> None:
        """Take one batch into account."""
        self._high = max(self._high, float(values.max(initial=0)))
        self._low = max(self._low, -float(values.min(initial=0)))

    def units(self, noise: Noise) -> Counts:
        """Return the logarithms of positive and negative side, clipped, from the middle on."""
        magnitudes = np.maximum([self._high, self._low], 2.0**-100)
        clipped = np.clip(np.log2(magnitudes), noise.low_log2, noise.high_log2)
        return np.rint((clipped - _middle(noise)) * UNITS).astype(np.int64)


def largest_units(noise: Noise) -> int:
    """Return the largest magnitude that `LargestValues.units` gives."""
    return int(np.ceil((noise.high_log2 - noise.low_log2) / 2 * UNITS))


def range_of_units(total: Counts, noise: Noise, summed: int) -> Range:
    """Return the range of one value from the sums of its two logarithms.

    The ends are 2^(mean + half an octave). A side whose mean is within an octave of the lower
    bound has no values to speak of and ends at 0.
    """
    means = total / (UNITS * summed) + _middle(noise)
    ends = np.where(
        means < noise.low_log2 + 1, 0.0, np.exp2(np.minimum(means, 64) + MARGIN_OCTAVES)
    )
    return -float(ends[1]) + 0.0, float(ends[0])


def _middle(noise: Noise) -> float:
    return (noise.low_log2 + noise.high_log2) / 2
