"""Describe what each operator ties: the rules by which `Finder` visits a module.

A rule gets the finder, the variable that holds the result, and the call. It sets the axes of the
result and ties identities; what it does not know it hands to `Finder.unknown`, and all of it
stays.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax

from edgec.compiler.compress.channel_groups.finder import (
    Finder,
    Ids,
    LinearOperator,
    Product,
    Rule,
    place_of,
    zeros,
)
from edgec.compiler.ir.relax_helpers import op_name, shape_of
from edgec.compiler.numerics.activations import BY_OPERATOR

ELEMENTWISE = frozenset(
    f"relax.{name}"
    for name in (
        *("abs", "add", "astype", "ceil", "cos", "divide", "equal"),
        *("floor", "greater", "greater_equal", "isnan", "less", "less_equal", "log"),
        *("logical_and", "logical_not", "logical_or", "maximum", "minimum", "mod", "multiply"),
        *("negative", "not_equal", "power", "round", "rsqrt", "sign", "sin"),
        *("square", "subtract", "where", "nn.relu6", "nn.softplus"),
    )
) | set(BY_OPERATOR)

_REDUCTIONS = ("max", "mean", "min", "prod", "std", "sum", "variance")

CONVOLUTIONS = (
    "relax.nn.conv1d",
    "relax.nn.conv2d",
    "relax.nn.conv3d",
    "relax.nn.conv1d_transpose",
    "relax.nn.conv2d_transpose",
)

_POOLS = ("adaptive_avg_pool2d", "avg_pool1d", "avg_pool2d", "max_pool1d", "max_pool2d")


def _elementwise(finder: Finder, variable: Any, call: Any) -> None:
    tensors = [i for i, x in enumerate(call.args) if isinstance(x.ty, relax.TensorType)]
    operands = [finder.operand(variable, call, i) for i in tensors]
    finder.axes[variable] = finder.joined(operands, shape_of(variable) or ())


def _prelu(finder: Finder, variable: Any, call: Any) -> None:
    axes = finder.operand(variable, call, 0)
    (slope,) = finder.operand(variable, call, 1)
    channels = axes[int(call.attrs.axis)]
    if len(slope) == len(channels):
        finder.ties.tie(slope, channels)
    finder.axes[variable] = axes


def _convolution(finder: Finder, variable: Any, call: Any) -> None:
    data, weight = (finder.operand(variable, call, i) for i in (0, 1))
    transposed, groups = is_transposed(op_name(call)), int(call.attrs.groups)
    layouts = str(call.attrs.data_layout)[:2], str(call.attrs.kernel_layout)[:2]
    by_channel = is_by_channel(call, [len(ids) for ids in weight])
    in_groups = groups > 1 and not by_channel
    if layouts != ("NC", "IO" if transposed else "OI") or (transposed and in_groups):
        return finder.unknown(variable, call)
    shape = shape_of(variable) or ()
    channels = finder.ties.fresh(shape[1])
    finder.ties.freeze([data[0], *data[2:], *weight[2:]])
    finder.axes[variable] = (np.zeros(shape[0], np.int64), channels, *zeros(shape[2:]))
    inputs, outputs = (0, 1) if transposed else (1, 0)
    if by_channel:
        repeat = len(channels) // len(data[1])
        finder.ties.tie(channels, np.repeat(data[1], repeat))
        finder.ties.tie(weight[0], np.repeat(data[1], len(weight[0]) // len(data[1])))
    elif groups == 1:
        finder.ties.tie(data[1], weight[inputs])
        finder.ties.tie(channels, weight[outputs])
    else:
        # Groups stay of equal size: what goes in one goes in all.
        for whole, part in ((data[1], weight[1]), (channels, weight[0])):
            rows = whole.reshape(groups, -1)
            for row in rows:
                finder.ties.tie(row, rows[0])
            finder.ties.tie(whole, np.tile(part, len(whole) // len(part)))
    place = place_of(finder.graph, finder.constants, variable, 1)
    if place is None:
        finder.ties.freeze(data)
    # Each output meets a kernel of inputs; transposed, each input one of outputs.
    met = [len(ids) for ids in data[2:]] if transposed else shape[2:]
    each = math.prod([shape[0], *met, *(len(ids) for ids in weight[2:])])
    read = None if by_channel else inputs
    finder.linear_operators.append(LinearOperator(variable, place, read, weight[:2], each))
    return None


def _matmul(finder: Finder, variable: Any, call: Any) -> None:
    data, other = (finder.operand(variable, call, i) for i in (0, 1))
    if min(len(data), len(other)) < 2:
        return finder.unknown(variable, call)
    finder.ties.tie(data[-1], other[-2])
    place = place_of(finder.graph, finder.constants, variable, 1)
    if place is None:
        # Between activations every term of the sum counts.
        finder.ties.freeze(data[-1:])
    shape = shape_of(variable) or ()
    batch = finder.joined([data[:-2], other[:-2]], shape[:-2])
    finder.axes[variable] = (*batch, data[-2], other[-1])
    extents = (*finder.axes[variable], data[-1])
    finder.linear_operators.append(LinearOperator(variable, place, len(other) - 2, extents, 1))
    return None


def _pool(finder: Finder, variable: Any, call: Any) -> None:
    data = finder.operand(variable, call, 0)
    if not str(call.attrs.layout).startswith("NC"):
        return finder.unknown(variable, call)
    finder.ties.freeze(data[2:])
    shape = shape_of(variable) or ()
    finder.axes[variable] = (*data[:2], *zeros(shape[2:]))
    return None


def _reduction(finder: Finder, variable: Any, call: Any) -> None:
    data = finder.operand(variable, call, 0)
    rank = len(data)
    given = call.attrs.axis
    reduced = {int(a) % rank for a in given} if given is not None else set(range(rank))
    finder.ties.freeze(data[axis] for axis in reduced)
    one = np.zeros(1, np.int64)
    finder.axes[variable] = tuple(
        one if axis in reduced else ids
        for axis, ids in enumerate(data)
        if axis not in reduced or call.attrs.keepdims
    )


def _along(finder: Finder, variable: Any, call: Any) -> None:
    """Softmax: the axis that it normalizes stays."""
    data = finder.operand(variable, call, 0)
    finder.ties.freeze([data[int(call.attrs.axis)]])
    finder.axes[variable] = data


def _layer_norm(finder: Finder, variable: Any, call: Any) -> None:
    data = finder.operand(variable, call, 0)
    finder.ties.freeze(data[int(axis)] for axis in call.attrs.axes)
    finder.axes[variable] = data


def _concat(finder: Finder, variable: Any, call: Any) -> None:
    fields = call.args[0].fields if isinstance(call.args[0], relax.Tuple) else ()
    if not fields or not all(isinstance(x, relax.Var) for x in fields):
        return finder.unknown(variable, call)
    operands = [finder.axes[x] for x in fields]
    axis = int(call.attrs.axis) % len(operands[0])
    for other in operands[1:]:
        for i, ids in enumerate(other):
            if i != axis:
                finder.ties.tie(operands[0][i], ids)
    joined = list(operands[0])
    joined[axis] = np.concatenate([axes[axis] for axes in operands])
    finder.axes[variable] = tuple(joined)
    return None


def _split(finder: Finder, variable: Any, call: Any) -> None:
    data = finder.operand(variable, call, 0)
    axis, cuts = split_fields(call, [len(ids) for ids in data])
    parts = np.split(data[axis], cuts)
    finder.parts[variable] = [(*data[:axis], part, *data[axis + 1 :]) for part in parts]


def _slice(finder: Finder, variable: Any, call: Any) -> None:
    data = list(finder.operand(variable, call, 0))
    fields = slice_fields(call)
    if fields is None:
        return finder.unknown(variable, call)
    for axis, begin, end, stride in zip(*fields, strict=True):
        if stride != 1:
            finder.ties.freeze([data[axis]])
        data[axis] = data[axis][begin:end:stride]
    if [len(ids) for ids in data] != list(shape_of(variable) or ()):
        return finder.unknown(variable, call)
    finder.axes[variable] = tuple(data)
    return None


def _permute(finder: Finder, variable: Any, call: Any) -> None:
    data = finder.operand(variable, call, 0)
    axes = call.attrs.axes
    order = [int(a) for a in axes] if axes is not None else range(len(data))[::-1]
    finder.axes[variable] = tuple(data[axis] for axis in order)


def _resize(finder: Finder, variable: Any, call: Any) -> None:
    data = finder.operand(variable, call, 0)
    if str(call.attrs.layout) != "NCHW":
        return finder.unknown(variable, call)
    finder.ties.freeze(data[2:])
    finder.axes[variable] = (*data[:2], *zeros((shape_of(variable) or ())[2:]))
    return None


def _pad(finder: Finder, variable: Any, call: Any) -> None:
    data = list(finder.operand(variable, call, 0))
    widths = [int(n) for n in call.attrs.pad_width]
    for axis, extent in enumerate(shape_of(variable) or ()):
        if any(widths[2 * axis : 2 * axis + 2]):
            finder.ties.freeze([data[axis]])
            data[axis] = np.zeros(extent, np.int64)
    finder.axes[variable] = tuple(data)


def _broadcast(finder: Finder, variable: Any, call: Any) -> None:
    data, shape = finder.operand(variable, call, 0), shape_of(variable) or ()
    given = zeros([1] * (len(shape) - len(data))) + data
    finder.axes[variable] = tuple(
        ids if len(ids) == extent else np.zeros(extent, np.int64)
        for ids, extent in zip(given, shape, strict=True)
    )


def _reshape(finder: Finder, variable: Any, call: Any) -> None:
    data, shape = finder.operand(variable, call, 0), shape_of(variable) or ()
    squeezed = op_name(call) == "relax.squeeze" and call.attrs.axis is None
    if squeezed or 0 in shape:
        return finder.unknown(variable, call)
    result: list[Ids] = list(zeros(shape))
    for before, after in reshaped_axes([len(ids) for ids in data], shape):
        sources = [data[axis] for axis in before]
        if len(before) == len(after) == 1:
            result[after[0]] = sources[0]
        elif len(before) == 1:
            for axis in after:
                result[axis] = finder.ties.fresh(shape[axis])
            finder.products.append(Product(sources[0], tuple(result[a] for a in after)))
        elif len(after) == 1:
            result[after[0]] = finder.ties.fresh(shape[after[0]])
            finder.products.append(Product(result[after[0]], tuple(sources)))
        else:
            finder.ties.freeze(sources)
    finder.axes[variable] = tuple(result)
    return None


def reshaped_axes(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Return axes of a reshape that make each other up, those of extent 1 left out."""
    found = []
    left = [axis for axis, extent in enumerate(before) if extent != 1]
    right = [axis for axis, extent in enumerate(after) if extent != 1]
    while left and right:
        ours, theirs = [left.pop(0)], [right.pop(0)]
        while (a := math.prod(before[i] for i in ours)) != (
            b := math.prod(after[i] for i in theirs)
        ):
            if a < b:
                ours.append(left.pop(0))
            else:
                theirs.append(right.pop(0))
        found.append((ours, theirs))
    return found


