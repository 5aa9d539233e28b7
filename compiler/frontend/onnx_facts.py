"""Provide facts about an ONNX graph: depth, precision, parameters, multiply-accumulates."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import ml_dtypes
import onnx

from edgec.compiler.ir.signature import dtype_name

Shapes = Mapping[str, tuple[int | None, ...]]


def graph_depth(graph: onnx.GraphProto) -> int:
    """Return operators on the longest path from an input to an output; at least 1."""
    depth: dict[str, int] = {}
    for node in graph.node:
        level = 1 + max((depth.get(name, 0) for name in node.input), default=0)
        depth.update(dict.fromkeys(node.output, level))
    return max((depth.get(output.name, 0) for output in graph.output), default=1) or 1


def least_precise_float(graph: onnx.GraphProto) -> str:
    """Return the float dtype with the largest rounding error among all values.

    Float32 if there is none.

    Eight-bit and smaller floats only store values, they do not compute.
    """
    types = {tensor.data_type for tensor in graph.initializer}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        types.add(value.type.tensor_type.elem_type)
    names = {dtype_name(kind) for kind in types if kind}
    floats = names & {"bfloat16", "float16", "float32", "float64"}
    return max(floats, key=lambda name: float(ml_dtypes.finfo(name).eps), default="float32")


def quantizes_activations(graph: onnx.GraphProto) -> bool:
    """Return whether values that a run computes are quantized."""
    return any(node.op_type in _ROUNDING for node in graph.node)


_ROUNDING = (
    "DynamicQuantizeLSTM",
    "DynamicQuantizeLinear",
    "DynamicQuantizeMatMul",
    "QuantizeLinear",
)


@dataclass(frozen=True)
class GraphCost:
    """A graph cost describes how large a graph is.

    Attributes:
        parameters: values in initializers and Constant nodes, those of subgraphs too.
        parameter_bytes: their size.
        macs: multiply-accumulates of one inference; None if a shape is unknown.
        macs_by_operator: the same by operator type.
        operators: nodes by operator type, most frequent first.
    """

    parameters: int
    parameter_bytes: int
    macs: int | None
    macs_by_operator: dict[str, int]
    operators: dict[str, int]


def graph_cost(graph: onnx.GraphProto) -> GraphCost:
    """Count a graph's operators, parameters and multiply-accumulates."""
    shapes = value_shapes(graph)
    parameters = parameter_bytes = 0
    for tensor in _stored(graph):
        elements = math.prod(tensor.dims)
        parameters += elements
        parameter_bytes += elements * _element_bits(tensor.data_type) // 8
    by_operator: Counter[str] = Counter()
    known = True
    for node in graph.node:
        count = _MACS.get(node.op_type)
        if count is None:
            continue
        macs = count(node, shapes)
        known = known and macs is not None
        by_operator[node.op_type] += macs or 0
    operators = Counter(_full_name(node) for node in graph.node)
    return GraphCost(
        parameters,
        parameter_bytes,
        sum(by_operator.values()) if known else None,
        dict(by_operator.most_common()),
        dict(operators.most_common()),
    )


def _stored(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield the tensors that a graph and its subgraphs hold."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("g"):
                yield from _stored(attribute.g)
            for inner in attribute.graphs:
                yield from _stored(inner)


def _full_name(node: onnx.NodeProto) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type


def _element_bits(data_type: int) -> int:
    name = dtype_name(data_type)
    if name.endswith(("int4", "4_e2m1fn")) or "float4" in name:
        return 4
    return int(onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize) * 8


def value_shapes(graph: onnx.GraphProto) -> dict[str, tuple[int | None, ...]]:
    """Return shape of every value that the graph states one for; None for an open dimension."""
    shapes: dict[str, tuple[int | None, ...]] = {
        tensor.name: tuple(tensor.dims) for tensor in graph.initializer
    }
    for value in [*graph.input, *graph.value_info, *graph.output]:
        tensor_type = value.type.tensor_type
        if tensor_type.HasField("shape"):
            shapes[value.name] = tuple(
                dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None
                for dim in tensor_type.shape.dim
            )
    return shapes


def index_bounds(graph: onnx.GraphProto) -> dict[str, int]:
    """Return rows of the smallest table that each input indexes, for inputs that index tables.

    Token numbers beyond 0 and 1 exercise a language model; those two are mostly padding.
    """
    names = {value.name for value in graph.input}
    shapes = value_shapes(graph)
    bounds: dict[str, int] = {}
    for node in graph.node:
        if node.op_type != "Gather" or node.input[1] not in names:
            continue
        axis = next((item.i for item in node.attribute if item.name == "axis"), 0)
        rows = shapes.get(node.input[0], ())[axis:][:1]
        if rows and rows[0]:
            bounds[node.input[1]] = min(rows[0], bounds.get(node.input[1], rows[0]))
    return bounds


def _product(*extents: int | None) -> int | None:
    known = [extent for extent in extents if extent is not None]
    return math.prod(known) if len(known) == len(extents) else None


def _elements(shapes: Shapes, name: str) -> int | None:
    shape = shapes.get(name)
    return None if shape is None else _product(*shape)


def _conv(weight: int) -> Callable[[onnx.NodeProto, Shapes], int | None]:
    """Return outputs times weights of one output channel; weight [O, C/group, *kernel]."""

    def macs(node: onnx.NodeProto, shapes: Shapes) -> int | None:
        kernel = shapes.get(node.input[weight])
        if kernel is None:
            return None
        return _product(_elements(shapes, node.output[0]), *kernel[1:])

    return macs


def _conv_transpose(node: onnx.NodeProto, shapes: Shapes) -> int | None:
    """Return inputs times weights of one input channel; weight [I, O/group, *kernel]."""
    kernel = shapes.get(node.input[1])
    if kernel is None:
        return None
    return _product(_elements(shapes, node.input[0]), *kernel[1:])


def _matmul(left: int) -> Callable[[onnx.NodeProto, Shapes], int | None]:
    """Return outputs times the length of the sums, the last extent of the left operand."""

    def macs(node: onnx.NodeProto, shapes: Shapes) -> int | None:
        shape = shapes.get(node.input[left])
        if not shape:
            return None
        transposed = any(item.name == "transA" and item.i for item in node.attribute)
        return _product(_elements(shapes, node.output[0]), shape[0 if transposed else -1])

    return macs


def _recurrent(node: onnx.NodeProto, shapes: Shapes) -> int | None:
    """Return steps times batch times both weights [D, G*H, I] and [D, G*H, H]."""
    data = shapes.get(node.input[0])
    if data is None or len(data) != 3:
        return None
    weights = [_elements(shapes, node.input[index]) for index in (1, 2)]
    if weights[0] is None or weights[1] is None:
        return None
    return _product(data[0], data[1], weights[0] + weights[1])


_MACS: dict[str, Callable[[onnx.NodeProto, Shapes], int | None]] = {
    "Conv": _conv(1),
    "ConvInteger": _conv(1),
    "ConvTranspose": _conv_transpose,
    "GRU": _recurrent,
    "Gemm": _matmul(0),
    "LSTM": _recurrent,
    "MatMul": _matmul(0),
    "MatMulInteger": _matmul(0),
    "QLinearConv": _conv(3),
    "QLinearMatMul": _matmul(0),
    "RNN": _recurrent,
}
