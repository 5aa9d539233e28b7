"""Rows of quantized tables: types of indices, widths that do not divide, indices at the ends."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto
from support.kernel_runs import X86_TARGETS, Branch, check_branches
from support.onnx_graphs import node
from tvm import relax

from edgec.compiler.backend import evaluate_here
from edgec.compiler.ir.operators import decode_weight
from edgec.compiler.ir.relax_helpers import constant
from edgec.compiler.ir.signature import Signature, TensorSpec

ROWS = 600


def look_up(columns: int, index: int = TensorProto.INT64, zero_point: int = 0) -> Branch:
    """|x| * 100 as indices of a table, as other tools store one."""
    random = np.random.default_rng(columns)
    dtype = np.uint8 if zero_point else np.int8
    # Less the zero point they fit int8.
    values = random.integers(-127, 128, (ROWS, columns)) + zero_point
    nodes = [
        node("Abs", ["x"], ["a"]),
        node("Mul", ["a", "hundred"], ["h"]),
        node("Cast", ["h"], ["i"], to=index),
        node("DequantizeLinear", ["table", "scales", "zeros"], ["floats"], axis=0),
        node("Gather", ["floats", "i"], ["y"]),
    ]
    weights = {
        "hundred": np.float32(100),
        "table": values.astype(dtype),
        "scales": random.uniform(0.01, 0.1, ROWS).astype(np.float32),
        "zeros": np.full(ROWS, zero_point, dtype),
    }
    uses = ["elementwise", "generic", "embedding"]
    return Branch(nodes, {"x": [3, 41]}, uses, weights)


BRANCHES = {
    "whole vectors": look_up(64),
    "a rest": look_up(19),
    "fewer than a vector": look_up(3),
    "int32": look_up(16, TensorProto.INT32),
    "a zero point": look_up(16, zero_point=128),
}


# Vectors of the most and of the fewest lanes.
@pytest.mark.parametrize("target", X86_TARGETS[::2])
def test_rows_are_dequantized(target: str, tmp_path: Path) -> None:
    check_branches(BRANCHES, target, tmp_path)


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_halves_and_indices_beyond_the_table(kind: type) -> None:
    """Values are exact; an index beyond the table is clipped, so that nothing else is read."""
    table = np.random.default_rng(0).standard_normal((40, 21)).astype(kind)
    indices = np.array([[0, 39, 40, 1 << 40], [-1, -(1 << 40), 7, 20]])
    given = relax.Var("i", relax.TensorType(indices.shape, "int64"))
    builder = relax.BlockBuilder()
    with builder.function("main", [given]):
        with builder.dataflow():
            floats = decode_weight(constant(table), [], format="float", shape=table.shape)
            rows = relax.op.take(builder.emit(floats), given, axis=0, mode="clip")
            result = builder.emit_output(builder.emit(rows))
        builder.emit_func_output(result)
    signature = Signature(
        (TensorSpec("i", indices.shape, "int64"),),
        (TensorSpec("y", (*indices.shape, 21), "float32"),),
    )
    model = evaluate_here(builder.get(), signature)
    expected = table[np.clip(indices, 0, 39)].astype(np.float32)
    np.testing.assert_array_equal(model.run({"i": indices})["y"], expected)
