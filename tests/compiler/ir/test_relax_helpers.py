"""Constants are read where they are."""

import numpy as np
import pytest
from ml_dtypes import bfloat16
from tvm import relax

from edgec.compiler.ir.relax_helpers import value_of


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "int64", "bool", bfloat16])
def test_an_array_is_the_memory_of_its_constant_and_stays_as_it_is(dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    constant = relax.const(array, str(np.dtype(dtype)))
    value = value_of(constant)
    assert value is not None
    assert value.dtype == array.dtype
    np.testing.assert_array_equal(value, array)
    if dtype is not bfloat16:
        again = value_of(constant)
        assert again is not None
        assert np.shares_memory(value, again)
        with pytest.raises(ValueError, match="read-only"):
            value[0, 0] = 1


def test_what_is_no_constant_has_no_array() -> None:
    assert value_of(relax.Var("x")) is None
