"""Activations and their slopes."""

import numpy as np
import pytest

from edgec.compiler.numerics.activations import ACTIVATIONS, erf

PARAMETERS = {"clip": (-0.5, 0.7), "hard_sigmoid": (0.2, 0.5), "leaky_relu": (0.1,)}
# Away from the corners of piecewise functions.
POINTS = np.array([0.11, 0.37, 0.62, 1.3, 2.2, 3.7])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_slope_is_that_of_the_function(name: str) -> None:
    points = POINTS if name == "sqrt" else np.concatenate([-POINTS, POINTS])
    parameters = PARAMETERS.get(name, ())
    function, step = ACTIVATIONS[name].function, 1e-6
    above, below = (function(points + side, *parameters)[0] for side in (step, -step))
    _, slope = function(points, *parameters)
    np.testing.assert_allclose(slope(), (above - below) / (2 * step), atol=1e-7)


def test_erf_of_float32_is_off_by_less_than_float32_shows() -> None:
    points = np.linspace(-4, 4, 1001)
    assert np.abs(erf(points.astype(np.float32)) - erf(points)).max() < 4e-7


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_float32_stays_float32(name: str) -> None:
    points = POINTS.astype(np.float32)
    y, slope = ACTIVATIONS[name].function(points, *PARAMETERS.get(name, ()))
    assert (points * slope()).dtype == y.dtype == np.float32
