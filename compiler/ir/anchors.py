"""Find the operators that weights and ranges belong to: products, additions, functions."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax

from edgec.compiler.ir.graph import Graph
from edgec.compiler.ir.relax_helpers import op_name, shape_of
from edgec.compiler.numerics.activations import ACTIVATIONS

_CONVOLUTIONS = ("relax.nn.conv1d", "relax.nn.conv2d", "relax.nn.conv3d")


_TRANSPOSED = ("relax.nn.conv1d_transpose", "relax.nn.conv2d_transpose")


_POOLS = (
    "relax.mean",
    "relax.nn.adaptive_avg_pool2d",
    "relax.nn.avg_pool1d",
    "relax.nn.avg_pool2d",
)


_ELEMENTWISE = {"relax.add": "add", "relax.multiply": "multiply"}


_ACTIVATIONS = frozenset(["relax.nn.prelu", *(a.operator for a in ACTIVATIONS.values() if a.joins)])


# Quantized values in, the same out, elsewhere or fewer of them.
_DATA_MOVEMENT = (
    "relax.concat",
    "relax.expand_dims",
    "relax.flatten",
    "relax.image.resize2d",
    "relax.nn.max_pool1d",
    "relax.nn.max_pool2d",
    "relax.nn.pad",
    "relax.permute_dims",
    "relax.reshape",
    "relax.squeeze",
    "relax.strided_slice",
)


@dataclass(frozen=True)
class Weight:
    """A weight describes the constant operand of a convolution or matrix product.

    Attributes:
        array: float32.
        axis: the axis of the output channels.
    """

    array: NDArray[np.float32]
    axis: int


@dataclass(frozen=True, eq=False)
class Operator:
    """An operator describes one operator; see the module.

    Attributes:
        name: the name of the value that it gives.
        kind: see `recipe.OperatorKind`.
        names: the names of all values that it computes.
        anchor: variable of the convolution, product, ….
        result: variable of what it gives.
        inputs: variables that it reads, with repeats.
        weight: the weight of a convolution or matrix product.
        bias: variable of the addition of a constant that follows at once, its array by output
            channel.
        keep: `integer`, `weight-only` or `float`.
    """

    name: str
    kind: str
    names: tuple[str, ...]
    anchor: Any
    result: Any
    inputs: tuple[Any, ...]
    weight: Weight | None = None
    bias: tuple[Any, NDArray[np.float32]] | None = None
    keep: str = "float"

    @property
    def shares_scale(self) -> bool:
        """Return whether it must have one scale for all it reads and gives."""
        return self.kind in ("move", "concat")


def find_operators(graph: Graph) -> list[Operator]:
    """Return every operator that could be quantized, in order."""
    operators: list[Operator] = []
    inside: set[Any] = set()
    for variable, value in graph.bindings:
        if variable in inside or not graph.is_float(variable):
            continue
        operator = _start(graph, variable, value)
        if operator is None:
            continue
        if not operator.shares_scale:
            operator = _extended(graph, operator)
        inside.update(_members(graph, operator))
        operators.append(operator)
    return operators


_POWERS = ("relax.divide", "relax.rsqrt", "relax.sqrt", "relax.power", "relax.add")


def is_normalization(graph: Graph, variable: Any) -> bool:
    """Return whether a value is that of a normalization: of layers, or by the mean square.

    x / sqrt(mean(x ** 2) + epsilon) is written in several ways: as a quotient, or as a product
    with the reciprocal.
    """
    value = graph.definitions[variable]
    name = op_name(value)
    if name == "relax.nn.layer_norm":
        return True
    if name not in ("relax.divide", "relax.multiply"):
        return False
    for factor in map(graph.operand, value.args):
        steps = 0
        while steps < len(_POWERS) and op_name(graph.definitions.get(factor)) in _POWERS:
            variables = [a for a in graph.definitions[factor].args if isinstance(a, relax.Var)]
            if len(variables) != 1:
                break
            factor, steps = graph.operand(variables[0]), steps + 1
        if steps and op_name(graph.definitions.get(factor)) == "relax.mean":
            return True
    return False


# A table of fewer values stays float: nobody would notice its bytes.
MIN_TABLE = 4096
# A row of fewer values has no scale of its own: the table is one of numbers, not of vectors.
MIN_ROW = 16


def find_embeddings(graph: Graph) -> list[Operator]:
    """Return every look-up of rows in a constant float table, in order.

    1. The rows are known only in a run.
    2. The table is worth a format of its own.
    """
    found: list[Operator] = []
    for variable, value in graph.bindings:
        if op_name(value) != "relax.take" or not graph.is_float(variable):
            continue
        table, indices = graph.constant(value.args[0]), graph.constant(value.args[1])
        # (1)
        if table is None or indices is not None or value.attrs.axis is None:
            continue
        # (2)
        rows = table.ndim == 2 and int(value.attrs.axis) % 2 == 0
        if rows and table.shape[1] >= MIN_ROW and table.size >= MIN_TABLE:
            name, weight = graph.names[variable], Weight(np.ascontiguousarray(table), 0)
            found.append(Operator(name, "embedding", (name,), variable, variable, (), weight))
    return found


def _members(graph: Graph, operator: Operator) -> list[Any]:
    """Return variables from the anchor to the result."""
    names = set(operator.names)
    return [variable for variable in graph.definitions if graph.names[variable] in names]


def _start(graph: Graph, variable: Any, value: Any) -> Operator | None:
    """Return the operator that begins with a binding, None if none does."""
    if isinstance(value, relax.TupleGetItem):
        split = graph.definitions.get(value.tuple_value)
        if split is None or op_name(split) != "relax.split":
            return None
        return _operator(graph, variable, "move", [split.args[0]])
    name = op_name(value)
    if not name:
        return None
    arguments = list(value.args)
    if name == "relax.concat":
        fields = arguments[0].fields if isinstance(arguments[0], relax.Tuple) else []
        if not fields or any(graph.constant(item) is not None for item in fields):
            return None
        return _operator(graph, variable, "concat", fields)
    if name == "relax.image.resize2d" and str(value.attrs.method) == "cubic":
        return None
    if name == "relax.nn.pad" and not _pads_with_zero(value):
        return None
    if name in _DATA_MOVEMENT:
        return _operator(graph, variable, "move", arguments[:1])
    if name in _POOLS:
        return _operator(graph, variable, "pool", arguments[:1])
    if name in _CONVOLUTIONS or name in _TRANSPOSED or name == "relax.matmul":
        return _linear(graph, variable, value, name)
    if name in _ACTIVATIONS and _is_function(graph, value):
        return _operator(graph, variable, "activation", arguments[:1])
    if name in _ELEMENTWISE:
        inputs = [x for x in arguments if graph.constant(x) is None]
        # With a constant it is an activation: a function of one value for each channel.
        kind = _ELEMENTWISE[name] if len(inputs) == 2 else "activation"
        return _operator(graph, variable, kind, inputs)
    return None


def _pads_with_zero(call: Any) -> bool:
    if str(call.attrs.pad_mode) != "constant":
        return True
    return len(call.args) < 2 and float(call.attrs.pad_value) == 0


def _operator(graph: Graph, variable: Any, kind: str, inputs: list[Any]) -> Operator | None:
    operands = tuple(graph.operand(x) for x in inputs)
    if not operands or not all(isinstance(x, relax.Var) and graph.is_float(x) for x in operands):
        return None
    name = graph.names[variable]
    return Operator(name, kind, (name,), variable, variable, operands)


def _linear(graph: Graph, variable: Any, call: Any, name: str) -> Operator | None:
    data, second = call.args
    array = graph.constant(second)
    if array is None:
        # The product of two activations, in attention.
        if name != "relax.matmul" or graph.constant(data) is not None:
            return None
        return _operator(graph, variable, "matmul", [data, second])
    if array.ndim < 2 or array.dtype != np.float32:
        return None
    if name == "relax.matmul":
        kind, axis = "matmul", array.ndim - 1
    elif name in _TRANSPOSED:
        kind, axis = "conv_transpose", 1
    else:
        depthwise = int(call.attrs.groups) == array.shape[0] and array.shape[1] == 1
        kind, axis = "depthwise_conv" if depthwise and array.shape[0] > 1 else "conv", 0
    operator = _operator(graph, variable, kind, [data])
    return operator and replace(operator, weight=Weight(np.ascontiguousarray(array), axis))


def _extended(graph: Graph, operator: Operator) -> Operator:
    """Return the operator with the elementwise operators that only it feeds."""
    while True:
        reader = graph.sole_reader(operator.result)
        if reader is None or not graph.is_float(reader.result):
            return operator
        if shape_of(reader.result) != shape_of(operator.result):
            return operator
        name = op_name(reader.call)
        if name in _ELEMENTWISE:
            others = [graph.constant(x) for x in reader.call.args]
            arrays = [array for array in others if array is not None]
            if len(arrays) != 1:
                return operator
            if operator.result is operator.anchor and name == "relax.add" and operator.weight:
                bias = _by_channel(operator, shape_of(reader.result) or (), arrays[0])
                if bias is not None:
                    operator = replace(operator, bias=(reader.result, bias))
        elif name not in _ACTIVATIONS or not _is_function(graph, reader.call):
            return operator
        names = (*operator.names, graph.names[reader.result])
        operator = replace(operator, result=reader.result, names=names, name=names[-1])


def _is_function(graph: Graph, call: Any) -> bool:
    """Return whether an activation reads one value: whatever else it reads is constant."""
    return all(
        graph.constant(argument) is not None for argument in call.args[1:] if _is_tensor(argument)
    )


def _is_tensor(expression: Any) -> bool:
    return isinstance(expression.ty, relax.TensorType)


def _by_channel(
    operator: Operator, shape: tuple[int, ...], array: NDArray[Any]
) -> NDArray[np.float32] | None:
    """Return a summand that varies along the channels only, as float32 [channels]."""
    axis = len(shape) - 1 if operator.kind == "matmul" else 1
    full = (1,) * (len(shape) - array.ndim) + array.shape
    if any(extent != 1 for i, extent in enumerate(full) if i != axis):
        return None
    return np.broadcast_to(array.reshape(-1), (shape[axis],)).astype(np.float32)
