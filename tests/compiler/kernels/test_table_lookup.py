"""Functions of quantized values by tables: quantized values in, quantized values out.

In whole vectors and beside them.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.integer_graphs import Code, open_module
from tvm import relax

from edgec.compiler.ir.signature import Signature, TensorSpec
from edgec.compiler.kernels.emit.epilogue import UNARY, EpilogueStep
from edgec.compiler.kernels.table_lookup import TASK_BYTES, evaluate, table_of
from edgec.compiler.numerics.activations import ACTIVATIONS
from edgec.compiler.parity.reference import run_reference
from edgec.compiler.runtime.session import why_not_here
from edgec.targets import load_target

# Vectors of 512 and 256 bits.
NAMES = ("x86-64-v4-vnni", "x86-64-v3")
TARGETS = [name for name in NAMES if not why_not_here(load_target(name))]
DATA, RESULT = Code("uint8", 0.03, 120), Code("uint8", 0.0171, 100)

op = relax.op
CASES: dict[str, Callable[[Any], Any]] = {
    "sigmoid": op.sigmoid,
    "tanh": op.tanh,
    "silu": op.nn.silu,
    "gelu": op.nn.gelu,
    "exp": op.exp,
    "another scale": lambda x: x,
    "leaky relu": lambda x: op.nn.leakyrelu(x, 0.2),
    "tanh of sigmoid": lambda x: op.tanh(op.sigmoid(x)),
}


def module(size: int, function: Callable[[Any], Any], data: Code = DATA) -> Any:
    x = relax.Var("x", relax.TensorType([size], data.dtype))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            value = builder.emit(function(data.dequantize(builder, x)))
            result = builder.emit_output(RESULT.quantize(builder, value))
        builder.emit_func_output(result)
    return builder.get()


def reference(graph: Any, quantized: Any) -> Any:
    size = quantized.size
    inputs = (TensorSpec("x", (size,), "uint8"),)
    signature = Signature(inputs, (TensorSpec("y", (size,), "uint8"),))
    return run_reference(graph, signature, {"x": quantized})["y"]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", CASES)
def test_equals_the_function(name: str, target: str, tmp_path: Path) -> None:
    """Every code; the odd size ends in a vector that overlaps another."""
    quantized = np.resize(np.arange(256, dtype=np.uint8), 2 * TASK_BYTES + 77)
    graph = module(quantized.size, CASES[name])
    built = open_module(graph, load_target(target), tmp_path)
    assert built.templates == ["lookup"]
    result = built.run({"x": quantized})["y"]
    np.testing.assert_array_equal(result, reference(graph, quantized))
    assert len(np.unique(result)) > 30


@pytest.mark.parametrize("size", [1, 31, 32, 63, 64, 65, TASK_BYTES, TASK_BYTES + 1])
def test_every_length(size: int, tmp_path: Path) -> None:
    quantized = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    graph = module(size, op.nn.silu)
    for target in TARGETS:
        (tmp_path / target).mkdir()
        built = open_module(graph, load_target(target), tmp_path / target)
        assert built.templates == ["lookup"]
        np.testing.assert_array_equal(built.run({"x": quantized})["y"], reference(graph, quantized))


def test_other_codes_give_another_table(tmp_path: Path) -> None:
    quantized = np.arange(256, dtype=np.uint8)
    other = module(256, op.nn.silu, Code("uint8", 0.03, 121))
    built = open_module(other, load_target(TARGETS[0]), tmp_path)
    result = built.run({"x": quantized})["y"]
    assert not np.array_equal(result, reference(module(256, op.nn.silu), quantized))


def test_every_step_without_an_operand_has_a_table() -> None:
    for name in UNARY:
        # x, and the parameters of the step.
        function = ACTIVATIONS[name].function if name in ACTIVATIONS else UNARY[name].emit
        count = len(inspect.signature(function).parameters)
        step = EpilogueStep(name, None, tuple(1.5 * number for number in range(1, count)))
        assert np.isfinite(evaluate(step, np.ones(3))).all(), name


def test_signed_codes_are_found_by_their_byte() -> None:
    numbers = np.array([1, 0, -128, 127], np.float32)
    table = table_of("int8", 1.0, 0, [EpilogueStep("relu")], numbers)
    assert table.tolist() == [*range(128), *[0] * 128]


def test_what_is_no_number_is_some_code() -> None:
    numbers = np.array([1, 0, -128, 127], np.float32)
    table = table_of("int8", 1.0, 0, [EpilogueStep("sqrt")], numbers).view(np.int8)
    assert table[[4, 100]].tolist() == [2, 10]
