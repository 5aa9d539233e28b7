"""Provide operators of `com.microsoft` that exporters and ONNX Runtime's optimizer write.

Semantics are those of ONNX Runtime's documentation of contributed operators and of its kernels
for the CPU; the quantized ones are elsewhere.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax

from edgec.compiler.frontend.converters.attention import (
    Mask,
    attend,
    int64,
    merge_heads,
    split_heads,
)
from edgec.compiler.frontend.converters.convolution import convert_conv
from edgec.compiler.frontend.converters.normalization import layer_norm, moments, rms_norm
from edgec.compiler.frontend.converters.rotary import pick, rotate_at
from edgec.compiler.frontend.node import Node, Refusal, dtype_of, scalar, static_shape
from edgec.compiler.frontend.te_operators import constant_tensor
from edgec.compiler.ir.operators import decode_weight, grouped_matmul
from edgec.compiler.numerics.grouped_codes import grouped_codes

op = relax.op

# The accuracy level of ONNX Runtime that lets activations be rounded to int8.
ROUNDED_TO_INT8 = 4
# The zero point of codes of 4 bits that have none of their own.
MIDDLE = 8
# Bits of a packed weight.
BITS = (2, 4, 8)


# Activations


def convert_gelu(node: Node) -> relax.Expr:
    """Return gelu, and BiasGelu: gelu(a + b), with the error function."""
    data = node.input(0)
    if node.op_type == "BiasGelu":
        data = node.call(op.add, data, node.input(1))
    return op.nn.gelu(data)


def convert_fast_gelu(node: Node) -> relax.Expr:
    """Convert FastGelu: gelu(x + bias) with tanh in place of the error function."""
    data, bias = node.input(0), node.optional(1)
    return op.nn.gelu_tanh(data if bias is None else node.call(op.add, data, bias))


def convert_quick_gelu(node: Node) -> relax.Expr:
    """Convert QuickGelu: x * sigmoid(alpha * x)."""
    data = node.input(0)
    alpha = scalar(node.attributes.get("alpha", 1.702), dtype_of(data))
    return op.multiply(data, node.call(op.sigmoid, node.call(op.multiply, data, alpha)))


_ACTIVATIONS = {
    "Relu": op.nn.relu,
    "Sigmoid": op.sigmoid,
    "Tanh": op.tanh,
}


def _activation(node: Node, data: relax.Expr, parameters: tuple[float, ...]) -> relax.Expr:
    """Return what attribute `activation` names; parameters in the order of its attributes."""
    name = node.attributes.get("activation", "")
    dtype = dtype_of(data)
    if not name:
        return data
    if name in _ACTIVATIONS:
        return _ACTIVATIONS[name](data)
    if name == "LeakyRelu":
        slope = parameters[0] if parameters else 0.01
        return op.nn.leakyrelu(data, slope)
    if name == "Clip" and len(parameters) == 2:
        floored = node.call(op.maximum, data, scalar(parameters[0], dtype))
        return op.minimum(floored, scalar(parameters[1], dtype))
    if name == "HardSigmoid" and len(parameters) == 2:
        scaled = node.call(op.multiply, data, scalar(parameters[0], dtype))
        shifted = node.call(op.add, scaled, scalar(parameters[1], dtype))
        return op.minimum(node.call(op.maximum, shifted, scalar(0, dtype)), scalar(1, dtype))
    raise Refusal(f"activation {name} is not supported")


# Linear operators


def convert_fused_conv(node: Node) -> relax.Expr:
    """Convert FusedConv: activation(conv(X, W) + B + Z)."""
    result = node.emit(convert_conv(node))
    other = node.optional(3)
    if other is not None:
        result = node.call(op.add, result, other)
    return _activation(node, result, node.attributes.get("activation_params", ()))


def convert_fused_gemm(node: Node) -> relax.Expr:
    """Convert FusedGemm: activation(alpha * A B + beta * C)."""
    attributes = node.attributes
    left, right = (
        node.call(op.permute_dims, node.input(index))
        if attributes.get(name, 0)
        else node.input(index)
        for index, name in ((0, "transA"), (1, "transB"))
    )
    dtype = dtype_of(left)
    result = node.call(op.matmul, left, right)
    if attributes.get("alpha", 1.0) != 1:
        result = node.call(op.multiply, result, scalar(attributes["alpha"], dtype))
    bias = node.optional(2)
    if bias is not None:
        if attributes.get("beta", 1.0) != 1:
            bias = node.call(op.multiply, bias, scalar(attributes["beta"], dtype))
        result = node.call(op.add, result, bias)
    names = ("activation_alpha", "activation_beta", "activation_gamma")
    parameters = tuple(attributes[name] for name in names if name in attributes)
    return _activation(node, result, parameters)


def convert_fused_matmul(node: Node) -> relax.Expr:
    """Convert FusedMatMul: alpha * A B.

    The last two dimensions of either transposed before if asked.
    """
    attributes = node.attributes
    if attributes.get("transBatchA", 0) or attributes.get("transBatchB", 0):
        raise Refusal("transposed batch dimensions are not supported")
    operands = []
    for index, name in ((0, "transA"), (1, "transB")):
        tensor = node.input(index)
        rank = len(static_shape(tensor))
        if attributes.get(name, 0) and rank > 1:
            axes = [*range(rank - 2), rank - 1, rank - 2]
            tensor = node.call(op.permute_dims, tensor, axes)
        operands.append(tensor)
    product = node.call(op.matmul, *operands)
    return op.multiply(product, scalar(attributes.get("alpha", 1.0), dtype_of(product)))


def convert_matmul_nbits(node: Node) -> relax.Expr:
    """Convert MatMulNBits: A [..., K] times a weight of 2, 4 or 8 bits.

    Codes of 4 bits stay codes, with an accuracy level of 4 those of 8 bits too; others become a
    float constant.

    B [N, blocks, bytes] holds the columns' blocks of `block_size` values along K, low bits
    first; scales [N * blocks]; zero_points packed likewise to whole bytes per column, or as
    numbers; 2 ^ (bits - 1) where they are left out; g_idx [K] gives each row's block.
    """
    attributes = node.attributes
    columns, rows, bits = attributes["N"], attributes["K"], attributes.get("bits", 4)
    size = attributes["block_size"]
    if bits not in BITS:
        raise Refusal(f"weights of {bits} bits are not supported")
    if attributes.get("weight_prepacked", 0):
        raise Refusal("weights packed for a certain processor are not supported")
    data = node.input(0)
    blocks = -(-rows // size)
    packed = node.constant(1, "B").reshape(columns, blocks, -1)
    scales = node.constant(2, "scales").reshape(columns, blocks)
    zeros: NDArray[Any] | None = None
    if node.optional(3) is not None:
        points = node.constant(3, "zero_points")
        if points.dtype == np.uint8:
            points = unpack(points.reshape(columns, -1), bits)[:, :blocks]
        zeros = points.reshape(columns, blocks)
    block = np.arange(rows) // size
    if node.optional(4) is not None:
        block = node.constant(4, "g_idx").astype(np.int64)
    in_order = np.array_equal(block, np.arange(rows) // size)
    if attributes.get("accuracy_level", 0) == ROUNDED_TO_INT8 and in_order and bits in (4, 8):
        product = _grouped_product(node, data, packed, scales, zeros, bits, size)
    elif in_order and bits == 4 and dtype_of(data) == "float32" and _is_whole(zeros):
        points = np.full((columns, blocks), MIDDLE, np.uint8) if zeros is None else zeros
        weight = decode_weight(
            relax.const(np.ascontiguousarray(packed.reshape(columns, -1))),
            [relax.const(scales.astype(np.float32)), relax.const(np.ascontiguousarray(points))],
            format="int4",
            shape=(rows, columns),
            group=size,
            rows_last=True,
        )
        product = node.call(op.matmul, data, node.emit(weight))
    else:
        values = unpack(packed, bits).reshape(columns, blocks * size)[:, :rows]
        points = np.full((columns, blocks), 1 << bits - 1) if zeros is None else zeros
        offsets, factors = (item.astype(np.float32)[:, block] for item in (points, scales))
        weight = ((values - offsets) * factors).T.astype(scales.dtype)
        product = node.call(op.matmul, data, constant_tensor(weight))
    bias = node.optional(5)
    return product if bias is None else op.add(product, bias)


def _is_whole(zeros: NDArray[Any] | None) -> bool:
    return zeros is None or zeros.dtype == np.uint8


def _grouped_product(
    node: Node,
    data: relax.Expr,
    packed: NDArray[np.uint8],
    scales: NDArray[Any],
    zeros: NDArray[Any] | None,
    bits: int,
    group: int,
) -> relax.Expr:
    """Return the product with weights that stay codes; activations are rounded to int8."""
    dtype = dtype_of(data)
    weight = grouped_codes(packed.reshape(len(packed), -1), scales, zeros, bits, group)
    arrays = [relax.const(weight.arrays[name]) for name in weight.form.names]
    product = grouped_matmul(node.cast(data, "float32"), arrays, weight.form)
    return node.cast(node.emit(product), dtype)


def unpack(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Return numbers of a few bits out of the last dimension's bytes, low bits first.

    >>> unpack(np.array([0x21, 0x43], np.uint8), 4).tolist()
    [1, 2, 3, 4]
    """
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    parts = packed[..., np.newaxis] >> shifts & ((1 << bits) - 1)
    return parts.reshape(*packed.shape[:-1], -1).astype(np.uint8)


