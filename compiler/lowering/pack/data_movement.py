"""Provide operators that move values and compute nothing.

Reshapes, concatenation, slices, splits.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tvm import relax

from edgec.compiler.ir.blocked_layout import Shape, image
from edgec.compiler.ir.relax_helpers import constant, dtype_of, op_name, shape_of, value_of
from edgec.compiler.kernels.embedding import EmbeddingWorkload
from edgec.compiler.kernels.grouped_embedding import GroupedEmbeddingWorkload
from edgec.compiler.kernels.layout import ChannelMapWorkload, PackWorkload
from edgec.compiler.kernels.transpose import TransposeWorkload
from edgec.compiler.lowering.pack.attention import tokens_side_by_side
from edgec.compiler.lowering.pack.context import Context
from edgec.compiler.lowering.pack.epilogue import open_kernel
from edgec.compiler.lowering.pack.values import PackedValue
from edgec.compiler.lowering.pack.weights import grouped_codes, half_weight, quantized_weight
from edgec.compiler.numerics.support import Declined

# Size of a value of a dtype that a kernel moves.
_BYTES = {
    **dict.fromkeys(("bool", "int8", "uint8"), 1),
    **dict.fromkeys(("float16", "bfloat16", "int16", "uint16"), 2),
    **dict.fromkeys(("float32", "int32", "uint32"), 4),
    **dict.fromkeys(("float64", "int64", "uint64"), 8),
}
_NOT_BLOCKED = Declined("only channels of blocked images have a kernel that moves them")
_NOT_CHANNELS = Declined("it does not move whole channels known when compiling")


def match_reshape(context: Context, call: relax.Call) -> PackedValue | Declined:
    """Keep a reshape, of values that stay quantized; with a transpose it may shuffle channels."""
    shape = shape_of(call)
    shuffled = _channel_shuffle(context, call)
    if shuffled is not None:
        return shuffled
    if shape is None:
        return Declined("its shape is not known when compiling")
    data = context.plain(context.value(call.args[0]))
    kernel = open_kernel(context, data)
    if kernel is not None and kernel.operator == "edgec.standardize":
        # It gives its rows in any shape; so more can follow in its epilogue.
        shaped = replace(kernel, place=shape)
        variable = shaped.emit(context, kernel.arguments, kernel.workload)
        return PackedValue(variable, shape, False, 1)
    variable = context.builder.emit(relax.op.reshape(data.expression, list(shape)))
    return PackedValue(variable, shape, False, 1, data.qparams)


def match_transpose(context: Context, call: relax.Call) -> PackedValue | Declined:
    """Choose the kernel that permutes axes, of values that stay quantized."""
    shape = shape_of(call)
    volumes = _volumes(context, call)
    if volumes is not None:
        return volumes
    data = context.plain(context.value(call.args[0]))
    dtype = dtype_of(data.expression)
    size = _BYTES.get(dtype)
    if shape is None or size is None or 0 in shape:
        return Declined(f"no kernel moves values of {dtype}")
    rank = len(shape)
    axes = call.attrs.axes
    axes = range(rank)[::-1] if axes is None else [int(axis) % rank for axis in axes]
    tokens = tokens_side_by_side(context, data, axes, shape)
    if tokens is not None:
        return tokens
    workload = TransposeWorkload(data.shape, tuple(axes), size)
    variable = context.emit("edgec.transpose", [data.expression], workload, shape, dtype)
    return PackedValue(variable, shape, False, 1, data.qparams)


def _volumes(context: Context, call: relax.Call) -> PackedValue | None:
    """Return volumes [N, C, D, H, W] of blocked images [N * D, C, H, W]; None for all else.

    The kernel that brings the images into a plain layout puts them side by side.
    """
    split, shape = context.old.get(call.args[0]), shape_of(call)
    if split is None or op_name(split) != "relax.reshape" or shape is None or len(shape) != 5:
        return None
    data, axes = context.value(split.args[0]), [int(axis) for axis in call.attrs.axes or ()]
    n, channels, depth, high, wide = shape
    if not data.blocked or data.shape != (n * depth, channels, high, wide):
        return None
    if axes != [0, 2, 1, 3, 4]:
        return None
    dtype = dtype_of(data.expression)
    workload = PackWorkload(n * depth, channels, high * wide, True, dtype, depth)
    variable = context.emit("edgec.pack", [data.expression], workload, shape, dtype)
    return PackedValue(variable, shape, False, 1, data.qparams)


def _channel_shuffle(context: Context, call: relax.Call) -> PackedValue | None:
    """Permute channels: reshape [N, g, C / g, H, W], transpose, reshape back.

    None if a reshape is not the last of such three.
    """
    transposed = context.old.get(call.args[0])
    if transposed is None or op_name(transposed) != "relax.permute_dims":
        return None
    split = context.old.get(transposed.args[0])
    if split is None or op_name(split) != "relax.reshape":
        return None
    data, shape, grouped = context.value(split.args[0]), shape_of(call), shape_of(split)
    axes = [int(axis) for axis in transposed.attrs.axes or ()]
    if shape is None or grouped is None or data.shape != shape or not data.blocked:
        return None
    if len(shape) != 4 or len(grouped) != 5 or axes != [0, 2, 1, 3, 4]:
        return None
    if (grouped[0], *grouped[3:]) != (shape[0], *shape[2:]):
        return None
    groups, each = grouped[1], grouped[2]
    picks = tuple((0, group * each + i) for i in range(each) for group in range(groups))
    return _channel_map(context, [data], picks, shape)


def _channel_map(
    context: Context,
    inputs: Sequence[PackedValue],
    picks: tuple[tuple[int, int], ...],
    shape: Shape,
) -> PackedValue:
    """Emit the kernel that gathers channels: `picks` has input and channel of each output."""
    n, _, h, w = image(shape)
    channels = tuple(image(value.shape)[1] for value in inputs)
    qparams = inputs[0].qparams
    if any(value.qparams != qparams for value in inputs):
        inputs, qparams = [context.as_floats(value) for value in inputs], None
    elif qparams is not None:
        largest = max(value.qparams.largest for value in inputs if value.qparams is not None)
        qparams = replace(qparams, largest=largest)
    dtype = qparams.dtype if qparams else "float32"
    workload = ChannelMapWorkload(n, h * w, channels, picks, dtype)
    arguments = [context.blocked(value).expression for value in inputs]
    return context.emit_blocked("edgec.channel_map", arguments, workload, shape, qparams)


def match_concat(context: Context, call: relax.Call) -> PackedValue | Declined:
    """Choose a kernel for images one behind the other along channels."""
    shape = shape_of(call)
    fields = context.old.get(call.args[0], call.args[0])
    if shape is None or not isinstance(fields, relax.Tuple) or len(shape) not in (3, 4):
        return _NOT_CHANNELS
    inputs = [context.value(field) for field in fields.fields]
    if int(call.attrs.axis) % len(shape) != 1:
        return _NOT_CHANNELS
    if not any(value.blocked for value in inputs):
        return _NOT_BLOCKED
    picks = tuple(
        (number, channel)
        for number, value in enumerate(inputs)
        for channel in range(image(value.shape)[1])
    )
    return _channel_map(context, inputs, picks, shape)


def match_slice(context: Context, call: relax.Call) -> PackedValue | Declined:
    """Choose a kernel for some of the channels of an image."""
    data, shape = context.value(call.args[0]), shape_of(call)
    if shape is None or not data.blocked:
        return _NOT_BLOCKED
    axes, begin, _, *steps = (_numbers(argument) for argument in call.args[1:])
    if axes is None or begin is None or len(axes) != 1 or axes[0] % len(shape) != 1:
        return _NOT_CHANNELS
    step = steps[0][0] if steps and steps[0] else 1
    channels = data.shape[1]
    first = begin[0] + channels if begin[0] < 0 else begin[0]
    # A start beyond either end is taken for the end.
    first = max(0, min(first, channels - 1 if step < 0 else channels))
    picks = tuple((0, first + step * index) for index in range(shape[1]))
    if any(not 0 <= channel < data.shape[1] for _, channel in picks):
        return _NOT_CHANNELS
    return _channel_map(context, [data], picks, shape)


def match_rows(context: Context, call: relax.Call) -> PackedValue | None:
    """Cut or join rows of blocked images where they are, of any type; None if it is nothing else.

    Parts of a layer on several devices are cut and joined so: what reads them must find them as
    what reads the whole does.
    """
    name, shape = op_name(call), shape_of(call)
    if shape is None or len(shape) != 4 or name not in ("relax.strided_slice", "relax.concat"):
        return None
    fields = call.args[0].fields if isinstance(call.args[0], relax.Tuple) else [call.args[0]]
    inputs = [context.value(field) for field in fields]
    first = inputs[0]
    if not all(value.blocked and value.qparams == first.qparams for value in inputs):
        return None
    arrays = [value.expression for value in inputs]
    if len({dtype_of(array) for array in arrays}) > 1:
        return None
    if name == "relax.concat":
        if int(call.attrs.axis) % 4 != 2:
            return None
        made = context.builder.emit(relax.op.concat(arrays, 2))
    else:
        axes, begin, end, *steps = (_numbers(argument) for argument in call.args[1:])
        if axes != [2] or begin is None or end is None or any(step != [1] for step in steps):
            return None
        made = context.builder.emit(relax.op.strided_slice(arrays[0], axes, begin, end))
    known = [context.largest[array] for array in arrays if array in context.largest]
    if len(known) == len(arrays):
        context.largest[made] = max(known)
    return PackedValue(made, shape, True, 1, first.qparams)


def match_take(context: Context, call: relax.Call) -> PackedValue | Declined:
    """Choose a kernel for rows of a quantized table, or channels of an image by their numbers."""
    rows = _embedding(context, call)
    if rows is not None:
        return rows
    data, shape, channels = context.value(call.args[0]), shape_of(call), value_of(call.args[1])
    if shape is None or channels is None or channels.ndim != 1:
        return _NOT_CHANNELS
    if not data.blocked:
        return _NOT_BLOCKED
    if call.attrs.axis is None or int(call.attrs.axis) % len(data.shape) != 1:
        return _NOT_CHANNELS
    picks = tuple((0, int(channel) % data.shape[1]) for channel in channels)
    return _channel_map(context, [data], picks, shape)


def _embedding(context: Context, call: relax.Call) -> PackedValue | None:
    """Emit the look-up of rows in a table that is stored quantized; None for other tables."""
    table, shape, kind = shape_of(call.args[0]), shape_of(call), dtype_of(call.args[1])
    if table is None or shape is None or len(table) != 2 or kind not in ("int32", "int64"):
        return None
    # Places in the table are counted in int32.
    if call.attrs.axis is None or int(call.attrs.axis) % 2 or math.prod(table) >= 2**31:
        return None
    rounded, half = quantized_weight(context, call.args[0], 0), half_weight(context, call.args[0])
    if rounded is not None:
        weight, operands = "int8", [rounded.values, rounded.scales]
    elif half is not None:
        weight, operands = half[1], [half[0]]
    else:
        return None
    indices = context.plain(context.value(call.args[1])).expression
    workload = EmbeddingWorkload(math.prod(shape) // table[1], *table, kind, weight)  # type: ignore[arg-type]
    arguments = [indices, *map(constant, operands)]
    return PackedValue(context.emit("edgec.embedding", arguments, workload, shape), shape, False, 1)


def match_grouped_take(context: Context, call: relax.Call) -> PackedValue | Declined:
    """Choose the kernel that looks up rows of a table with a scale for each group."""
    shape, kind = shape_of(call), dtype_of(call.args[0])
    table = grouped_codes(call)
    if shape is None or kind not in ("int32", "int64") or table is None:
        return Declined("its table is not constant")
    if context.dot is None:
        return Declined("only a target that multiplies integers keeps tables as its products do")
    if table.form.minima:
        return Declined("no kernel looks up rows with minima")
    workload = GroupedEmbeddingWorkload(
        math.prod(shape[:-1]),
        len(table.arrays["codes"]),
        shape[-1],
        kind,  # type: ignore[arg-type]
        table.form,
    )
    indices = context.plain(context.value(call.args[0])).expression
    variable = context.emit("edgec.grouped_embedding", [indices, *call.args[1:]], workload, shape)
    return PackedValue(variable, shape, False, 1)


def match_split(context: Context, item: Any, shape: Shape) -> PackedValue | Declined | None:
    """Choose a kernel for one result of a split along channels; None for other tuples."""
    call = context.old.get(item.tuple_value)
    if call is None or op_name(call) != "relax.split":
        return None
    data = context.value(call.args[0])
    if not data.blocked:
        return _NOT_BLOCKED
    if int(call.attrs.axis) % len(data.shape) != 1:
        return _NOT_CHANNELS
    kinds = [field.shape.values for field in item.tuple_value.ty.fields]
    first = sum(int(extents[1]) for extents in kinds[: item.index])
    picks = tuple((0, first + index) for index in range(shape[1]))
    return _channel_map(context, [data], picks, shape)


def _numbers(argument: Any) -> list[int] | None:
    """Return the integers of a tuple argument, None if one is not known."""
    fields = argument.fields if isinstance(argument, relax.Tuple) else []
    numbers = [getattr(field, "value", None) for field in fields]
    known = [int(number) for number in numbers if number is not None]
    return known if len(known) == len(numbers) else None
