"""Constants on their way into a program."""

import numpy as np

from edgec.compiler.lowering.schedule import without_subnormals


def test_subnormal_weights_become_zero_and_nothing_else_does() -> None:
    tiny = np.finfo(np.float32).tiny
    array = np.array([0, -0.0, 1, -1, tiny, -tiny, tiny / 2, -1e-45, np.inf, np.nan], np.float32)
    expected = array.copy()
    expected[6:8] = 0
    np.testing.assert_array_equal(without_subnormals(array), expected)
    normal = array[:6]
    assert without_subnormals(normal) is normal
    quantized = np.array([1, -1], np.int8)
    assert without_subnormals(quantized) is quantized