def is_transposed(name: str) -> bool:
    """Return whether the operator of this name is a transposed convolution."""
    return name.endswith("_transpose")


def is_by_channel(call: Any, weight: Sequence[int]) -> bool:
    """Return whether each input channel has its own weights, which see no other."""
    groups = int(call.attrs.groups)
    if groups == 1:
        return False
    return weight[1] == 1 if not is_transposed(op_name(call)) else weight[0] == groups


def split_fields(call: Any, shape: Sequence[int]) -> tuple[int, list[int]]:
    """Return axis and cuts of a split."""
    axis = int(call.attrs.axis) % len(shape)
    given = call.attrs.indices_or_sections
    if isinstance(given, (int, tvm.tirx.IntImm)):
        part = -(-shape[axis] // int(given))
        return axis, list(range(part, shape[axis], part))
    return axis, [int(cut) for cut in given]


def slice_fields(call: Any) -> Any:
    """Return axes, begins, ends and strides of a slice, None if they are not constant."""
    fields = []
    for argument in call.args[1:]:
        if not isinstance(argument, relax.Tuple):
            return None
        fields.append([int(value) for value in argument.fields])
    if len(fields) == 3:
        fields.append([1] * len(fields[0]))
    rank = len(shape_of(call.args[0]) or ())
    fields[0] = [axis % rank for axis in fields[0]]
    return tuple(fields)


RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(CONVOLUTIONS, _convolution),
    **dict.fromkeys((f"relax.nn.{name}" for name in _POOLS), _pool),
    **dict.fromkeys((f"relax.{name}" for name in _REDUCTIONS), _reduction),
    "relax.broadcast_to": _broadcast,
    "relax.concat": _concat,
    "relax.expand_dims": _reshape,
    "relax.flatten": _reshape,
    "relax.image.resize2d": _resize,
    "relax.matmul": _matmul,
    "relax.nn.layer_norm": _layer_norm,
    "relax.nn.log_softmax": _along,
    "relax.nn.pad": _pad,
    "relax.nn.prelu": _prelu,
    "relax.nn.softmax": _along,
    "relax.permute_dims": _permute,
    "relax.reshape": _reshape,
    "relax.split": _split,
    "relax.squeeze": _reshape,
    "relax.strided_slice": _slice,
}
