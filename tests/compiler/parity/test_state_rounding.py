"""Rounding of activations that ONNX Runtime is allowed and leaves out is written out."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgec.compiler.parity.oracle import RoundedModel, run_original

RANDOM = np.random.default_rng(0)
ROWS, INPUTS, OUTPUTS, BLOCK = 3, 64, 8, 32
CODES = RANDOM.integers(0, 16, (OUTPUTS, INPUTS), np.uint8)
SCALES = RANDOM.uniform(0.5, 1.5, (OUTPUTS, INPUTS // BLOCK)).astype(np.float32)
ZEROS = RANDOM.uniform(6, 9, SCALES.shape).astype(np.float32)
DATA = RANDOM.normal(size=(1, ROWS, INPUTS)).astype(np.float32)
# A block of zeros has no scale.
DATA[0, 0, :BLOCK] = 0


def product(level: int, opset: int) -> onnx.ModelProto:
    packed = (CODES[:, 0::2] | CODES[:, 1::2] << 4).reshape(OUTPUTS, INPUTS // BLOCK, -1)
    arrays = {"b": packed, "s": SCALES.reshape(-1), "z": ZEROS.reshape(-1)}
    node = helper.make_node(
        "MatMulNBits",
        ["x", *arrays],
        ["y"],
        domain="com.microsoft",
        K=INPUTS,
        N=OUTPUTS,
        bits=4,
        block_size=BLOCK,
        accuracy_level=level,
    )
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, ROWS, INPUTS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, ROWS, OUTPUTS])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.mark.parametrize("opset", [17, 21])
def test_float_zero_points_round_as_allowed(opset: int) -> None:
    grouped = CODES.reshape(OUTPUTS, -1, BLOCK) - ZEROS[..., None]
    weight = (grouped * SCALES[..., None]).reshape(OUTPUTS, INPUTS)
    blocks = DATA.reshape(ROWS, -1, BLOCK)
    scales = np.abs(blocks).max(-1, keepdims=True) / 127
    whole = np.round(np.divide(blocks, scales, where=scales > 0, out=np.zeros_like(blocks)))
    expected = (whole * scales).reshape(ROWS, INPUTS) @ weight.T
    found = RoundedModel(product(4, opset)).run({"x": DATA})
    assert found is not None
    # Float32 sums of 64 products of the order of 5.
    np.testing.assert_allclose(found["y"][0], expected, rtol=0, atol=1e-4)
    exact = run_original(product(4, opset), {"x": DATA})["y"][0]
    np.testing.assert_allclose(exact, DATA[0] @ weight.T, rtol=0, atol=1e-4)
    assert np.abs(exact - expected).max() > 1e-2


def test_nothing_rounds_without_leave() -> None:
    assert RoundedModel(product(0, 21)).run({"x": DATA}) is None
