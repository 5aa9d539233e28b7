"""Operators with any attributes and shapes that the specification allows, against ONNX Runtime.

Hypothesis draws nodes, a few to a model, compiles the model and compares. The same examples each
time; `EDGEC_FUZZ_EXAMPLES` asks for more of them per family than the few that CI has time for.
"""

import math
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import NodeProto
from support.kernel_runs import compile_graph
from support.onnx_graphs import make_model, node

from edgec.compiler.frontend.onnx_facts import graph_depth
from edgec.compiler.parity.compare import compare, tolerance_for
from edgec.compiler.parity.oracle import run_original

EXAMPLES = int(os.environ.get("EDGEC_FUZZ_EXAMPLES", "4"))
NODES = 5
OPSET = 19

Draw = Callable[[st.SearchStrategy[Any]], Any]
Shape = list[int]


class Graph:
    """Nodes that are drawn one by one, each with inputs of its own."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.inputs: dict[str, Shape] = {}
        self.weights: dict[str, np.ndarray] = {}
        self.outputs: list[str] = []

    def tensor(self, *shape: int) -> str:
        """A new input."""
        name = f"x{len(self.inputs)}"
        self.inputs[name] = list(shape)
        return name

    def weight(self, value: Any, dtype: Any = np.int64) -> str:
        """A new constant."""
        name = f"w{len(self.weights)}"
        self.weights[name] = np.asarray(value, dtype)
        return name

    def either(self, draw: Draw, *shape: int) -> str:
        """A new input or a constant."""
        if draw(st.booleans()):
            return self.tensor(*shape)
        values = np.random.default_rng(len(self.weights)).standard_normal(shape)
        return self.weight(values, np.float32)

    def add(self, op_type: str, inputs: Sequence[str], count: int = 1, **attributes: Any) -> None:
        """A new node."""
        names = [f"y{len(self.outputs) + index}" for index in range(count)]
        self.nodes.append(node(op_type, inputs, names, **attributes))
        self.outputs += names


def extents(low: int = 1, high: int = 7, least: int = 1, most: int = 4) -> st.SearchStrategy[Shape]:
    return st.lists(st.integers(low, high), min_size=least, max_size=most)


def integers(draw: Draw, count: int, low: int, high: int) -> list[int]:
    return [draw(st.integers(low, high)) for _ in range(count)]


def window(draw: Draw, rank: int, kernel: Shape) -> tuple[dict[str, Any], Shape]:
    """Strides, dilations and padding, and extents that hold at least one window."""
    dilations = integers(draw, rank, 1, 2)
    reach = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    attributes: dict[str, Any] = {"strides": integers(draw, rank, 1, 3), "dilations": dilations}
    auto = draw(st.sampled_from(["", "", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if auto:
        attributes["auto_pad"] = auto
        attributes["dilations"], reach = [1] * rank, kernel
    else:
        # No window lies in padding alone.
        attributes["pads"] = [draw(st.integers(0, size - 1)) for size in kernel * 2]
    return attributes, [size + draw(st.integers(0, 8)) for size in reach]


def conv(draw: Draw, graph: Graph) -> None:
    rank = draw(st.integers(1, 3))
    kernel = integers(draw, rank, 1, 4)
    attributes, space = window(draw, rank, kernel)
    group = draw(st.sampled_from([1, 1, 2, 3]))
    inner, outer = integers(draw, 2, 1, 5)
    data = graph.tensor(draw(st.integers(1, 2)), group * inner, *space)
    inputs = [data, graph.either(draw, group * outer, inner, *kernel)]
    if draw(st.booleans()):
        inputs.append(graph.either(draw, group * outer))
    graph.add("Conv", inputs, group=group, **attributes)


def conv_transpose(draw: Draw, graph: Graph) -> None:
    rank = draw(st.integers(1, 2))
    kernel = integers(draw, rank, 1, 4)
    strides = integers(draw, rank, 1, 3)
    group = draw(st.sampled_from([1, 1, 2]))
    inner, outer = integers(draw, 2, 1, 4)
    attributes = {
        "strides": strides,
        "dilations": integers(draw, rank, 1, 2),
        "pads": [draw(st.integers(0, (size - 1) // 2)) for size in kernel * 2],
        "output_padding": [draw(st.integers(0, stride - 1)) for stride in strides],
    }
    data = graph.tensor(1, group * inner, *integers(draw, rank, 2, 6))
    inputs = [data, graph.either(draw, group * inner, outer, *kernel)]
    if draw(st.booleans()):
        inputs.append(graph.either(draw, group * outer))
    graph.add("ConvTranspose", inputs, group=group, **attributes)


def pool(draw: Draw, graph: Graph) -> None:
    kind = draw(st.sampled_from(["MaxPool", "AveragePool", "LpPool", "GlobalAveragePool"]))
    rank = draw(st.integers(1, 3))
    kernel = integers(draw, rank, 1, 4)
    attributes, space = window(draw, rank, kernel)
    data = graph.tensor(draw(st.integers(1, 2)), draw(st.integers(1, 9)), *space)
    if kind == "GlobalAveragePool":
        graph.add(kind, [data])
        return
    if kind == "AveragePool":
        attributes["count_include_pad"] = draw(st.integers(0, 1))
    if kind == "LpPool":
        attributes["p"] = draw(st.integers(1, 2))
    graph.add(kind, [data], kernel_shape=kernel, **attributes)


def linear(draw: Draw, graph: Graph) -> None:
    m, k, n = integers(draw, 3, 1, 20)
    if draw(st.booleans()):
        flags = [draw(st.integers(0, 1)) for _ in range(2)]
        left = graph.tensor(*((k, m) if flags[0] else (m, k)))
        inputs = [left, graph.either(draw, *((n, k) if flags[1] else (k, n)))]
        bias = draw(st.sampled_from([None, [m, n], [n], [1, n], [m, 1], [1]]))
        if bias is not None:
            inputs.append(graph.either(draw, *bias))
        numbers = {name: draw(st.sampled_from([1.0, 0.5, -2.0])) for name in ("alpha", "beta")}
        graph.add("Gemm", inputs, transA=flags[0], transB=flags[1], **numbers)
        return
    batch = draw(extents(1, 3, 0, 2))
    other = draw(st.sampled_from([batch, [], [1] * len(batch), batch[1:]]))
    left_shape = draw(st.sampled_from([[*batch, m, k], [k]]))
    right_shape = draw(st.sampled_from([[*other, k, n], [k]]))
    graph.add("MatMul", [graph.tensor(*left_shape), graph.either(draw, *right_shape)])


def resize(draw: Draw, graph: Graph) -> None:
    mode = draw(st.sampled_from(["linear", "nearest"]))
    coordinates = ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"]
    attributes = {
        "mode": mode,
        "coordinate_transformation_mode": draw(st.sampled_from(coordinates)),
    }
    if mode == "nearest":
        rounding = ["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"]
        attributes["nearest_mode"] = draw(st.sampled_from(rounding))
    shape = [1, draw(st.integers(1, 3)), *integers(draw, 2, 1, 6)]
    data = graph.tensor(*shape)
    if draw(st.booleans()):
        # Powers of two: no coordinate is rounded across the border between two neighbours. Only
        # whole extents: otherwise ONNX Runtime aligns corners to the rounded one.
        factors = [[1, 2, 4] if extent % 2 else [0.5, 1, 2, 4] for extent in shape[2:]]
        scales = [1, 1, *(draw(st.sampled_from(choices)) for choices in factors)]
        graph.add("Resize", [data, "", graph.weight(scales, np.float32)], **attributes)
    else:
        sizes = [*shape[:2], *(extent * draw(st.sampled_from([1, 2, 4])) for extent in shape[2:])]
        graph.add("Resize", [data, "", "", graph.weight(sizes)], **attributes)


def pad(draw: Draw, graph: Graph) -> None:
    shape = draw(extents(2, 6))
    mode = draw(st.sampled_from(["constant", "reflect", "edge", "wrap"]))
    pads = [draw(st.integers(0, extent - 1)) for extent in shape * 2]
    inputs = [graph.tensor(*shape), graph.weight(pads)]
    if mode == "constant" and draw(st.booleans()):
        inputs.append(graph.weight(draw(st.sampled_from([0, 1.5])), np.float32))
    graph.add("Pad", inputs, mode=mode)


def slices(draw: Draw, graph: Graph) -> None:
    shape = draw(extents(2, 8))
    rank = len(shape)
    axes = draw(st.lists(st.integers(0, rank - 1), min_size=1, max_size=rank, unique=True))
    starts, ends, steps = [], [], []
    for axis in axes:
        extent = shape[axis]
        first = draw(st.integers(0, extent - 1))
        last = draw(st.integers(first, extent - 1))
        step = draw(st.integers(1, 3))
        backwards = draw(st.booleans())
        # The end is one further on, which counted from the end of the axis may be before its start.
        begin, end = (last, first - 1 - extent) if backwards else (first, last + 1)
        starts.append(begin - draw(st.sampled_from([0, extent])))
        ends.append(end if backwards else draw(st.sampled_from([end, end + (end == extent) * 99])))
        steps.append(-step if backwards else step)
    written = [axis - draw(st.sampled_from([0, rank])) for axis in axes]
    operands = [graph.weight(values) for values in (starts, ends, written, steps)]
    graph.add("Slice", [graph.tensor(*shape), *operands])


def reductions(draw: Draw, graph: Graph) -> None:
    kinds = ["Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSumExp"]
    kind = draw(st.sampled_from([*kinds, "ArgMax", "ArgMin"]))
    shape = draw(extents(1, 6))
    rank = len(shape)
    keep = draw(st.integers(0, 1))
    data = graph.tensor(*shape)
    if kind.startswith("Arg"):
        graph.add(kind, [data], axis=draw(st.integers(-rank, rank - 1)), keepdims=keep)
        return
    axes = draw(st.lists(st.integers(0, rank - 1), max_size=rank, unique=True))
    written = [axis - draw(st.sampled_from([0, rank])) for axis in axes]
    if kind == "Sum":
        inputs = [data, graph.weight(written)] if axes else [data]
        graph.add("ReduceSum", inputs, keepdims=keep, noop_with_empty_axes=draw(st.integers(0, 1)))
        return
    inputs = [data, graph.weight(written)] if axes else [data]
    graph.add(f"Reduce{kind}", inputs, keepdims=keep)


def rows(draw: Draw, graph: Graph) -> None:
    shape = draw(extents(1, 9))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    kind = draw(st.sampled_from(["Softmax", "LogSoftmax", "LayerNormalization"]))
    inputs = [graph.tensor(*shape)]
    if kind == "LayerNormalization":
        inner = shape[axis % len(shape) :]
        inputs += [graph.either(draw, *inner) for _ in range(draw(st.integers(1, 2)))]
    graph.add(kind, inputs, axis=axis)


def moves(draw: Draw, graph: Graph) -> None:
    shape = draw(extents(1, 6))
    rank = len(shape)
    axis = draw(st.integers(-rank, rank - 1))
    kind = draw(st.sampled_from(["Transpose", "Reshape", "Concat", "Split", "Gather"]))
    if kind == "Transpose":
        graph.add(kind, [graph.tensor(*shape)], perm=draw(st.permutations(range(rank))))
    elif kind == "Reshape":
        kept = draw(st.integers(0, rank))
        wanted = [0] * kept + draw(st.sampled_from([[-1], [1, -1], [-1, 1]]))
        graph.add(kind, [graph.tensor(*shape), graph.weight(wanted)])
    elif kind == "Concat":
        others = [list(shape) for _ in range(draw(st.integers(1, 3)))]
        for other in others:
            other[axis] = draw(st.integers(1, 4))
        graph.add(kind, [graph.tensor(*other) for other in others], axis=axis)
    elif kind == "Split":
        sizes = draw(extents(1, 4))
        shape[axis] = sum(sizes)
        inputs = [graph.tensor(*shape), graph.weight(sizes)]
        graph.add(kind, inputs, len(sizes), axis=axis)
    else:
        extent = shape[axis]
        form = draw(extents(1, 3, 0, 2))
        indices = integers(draw, math.prod(form), -extent, extent - 1)
        index = graph.weight(np.reshape(indices, form))
        graph.add(kind, [graph.tensor(*shape), index], axis=axis)


def elementwise(draw: Draw, graph: Graph) -> None:
    shape = draw(extents(1, 6))
    other = [draw(st.sampled_from([1, extent])) for extent in shape]
    other = other[draw(st.integers(0, len(shape))) :]
    pair = [graph.tensor(*shape), graph.either(draw, *other)]
    kinds = ["Add", "Sub", "Mul", "Max", "Min", "PRelu", "Where", "Clip", "Relu", "Sigmoid", "Exp"]
    kind = draw(st.sampled_from(kinds))
    if kind in ("Relu", "Sigmoid", "Exp"):
        graph.add(kind, pair[:1])
    elif kind == "Clip":
        bounds = [graph.weight(bound, np.float32) for bound in (-0.5, 0.75)]
        graph.add(kind, [pair[0], *bounds])
    elif kind == "Where":
        truth = np.random.default_rng(len(graph.weights)).random(other) < 0.5
        graph.add(kind, [graph.weight(truth, bool), *pair])
    else:
        swapped = kind != "PRelu" and draw(st.booleans())
        graph.add(kind, pair[::-1] if swapped else pair)


FAMILIES = {
    family.__name__: family
    for family in (
        conv,
        conv_transpose,
        elementwise,
        linear,
        moves,
        pad,
        pool,
        reductions,
        resize,
        rows,
        slices,
    )
}


@pytest.mark.parametrize("family", FAMILIES)
@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_like_onnx_runtime(family: str, data: st.DataObject) -> None:
    graph = Graph()
    for _ in range(NODES):
        FAMILIES[family](data.draw, graph)
    model = make_model(graph.nodes, graph.inputs, graph.outputs, graph.weights, opset=OPSET)
    with tempfile.TemporaryDirectory() as folder:
        built = compile_graph(model, "native", Path(folder))
        inputs = built.inputs()
        expected, actual = run_original(model, inputs), built.open().run(inputs)
    report = compare(expected, actual, tolerance_for("float32", graph_depth(built.model.graph)))
    assert report.passed, report.problems()
