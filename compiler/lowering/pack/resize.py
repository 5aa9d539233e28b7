"""Provide image resizing by tables of taps."""

from tvm import relax

from edgec.compiler.ir.relax_helpers import constant, shape_of
from edgec.compiler.kernels.resize import ResizeWorkload, can_repeat
from edgec.compiler.lowering.pack.context import Context
from edgec.compiler.lowering.pack.values import PackedValue
from edgec.compiler.numerics.resize_table import resize_table
from edgec.compiler.numerics.support import Declined


def match_resize(context: Context, call: relax.Call) -> PackedValue | Declined:
    """Choose a kernel for an image of another size."""
    data, shape = context.value(call.args[0]), shape_of(call)
    attributes = call.attrs
    method = str(attributes.method)
    if shape is None or str(attributes.layout) != "NCHW" or not data.blocked:
        return Declined("only images in blocked layout have a kernel that resizes them")
    if any(float(edge) != 0 for edge in attributes.roi):
        return Declined("it resizes a region of interest")
    tables = [
        resize_table(
            before,
            after,
            method,
            str(attributes.coordinate_transformation_mode),
            str(attributes.rounding_method),
        )
        for before, after in zip(data.shape[2:], shape[2:], strict=True)
    ]
    if any(table is None for table in tables):
        return Declined(f"no table of taps exists for method {method} with its attributes")
    (rows, row_weights), (columns, column_weights) = (t for t in tables if t is not None)
    n, channels, h, w = data.shape
    taps = (rows.shape[1], columns.shape[1])
    if taps != (1, 1):
        data = context.as_floats(data)
    qparams = data.qparams
    dtype = qparams.dtype if qparams else "float32"
    repeats = can_repeat(columns, w, shape[3]) if qparams and taps == (1, 1) else 1
    workload = ResizeWorkload(n, channels, h, w, shape[2], shape[3], taps, dtype, repeats)
    arguments = [
        context.blocked(data).expression,
        *(constant(table) for table in (rows, row_weights, columns, column_weights)),
    ]
    return context.emit_blocked("edgec.resize", arguments, workload, shape, qparams)
