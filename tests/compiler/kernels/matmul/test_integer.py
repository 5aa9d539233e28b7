"""Matrix products of quantized values: bit-identical to NumPy integers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.integer_graphs import Code, channel_constant, open_module
from support.kernel_runs import random_decisions
from tvm import relax

from edgec.compiler.ir.relax_helpers import constant
from edgec.compiler.runtime.session import why_not_here
from edgec.targets import load_target

NAMES = ("x86-64-v4-vnni", "x86-64-v4", "x86-64-v3")
TARGETS = [name for name in NAMES if not why_not_here(load_target(name))]
DATA, RESULT = Code("uint8", 0.02, 77), Code("uint8", 0.03, 128)


def arrays(m: int, n: int, k: int, largest: int = 63) -> tuple[Any, Any, Any, Any]:
    random = np.random.default_rng(m + n + k)
    data = random.integers(0, 256, (m, k), np.uint8)
    weight = random.integers(-largest, largest + 1, (k, n), np.int8)
    scales = (0.01 / np.sqrt(k) * (1 + random.random(n))).astype(np.float32)
    return data, weight, scales, random.integers(-3000, 3000, n, np.int32)


def module(m: int, n: int, k: int, largest: int = 63) -> Any:
    _, weight, scales, bias = arrays(m, n, k, largest)
    x = relax.Var("x", relax.TensorType([m, k], "uint8"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            value = DATA.dequantize(builder, x)
            floats = channel_constant(builder, weight, scales, 1)
            value = builder.emit(relax.op.matmul(value, floats, out_dtype="float32"))
            units = (scales * np.float32(DATA.scale)).astype(np.float32)
            added = channel_constant(builder, bias.reshape(1, -1), units, 1)
            value = builder.emit(relax.op.add(value, added))
            value = builder.emit(relax.op.maximum(value, constant(np.array(-0.5, np.float32))))
            result = builder.emit_output(RESULT.quantize(builder, value))
        builder.emit_func_output(result)
    return builder.get()


def expected(m: int, n: int, k: int, largest: int = 63) -> Any:
    data, weight, scales, bias = arrays(m, n, k, largest)
    sums = (data.astype(np.int64) - DATA.zero_point) @ weight.astype(np.int64) + bias
    units = (scales * np.float32(DATA.scale)).astype(np.float32)
    return RESULT.quantized(np.maximum(sums.astype(np.float32) * units, np.float32(-0.5)))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("shape", [(1, 10, 64), (7, 37, 40), (33, 64, 128), (7, 37, 40, 127)])
def test_equals_integers(shape: tuple[int, ...], target: str, tmp_path: Path) -> None:
    for number, decide in enumerate((None, random_decisions(1))):
        folder = tmp_path / str(number)
        folder.mkdir()
        machine = load_target(target)
        options = {} if decide is None else {"decide": decide}
        built = open_module(module(*shape), machine, folder, **options)
        assert built.templates == ["integer_matmul"]
        wanted = expected(*shape)
        assert len(np.unique(wanted)) > 5
        np.testing.assert_array_equal(built.run({"x": arrays(*shape)[0]})["y"], wanted)


def test_rows_of_no_whole_groups_stay_float(tmp_path: Path) -> None:
    shape = (5, 12, 30)
    built = open_module(module(*shape), load_target("x86-64-v3"), tmp_path)
    assert "integer_matmul" not in built.templates
    quantized = built.run({"x": arrays(*shape)[0]})["y"].astype(int)
    assert np.abs(quantized - expected(*shape)).max() <= 1
