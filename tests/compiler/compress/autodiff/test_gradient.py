"""Every operator of the gradient engine: values against TVM, derivatives by differences."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.relax_runs import run_module
from tvm import relax

from edgec.compiler.compress.autodiff.derivatives import MAKERS
from edgec.compiler.compress.autodiff.gradient import Network
from edgec.compiler.errors import UnsupportedModelError
from edgec.compiler.ir import operators
from edgec.compiler.ir.graph import Graph
from edgec.compiler.ir.relax_helpers import constant

op = relax.op
RANDOM = np.random.default_rng(3)
IMAGE = (2, 4, 7, 6)
ROWS = (2, 5, 6)


def weight(*shape: int) -> Any:
    return constant(RANDOM.standard_normal(shape).astype(np.float32))


def positive(data: Any) -> Any:
    return op.add(op.multiply(data, data), relax.const(0.5, "float32"))


CONV = op.nn.conv2d
CASES: dict[str, tuple[tuple[int, ...], Callable[[Any], Any]]] = {
    "conv": (IMAGE, lambda x: CONV(x, weight(5, 4, 3, 2), (2, 1), (1, 0, 2, 1), (1, 2))),
    "conv 1x1": (IMAGE, lambda x: CONV(x, weight(5, 4, 1, 1))),
    "conv 1x1 stride": (IMAGE, lambda x: CONV(x, weight(5, 4, 1, 1), (2, 2))),
    "grouped": (IMAGE, lambda x: CONV(x, weight(6, 2, 3, 3), padding=1, groups=2)),
    "depthwise": (IMAGE, lambda x: CONV(x, weight(4, 1, 3, 3), (2, 2), 1, groups=4)),
    "conv1d": (ROWS, lambda x: op.nn.conv1d(x, weight(3, 5, 3), 2, (1, 0))),
    "transposed": (
        IMAGE,
        lambda x: op.nn.conv2d_transpose(x, weight(4, 3, 3, 2), (2, 2), (1, 0, 0, 1), (1, 0)),
    ),
    "transposed groups": (
        IMAGE,
        lambda x: op.nn.conv2d_transpose(x, weight(4, 3, 2, 2), (2, 2), groups=2),
    ),
    "matmul": (ROWS, lambda x: op.matmul(x, weight(6, 3))),
    "attention": (ROWS, lambda x: op.matmul(x, op.permute_dims(x, [0, 2, 1]))),
    "max pool": (IMAGE, lambda x: op.nn.max_pool2d(x, (3, 2), (2, 2), (1, 0, 1, 1))),
    "max pool ceil": (IMAGE, lambda x: op.nn.max_pool2d(x, (2, 2), (2, 2), ceil_mode=True)),
    "average pool": (IMAGE, lambda x: op.nn.avg_pool2d(x, (3, 3), (2, 2), (1, 1, 1, 1))),
    "average pool padded": (
        IMAGE,
        lambda x: op.nn.avg_pool2d(x, (3, 3), (2, 2), (1, 1, 1, 1), count_include_pad=True),
    ),
    "adaptive pool": (IMAGE, lambda x: op.nn.adaptive_avg_pool2d(x, (3, 1))),
    "mean": (IMAGE, lambda x: op.mean(x, [2, 3], keepdims=True)),
    "sum": (IMAGE, lambda x: op.sum(x, [1])),
    "softmax": (ROWS, lambda x: op.nn.softmax(x, 1)),
    "layer norm": (ROWS, lambda x: op.nn.layer_norm(x, weight(6), weight(6), [-1])),
    "prelu": (IMAGE, lambda x: op.nn.prelu(x, weight(4), 1)),
    "leaky": (IMAGE, lambda x: op.nn.leakyrelu(x, 0.1)),
    "clip": (IMAGE, lambda x: op.clip(x, -0.5, 1)),
    "hard sigmoid": (IMAGE, lambda x: operators.hard_sigmoid(x, 0.4, 0.5)),
    "hard swish": (IMAGE, lambda x: operators.hard_swish(op.multiply(x, relax.const(2.0)))),
    "channel bias": (IMAGE, lambda x: op.add(x, weight(1, 4, 1, 1))),
    "gate": (IMAGE, lambda x: op.multiply(x, op.mean(x, [2, 3], keepdims=True))),
    "divide": (ROWS, lambda x: op.divide(x, positive(op.mean(x, [0])))),
    "subtract": (ROWS, lambda x: op.subtract(op.mean(x, [1], keepdims=True), x)),
    "maximum": (ROWS, lambda x: op.maximum(x, op.negative(op.sum(x, [2], keepdims=True)))),
    "minimum": (ROWS, lambda x: op.minimum(x, relax.const(0.1))),
    "where": (ROWS, lambda x: op.where(constant(np.arange(6) % 2 == 0), x, op.exp(x))),
    "sqrt": (ROWS, lambda x: op.sqrt(positive(x))),
    "reshape": (IMAGE, lambda x: op.multiply(op.reshape(x, (2, 24, 7)), weight(24, 7))),
    "slice": (IMAGE, lambda x: op.strided_slice(x, [1, 3], [1, 0], [4, 6], [1, 2])),
    "split": (IMAGE, lambda x: op.multiply(*(op.split(x, 2, 1)[i] for i in (0, 1)))),
    "split at": (IMAGE, lambda x: op.multiply(op.split(x, [1, 3], 1)[1], weight(2, 1, 1))),
    "concat": (IMAGE, lambda x: op.multiply(op.concat([x, op.exp(x)], 1), weight(8, 1, 1))),
    "pad": (IMAGE, lambda x: op.multiply(op.nn.pad(x, [0, 0, 0, 0, 1, 2, 0, 1]), weight(10, 7))),
    "nearest": (IMAGE, lambda x: op.image.resize2d(x, (14, 9), method="nearest_neighbor")),
    "linear": (IMAGE, lambda x: op.image.resize2d(x, (11, 4), method="linear")),
    **{
        name: (ROWS, function)
        for name, function in (
            ("relu", op.nn.relu),
            ("sigmoid", op.sigmoid),
            ("silu", op.nn.silu),
            ("abs", op.abs),
            ("erf", op.erf),
            ("tanh", op.tanh),
            ("gelu", op.nn.gelu),
            ("gelu_tanh", op.nn.gelu_tanh),
        )
    },
}


def scaled(shape: tuple[int, ...], function: Callable[[Any], Any]) -> Graph:
    """A graph of x * weights -> function, so that there is a weight in front of it."""
    builder = relax.BlockBuilder()
    data = relax.Var("x", relax.TensorType(shape, "float32"))
    with builder.function("main", [data]):
        with builder.dataflow():
            inner = builder.emit(op.multiply(data, constant(np.ones(shape, np.float32))))
            result = builder.emit_output(builder.normalize(function(inner)))
        builder.emit_func_output(result)
    return Graph(builder.get(), {})


@pytest.mark.parametrize("name", CASES)
def test_values_and_derivatives(name: str) -> None:
    graph = scaled(*CASES[name])
    anchor = graph.bindings[0][0]
    for variable, value in graph.bindings:
        if isinstance(value, relax.Call) and graph.operand(value.args[0]) is graph.parameters[0]:
            anchor = variable
    network = Network(graph, [(anchor, 1)])
    result = network.of(graph.results[0])
    shape = CASES[name][0]
    data = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    ones = np.ones(shape, np.float64)
    tape = network.run([data.astype(np.float64)], {(anchor, 1): ones})
    actual = tape.values[result]
    assert np.allclose(actual, run_module(graph.module), rtol=1e-4, atol=1e-5)

    direction, seed = RANDOM.standard_normal(shape), RANDOM.standard_normal(actual.shape)
    (gradient,) = network.gradients(tape, {result: seed}).values()

    def along(step: float) -> float:
        values = network.run([data.astype(np.float64)], {(anchor, 1): ones + step * direction})
        return float(np.sum(values.values[result] * seed))

    numeric = (along(1e-6) - along(-1e-6)) / 2e-6
    assert np.sum(gradient * direction) == pytest.approx(numeric, rel=1e-4, abs=1e-5)


def test_weights_of_convolutions_and_products() -> None:
    """The other operand: derivatives by the weights themselves."""
    for name in ("conv", "grouped", "depthwise", "conv1d", "transposed", "matmul"):
        graph = scaled(*CASES[name])
        found = [
            (variable, graph.constant(value.args[1]))
            for variable, value in graph.bindings
            if isinstance(value, relax.Call)
        ]
        anchor, array = found[-1]
        assert array is not None
        network = Network(graph, [(anchor, 1)])
        result = network.of(graph.results[0])
        data = RANDOM.standard_normal(CASES[name][0])
        direction = RANDOM.standard_normal(array.shape)
        tape = network.run([data], {(anchor, 1): array.astype(np.float64)})
        (gradient,) = network.gradients(tape, {result: np.ones_like(tape.values[result])}).values()
        # Linear in the weights: the difference is exact.
        moved = network.run([data], {(anchor, 1): array + direction}).values[result]
        exact = float(np.sum(moved - tape.values[result]))
        assert np.sum(gradient * direction) == pytest.approx(exact, rel=1e-6), name


def test_operators_without_a_derivative_are_all_named() -> None:
    graph = scaled(ROWS, lambda x: op.add(op.sin(x), op.cumsum(x, 1)))
    anchor = graph.bindings[0][0]
    with pytest.raises(UnsupportedModelError, match=r"relax\.cumsum, relax\.sin"):
        Network(graph, [(anchor, 1)])


def test_samples_that_meet_are_not_stacked() -> None:
    shape = (1, 4, 6)
    data = [RANDOM.standard_normal(shape).astype(np.float32)]
    apart = scaled(shape, lambda x: op.reshape(op.permute_dims(x, [0, 2, 1]), (1, 24)))
    meeting = scaled(shape, lambda x: op.subtract(x, op.mean(x, [0], keepdims=True)))
    assert Network(apart, []).stackable(data, {})
    assert not Network(meeting, []).stackable(data, {})


def test_all_operators_are_tried() -> None:
    tried = set()
    for shape, function in CASES.values():
        for _, value in scaled(shape, function).bindings:
            if isinstance(value, relax.Call):
                tried.add(str(value.op.name))
    untried = set(MAKERS) - tried
    assert untried == {
        "relax.astype",
        "relax.equal",
        "relax.expand_dims",
        "relax.flatten",
        "relax.less",
        "relax.nn.avg_pool1d",
        "relax.nn.conv1d_transpose",
        "relax.nn.conv3d",
        "relax.nn.max_pool1d",
        "relax.squeeze",
        "relax.take",
    }
