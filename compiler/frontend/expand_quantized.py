"""Expand operators on quantized values to floats between DequantizeLinear and QuantizeLinear.

    QLinearConv(x, w, B)  ->  quantize(Conv(dequantize(x), dequantize(w), dequantize(B)))
    MaxPool(x)            ->  quantize(MaxPool(dequantize(x)))

Both spellings of a quantized model then take one path, the way to integer kernels. A result may
move by one step where it lies between two, as in every quantized graph; a model that returns
quantized values stays as it is, as integers are compared exactly.
"""

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

# DequantizeLinear takes an axis since then.
OPSET = 13

_EIGHT_BITS = (ir.DataType.INT8, ir.DataType.UINT8)

# First input to all outputs, without arithmetic.
_DATA_MOVEMENT = frozenset(
    {
        "DepthToSpace",
        "Flatten",
        "Gather",
        "MaxPool",
        "Reshape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)


def expand_quantized(model: ir.Model) -> bool:
    """Expand what has constant scales of the usual granularity; the rest stays.

    Args:
        model: changed in place.

    Returns:
        Whether something changed.
    """
    graph = model.graph
    if model.opset_imports.get("", 0) < OPSET or any(v.dtype in _EIGHT_BITS for v in graph.outputs):
        return False
    changed = False
    for node in list(graph):
        expand = _EXPAND.get(node.op_type)
        if node.op_type in _DATA_MOVEMENT and not node.domain:
            expand = _is_data_movement
        if expand is not None:
            writer = _Writer(graph, node)
            if expand(writer, node):
                writer.finish()
                changed = True
    return changed


class _Writer:
    """A writer makes new nodes in place of one."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self.graph = graph
        self.node = node
        self.made: list[ir.Node] = []
        self.results: list[ir.Value] = []

    def emit(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Sequence[ir.Attr] = (),
        outputs: int = 1,
    ) -> Sequence[ir.Value]:
        made = ir.Node("", op_type, inputs, attributes, num_outputs=outputs)
        self.made.append(made)
        return made.outputs

    def constant(self, array: np.ndarray) -> ir.Value:
        (value,) = self.emit("Constant", [], [ir.AttrTensor("value", ir.tensor(array))])
        return value

    def floats(self, at: int, axis: int = 0) -> ir.Value:
        """Return input `at` with its scale and zero point, which follow it."""
        quantized, scale, zero = self.node.inputs[at : at + 3]
        return self.dequantized(quantized, scale, zero, axis)

    def dequantized(
        self,
        quantized: ir.Value | None,
        scale: ir.Value | None,
        zero: ir.Value | None,
        axis: int = 0,
    ) -> ir.Value:
        array = _array(scale)
        attributes = [ir.AttrInt64("axis", axis)] if array is not None and array.ndim else []
        (value,) = self.emit("DequantizeLinear", _trimmed(quantized, scale, zero), attributes)
        return value

    def bias(self, quantized: ir.Value | None, scale: np.ndarray, axis: int) -> ir.Value | None:
        """Return int32 values as floats."""
        if quantized is None:
            return None
        if scale.size == 1:
            return self.dequantized(quantized, self.constant(scale.reshape(())), None)
        return self.dequantized(quantized, self.constant(scale), None, axis)

    def quantize(
        self, values: Sequence[ir.Value], scale: ir.Value | None, zero: ir.Value | None
    ) -> bool:
        for value in values:
            self.results += self.emit("QuantizeLinear", _trimmed(value, scale, zero))
        return True

    def finish(self) -> None:
        """Put the new nodes where the old one is."""
        self.graph.insert_before(self.node, self.made)
        for old, new in zip(self.node.outputs, self.results, strict=True):
            new.type, new.shape = old.type, old.shape
            name, old.name = old.name, None
            ir.convenience.replace_all_uses_with(old, new)
            new.name = name
        self.graph.remove(self.node, safe=True)


def _trimmed(*inputs: ir.Value | None) -> list[ir.Value | None]:
    return list(inputs) if inputs[-1] is not None else list(inputs[:-1])


def _array(value: ir.Value | None) -> np.ndarray | None:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def _input(node: ir.Node, at: int) -> ir.Value | None:
    return node.inputs[at] if at < len(node.inputs) else None


def _known(node: ir.Node, *scales: int) -> bool:
    """Return whether these inputs and the zero points after them are constants of one value."""
    for at in scales:
        scale, zero = _array(_input(node, at)), _input(node, at + 1)
        if scale is None or scale.size != 1:
            return False
        if zero is not None and _array(zero) is None:
            return False
    return True


def _rank(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)


def _is_set(node: ir.Node, name: str) -> bool:
    attribute = node.attributes.get(name)
    return attribute is not None and attribute.as_int() != 0


def _without(node: ir.Node, *names: str) -> list[ir.Attr]:
    return [attribute for name, attribute in node.attributes.items() if name not in names]


def _product(*scales: ir.Value | None) -> np.ndarray | None:
    """Return the product of float32 scales, one for each channel or one."""
    total = np.ones((), np.float32)
    for scale in scales:
        array = _array(scale)
        if array is None or array.ndim > 1:
            return None
        total = total * array.astype(np.float32)
    return total


def _conv(w: _Writer, node: ir.Node) -> bool:
    """Take inputs x, x_scale, x_zero_point, w, w_scale, w_zero_point, y_scale, y_zero_point, B."""
    scale = _product(node.inputs[1], node.inputs[4])
    if scale is None or not _known(node, 1, 6) or _is_set(node, "channels_last"):
        return False
    operands = [w.floats(0), w.floats(3), w.bias(_input(node, 8), scale, 0)]
    values = w.emit("Conv", _trimmed(*operands), _without(node, "channels_last"))
    return w.quantize(values, *node.inputs[6:8])


def _matmul(w: _Writer, node: ir.Node) -> bool:
    """Take inputs a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, y_zero_point."""
    rank = _rank(node.inputs[3])
    if rank is None or _product(node.inputs[4]) is None or not _known(node, 1, 6):
        return False
    values = w.emit("MatMul", [w.floats(0), w.floats(3, rank - 1)])
    return w.quantize(values, *node.inputs[6:8])


def _gemm(w: _Writer, node: ir.Node) -> bool:
    """Take inputs A, a_scale, a_zero_point, B, b_scale, b_zero_point, C, y_scale, y_zero_point."""
    scale = _product(node.inputs[1], node.inputs[4])
    returns_quantized = _input(node, 7) is not None
    if scale is None or not _known(node, 1) or (returns_quantized and not _known(node, 7)):
        return False
    columns = 0 if _is_set(node, "transB") else 1
    scale = scale * np.float32(node.attributes.get_float("alpha", 1.0))
    summand = _input(node, 6)
    operands = [
        w.floats(0),
        w.floats(3, columns),
        w.bias(summand, scale, (_rank(summand) or 1) - 1),
    ]
    values = w.emit("Gemm", _trimmed(*operands), list(node.attributes.values()))
    if returns_quantized:
        return w.quantize(values, *node.inputs[7:9])
    w.results += values
    return True


def _binary(op_type: str) -> Callable[[_Writer, ir.Node], bool]:
    """Take inputs A, A_scale, A_zero_point, B, B_scale, B_zero_point, C_scale, C_zero_point."""

    def expand(w: _Writer, node: ir.Node) -> bool:
        if not _known(node, 1, 4, 6):
            return False
        values = w.emit(op_type, [w.floats(0), w.floats(3)])
        return w.quantize(values, node.inputs[6], _input(node, 7))

    return expand


def _unary(op_type: str) -> Callable[[_Writer, ir.Node], bool]:
    """Take inputs X, X_scale, X_zero_point, Y_scale, Y_zero_point."""

    def expand(w: _Writer, node: ir.Node) -> bool:
        if not _known(node, 1, 3) or _is_set(node, "channels_last"):
            return False
        attributes = _without(node, "channels_last", "opset")
        values = w.emit(op_type, [w.floats(0)], attributes)
        return w.quantize(values, node.inputs[3], _input(node, 4))

    return expand


def _softmax(w: _Writer, node: ir.Node) -> bool:
    """Expand as `_unary` does; before version 13 it normalized all dimensions from `axis` on."""
    rank = _rank(node.inputs[0])
    axis = node.attributes.get_int("axis", -1)
    if node.attributes.get_int("opset", OPSET) < OPSET and (
        rank is None or axis % rank != rank - 1
    ):
        return False
    return _unary("Softmax")(w, node)


def _concat(w: _Writer, node: ir.Node) -> bool:
    """Take inputs Y_scale, Y_zero_point, then each tensor with its scale and zero point."""
    numbers = range(2, len(node.inputs), 3)
    if not _known(node, 0, *(at + 1 for at in numbers)):
        return False
    values = w.emit("Concat", [w.floats(at) for at in numbers], list(node.attributes.values()))
    return w.quantize(values, *node.inputs[:2])


def _is_data_movement(w: _Writer, node: ir.Node) -> bool:
    """Return whether it moves quantized values that a QuantizeLinear with one scale gives."""
    quantized = node.inputs[0]
    producer = None if quantized is None else quantized.producer()
    if producer is None or producer.op_type != "QuantizeLinear" or not _known(producer, 1):
        return False
    unused = any(not output.uses() and not output.is_graph_output() for output in node.outputs[1:])
    if node.op_type == "MaxPool" and (len(node.outputs) > 1 or unused):
        return False
    scale, zero = producer.inputs[1], _input(producer, 2)
    operands = [w.dequantized(quantized, scale, zero), *node.inputs[1:]]
    values = w.emit(node.op_type, operands, list(node.attributes.values()), len(node.outputs))
    return w.quantize(values, scale, zero)


_EXPAND: dict[str, Callable[[_Writer, ir.Node], bool]] = {
    "QGemm": _gemm,
    "QLinearAdd": _binary("Add"),
    "QLinearAveragePool": _unary("AveragePool"),
    "QLinearConcat": _concat,
    "QLinearConv": _conv,
    "QLinearGlobalAveragePool": _unary("GlobalAveragePool"),
    "QLinearLeakyRelu": _unary("LeakyRelu"),
    "QLinearMatMul": _matmul,
    "QLinearMul": _binary("Mul"),
    "QLinearSigmoid": _unary("Sigmoid"),
    "QLinearSoftmax": _softmax,
}
