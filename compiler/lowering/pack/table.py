"""Decide which matcher chooses the kernel of an operator."""

from collections.abc import Callable

from tvm import relax

from edgec.compiler.ir.relax_helpers import dtype_of, shape_of
from edgec.compiler.lowering.pack.attention import (
    match_append_rows,
    match_cached_attention,
    match_rotary,
)
from edgec.compiler.lowering.pack.context import Context
from edgec.compiler.lowering.pack.conv import match_conv, match_conv_transpose
from edgec.compiler.lowering.pack.data_movement import (
    match_concat,
    match_grouped_take,
    match_reshape,
    match_slice,
    match_take,
    match_transpose,
)
from edgec.compiler.lowering.pack.elementwise import BINARY, match_binary, match_unary
from edgec.compiler.lowering.pack.integer_product import match_integer_product
from edgec.compiler.lowering.pack.matmul import match_grouped_matmul, match_matmul
from edgec.compiler.lowering.pack.pool import (
    match_global_pool,
    match_max,
    match_min,
    match_pool,
    match_volume_pool,
)
from edgec.compiler.lowering.pack.resize import match_resize
from edgec.compiler.lowering.pack.rows import (
    match_layer_norm,
    match_rms_norm,
    match_row_reduce,
    match_softmax,
)
from edgec.compiler.lowering.pack.values import PackedValue
from edgec.compiler.numerics.activations import BY_OPERATOR
from edgec.compiler.numerics.support import Declined

Matcher = Callable[[Context, relax.Call], PackedValue | Declined]


def first_of(matcher: Matcher, fallback: Matcher) -> Matcher:
    """Return a matcher that asks another one where the first declines; its reason is told then."""

    def match(context: Context, call: relax.Call) -> PackedValue | Declined:
        found = matcher(context, call)
        return fallback(context, call) if isinstance(found, Declined) else found

    return match


def by_dtype(floats: Matcher, integers: Matcher) -> Matcher:
    """Return a matcher for float32 results and one for those in int32."""

    def match(context: Context, call: relax.Call) -> PackedValue | Declined:
        if dtype_of(call) == "int32":
            return integers(context, call)
        tensors = (call, *call.args)
        if {*map(dtype_of, tensors)} != {"float32"} or None in map(shape_of, tensors):
            return Declined("kernel templates multiply float32 and 8-bit integers of known shapes")
        return floats(context, call)

    return match


# Those whose tensors may have any dtype: they only move values, or look at the dtype themselves.
ANY_DTYPE = frozenset(
    {"edgec.append_rows", "edgec.cached_attention", "relax.matmul", "relax.permute_dims"}
)

# How many operands of those are values; behind them are integers that say which, or codes.
WITH_INDICES = {
    "edgec.append_rows": 2,
    "edgec.cached_attention": 3,
    "edgec.grouped_matmul": 1,
    "edgec.grouped_take": 0,
    "edgec.rotary": 3,
    "relax.take": 1,
}

# Tensors of the others are float32; quantize, dequantize and split are matched by the packer.
MATCHERS: dict[str, Matcher] = {
    **dict.fromkeys(BY_OPERATOR, match_unary),
    **dict.fromkeys(BINARY, match_binary),
    "edgec.append_rows": match_append_rows,
    "edgec.cached_attention": match_cached_attention,
    "edgec.rotary": match_rotary,
    "edgec.grouped_matmul": match_grouped_matmul,
    "edgec.grouped_take": match_grouped_take,
    "relax.concat": match_concat,
    "relax.image.resize2d": match_resize,
    "relax.matmul": by_dtype(match_matmul, match_integer_product),
    "relax.max": first_of(match_max, match_row_reduce),
    "relax.mean": first_of(match_global_pool, match_row_reduce),
    "relax.min": first_of(match_min, match_row_reduce),
    "relax.nn.avg_pool1d": match_pool,
    "relax.nn.avg_pool2d": match_pool,
    "relax.nn.avg_pool3d": match_volume_pool,
    "relax.nn.conv1d": match_conv,
    "relax.nn.conv1d_transpose": match_conv_transpose,
    "relax.nn.conv2d": match_conv,
    "relax.nn.conv2d_transpose": match_conv_transpose,
    "relax.nn.layer_norm": match_layer_norm,
    "relax.nn.log_softmax": match_softmax,
    "relax.nn.max_pool1d": match_pool,
    "relax.nn.max_pool2d": match_pool,
    "relax.nn.max_pool3d": match_volume_pool,
    "relax.nn.rms_norm": match_rms_norm,
    "relax.nn.softmax": match_softmax,
    "relax.permute_dims": match_transpose,
    "relax.prod": match_row_reduce,
    "relax.reshape": match_reshape,
    "relax.strided_slice": match_slice,
    "relax.sum": first_of(match_global_pool, match_row_reduce),
    "relax.take": match_take,
}
