"""QuantizeBeforeConcat: the same quantized values, and where it stays away."""

from collections import Counter
from typing import Any

import numpy as np
from support.relax_runs import run_module
from tvm import IRModule, relax

from edgec.compiler.ir.relax_helpers import constant, op_name
from edgec.compiler.passes import QuantizeBeforeConcat

op = relax.op


def parameters(scale: float, zero_point: int) -> tuple[Any, Any]:
    return constant(np.array(scale, np.float32)), constant(np.array(zero_point, np.uint8))


def module_of(scales: list[float], *, seen: bool = False) -> IRModule:
    """Two values of these scales, concatenated and quantized with scale 0.05."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 4, 3, 3), "float32"))
    outer = parameters(0.05, 100)
    with builder.function("main", [x]):
        with builder.dataflow():
            fields = []
            for scale in scales:
                inner = parameters(scale, 100)
                quantized = builder.emit(op.quantize(x, *inner, axis=0, out_dtype="uint8"))
                fields.append(
                    builder.emit(op.dequantize(quantized, *inner, axis=0, out_dtype="float32"))
                )
            joined = builder.emit(op.concat(fields, axis=1))
            quantized = builder.emit(op.quantize(joined, *outer, axis=0, out_dtype="uint8"))
            floats = builder.emit(op.dequantize(quantized, *outer, axis=0, out_dtype="float32"))
            if seen:
                floats = builder.emit(op.add(floats, joined))
            result = builder.emit_output(floats)
        builder.emit_func_output(result)
    return builder.get()


def count(module: IRModule) -> int:
    bindings = module["main"].body.blocks[0].bindings
    return Counter(op_name(binding.value) for binding in bindings)["relax.quantize"]


def test_each_value_is_quantized() -> None:
    before = module_of([0.07, 0.05])
    after = QuantizeBeforeConcat()(before)
    # The second has the scale of the concatenation already.
    assert count(after) == count(before) + 1
    np.testing.assert_array_equal(run_module(after), run_module(before))


def test_equal_scales_stay() -> None:
    before = module_of([0.05, 0.05])
    assert count(QuantizeBeforeConcat()(before)) == count(before)


def test_a_concatenation_that_something_else_reads_stays() -> None:
    before = module_of([0.07, 0.05], seen=True)
    assert count(QuantizeBeforeConcat()(before)) == count(before)