# Normalizations


def convert_skip_layer_normalization(node: Node) -> list[relax.Expr]:
    """Return SkipLayerNormalization of input + skip + bias over the last dimension.

    Returns:
        output, mean, inverse standard deviation, and the sum that was normalized.
    """
    data, gamma, beta, bias = node.input(0), node.input(2), node.optional(3), node.optional(4)
    total = _with_bias(node, node.call(op.add, data, node.input(1)), bias)
    epsilon = node.attributes.get("epsilon", 1e-12)
    axes = [len(static_shape(total)) - 1]
    result = layer_norm(node, total, gamma, beta, axes, epsilon, "float32")
    mean, inverse = moments(node, node.cast(total, "float32"), axes, epsilon)
    return [result, mean, inverse, total]


def convert_skip_simplified_layer_normalization(node: Node) -> list[relax.Expr]:
    """Convert SkipSimplifiedLayerNormalization: likewise.

    By the root mean square alone, without mean.
    """
    data, gamma, bias = node.input(0), node.input(2), node.optional(3)
    total = _with_bias(node, node.call(op.add, data, node.input(1)), bias)
    result, inverse = _simplified(node, total, gamma, len(static_shape(total)) - 1, 1e-12)
    mean = node.call(op.mean, node.cast(total, "float32"), axis=-1, keepdims=True)
    return [result, mean, inverse, total]


