"""Dequantized constants are the bits that TVM's own folding gives."""

import numpy as np
import pytest
from numpy.typing import NDArray
from tvm import IRModule, relax

from edgec.compiler.ir.relax_helpers import constant, op_name, value_of
from edgec.compiler.passes.expand_weights import ExpandWeights


def _module(
    values: NDArray[np.integer], scale: NDArray[np.float32], zero: NDArray[np.integer], axis: int
) -> IRModule:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(values.shape, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            weight = relax.op.dequantize(
                constant(values), constant(scale), constant(zero), axis=axis, out_dtype="float32"
            )
            total = builder.emit(relax.op.add(x, builder.emit(weight)))
            result = builder.emit_output(total)
        builder.emit_func_output(result)
    return builder.get()


def _weight(module: IRModule) -> NDArray[np.float32]:
    (addition,) = [
        binding.value
        for block in module["main"].body.blocks
        for binding in block.bindings
        if op_name(binding.value) == "relax.add"
    ]
    array = value_of(addition.args[1])
    assert array is not None, "the weight is no constant"
    return array


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32"])
@pytest.mark.parametrize("axis", [0, 1, None])
def test_the_same_bits_as_folding(dtype: str, axis: int | None) -> None:
    random = np.random.default_rng(0)
    low, high = (-(2**30), 2**30) if dtype == "int32" else (0, 100)
    values = random.integers(low, high, (5, 7, 3)).astype(dtype)
    shape = () if axis is None else (values.shape[axis],)
    scale = np.asarray(random.random(shape), np.float32)
    zero = np.asarray(random.integers(0, 20, shape)).astype(dtype)
    module = _module(values, scale, zero, axis or 0)
    expected = _weight(relax.transform.FoldConstant()(module))
    np.testing.assert_array_equal(_weight(ExpandWeights()(module)), expected)
