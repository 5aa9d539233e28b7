"""Provide operators of `com.microsoft` with quantized weights.

As ONNX Runtime's quantizers write them.
"""

from typing import Any

import numpy as np
from tvm import relax

from edgec.compiler.frontend.converters.microsoft import attention_of_parts, unpack
from edgec.compiler.frontend.converters.quantization import (
    by_column,
    integer_product,
    scaled_sums,
)
from edgec.compiler.frontend.converters.types import cast
from edgec.compiler.frontend.node import Node, Refusal, constant_value, dtype_of, static_shape
from edgec.compiler.ir.operators import grouped_take
from edgec.compiler.numerics.grouped_codes import grouped_codes
from edgec.compiler.numerics.grouped_product import group_is_supported

op = relax.op


def convert_qattention(node: Node) -> list[relax.Expr]:
    """Convert QAttention: quantized data [B, L, I] by weights [I, Q + K + V].

    input, weight, bias, input_scale, weight_scale, mask_index, input_zero_point,
    weight_zero_point, past. Scales and zero points of the weight are one, or one for each column.
    """
    attributes = node.attributes
    if attributes.get("do_rotary", 0):
        raise Refusal("rotary embeddings are not supported")
    total = integer_product(node, node.input(0), node.optional(6), node.input(1), node.optional(7))
    scales = by_column(node, node.input(4))
    factor = node.call(op.multiply, by_column(node, node.input(3)), scales)
    projected = node.emit(scaled_sums(node, total, factor, node.optional(2)))
    width = static_shape(projected)[2]
    return attention_of_parts(
        node, projected, (width // 3,) * 3, node.optional(8), node.optional(5), None
    )


def convert_gather_block_quantized(node: Node) -> relax.Expr:
    """Convert GatherBlockQuantized: rows of a table of 4 or 8 bits, as floats.

    data, indices, scales and zero_points, one for each block of `block_size` values along
    `quantize_axis`. The table stays quantized; only what is picked is dequantized.
    """
    rows = _grouped_rows(node)
    if rows is not None:
        return rows
    attributes = node.attributes
    source, quantized = node.dtype(0), node.input(0)
    size, bits = attributes.get("block_size", 128), attributes.get("bits", 4)
    zeros = node.optional(3)
    if source == "uint8":
        if bits not in (4, 8):
            raise Refusal(f"quantized values of {bits} bits are not supported")
        quantized = relax.const(unpack(node.constant(0, "data"), bits))
        if zeros is not None:
            blocks = static_shape(node.input(2))
            points = unpack(node.constant(3, "zero_points"), bits)[..., : blocks[-1]]
            zeros = relax.const(np.ascontiguousarray(points))
    rank = len(static_shape(quantized))
    axis = attributes.get("gather_axis", 0) % rank
    along = attributes.get("quantize_axis", 1) % rank
    scales, target = node.input(2), dtype_of(node.input(2))
    extent = static_shape(quantized)[axis]
    # Blocks along the very axis: the scales are picked by the block of an index.
    block = size if axis == along else 1
    indices = _wrapped(node, node.input(1), extent)
    in_blocks = indices
    if block > 1:
        in_blocks = node.call(op.floor_divide, indices, relax.const(block, dtype_of(indices)))
    inserted = len(static_shape(node.input(1))) - 1
    picked_along = along + (inserted if along > axis else 0)

    def values(table: relax.Expr, where: relax.Expr, is_block: bool) -> relax.Expr:
        picked = node.call(op.take, table, where, axis=axis, mode="clip")
        if is_block and axis != along:
            picked = node.call(op.repeat, picked, size, picked_along)
            shape = list(static_shape(picked))
            wanted = static_shape(quantized)[along]
            if shape[picked_along] != wanted:
                picked = node.call(op.strided_slice, picked, [picked_along], [0], [wanted])
        return picked

    def numbers(table: relax.Expr, where: relax.Expr, is_block: bool) -> relax.Expr:
        return node.emit(cast(node, values(table, where, is_block), source, "float32"))

    result: Any = numbers(quantized, indices, False)
    if zeros is not None:
        result = node.call(op.subtract, result, numbers(zeros, in_blocks, True))
    elif source == "uint8":
        result = node.call(op.subtract, result, relax.const(float(1 << bits - 1), "float32"))
    factor = node.cast(values(scales, in_blocks, True), "float32")
    return node.cast(node.call(op.multiply, result, factor), target)


def _grouped_rows(node: Node) -> relax.Expr | None:
    """Return rows of a constant table uint8 [rows, bytes] whose values stay codes; else None."""
    attributes = node.attributes
    size, bits = attributes.get("block_size", 128), attributes.get("bits", 4)
    codes, scales = (constant_value(node.input(index)) for index in (0, 2))
    if node.dtype(0) != "uint8" or codes is None or scales is None or bits not in (4, 8):
        return None
    along = attributes.get("quantize_axis", 1) % codes.ndim
    # Blocks of the table are whole, and as kernels have them.
    whole = codes.ndim == 2 and codes.shape[1] * 8 == scales.shape[1] * size * bits
    if attributes.get("gather_axis", 0) or along != 1 or not whole or not group_is_supported(size):
        return None
    zeros = None
    if node.optional(3) is not None:
        zeros = unpack(node.constant(3, "zero_points"), bits)[..., : scales.shape[1]]
    table = grouped_codes(codes, scales, zeros, bits, size)
    arrays = [relax.const(table.arrays[name]) for name in table.form.names]
    columns = codes.shape[1] * 8 // bits
    found = grouped_take(node.input(1), arrays, table.form, columns)
    return node.cast(node.emit(found), dtype_of(node.input(2)))


def _wrapped(node: Node, indices: relax.Expr, extent: int) -> relax.Expr:
    """Return indices counted from the front."""
    dtype = dtype_of(indices)
    negative = node.call(op.less, indices, relax.const(0, dtype))
    moved = node.call(op.add, indices, relax.const(extent, dtype))
    return node.call(op.where, negative, moved, indices)