def convert_simplified_layer_normalization(node: Node) -> list[relax.Expr]:
    """Convert SimplifiedLayerNormalization.

    X / sqrt(mean(x * x) + epsilon) * scale, from `axis` on.
    """
    data = node.input(0)
    axis = node.attributes.get("axis", -1) % len(static_shape(data))
    return list(_simplified(node, data, node.input(1), axis, 1e-5))


def _simplified(
    node: Node, data: relax.Expr, gamma: relax.Expr, axis: int, default: float
) -> tuple[relax.Expr, relax.Expr]:
    epsilon = node.attributes.get("epsilon", default)
    axes = list(range(axis, len(static_shape(data))))
    exact = node.cast(data, "float32")
    normalized = node.cast(rms_norm(node, exact, axes, epsilon), dtype_of(gamma))
    mean = node.call(op.mean, node.call(op.multiply, exact, exact), axes, keepdims=True)
    root = node.call(op.sqrt, node.call(op.add, mean, scalar(epsilon, "float32")))
    inverse = node.call(op.divide, scalar(1, "float32"), root)
    return node.call(op.multiply, normalized, gamma), inverse


def convert_embed_layer_normalization(node: Node) -> list[relax.Expr]:
    """Convert EmbedLayerNormalization: word, position and segment embeddings summed and normalized.

    input_ids, segment_ids, position_ids [B, S], embeddings [rows, H].

    Returns:
        output [B, S, H], the length of each sequence by its mask, and the sum.
    """
    ids, segments, mask = node.input(0), node.optional(1), node.optional(7)
    batch, length = static_shape(ids)
    positions = node.optional(8)
    if positions is None:
        positions = int64(np.arange(length))
    total = pick(node, node.input(2), ids)
    total = node.call(op.add, total, pick(node, node.input(3), positions))
    if segments is not None and node.optional(4) is not None:
        total = node.call(op.add, total, pick(node, node.input(4), segments))
    epsilon = node.attributes.get("epsilon", 1e-12)
    result = layer_norm(node, total, node.input(5), node.input(6), [2], epsilon, "float32")
    lengths: relax.Expr = relax.const(np.zeros(batch, np.int32))
    if mask is not None:
        lengths = node.call(op.sum, node.cast(mask, "int32"), axis=[1])
    return [result, lengths, total]


