"""Casts to and from storage types: exactly what ml_dtypes does, for every code and half float."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper
from support.onnx_graphs import make_model, node, save

from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.errors import UnsupportedModelError
from edgec.compiler.ir.storage import E8M0, FLOATS, INTEGER_BITS, STORAGE

ENCODED = np.arange(256, dtype=np.uint8)
HALVES = np.arange(1 << 16, dtype=np.uint16).view(np.float16)


def run(folder: Path, array: np.ndarray, target: np.dtype, **attributes: int) -> np.ndarray:
    """The array cast by a compiled model."""
    kinds = {
        "x": helper.np_dtype_to_tensor_dtype(array.dtype),
        "y": helper.np_dtype_to_tensor_dtype(target),
    }
    nodes = [node("Cast", ["x"], ["y"], to=kinds["y"], **attributes)]
    model = make_model(nodes, {"x": array.shape}, ["y"], opset=25, dtypes=kinds)
    # NaN is part of what is tested, and no parity.
    options = CompileOptions(parity=False)
    bundle = compile_model(save(model, folder), options=options, output=folder / "m.edgec")
    return bundle.run({"x": array})["y"]


@pytest.mark.parametrize("name", sorted(STORAGE))
def test_decode_every_code(tmp_path: Path, name: str) -> None:
    count = 1 << INTEGER_BITS.get(name, 8)
    values = ENCODED[:count].view(np.dtype(name))
    found = run(tmp_path, values, np.dtype(np.float32))
    np.testing.assert_array_equal(found, values.astype(np.float32))


@pytest.mark.parametrize("saturate", [0, 1])
@pytest.mark.parametrize("name", sorted(FLOATS))
def test_encode_every_half(tmp_path: Path, name: str, saturate: int) -> None:
    dtype = np.dtype(name)
    found = run(tmp_path, HALVES, dtype, saturate=saturate)
    expected = HALVES.astype(np.float32)
    if saturate:
        info = ml_dtypes.finfo(dtype)
        expected = np.clip(expected, np.float32(info.min), np.float32(info.max))
    with np.errstate(over="ignore", invalid="ignore"):
        coded = expected.astype(dtype)
    np.testing.assert_array_equal(found.view(np.uint8), coded.view(np.uint8))


@pytest.mark.parametrize("name", sorted(INTEGER_BITS))
def test_integers_keep_their_low_bits(tmp_path: Path, name: str) -> None:
    values = np.arange(-300, 300, dtype=np.int32)
    found = run(tmp_path, values, np.dtype(name))
    np.testing.assert_array_equal(found, values.astype(np.dtype(name)))


def test_bfloat16_keeps_nan(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    bits = random.integers(0, 1 << 32, 100_000, dtype=np.uint32)
    # The payload of these NaN is in the bits that are rounded away.
    bits[:4] = 0x7F800001, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF
    values = bits.view(np.float32)
    found = run(tmp_path, values, np.dtype(ml_dtypes.bfloat16)).astype(np.float32)
    with np.errstate(invalid="ignore"):
        expected = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(found, expected)


def test_powers_of_two_are_rounded_up(tmp_path: Path) -> None:
    values = np.array([1, 1.01, 2, 3, 0.3, 1e38, np.inf, np.nan], np.float32)
    found = run(tmp_path, values, np.dtype(E8M0)).astype(np.float32)
    np.testing.assert_array_equal(found, np.float32([1, 2, 2, 4, 0.5, 2**127, 2**127, np.nan]))


def test_codes_are_moved_but_not_computed_with(tmp_path: Path) -> None:
    kinds = {"x": TensorProto.FLOAT8E4M3FN, "y": TensorProto.FLOAT8E4M3FN}
    moved = [node("Transpose", ["x"], ["t"]), node("Reshape", ["t", "s"], ["y"])]
    weights = {"s": np.array([3, 2])}
    model = make_model(moved, {"x": [2, 3]}, ["y"], weights, opset=25, dtypes=kinds)
    compile_model(save(model, tmp_path), output=tmp_path / "m.edgec")
    computed = [node("Cast", ["x"], ["i"], to=TensorProto.INT4), node("Abs", ["i"], ["y"])]
    model = make_model(computed, {"x": [2, 3]}, ["y"], opset=25, dtypes=kinds)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT4
    with pytest.raises(UnsupportedModelError, match="int4 is not supported here"):
        compile_model(save(model, tmp_path), output=tmp_path / "n.edgec")
