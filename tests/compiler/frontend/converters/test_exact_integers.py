"""Products of 8-bit integers on kernels, exactly."""

from pathlib import Path

import numpy as np
from onnx import TensorProto
from support.kernel_runs import compile_graph
from support.onnx_graphs import make_model, node

from edgec.compiler.parity.oracle import run_original


def whole(*shape: int, dtype: str, low: int, high: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high + 1, shape).astype(dtype)


# So deep that float32 would not hold every sum: two shares; and weights that int8 does not hold
# without their zero point.
DEPTH = 1100
WEIGHTS = {
    "w": np.full((DEPTH, 8), 127, np.int8) - whole(DEPTH, 8, dtype="int8", low=0, high=3),
    "u": whole(16, 8, dtype="uint8", low=0, high=255),
    "u_zero": np.array(3, np.uint8),
    "x_zero": np.array(200, np.uint8),
    "k": whole(6, 4, 3, 3, dtype="int8", low=-128, high=127),
    "s": np.float32(0.02),
    "t": np.float32(3.0),
    "y_zero": np.array(7, np.uint8),
    "i_zero": np.array(0, np.int8),
}


def test_against_onnx_runtime(tmp_path: Path) -> None:
    inputs = {
        "x": whole(3, DEPTH, dtype="uint8", low=240, high=255),
        "z": whole(2, 5, 16, dtype="uint8", low=0, high=255),
        "zero": np.array(90, np.uint8),
        "image": whole(1, 4, 5, 6, dtype="uint8", low=0, high=255),
    }
    nodes = [
        node("MatMulInteger", ["x", "w"], ["deep"]),
        node("MatMulInteger", ["z", "u", "zero", "u_zero"], ["run_time"]),
        node("ConvInteger", ["image", "k", "x_zero"], ["conv"], pads=[1] * 4),
        node(
            "QLinearConv",
            ["image", "s", "x_zero", "k", "s", "i_zero", "t", "y_zero"],
            ["back"],
            pads=[1] * 4,
        ),
    ]
    outputs = ["deep", "run_time", "conv", "back"]
    dtypes = dict.fromkeys(inputs, TensorProto.UINT8)
    dtypes.update(dict.fromkeys(outputs[:3], TensorProto.INT32), back=TensorProto.UINT8)
    shapes = {name: array.shape for name, array in inputs.items()}
    model = make_model(nodes, shapes, outputs, WEIGHTS, dtypes=dtypes)
    built = compile_graph(model, "native", tmp_path)
    found, expected = built.open(threads=1).run(inputs), run_original(model, inputs)
    for name in outputs:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    # Float32 alone would not hold these sums.
    exact = inputs["x"].astype(np.int64) @ WEIGHTS["w"].astype(np.int64)
    assert exact.max() > 2**24
    assert (exact.astype(np.float32) != exact).any()
    # No step multiplies in generic code.
    assert not any(
        "matmul" in s.label or "conv" in s.label
        for s in built.program.steps
        if s.template == "generic"
    )