def _with_bias(node: Node, data: relax.Expr, bias: relax.Expr | None) -> relax.Expr:
    return data if bias is None else node.call(op.add, data, bias)


# Attention


def convert_attention(node: Node) -> list[relax.Expr]:
    """Convert Attention: input [B, L, I] by weights [I, Q + K + V], then attention by head.

    past and present [2, B, N, P, D].
    """
    attributes = node.attributes
    if attributes.get("do_rotary", 0) or attributes.get("past_present_share_buffer", 0):
        raise Refusal("rotary embeddings and shared buffers are not supported")
    if node.optional(6) is not None:
        raise Refusal("input 'past_sequence_length' is not supported")
    projected = node.call(op.matmul, node.input(0), node.input(1))
    projected = _with_bias(node, projected, node.optional(2))
    width = static_shape(projected)[2]
    sizes = attributes.get("qkv_hidden_sizes", (width // 3,) * 3)
    past, mask, bias = node.optional(4), node.optional(3), node.optional(5)
    return attention_of_parts(node, projected, sizes, past, mask, bias)


def attention_of_parts(
    node: Node,
    projected: relax.Expr,
    sizes: tuple[int, ...],
    past: relax.Expr | None,
    mask: relax.Expr | None,
    bias: relax.Expr | None,
) -> list[relax.Expr]:
    """Return attention by head of queries, keys and values side by side.

    Args:
        node: Attention or QAttention.
        projected: [B, L, Q + K + V].
        sizes: Q, K and V.
        past: [2, B, N, P, D], None if there is none.
        mask: the mask of padding, see `_masked`.
        bias: added to the logits.
    """
    parts = split_parts(node, projected, 2, sizes)
    queries, keys, values = (split_heads(node, p, node.attributes["num_heads"]) for p in parts)
    present = None
    if past is not None:
        old = [node.call(op.squeeze, part, [0]) for part in split_parts(node, past, 0, (1, 1))]
        keys = node.call(op.concat, [old[0], keys], axis=2)
        values = node.call(op.concat, [old[1], values], axis=2)
    if len(node.proto.output) > 1:
        present = node.call(op.stack, [keys, values], axis=0)
    output = _masked(node, queries, keys, values, mask, bias)
    return [output] if present is None else [output, present]


def convert_multi_head_attention(node: Node) -> list[relax.Expr]:
    """Convert MultiHeadAttention: query [B, L, N D], key [B, T, N D], value [B, T, N E].

    Key and value may be [B, N, T, D] and [B, N, T, E]. past and present [B, N, P, D].
    """
    heads = node.attributes["num_heads"]
    for index, name in ((8, "past_sequence_length"), (9, "cache_indirection")):
        if node.optional(index) is not None:
            raise Refusal(f"input {name!r} is not supported")
    query, key, value = node.input(0), node.optional(1), node.optional(2)
    bias = node.optional(3)
    if key is None or value is None:
        raise Refusal("queries, keys and values packed together are not supported")
    tensors = [query, key, value]
    if bias is not None:
        if any(len(static_shape(tensor)) != 3 for tensor in tensors):
            raise Refusal("a bias for packed or split heads is not supported")
        sizes = tuple(static_shape(tensor)[2] for tensor in tensors)
        parts = split_parts(node, bias, 0, sizes)
        tensors = [node.call(op.add, t, part) for t, part in zip(tensors, parts, strict=True)]
    queries, keys, values = (
        tensor if len(static_shape(tensor)) == 4 else split_heads(node, tensor, heads)
        for tensor in tensors
    )
    if node.optional(6) is not None:
        keys = node.call(op.concat, [node.input(6), keys], axis=2)
        values = node.call(op.concat, [node.input(7), values], axis=2)
    output = _masked(node, queries, keys, values, node.optional(4), node.optional(5))
    return [output, keys, values]


def split_parts(
    node: Node, tensor: relax.Expr, axis: int, sizes: tuple[int, ...]
) -> list[relax.Expr]:
    """Return consecutive parts of these sizes along an axis."""
    ends = [int(end) for end in np.cumsum(sizes)]
    return [
        node.call(op.strided_slice, tensor, axes=[axis], begin=[end - size], end=[end])
        for end, size in zip(ends, sizes, strict=True)
    ]


def _masked(
    node: Node,
    queries: relax.Expr,
    keys: relax.Expr,
    values: relax.Expr,
    padding: relax.Expr | None,
    bias: relax.Expr | None,
) -> relax.Expr:
    """Return attention with a padding mask of zeros and ones, or of lengths: [B, L, N E]."""
    attributes, dtype = node.attributes, dtype_of(queries)
    batch, _, length, size = static_shape(queries)
    total = static_shape(keys)[2]
    mask = Mask(node, dtype, length, total)
    if padding is not None:
        keep = _kept_keys(node, padding, batch, total)
        filtered = scalar(attributes.get("mask_filter_value", -10000.0), dtype)
        mask.restrict_by(node.call(op.where, keep, scalar(0, dtype), filtered))
    if bias is not None:
        mask.restrict_by(bias)
    if attributes.get("unidirectional", 0):
        if padding is not None:
            raise Refusal("a causal mask together with a padding mask is not supported")
        mask.window(total - length, right=0)
    scale = attributes.get("scale", 0.0) or 1 / math.sqrt(size)
    return merge_heads(node, attend(node, queries, keys, values, mask, scale).output)


def _kept_keys(node: Node, padding: relax.Expr, batch: int, total: int) -> relax.Expr:
    """Return truth values that broadcast to [B, N, L, T]."""
    shape = static_shape(padding)
    zero = scalar(0, dtype_of(padding))
    if shape == (batch,):
        lengths = node.call(op.reshape, padding, (batch, 1, 1, 1))
        positions = relax.const(np.arange(total), dtype_of(padding))
        return node.call(op.less, positions, lengths)
    if shape == (batch, total):
        padding = node.call(op.reshape, padding, (batch, 1, 1, total))
    elif len(shape) == 3 and shape[::2] == (batch, total):
        padding = node.call(op.expand_dims, padding, 1)
    else:
        raise Refusal(f"a mask of the shape {list(shape)} is not supported")
    return node.call(op.greater, padding, zero)


def convert_rotary_embedding(node: Node) -> relax.Expr:
    """Convert RotaryEmbedding: [B, L, N D] or [B, N, L, D]; positions [B, L], or [1].

    The first one.
    """
    attributes = node.attributes
    if attributes.get("scale", 1.0) != 1 or attributes.get("is_packed_batching", 0):
        raise Refusal("a scale and packed batches are not supported")
    data, positions = node.input(0), node.input(1)
    shape = static_shape(data)
    dim = attributes.get("rotary_embedding_dim", 0) or 2 * static_shape(node.input(2))[1]
    packed = len(shape) == 3
    heads = attributes.get("num_heads", 0) or (shape[2] // dim if packed else shape[1])
    rows = split_heads(node, data, heads) if packed else data
    if static_shape(positions) == (1,) and shape[0] > 1:
        positions = node.call(op.broadcast_to, positions, shape[:1])
    interleaved = bool(attributes.get("interleaved", 0))
    tables = node.input(2), node.input(3)
    turned = rotate_at(node, rows, tables, positions, dim, interleaved)
    return merge_heads(node, turned) if packed else turned
