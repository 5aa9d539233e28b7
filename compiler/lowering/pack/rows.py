"""Provide softmax, layer normalization and reductions, row by row."""

import math

import numpy as np
from tvm import relax

from edgec.compiler.ir.relax_helpers import op_name, shape_of, value_of
from edgec.compiler.kernels.row_reduce import RowReduceWorkload
from edgec.compiler.kernels.softmax_norm import Operation, SoftmaxNormWorkload
from edgec.compiler.kernels.standardize import StandardizeWorkload
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
    if columns > 1 and np.all(parameters[0] == 1) and not np.any(parameters[1]):
        plain = StandardizeWorkload(rows, columns, float(call.attrs.epsilon))
        source = context.plain(data).expression
        variable = context.emit("edgec.standardize", [source], plain, data.shape)
        return PackedValue(variable, data.shape, False, 1)
    workload = SoftmaxNormWorkload("layer_norm", rows, columns, float(call.attrs.epsilon))
    arguments = [context.plain(data).expression, *call.args[1:]]
    variable = context.emit("edgec.rows", arguments, workload, data.shape)
    return PackedValue(variable, data.shape, False, 1)


def match_rms_norm(context: Context, call: relax.Call) -> PackedValue | Declined:
    """Choose a kernel for normalization by the root mean square."""
    data, gamma = context.plain(context.float_value(call.args[0])), value_of(call.args[1])
    rank, axes = len(data.shape), sorted(int(axis) for axis in call.attrs.axes)
    if axes != list(range(rank - len(axes), rank)) or gamma is None:
        return Declined("it does not normalize the last axes by a constant scale")
    rows = math.prod(data.shape) // gamma.size
    workload = SoftmaxNormWorkload("rms_norm", rows, gamma.size, float(call.attrs.epsilon))
    variable = context.emit("edgec.rows", [data.expression, call.args[1]], workload, data.shape)
    return PackedValue(variable, data.shape, False, 1)


def match_row_reduce(context: Context, call: relax.Call) -> PackedValue | Declined:
    """Choose a kernel for sum, product, mean, smallest or largest value over neighbouring axes."""
    data, shape = context.float_value(call.args[0]), shape_of(call)
    rank = len(data.shape)
    axes = range(rank) if call.attrs.axis is None else [int(a) % rank for a in call.attrs.axis]
    # Axes of one value are reduced by leaving them out.
    long = [axis for axis in range(rank) if data.shape[axis] != 1]
    reduced = [place for place, axis in enumerate(long) if axis in axes]
    if shape is None or reduced != list(
        range(min(reduced, default=0), max(reduced, default=0) + 1)
    ):
        return Declined("it does not reduce neighbouring axes")
    extents = [data.shape[axis] for axis in long]
    columns = math.prod(extents[place] for place in reduced)
    rows, inner = math.prod(extents[: reduced[0]]), math.prod(extents[reduced[-1] + 1 :])
    if not rows or not columns or not inner:
        return Declined("it reduces nothing")
    operation = op_name(call).removeprefix("relax.")
    workload = RowReduceWorkload(operation, rows, columns, inner)  # type: ignore[arg-type]
    source = context.plain(data).expression
    return PackedValue(context.emit("edgec.row_reduce", [source], workload, shape), shape, False, 1)
