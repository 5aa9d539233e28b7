"""ExpandWeights: packed weights become float constants, activations stay in quantized values."""

import numpy as np
import pytest
from numpy.typing import NDArray
from support.onnx_graphs import operators
from support.relax_runs import run_module
from tvm import IRModule, relax

from edgec.compiler.ir.relax_helpers import constant, op_name, value_of
from edgec.compiler.passes.expand_weights import ExpandWeights

op = relax.op
PACKED = np.random.default_rng(0).integers(-128, 128, (4, 6)).astype(np.int8)
SCALES = np.linspace(0.01, 0.03, 6).astype(np.float32)


def stored_module() -> IRModule:
    """A product of quantized x with a packed weight."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2, 4), "float32"))
    scale, zero = constant(np.float32(0.05)), constant(np.int8(0))
    zeros = constant(np.zeros(6, np.int8))
    with builder.function("main", [x]):
        with builder.dataflow():
            quantized = builder.emit(op.quantize(x, scale, zero, axis=0, out_dtype="int8"))
            data = builder.emit(op.dequantize(quantized, scale, zero, axis=0, out_dtype="float32"))
            weight = builder.emit(
                op.dequantize(
                    constant(PACKED), constant(SCALES), zeros, axis=1, out_dtype="float32"
                )
            )
            result = builder.emit_output(builder.emit(op.matmul(data, weight)))
        builder.emit_func_output(result)
    return builder.get()


def test_weights_become_floats_and_activations_stay() -> None:
    before = stored_module()
    after = ExpandWeights()(before)
    assert operators(before) == {"quantize": 1, "dequantize": 2, "matmul": 1}
    assert operators(after) == {"quantize": 1, "dequantize": 1, "matmul": 1}
    bindings = [b for block in after["main"].body.blocks for b in block.bindings]
    (product,) = [b.value for b in bindings if "matmul" in str(getattr(b.value, "op", ""))]
    weight = value_of(product.args[1])
    assert weight is not None
    np.testing.assert_allclose(weight, PACKED.astype(np.float32) * SCALES, rtol=1e-6)
    np.testing.assert_allclose(run_module(before), run_module(after), rtol=1e-5, atol=1e-6)


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
