"""Estimate the delay and the rate of a link from the times of the requests that passed it.

A request spends `transfers * delay + bytes / rate` on links. Plans that send different amounts tell
the two apart; a Kalman filter (1960) of both follows them, which change at random as time passes.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

# Part of itself by which a link changes in a second, and by which an observation is off.
_DRIFT, _NOISE = 0.5, 0.05
# What a clock and a scheduler add [s].
_JITTER_SECONDS = 2e-4
# What is late takes so many times what it took already.
_AGAIN = 2.0
_LEAST_SECONDS_PER_BYTE = 1e-12


@dataclass
class LinkEstimate:
    """A link estimate is what is believed of a link.

    Attributes:
        delay: of one transfer, beside its bytes [s].
        seconds_per_byte: 0 before anything was seen.
        delay_deviation: how far the delay may be off before anything was seen [s].
        rate_deviation: likewise [s/byte].
    """

    delay: float = 0.0
    seconds_per_byte: float = 0.0
    delay_deviation: float = 0.0
    rate_deviation: float = 1e-5
    _covariance: NDArray[np.float64] = field(init=False, repr=False)
    _seen_at: float | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Begin with what is believed."""
        self._covariance = np.diag([self.delay_deviation**2, self.rate_deviation**2])

    def seconds(self, transfers: float, size_bytes: float) -> float:
        """Return the time of some transfers of so many bytes together [s]."""
        return transfers * self.delay + size_bytes * self.seconds_per_byte

    def note(self, transfers: float, size_bytes: float, seconds: float, now: float) -> None:
        """Note how long some transfers took.

        Args:
            transfers: how many.
            size_bytes: of all of them.
            seconds: they took.
            now: on a monotonic clock [s].
        """
        passed = 0.0 if self._seen_at is None else max(0.0, now - self._seen_at)
        self._seen_at = now
        believed = np.array([self.delay, self.seconds_per_byte])
        drift = np.diag((_DRIFT * believed) ** 2 * passed)
        if not self.delay_deviation:
            drift[0, 0] = 0.0
        covariance = self._covariance + drift
        row = np.array([transfers, size_bytes], float)
        noise = (_NOISE * seconds) ** 2 + _JITTER_SECONDS**2
        gain = covariance @ row / (row @ covariance @ row + noise)
        believed = believed + gain * (seconds - row @ believed)
        self._covariance = covariance - np.outer(gain, row @ covariance)
        self.delay = max(0.0, float(believed[0]))
        self.seconds_per_byte = max(_LEAST_SECONDS_PER_BYTE, float(believed[1]))

    def note_loss(self, transfers: float, size_bytes: float, seconds: float, now: float) -> None:
        """Note that some transfers take longer than so many seconds: as long again, is believed."""
        seconds *= _AGAIN
        if self.seconds(transfers, size_bytes) < seconds:
            slower = (seconds - transfers * self.delay) / max(1.0, size_bytes)
            self.seconds_per_byte = max(self.seconds_per_byte, slower)
            self._covariance[1, 1] = max(self._covariance[1, 1], self.seconds_per_byte**2)
        self._seen_at = now
