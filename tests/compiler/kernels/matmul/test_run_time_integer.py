"""Products of 8-bit matrices that a run gets: the same as NumPy's integers, in every dtype."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from support.emulated_runs import run_emulated
from support.kernel_runs import Built, compile_graph, random_decisions
from support.onnx_graphs import make_model, node

from edgec.compiler.runtime.session import why_not_here
from edgec.targets import load_target

NAMES = ("x86-64-v4-vnni", "x86-64-v4", "x86-64-v3")
TARGETS = [name for name in NAMES if not why_not_here(load_target(name))]
# Shapes of A, its zero point, B and its zero point; their dtypes; whether the kernel takes it.
CASES = {
    "whole groups": ([5, 16], None, [16, 32], None, "uint8", "int8", True),
    "a rest everywhere": ([7, 37], [], [37, 19], [], "uint8", "uint8", True),
    "few columns": ([3, 8], [], [8, 3], None, "int8", "int8", True),
    "zero points of columns": ([3, 9], [], [9, 21], [21], "int8", "uint8", True),
    "zero points of rows": ([6, 8], [6], [8, 17], [], "uint8", "int8", True),
    "batches": ([2, 3, 4, 12], [], [2, 3, 12, 18], [], "uint8", "int8", True),
    "one matrix for a batch": ([2, 4, 12], None, [12, 18], None, "uint8", "int8", True),
    "one row for batches": ([4, 12], None, [2, 12, 18], None, "uint8", "int8", False),
}


def model() -> tuple[onnx.ModelProto, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return a model of all cases, its inputs, and what NumPy makes of them."""
    random, nodes, inputs, expected = np.random.default_rng(0), [], {}, {}
    for number, (a, p, b, q, left, right, _) in enumerate(CASES.values()):
        parts = (("a", a, left), ("b", b, right), ("p", p, left), ("q", q, right))
        for name, shape, dtype in parts:
            if shape is not None:
                ends = np.iinfo(dtype)
                values = random.integers(ends.min, ends.max + 1, shape)
                inputs[f"{name}{number}"] = np.asarray(values).astype(dtype)
        given = [f"{name}{number}" if f"{name}{number}" in inputs else "" for name in "abpq"]
        nodes.append(node("MatMulInteger", given, [f"y{number}"]))
        whole = [np.int64(inputs[name]) if name else np.int64(0) for name in given]
        rows = whole[2][:, None] if np.ndim(whole[2]) else whole[2]
        expected[f"y{number}"] = (whole[0] - rows) @ (whole[1] - whole[3])
    kinds = {
        name: onnx.helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in inputs.items()
    }
    kinds.update(dict.fromkeys(expected, onnx.TensorProto.INT32))
    shapes = {name: list(array.shape) for name, array in inputs.items()}
    return make_model(nodes, shapes, list(expected), dtypes=kinds), inputs, expected


@pytest.mark.parametrize("target", TARGETS)
def test_equals_integers(target: str, tmp_path: Path) -> None:
    made, inputs, expected = model()
    built: Built = compile_graph(made, target, tmp_path, random_decisions(1))
    found = built.open().run(inputs)
    for (case, (*_, kernel)), name in zip(CASES.items(), expected, strict=True):
        np.testing.assert_array_equal(found[name], expected[name], err_msg=case)
        assert ("run_time_integer_matmul" in built.templates_of(name)) == kernel, case
    other = built.open().run({**inputs, "b0": inputs["b0"] ^ 1})
    assert (other["y0"] != expected["y0"]).any()


def test_the_lowest_values_are_added_in_32_bits_on_armv8_0(tmp_path: Path) -> None:
    """Twice 128 * 128 is beyond int16."""
    inputs = {"a": np.full((2, 8), -128, np.int8), "b": np.full((8, 4), -128, np.int8)}
    kinds = dict.fromkeys(inputs, onnx.TensorProto.INT8) | {"y": onnx.TensorProto.INT32}
    shapes = {name: list(array.shape) for name, array in inputs.items()}
    made = make_model([node("MatMulInteger", ["a", "b"], ["y"])], shapes, ["y"], dtypes=kinds)
    built = compile_graph(made, "rpi4", tmp_path)
    found = run_emulated(built.library, built.target, built.signature, inputs)["y"]
    assert (found == 8 * 2**14).all()
