"""Say what a region of an operator's result needs of its operands.

Channels of a product's result need the weights of these channels. What no rule is for is computed
as a whole, and the region cut out of it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tvm import relax

from edgec.compiler.compress.channel_groups.rules import (
    ELEMENTWISE,
    reshaped_axes,
    slice_fields,
    split_fields,
)
from edgec.compiler.ir.relax_helpers import op_name, shape_of
from edgec.compiler.split.regions import (
    Extents,
    Reading,
    Region,
    aligned,
    extents,
    ints,
    tensors,
    whole,
    with_axis,
    with_tensors,
)
from edgec.compiler.split.window_regions import (
    CONVOLUTIONS,
    POOLS,
    convolution,
    pad,
    pool,
    resize,
)

op = relax.op
_REDUCTIONS = tuple(
    f"relax.{name}" for name in ("max", "mean", "min", "prod", "std", "sum", "variance")
)
_ROUNDINGS = ("relax.quantize", "relax.dequantize")


def read_for(variable: Any, value: Any, region: Region, definitions: Mapping[Any, Any]) -> Reading:
    """Return what a region of a variable needs.

    Args:
        variable: one tensor, or several that one operator gives.
        value: what it is bound to.
        region: at least this is needed.
        definitions: what variables are bound to.
    """
    shape = shape_of(variable)
    if isinstance(value, relax.Var):
        return Reading(region, ((value, region),), lambda given: given[0])
    if isinstance(value, relax.TupleGetItem):
        found = _part_of_split(value, region, definitions)
    else:
        rule = _RULES.get(op_name(value)) if shape is not None else None
        found = None if rule is None else rule(value, shape or (), region)
    return found or _all_of(value, shape or ())


def _all_of(value: Any, shape: Extents) -> Reading:
    """Compute everything; several tensors together have no region."""
    if isinstance(value, relax.TupleGetItem):
        read = ((value.tuple_value, ()),)
        return Reading(whole(shape), read, lambda given: relax.TupleGetItem(given[0], value.index))
    if not isinstance(value, relax.Call):
        return Reading(whole(shape), (), lambda _: value)
    return Reading(
        whole(shape),
        tuple((x, whole(shape_of(x) or ())) for x in tensors(value)),
        lambda given: with_tensors(value, given),
    )


def _elementwise(call: Any, _shape: Extents, region: Region) -> Reading:
    read = tuple((x, aligned(shape_of(x) or (), region)) for x in tensors(call))
    return Reading(region, read, lambda given: with_tensors(call, given))


def _rounding(call: Any, shape: Extents, region: Region) -> Reading:
    """Quantize or dequantize: scales and zero points are numbers, or one for each along an axis."""
    axis = int(call.attrs.axis) % max(len(shape), 1)
    read = [(call.args[0], region)]
    for parameter in call.args[1:]:
        own = shape_of(parameter) or ()
        read.append((parameter, (region[axis],) if own and own[0] > 1 else whole(own)))
    return Reading(region, tuple(read), lambda given: with_tensors(call, given))


def _prelu(call: Any, _shape: Extents, region: Region) -> Reading:
    axis = int(call.attrs.axis) % len(region)
    slope = shape_of(call.args[1]) or (1,)
    own = (region[axis],) if slope[0] > 1 else whole(slope)
    return Reading(
        region,
        ((call.args[0], region), (call.args[1], own)),
        lambda given: with_tensors(call, given),
    )


def _global_pool(call: Any, shape: Extents, region: Region) -> Reading | None:
    data = shape_of(call.args[0])
    if data is None or str(call.attrs.layout) != "NCHW":
        return None
    taken = (*region[:2], *whole(data[2:]))
    return Reading(
        (*region[:2], *whole(shape[2:])),
        ((call.args[0], taken),),
        lambda given: with_tensors(call, given),
    )


def _reduction(call: Any, shape: Extents, region: Region) -> Reading | None:
    data = shape_of(call.args[0])
    if data is None:
        return None
    axes = call.attrs.axis
    reduced = {int(a) % len(data) for a in axes} if axes is not None else set(range(len(data)))
    kept = iter(region)
    taken = []
    for axis, extent in enumerate(data):
        if axis in reduced:
            taken.append((0, extent))
            if call.attrs.keepdims:
                next(kept)
        else:
            taken.append(next(kept))
    return Reading(region, ((call.args[0], tuple(taken)),), lambda given: with_tensors(call, given))


def _along(axes_of: Callable[[Any], Sequence[int]]) -> Any:
    """Return the rule of what normalizes along some axes, of which all is needed."""

    def rule(call: Any, shape: Extents, region: Region) -> Reading:
        axes = {axis % len(shape) for axis in axes_of(call)}
        more = tuple(
            (0, extent) if axis in axes else region[axis] for axis, extent in enumerate(shape)
        )
        read = [(call.args[0], more)]
        read += [(x, whole(shape_of(x) or ())) for x in tensors(call)[1:]]
        return Reading(more, tuple(read), lambda given: with_tensors(call, given))

    return rule


def _matmul(call: Any, shape: Extents, region: Region) -> Reading | None:
    a, b = (shape_of(x) for x in call.args)
    if a is None or b is None or min(len(a), len(b)) < 2:
        return None
    batch, rows, columns = region[:-2], region[-2], region[-1]
    return Reading(
        region,
        (
            (call.args[0], (*aligned(a[:-2], batch), rows, (0, a[-1]))),
            (call.args[1], (*aligned(b[:-2], batch), (0, b[-2]), columns)),
        ),
        lambda given: with_tensors(call, given),
    )


def _grouped_matmul(call: Any, shape: Extents, region: Region) -> Reading:
    """Rows of the packed weights are columns of the product."""
    data = shape_of(call.args[0]) or ()
    read = [(call.args[0], (*region[:-1], (0, data[-1])))]
    read += [(x, (region[-1], *whole((shape_of(x) or ())[1:]))) for x in call.args[1:]]
    return Reading(region, tuple(read), lambda given: with_tensors(call, given))


def _take(call: Any, shape: Extents, region: Region) -> Reading | None:
    table, indices = (shape_of(x) for x in call.args)
    if table is None or indices is None or call.attrs.axis is None or int(call.attrs.axis):
        return None
    at, row = region[: len(indices)], region[len(indices) :]
    return Reading(
        region,
        ((call.args[0], ((0, table[0]), *row)), (call.args[1], at)),
        lambda given: with_tensors(call, given),
    )


def _concat(call: Any, shape: Extents, region: Region) -> Reading | None:
    if not isinstance(call.args[0], relax.Tuple):
        return None
    axis = int(call.attrs.axis) % len(shape)
    begin, end = region[axis]
    read, at = [], 0
    for field in call.args[0].fields:
        extent = (shape_of(field) or ())[axis]
        first, last = max(begin, at), min(end, at + extent)
        if first < last:
            read.append((field, with_axis(region, axis, (first - at, last - at))))
        at += extent
    return Reading(
        region,
        tuple(read),
        lambda given: given[0] if len(given) == 1 else op.concat(list(given), axis),
    )


def _part_of_split(item: Any, region: Region, definitions: Mapping[Any, Any]) -> Reading | None:
    call = definitions.get(item.tuple_value)
    if call is None or op_name(call) != "relax.split":
        return None
    data = shape_of(call.args[0]) or ()
    axis, cuts = split_fields(call, data)
    offset = [0, *cuts][int(item.index)]
    moved = with_axis(region, axis, (region[axis][0] + offset, region[axis][1] + offset))
    return Reading(region, ((call.args[0], moved),), lambda given: given[0])


def _slice(call: Any, shape: Extents, region: Region) -> Reading | None:
    fields, data = slice_fields(call), shape_of(call.args[0])
    if fields is None or data is None:
        return None
    taken, steps = list(region), []
    for axis, first, _, stride in zip(*fields, strict=True):
        if stride < 1:
            return None
        first = max(0, first + data[axis] if first < 0 else first)
        begin, end = region[axis]
        taken[axis] = (first + begin * stride, first + (end - 1) * stride + 1)
        if stride > 1:
            steps.append((axis, end - begin, stride))

    def build(given: Sequence[Any]) -> Any:
        if not steps:
            return given[0]
        axes, counts, strides = zip(*steps, strict=True)
        ends = [(n - 1) * s + 1 for n, s in zip(counts, strides, strict=True)]
        return op.strided_slice(given[0], axes, [0] * len(axes), ends, strides)

    return Reading(region, ((call.args[0], tuple(taken)),), build)


def _permute(call: Any, shape: Extents, region: Region) -> Reading:
    given_axes, rank = call.attrs.axes, len(shape)
    order = [int(a) % rank for a in given_axes] if given_axes is not None else range(rank)[::-1]
    taken: list[tuple[int, int]] = [(0, 0)] * rank
    for interval, axis in zip(region, order, strict=True):
        taken[axis] = interval
    return Reading(region, ((call.args[0], tuple(taken)),), lambda given: with_tensors(call, given))


def _reshape(call: Any, shape: Extents, region: Region) -> Reading | None:
    data = shape_of(call.args[0])
    if data is None or 0 in shape or 0 in data:
        return None
    taken, more = list(whole(data)), list(whole(shape))
    for before, after in reshaped_axes(data, shape):
        # The first axis counts, of the others all is needed.
        inner = math.prod(data[axis] for axis in before[1:])
        behind = math.prod(shape[axis] for axis in after[1:])
        if len(before) > 1 and len(after) > 1:
            continue
        first, last = (edge * behind for edge in region[after[0]])
        begin, end = first // inner, -(-last // inner)
        taken[before[0]] = (begin, end)
        more[after[0]] = (begin * inner // behind, end * inner // behind)
    result = tuple(more)
    return Reading(
        result,
        ((call.args[0], tuple(taken)),),
        lambda given: op.reshape(given[0], list(extents(result))),
    )


def _broadcast(call: Any, _shape: Extents, region: Region) -> Reading:
    data = shape_of(call.args[0]) or ()
    return Reading(
        region,
        ((call.args[0], aligned(data, region)),),
        lambda given: op.broadcast_to(given[0], list(extents(region))),
    )


_Rule = Callable[[Any, Extents, Region], Reading | None]
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(_ROUNDINGS, _rounding),
    **dict.fromkeys(CONVOLUTIONS, convolution),
    **dict.fromkeys(POOLS, pool),
    **dict.fromkeys(_REDUCTIONS, _reduction),
    "edgec.grouped_matmul": _grouped_matmul,
    "relax.broadcast_to": _broadcast,
    "relax.concat": _concat,
    "relax.expand_dims": _reshape,
    "relax.flatten": _reshape,
    "relax.image.resize2d": resize,
    "relax.matmul": _matmul,
    "relax.nn.adaptive_avg_pool2d": _global_pool,
    "relax.nn.layer_norm": _along(lambda call: ints(call.attrs.axes)),
    "relax.nn.log_softmax": _along(lambda call: [int(call.attrs.axis)]),
    "relax.nn.pad": pad,
    "relax.nn.prelu": _prelu,
    "relax.nn.rms_norm": _along(lambda call: ints(call.attrs.axes)),
    "relax.nn.softmax": _along(lambda call: [int(call.attrs.axis)]),
    "relax.permute_dims": _permute,
    "relax.reshape": _reshape,
    "relax.squeeze": _reshape,
    "relax.strided_slice": _slice,
    "relax.take": _take,
}


def sums_over(variable: Any, value: Any, interval: tuple[int, int]) -> Reading | None:
    """Return how a part of the sums of a product or convolution is computed.

    Args:
        variable: what it gives.
        value: the product.
        interval: of the channels that it sums over.

    Returns:
        The reading of all of the result, of which all parts must be added; None if it has no
        such sums.
    """
    shape = shape_of(variable)
    name = op_name(value)
    if shape is None or name not in ("relax.matmul", *CONVOLUTIONS):
        return None
    data, weight = (shape_of(x) for x in value.args)
    full = read_for(variable, value, whole(shape), {})
    if data is None or weight is None or len(full.operands) != 2:
        return None
    (x, taken), (w, own) = full.operands
    if name == "relax.matmul":
        if len(data) < 2 or len(weight) < 2:
            return None
        axes = (len(data) - 1, len(weight) - 2)
    elif int(value.attrs.groups) == 1:
        axes = (1, 1)
    else:
        return None
    read = ((x, with_axis(taken, axes[0], interval)), (w, with_axis(own, axes[1], interval)))
    return Reading(full.region, read, full.build)
