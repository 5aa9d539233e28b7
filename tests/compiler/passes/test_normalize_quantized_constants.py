"""NormalizeQuantizedConstants: packed weights in the form of kernels, and the same values."""

from typing import Any

import numpy as np
import pytest
from support.relax_runs import run_module
from tvm import IRModule, relax

from edgec.compiler.ir.relax_helpers import constant, op_name, shape_of, value_of
from edgec.compiler.passes import NormalizeQuantizedConstants

op = relax.op
SCALES = np.linspace(0.01, 0.03, 6).astype(np.float32)


def quantized(*shape: int, dtype: str = "int8") -> np.ndarray:
    limits = np.iinfo(dtype)
    return np.random.default_rng(0).integers(limits.min, limits.max + 1, shape).astype(dtype)


def same(x: Any) -> Any:
    return x


def module_of(
    packed_weight: np.ndarray, zeros: np.ndarray, axis: int, move: Any, scales: np.ndarray = SCALES
) -> IRModule:
    """A product with move(dequantize(stored)), or the sum if that is int32, a bias."""
    builder = relax.BlockBuilder()
    floats = op.dequantize(
        constant(packed_weight), constant(scales), constant(zeros), axis=axis, out_dtype="float32"
    )
    x = relax.Var("x", relax.TensorType((1,), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            moved = builder.emit(move(builder.emit(floats)))
            if packed_weight.dtype == np.int32:
                used = op.add(x, moved)
            else:
                extents = shape_of(moved)
                assert extents is not None
                rows = builder.emit(op.broadcast_to(x, (2, extents[-2])))
                used = op.matmul(rows, moved)
            result = builder.emit_output(builder.emit(used))
        builder.emit_func_output(result)
    return builder.get()


def calls(module: IRModule) -> list[Any]:
    values = [binding.value for binding in module["main"].body.blocks[0].bindings]
    return [value for value in values if op_name(value) not in ("", "relax.broadcast_to")]


ZEROS = np.zeros(6, np.int8)
LAYOUT_OPS = {
    "transposed": ((6, 4), 0, op.permute_dims, 1),
    "same": ((4, 6), 1, same, 1),
    "bias": ((6,), 0, lambda x: op.reshape(x, [1, 6, 1, 1]), 1),
    "squeezed": ((1, 4, 6), 2, lambda x: op.reshape(x, [4, 6]), 1),
}


@pytest.mark.parametrize("case", LAYOUT_OPS)
def test_moves_go_into_the_codes(case: str) -> None:
    shape, axis, move, moved = LAYOUT_OPS[case]
    kind = "int32" if case == "bias" else "int8"
    before = module_of(quantized(*shape, dtype=kind), ZEROS.astype(kind), axis, move)
    after = NormalizeQuantizedConstants()(before)
    used = "relax.add" if case == "bias" else "relax.matmul"
    assert [op_name(call) for call in calls(after)] == ["relax.dequantize", used]
    assert int(calls(after)[0].attrs.axis) == moved
    np.testing.assert_array_equal(run_module(after), run_module(before))


def test_a_move_that_splits_the_axis_stays() -> None:
    before = module_of(quantized(6, 4), ZEROS, 0, lambda x: op.reshape(x, [12, 2]))
    names = [op_name(call) for call in calls(NormalizeQuantizedConstants()(before))]
    assert names == ["relax.dequantize", "relax.reshape", "relax.matmul"]


def test_uint8_around_128_is_int8() -> None:
    before = module_of(quantized(4, 6, dtype="uint8"), np.full(6, 128, np.uint8), 1, same)
    after = NormalizeQuantizedConstants()(before)
    packed_weight, _, zeros = (value_of(argument) for argument in calls(after)[0].args)
    assert packed_weight is not None
    assert packed_weight.dtype == np.int8
    assert zeros is not None
    assert not zeros.any()
    np.testing.assert_array_equal(run_module(after), run_module(before))


@pytest.mark.parametrize("per_channel", [True, False])
def test_what_does_not_fit_becomes_floats(*, per_channel: bool) -> None:
    zeros = np.array([128, 100, 128, 128, 128, 128], np.uint8)
    scales = SCALES
    if not per_channel:
        zeros, scales = np.array(100, np.uint8), np.array(0.01, np.float32)
    packed_weight = np.resize(np.uint8([0, 255]), (6, 4))
    before = module_of(packed_weight, zeros, 0, same, scales)
    after = NormalizeQuantizedConstants()(before)
    assert "relax.dequantize" not in [op_name(call) for call in calls(after)]
    np.testing.assert_array_equal(run_module(after), run_module(before))


@pytest.mark.parametrize("shape", [(5, 6), (2, 4, 6)])
def test_matrices_that_no_kernel_takes(shape: tuple[int, ...]) -> None:
    after = NormalizeQuantizedConstants()(module_of(quantized(*shape), ZEROS, len(shape) - 1, same))
    assert [op_name(call) for call in calls(after)] == ["relax.matmul"]


def test_what_no_kernel_takes_becomes_a_constant() -> None:
    """A weight that something else reads too, and one behind another operator."""
    after = NormalizeQuantizedConstants()(module_of(quantized(6, 4), ZEROS, 0, op.negative))
    assert [op_name(call) for call in calls(after)] == ["relax.negative", "relax.matmul"]
    assert value_of(calls(after)[0].args[0]) is not None


@pytest.mark.parametrize(
    ("axis", "move", "stays"),
    [
        (0, same, True),
        # No kernel reads a row with a scale for each column.
        (1, same, False),
        (0, lambda table: op.permute_dims(table, [1, 0]), False),
    ],
)
def test_rows_of_a_table_stay_quantized(axis: int, move: Any, stays: bool) -> None:
    builder = relax.BlockBuilder()
    indices = relax.Var("i", relax.TensorType((5,), "int64"))
    zeros = np.full(6, 128, np.uint8)
    table = np.clip(quantized(6, 6, dtype="uint8"), 1, 255)
    with builder.function("main", [indices]):
        with builder.dataflow():
            floats = op.dequantize(
                constant(table), constant(SCALES), constant(zeros), axis=axis, out_dtype="float32"
            )
            moved = builder.emit(move(builder.emit(floats)))
            chosen = builder.emit(op.add(indices, constant(np.array([0, 5, 3, 3, 1]))))
            rows = builder.emit(op.take(moved, chosen, axis=0, mode="clip"))
            result = builder.emit_output(rows)
        builder.emit_func_output(result)
    module = builder.get()
    after = NormalizeQuantizedConstants()(module)
    found = [call for call in calls(after) if op_name(call) == "relax.dequantize"]
    assert len(found) == stays
    assert all(value_of(call.args[0]).dtype == np.int8 for call in found)  # type: ignore[union-attr]
    np.testing.assert_allclose(run_module(module), run_module(after), rtol=1e-6)
