"""Provide differential privacy of sums, sampled and accounted by OpenDP.

The mechanism is the discrete Gaussian (Canonne, Kamath and Steinke 2020). Each client's vector of
d integers of magnitude M at most has an L2 norm of M sqrt(d) at most: so far the sum moves when a
client's data are replaced by none. OpenDP gives the zero-concentrated loss of noise on that, and
its ε for a δ.

Where clients add the noise, each adds 1/sqrt(threshold) of the deviation, so that the noise of as
many as have to remain suffices. A sum of discrete Gaussians is not exactly one; Kairouz, Liu and
Steinke 2021 (theorem 1) bound the difference by 10 sum_k exp(-2 pi^2 s^2 k / (k + 1)), which is 0
in float64 for any deviation s of a client above 9: `MIN_DEVIATION`.
"""

import importlib.metadata
import math
from functools import lru_cache
from typing import Any

import numpy as np

from edgec.compiler.errors import ToolchainError, UsageError
from edgec.compiler.private_calibration.session import Session
from edgec.compiler.private_calibration.statistics import Counts, largest_units, vector_length

MIN_DEVIATION = 9.0


def deviation(session: Session) -> float:
    """Return the standard deviation that the noise of each sum needs, in units.

    Raises:
        UsageError: ε is so large that discrete noise would not do.
        ToolchainError: the package opendp is missing.
    """
    noise = session.noise
    assert noise is not None
    norm = largest_units(noise) * math.sqrt(vector_length(session))
    found = _deviation(noise.epsilon, noise.delta, norm)
    if client_deviation(session, found) < MIN_DEVIATION:
        raise UsageError(f"--epsilon {noise.epsilon:g} asks for hardly any noise; take less")
    return found


def client_deviation(session: Session, total: float) -> float:
    """Return the deviation of each client's share of the noise."""
    return total / math.sqrt(session.threshold)


def add_noise(vector: Counts, scale: float) -> Counts:
    """Return a vector with discrete Gaussian noise of a standard deviation."""
    return np.array(_gaussian(scale, len(vector))(vector.tolist()), np.int64)


def accounting() -> str:
    """Say what computes ε."""
    return f"discrete Gaussian, zCDP to (ε, δ) by OpenDP {importlib.metadata.version('opendp')}"


@lru_cache
def _deviation(epsilon: float, delta: float, norm: float) -> float:
    """Return the least deviation that OpenDP grants an ε for, to one part in a thousand."""
    dp = _opendp()

    def spent(scale: float) -> float:
        measurement = dp.c.make_zCDP_to_approxDP(_gaussian(scale, 1))
        return float(measurement.map(norm).epsilon(delta))

    high = norm
    while spent(high) > epsilon:
        high *= 2
    low = high / 2
    while spent(low) <= epsilon:
        low, high = low / 2, low
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if spent(middle) <= epsilon else (middle, high)
    return high


def _gaussian(scale: float, length: int) -> Any:
    dp = _opendp()
    domain = dp.vector_domain(dp.atom_domain(T="i64"), size=length)
    return (domain, dp.l2_distance(T="f64")) >> dp.m.then_gaussian(scale=scale)


def _opendp() -> Any:
    try:
        import opendp.prelude as dp
    except ImportError:
        raise ToolchainError(
            "differential privacy needs the package opendp: pip install 'edgec[privacy]'"
        ) from None
    dp.enable_features("contrib")
    return dp
