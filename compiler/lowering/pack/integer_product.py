"""Choose the kernel of products of 8-bit matrices that only a run knows, exactly in int32.

A graph has them as `matmul(a - a_zero, b - b_zero)` with operands that were widened to 16 or 32
bits. The kernel multiplies the 8-bit values themselves; sums of rows and columns do the rest:
(a - p) (b - q) = a b - p sum(b) - q sum(a) + k p q.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax

from edgec.compiler.ir.blocked_layout import Shape
from edgec.compiler.ir.relax_helpers import constant, dtype_of, op_name, shape_of
from edgec.compiler.kernels.matmul.run_time_integer import RunTimeIntegerMatmulWorkload
from edgec.compiler.kernels.transpose import TransposeWorkload
from edgec.compiler.lowering.pack.context import Context
from edgec.compiler.lowering.pack.values import PackedValue
from edgec.compiler.numerics.pair_sums import DOT_WIDTH
from edgec.compiler.numerics.support import Declined

op = relax.op


@dataclass(frozen=True)
class _Factor:
    """A factor is 8-bit values of the new function, and their zero point.

    Attributes:
        values: uint8 or int8, in the layout that the graph states.
        zero: integers that broadcast to the values; None: zero.
    """

    values: Any
    zero: Any | None

    def as_type(self, context: Context, dtype: str) -> "_Factor":
        """Return the same in uint8 or int8: both are moved by 128."""
        own = dtype_of(self.values)
        if own == dtype:
            return self
        emit, shift = context.builder.emit, int(np.iinfo(dtype).min) - int(np.iinfo(own).min)
        moved = emit(op.add(emit(op.astype(self.values, "int16")), _whole(shift, "int16")))
        zero = _whole(shift, "int32")
        if self.zero is not None:
            zero = emit(op.add(emit(op.astype(self.zero, "int32")), zero))
        return _Factor(emit(op.astype(moved, dtype)), zero)

    def sums(self, context: Context, axis: int) -> Any:
        """Return the sums along an axis, which keeps extent 1; int32."""
        emit = context.builder.emit
        return emit(op.sum(emit(op.astype(self.values, "int32")), [axis], True))


def match_integer_product(context: Context, call: relax.Call) -> PackedValue | Declined:
    """Choose the kernel for a product of 8-bit values in int32."""
    shape, factors = shape_of(call), [_factor(context, argument) for argument in call.args]
    if context.dot is None or shape is None:
        return Declined("the target has no kernels of integers")
    left, right = factors
    if left is None or right is None:
        return Declined("its operands are not 8-bit values less a zero point")
    places = [shape_of(factor.values) or () for factor in (left, right)]
    if min(map(len, places)) < 2 or not _is_one_for_each(*places):
        return Declined("its batches are not those of one matrix for each")
    if not _has_one_along(left.zero, -1) or not _has_one_along(right.zero, -2):
        return Declined("a zero point is not one for each row of A or column of B")
    k, n = places[1][-2:]
    if not math.prod(shape) or not k:
        return Declined("it multiplies nothing")
    left, right = left.as_type(context, context.dot.data), right.as_type(context, "int8")
    single = len(places[1]) == 2
    batch = 1 if single else math.prod(shape[:-2])
    # Whole groups of rows, at least a vector of columns.
    depth, width = math.ceil(k / DOT_WIDTH) * DOT_WIDTH, max(n, context.lanes)
    workload = RunTimeIntegerMatmulWorkload(batch, math.prod(shape[:-1]) // batch, width, depth)
    weights = _padded(context, right.values, -2, depth - k)
    arguments = [
        _padded(context, left.values, -1, depth - k),
        _interleaved(context, _padded(context, weights, -1, width - n)),
    ]
    place = (*shape[:-1], width)
    total = context.emit("edgec.run_time_integer_matmul", arguments, workload, place, "int32")
    if width > n:
        total = context.builder.emit(op.strided_slice(total, [len(shape) - 1], [0], [n]))
    return PackedValue(_centered(context, total, left, right, k), shape, False, 1)


def _is_one_for_each(left: Shape, right: Shape) -> bool:
    """Return whether both have the same batches, or the right one is a matrix."""
    return len(right) == 2 or left[:-2] == right[:-2]


def _has_one_along(zero: Any | None, axis: int) -> bool:
    """Return whether a zero point is the same along an axis of what it is subtracted from."""
    extents = None if zero is None else shape_of(zero)
    return not extents or len(extents) < -axis or extents[axis] == 1


def _factor(context: Context, expression: Any) -> _Factor | None:
    """Return what was widened, and the zero point that was subtracted; None for all else."""
    zero, call = None, context.old.get(expression)
    if call is not None and op_name(call) == "relax.subtract":
        zero = context.plain(context.value(call.args[1])).expression
        call = context.old.get(call.args[0])
    if call is None or op_name(call) != "relax.astype":
        return None
    if dtype_of(call.args[0]) not in ("int8", "uint8") or shape_of(call.args[0]) is None:
        return None
    data = context.value(call.args[0])
    if data.qparams is not None:
        return None
    return _Factor(context.plain(data).expression, zero)


def _padded(context: Context, values: Any, axis: int, missing: int) -> Any:
    """Return values with zeros behind the last ones of an axis."""
    shape = list(shape_of(values) or ())
    if not missing:
        return values
    shape[axis] = missing
    nothing = constant(np.zeros(shape, dtype_of(values)))
    return context.builder.emit(op.concat([values, nothing], axis))


def _interleaved(context: Context, values: Any) -> Any:
    """Return B [..., K, N] as [batch, K / 4, N, 4]."""
    *outer, k, n = shape_of(values) or ()
    split = (math.prod(outer), k // DOT_WIDTH, DOT_WIDTH, n)
    groups = context.builder.emit(op.reshape(values, split))
    workload = TransposeWorkload(split, (0, 1, 3, 2), 1)
    place = (*split[:2], n, DOT_WIDTH)
    return context.emit("edgec.transpose", [groups], workload, place, "int8")


def _centered(context: Context, total: Any, left: _Factor, right: _Factor, k: int) -> Any:
    """Return sums of products without the zero points."""
    emit = context.builder.emit
    zeros = [None if f.zero is None else emit(op.astype(f.zero, "int32")) for f in (left, right)]
    if zeros[0] is not None:
        total = emit(op.subtract(total, emit(op.multiply(zeros[0], right.sums(context, -2)))))
    if zeros[1] is not None:
        total = emit(op.subtract(total, emit(op.multiply(zeros[1], left.sums(context, -1)))))
    if zeros[0] is not None and zeros[1] is not None:
        both = emit(op.multiply(emit(op.multiply(zeros[0], zeros[1])), _whole(k, "int32")))
        total = emit(op.add(total, both))
    return total


def _whole(number: int, dtype: str) -> Any:
    return constant(np.array(number, dtype))
