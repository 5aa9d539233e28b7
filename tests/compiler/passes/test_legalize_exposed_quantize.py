"""LegalizeExposedQuantize: what a run returns is exact, values between kernels stay."""

from typing import Any

import numpy as np
import pytest
import tvm
import tvm_ffi
from support.onnx_graphs import operators
from tvm import IRModule, relax

from edgec.compiler.ir.relax_helpers import constant
from edgec.compiler.passes import LegalizeExposedQuantize

op = relax.op
# Products with its reciprocal in float32 round to other quantized values than divisions do, now and
# then.
SCALE = np.float32(0.3)


def module_of(seen: bool) -> IRModule:
    """x in quantized values; the quantized values are given out, or only read by a dequantize."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4096,), "float32"))
    scale, zero = constant(np.float32(SCALE)), constant(np.int8(3))
    with builder.function("main", [x]):
        with builder.dataflow():
            quantized = builder.emit(op.quantize(x, scale, zero, axis=0, out_dtype="int8"))
            floats = builder.emit(
                op.dequantize(quantized, scale, zero, axis=0, out_dtype="float32")
            )
            results = [quantized, floats] if seen else [floats]
            outputs = [builder.emit_output(result) for result in results]
        builder.emit_func_output(relax.Tuple(outputs))
    return builder.get()


def run(module: IRModule, x: np.ndarray) -> Any:
    executable = relax.build(module, tvm.target.Target({"kind": "llvm"}))
    machine = relax.VirtualMachine(executable, tvm.cpu())
    return [result.numpy() for result in machine["main"](tvm.runtime.tensor(x))]


def test_seen_codes_are_those_of_a_division() -> None:
    legalized = LegalizeExposedQuantize()(module_of(seen=True))
    assert operators(legalized)["quantize"] == 0
    assert operators(legalized)["dequantize"] == 1
    x = (np.arange(-2048, 2048) / 32 * SCALE).astype(np.float32)
    quantized, floats = run(legalized, x)
    expected = np.clip(np.round(x / SCALE) + 3, -128, 127).astype(np.int8)
    approximate = np.clip(np.round(x * (1 / SCALE)) + 3, -128, 127).astype(np.int8)
    assert np.any(approximate != expected), "the values tell nothing"
    np.testing.assert_array_equal(quantized, expected)
    np.testing.assert_allclose(floats, (expected.astype(np.float32) - 3) * SCALE, rtol=1e-6)


@pytest.mark.parametrize("seen", [False, True])
def test_idempotent(seen: bool) -> None:
    once = LegalizeExposedQuantize()(module_of(seen))
    assert tvm_ffi.structural_equal(LegalizeExposedQuantize()(once), once)


def test_codes_between_kernels_stay() -> None:
    module = module_of(seen=False)
    assert tvm_ffi.structural_equal(LegalizeExposedQuantize()(module), module)
