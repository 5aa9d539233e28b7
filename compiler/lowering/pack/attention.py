"""Provide attention over a cache, and what happens to a cache."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tvm import relax

from edgec.compiler.ir.blocked_layout import Shape
from edgec.compiler.ir.relax_helpers import dtype_of, op_name, shape_of
from edgec.compiler.kernels.attention.append_rows import AppendRowsWorkload
from edgec.compiler.kernels.attention.join_spans import JoinSpansWorkload
from edgec.compiler.kernels.attention.rotate_rows import RotateRowsWorkload
from edgec.compiler.kernels.attention.rotation import Rotation
from edgec.compiler.kernels.attention.workload import Cache, CachedAttentionWorkload
from edgec.compiler.kernels.template import from_text
from edgec.compiler.kernels.templates import TEMPLATES
from edgec.compiler.lowering.pack.context import Context
from edgec.compiler.lowering.pack.values import PackedValue
from edgec.compiler.numerics.support import Declined

# Places in a buffer are counted in int32.
_MOST_VALUES = 2**31 - 1
_HEADS_FIRST = [0, 2, 1, 3]
# Templates whose results may have heads or tokens in front.
_GIVE_EITHER = ("edgec.cache_attention", "edgec.join_spans", "edgec.rotate_rows")
# Rows of a key head up to which its keys are shared among tasks, and keys from which they are.
FEW_ROWS, LONG_CACHE = 32, 1024
# Tasks are a multiple of this: boards have one, two or four cores.
EVEN_TASKS = 4


def match_append_rows(context: Context, call: relax.Call) -> PackedValue | Declined:
    """Choose the kernel that replaces rows of a cache; it turns them if that is asked for."""
    shape = shape_of(call)
    rows, rotation, tables = _rotated(context, call.args[1], call.args[2])
    rows, token_major = _token_major(context, rows)
    count = shape_of(call.args[1])
    declined = _not_kept([call.args[1]], [call.args[0]]) or _declined(shape, count, call.args[2])
    if declined is not None or shape is None or count is None:
        return declined or Declined("its shape is not known when compiling")
    (batch, heads, total, size), clear = shape, bool(call.attrs["clear"])
    cache = _cache(call.args[0])
    workload = AppendRowsWorkload(
        batch, heads, total, count[2], size, token_major, rotation, clear, cache=cache
    )
    offset = context.plain(context.value(call.args[2])).expression
    arguments = [
        context.plain_expression(call.args[0]),
        context.plain_expression(rows),
        offset,
        *map(context.plain_expression, tables),
    ]
    variable = context.emit("edgec.cache_append", arguments, workload, shape, cache)
    return PackedValue(variable, shape, False, 1)


def match_cached_attention(context: Context, call: relax.Call) -> PackedValue | Declined:
    """Choose the kernel of attention over a cache; it turns queries if that is asked for."""
    query, keys, values, offset = call.args
    shape, place = shape_of(call), shape_of(values)
    declined = _not_kept([query], [keys, values])
    declined = declined or _declined(shape, shape_of(query), shape_of(keys), place, offset)
    if declined is not None or shape is None or place is None:
        return declined or Declined("its shape is not known when compiling")
    rows, rotation, tables = _rotated(context, query, offset)
    rows, token_major = _token_major(context, rows)
    batch, heads, count, size = shape_of(query) or ()
    workload = CachedAttentionWorkload(
        batch,
        heads,
        place[1],
        count,
        place[2],
        size,
        place[3],
        float(call.attrs["scale"]),
        int(call.attrs["window"]),
        float(call.attrs["softcap"]),
        token_major,
        rotation=rotation,
        cache=_cache(keys),
    )
    arguments = [
        *map(context.plain_expression, (rows, keys, values)),
        context.plain(context.value(offset)).expression,
        *map(context.plain_expression, tables),
    ]
    workload = replace(workload, spans=_spans(workload))
    if workload.spans == 1:
        variable = context.emit("edgec.cache_attention", arguments, workload, shape)
        return PackedValue(variable, shape, False, 1)
    kept = (batch, workload.groups, workload.spans, workload.rows, workload.width + 2)
    parts = context.emit("edgec.cache_attention", arguments, workload, kept)
    variable = context.emit("edgec.join_spans", [parts], JoinSpansWorkload(workload), shape)
    return PackedValue(variable, shape, False, 1)


def _spans(workload: CachedAttentionWorkload) -> int:
    """Return the parts of the keys that have tasks of their own.

    Of a few rows and a long cache so many that all cores of usual boards have as much to do. Not
    fewer for a batch: a text's rows have the same bits beside others as alone.
    """
    seen = min(workload.window or workload.total, workload.total)
    if workload.like_rows > FEW_ROWS or seen < LONG_CACHE:
        return 1
    return EVEN_TASKS // math.gcd(EVEN_TASKS, workload.groups)


def match_rotary(context: Context, call: relax.Call) -> PackedValue | Declined:
    """Choose the kernel that turns rows; a kernel that reads them may turn them itself."""
    data, cosines, sines, positions = call.args
    shape, rotation = shape_of(call), _rotation(call)
    declined = _declined(shape, shape_of(cosines), positions)
    if declined is not None or shape is None or rotation is None:
        return declined or Declined("its tables are not known well enough")
    rows, token_major = _token_major(context, data)
    batch, heads, count, size = shape
    each = len(shape_of(positions) or ()) == 2
    workload = RotateRowsWorkload(batch, heads, count, size, rotation, each, token_major)
    arguments = [
        context.plain_expression(rows),
        context.plain(context.value(positions)).expression,
        *map(context.plain_expression, (cosines, sines)),
    ]
    variable = context.emit("edgec.rotate_rows", arguments, workload, shape)
    return PackedValue(variable, shape, False, 1)


def tokens_side_by_side(
    context: Context, data: PackedValue, axes: Sequence[int], shape: Shape
) -> PackedValue | None:
    """Return what a kernel of heads gives with the heads of a token side by side.

    None if that is not asked for, or not of a kernel that can.

    Args:
        context: the state of the packing.
        data: what is transposed.
        axes: how.
        shape: the shape behind that.
    """
    made = context.made.get(data.expression)
    if made is None or data.uses != 1 or list(axes) != _HEADS_FIRST:
        return None
    operator = op_name(made)
    if operator not in _GIVE_EITHER:
        return None
    workload = from_text(TEMPLATES[operator].workload, str(made.attrs["workload"]))
    if workload.token_major_output:
        return None
    asked = replace(workload, token_major_output=True)
    return PackedValue(context.emit(operator, made.args, asked, shape), shape, False, 1)


def _not_kept(floats: Sequence[Any], caches: Sequence[Any]) -> Declined | None:
    """Return why no kernel takes rows, or caches of them."""
    kinds = {dtype_of(cache) for cache in caches}
    if any(dtype_of(rows) != "float32" for rows in floats) or len(kinds) > 1:
        return Declined("kernels of caches compute on float32 of known shapes only")
    if kinds <= {"float32", "float16"}:
        return None
    return Declined("kernels know caches of float32 and float16 only")


def _cache(rows: Any) -> Cache:
    return "float16" if dtype_of(rows) == "float16" else "float32"


def _rotated(
    context: Context, data: Any, offset: Any
) -> tuple[Any, Rotation | None, Sequence[Any]]:
    """Return what a rotation by the same offset turns, the rotation and its tables.

    Any other value is returned as it is.
    """
    call = context.old.get(data)
    if call is None or op_name(call) != "edgec.rotary" or not call.args[3].same_as(offset):
        return data, None, ()
    rotation = _rotation(call)
    if rotation is None:
        return data, None, ()
    return call.args[0], rotation, call.args[1:3]


def _rotation(call: relax.Call) -> Rotation | None:
    """Return what a rotary embedding does; None where its tables are not known well enough."""
    table = shape_of(call.args[1])
    if table is None or shape_of(call.args[2]) != table:
        return None
    return Rotation(table[0], table[1], bool(call.attrs["interleaved"]))


def _token_major(context: Context, data: Any) -> tuple[Any, bool]:
    """Return [B, S, H, D] if the value [B, H, S, D] is made of that; and whether it is."""
    call = context.old.get(data)
    if call is not None and op_name(call) == "relax.permute_dims":
        axes = [int(axis) for axis in call.attrs.axes or ()]
        if axes == _HEADS_FIRST:
            return call.args[0], True
    return data, False


def _declined(*operands: Any) -> Declined | None:
    """Return why no kernel takes operands: shapes, and an offset at last."""
    *shapes, offset = operands
    if any(shape is None for shape in shapes) or shape_of(offset) is None:
        return Declined("its shape is not known when compiling")
    if any(math.prod(shape) > _MOST_VALUES or 0 in shape for shape in shapes):
        return Declined("it has no values, or more than an index counts")
    if dtype_of(offset) != "int64":
        return Declined("its offset is not int64")
    return None
