"""Provide softmax, layer normalization and reductions, row by row."""

import math

from tvm import relax

from edgec.compiler.ir.relax_helpers import op_name, shape_of, value_of
from edgec.compiler.kernels.row_reduce import RowReduceWorkload
from edgec.compiler.kernels.softmax_norm import Operation, SoftmaxNormWorkload
from edgec.compiler.lowering.pack.context import Context
from edgec.compiler.lowering.pack.values import PackedValue
from edgec.compiler.numerics.support import Declined


def match_softmax(context: Context, call: relax.Call) -> PackedValue | Declined:
    """Choose a kernel for softmax or its logarithm."""
    data = context.float_value(call.args[0])
    rank = len(data.shape)
    if rank == 0:
        return Declined("a scalar has no rows")
    axis = int(call.attrs.axis) % rank
    logarithm = op_name(call) == "relax.nn.log_softmax"
    operation: Operation = "log_softmax" if logarithm else "softmax"
    workload = SoftmaxNormWorkload(
        operation,
        math.prod(data.shape) // data.shape[axis],
        data.shape[axis],
        inner=math.prod(data.shape[axis + 1 :]),
    )
    source = context.plain(data).expression
    variable = context.emit("edgec.rows", [source], workload, data.shape)
    return PackedValue(variable, data.shape, False, 1)


def match_layer_norm(context: Context, call: relax.Call) -> PackedValue | Declined:
    """Choose a kernel for layer normalization."""
    data = context.float_value(call.args[0])
    rank = len(data.shape)
    axes = sorted(int(axis) % rank for axis in call.attrs.axes)
    parameters = [value_of(argument) for argument in call.args[1:]]
    if axes != list(range(rank - len(axes), rank)):
        return Declined("it does not normalize the last axes")
    if any(p is None for p in parameters):
        return Declined("its scale and bias are not constant")
    columns = math.prod(data.shape[axes[0] :])
    rows = math.prod(data.shape) // columns
    workload = SoftmaxNormWorkload("layer_norm", rows, columns, float(call.attrs.epsilon))
    arguments = [context.plain(data).expression, *call.args[1:]]
    variable = context.emit("edgec.rows", arguments, workload, data.shape)
    return PackedValue(variable, data.shape, False, 1)


def match_row_reduce(context: Context, call: relax.Call) -> PackedValue | Declined:
    """Choose a kernel for the sum, mean, smallest or largest value over the last axes."""
    data, shape = context.float_value(call.args[0]), shape_of(call)
    rank = len(data.shape)
    axes = range(rank) if call.attrs.axis is None else [int(a) % rank for a in call.attrs.axis]
    if shape is None or sorted(axes) != list(range(rank - len(axes), rank)) or not len(axes):
        return Declined("it does not reduce the last axes")
    columns = math.prod(data.shape[rank - len(axes) :])
    rows = math.prod(data.shape[: rank - len(axes)])
    if not rows or not columns:
        return Declined("it reduces nothing")
    operation = op_name(call).removeprefix("relax.")
    workload = RowReduceWorkload(operation, rows, columns)  # type: ignore[arg-type]
    source = context.plain(data).expression
    return PackedValue(context.emit("edgec.row_reduce", [source], workload, shape), shape, False, 1)
