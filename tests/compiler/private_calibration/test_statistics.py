"""Histograms add up, their ranges hold the values, and noise has the deviation that ε asks for."""

import math

import numpy as np
import pytest
from support.secure_sums import new_session

from edgec.compiler.errors import CalibrationError
from edgec.compiler.private_calibration.noise import add_noise, deviation
from edgec.compiler.private_calibration.session import Noise
from edgec.compiler.private_calibration.statistics import (
    BINS,
    UNITS,
    LargestValues,
    count,
    edges,
    largest_units,
    range_of,
    range_of_units,
)

NOISE = Noise(epsilon=2, delta=1e-5, added_by="clients", low_log2=-6, high_log2=6)


def test_every_value_is_between_the_edges_of_its_bin():
    values = np.float32([0, 1e-6, -1e-6, 1, -1, 0.999, 3.14159, -2500, 1 / 128, 2**17.9])
    bounds = edges()
    for value in values:
        (place,) = np.flatnonzero(count(np.float32([value])))
        assert bounds[place] <= value <= bounds[place + 1]


def test_counts_of_parts_are_the_counts_of_the_whole():
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    counts = count(values)
    assert np.array_equal(counts, count(values[:300]) + count(values[300:]))
    low, high = range_of(counts, "min-max", "x")
    assert 0 <= high - values.max() <= high / 64
    assert 0 <= values.min() - low <= -low / 64
    inner = range_of(counts, "mse", "x")
    assert low <= inner[0] < 0 < inner[1] <= high


def test_zeros_have_the_range_zero_and_positive_values_begin_there():
    assert range_of(count(np.zeros(3, np.float32)), "mse", "x") == (0, 0)
    assert range_of(count(np.float32([0, 1])), "min-max", "x") == (0, 1.015625)


@pytest.mark.parametrize(
    ("counts", "message"),
    [(np.zeros(BINS, np.int64), "no client"), (count(np.float32([1e9])), "beyond 262,144")],
)
def test_what_cannot_be_a_range_is_refused(counts, message):
    with pytest.raises(CalibrationError, match=message):
        range_of(counts, "min-max", "x")


def test_logarithms_are_clipped_and_give_the_range_back():
    largest = LargestValues()
    largest.see(np.float32([4, -1e9]))
    units = largest.units(NOISE)
    assert list(units) == [2 * UNITS, 6 * UNITS]
    assert np.abs(units).max() <= largest_units(NOISE)
    assert range_of_units(5 * units, NOISE, 5) == pytest.approx((-(2**6.5), 2**2.5))


def test_noise_is_what_epsilon_asks_for():
    session = new_session(9, 5).model_copy(update={"noise": NOISE})
    found = deviation(session)
    # rho + 2 sqrt(rho ln(1 / delta)) is an upper bound of epsilon: the noise need not be more.
    norm = largest_units(NOISE) * math.sqrt(2)
    rho = (math.sqrt(math.log(1e5) + 2) - math.sqrt(math.log(1e5))) ** 2
    assert 0.5 * norm / math.sqrt(2 * rho) < found <= 1.001 * norm / math.sqrt(2 * rho)
    noisy = add_noise(np.zeros(2000, np.int64), found)
    assert noisy.std() == pytest.approx(found, rel=0.1)
