"""The factor of an inverse, and columns that make up for each other."""

import numpy as np
import pytest

from edgec.compiler.numerics.second_order import DAMPING, inverse_factor


@pytest.mark.parametrize("length", [1, 3, 64, 65, 200])
def test_the_factor_is_that_of_the_damped_inverse(length: int) -> None:
    random = np.random.default_rng(length)
    inputs = random.standard_normal((2, 3 * length, length))
    second = (inputs.transpose(0, 2, 1) @ inputs / len(inputs[0])).astype(np.float32)
    upper = inverse_factor(second)
    np.testing.assert_array_equal(upper, np.triu(upper))
    for factor, hessian in zip(upper, second.astype(np.float64), strict=True):
        damped = hessian + DAMPING * np.trace(hessian) / length * np.eye(length)
        np.testing.assert_allclose(factor.T @ factor @ damped, np.eye(length), atol=1e-9)
        assert (np.diagonal(factor) > 0).all()
