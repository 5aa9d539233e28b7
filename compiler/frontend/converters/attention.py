"""Provide attention, linear attention and its causal convolution.

Matrix products of half-precision tensors are accumulated in float32 and rounded once.
"""

import math
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax

from edgec.compiler.frontend.node import (
    Node,
    Refusal,
    accumulator_dtype,
    constant_value,
    dtype_of,
    scalar,
    static_shape,
)
from edgec.compiler.frontend.te_operators import constant_tensor
from edgec.compiler.ir.cache_operators import append_rows, cached_attention
from edgec.compiler.ir.signature import dtype_name

op = relax.op


def convert_attention(node: Node) -> list[relax.Expr]:
    """Convert Attention: softmax(softcap(Q K^T scale) + mask) V, per head.

    B is the batch, L the number of queries, T of keys with those of the past, N of query heads,
    M of key heads (N / M query heads share one), D and E the sizes of a key and a value.
    Q [B, N, L, D], K [B, M, S, D], V [B, M, S, E], or [B, L, N D] and so on; past_key
    [B, M, P, D], past_value [B, M, P, E], T = P + S.

    Returns:
        Y [B, N, L, E] or [B, L, N E], present_key, present_value, qk_matmul_output [B, N, L, T].
    """
    attributes = node.attributes
    queries, keys, values = (node.input(index) for index in range(3))
    packed = len(static_shape(queries)) == 3
    if packed:
        heads = attributes["q_num_heads"], attributes["kv_num_heads"]
        queries = split_heads(node, queries, heads[0])
        keys, values = (split_heads(node, item, heads[1]) for item in (keys, values))
    if dtype_of(values) != dtype_of(keys):
        raise Refusal("values of another dtype than the keys are not supported")
    past = 0
    if node.optional(4) is not None:
        past = static_shape(node.input(4))[2]
        keys = node.call(op.concat, [node.input(4), keys], axis=2)
        values = node.call(op.concat, [node.input(5), values], axis=2)
    length, total = static_shape(queries)[2], static_shape(keys)[2]
    known = _over_cache(node, queries, keys, values)
    if known is not None:
        return [merge_heads(node, known) if packed else known, keys, values]

    mask = Mask(node, dtype_of(queries), length, total)
    if node.optional(3) is not None:
        mask.restrict_by(_padded(node, node.input(3), total))
    offset: int | relax.Expr = past
    if node.optional(6) is not None:
        valid = node.call(op.reshape, node.input(6), (-1, 1, 1, 1))
        mask.restrict(node.call(op.less, int64(np.arange(total)), valid))
        if not past:
            offset = node.call(op.subtract, valid, int64(length))
    if attributes.get("is_causal", 0):
        mask.window(offset, right=0)
    left, right = (attributes.get(f"{side}_window_size", -1) for side in ("left", "right"))
    mask.window(offset, left if left >= 0 else None, right if right >= 0 else None)

    scale = attributes.get("scale", 1 / math.sqrt(static_shape(queries)[3]))
    precision = attributes.get("softmax_precision")
    result = attend(
        node,
        queries,
        keys,
        values,
        mask,
        scale,
        softcap=attributes.get("softcap", 0.0),
        precision=dtype_name(precision) if precision else None,
    )
    output = merge_heads(node, result.output) if packed else result.output
    stage = result.stages[attributes.get("qk_matmul_output_mode", 0)]
    return [output, keys, values, stage]


def _over_cache(
    node: Node, queries: relax.Expr, keys: relax.Expr, values: relax.Expr
) -> relax.Expr | None:
    """Return causal attention over caches [B, M, T, D] of lengths that only a run tells.

    None if it is anything else. The lengths [B] are input 6 and count the queries' own keys.
    """
    attributes, lengths = node.attributes, node.optional(6)
    others = any(node.optional(index) is not None for index in (3, 4, 5))
    window, right = (attributes.get(f"{side}_window_size", -1) for side in ("left", "right"))
    stages = len(node.proto.output) > 3 and node.proto.output[3]
    if lengths is None or others or stages or right >= 0 or not attributes.get("is_causal", 0):
        return None
    if dtype_of(queries) != "float32" or constant_value(lengths) is not None:
        return None
    _, _, length, size = static_shape(queries)
    offset = node.call(op.subtract, node.cast(lengths, "int64"), int64(length))
    scale, softcap = attributes.get("scale", 1 / math.sqrt(size)), attributes.get("softcap", 0.0)
    return attend_cache(node, queries, (keys, values), offset, scale, window + 1, softcap)


def attend_cache(
    node: Node,
    queries: relax.Expr,
    caches: tuple[relax.Expr, relax.Expr],
    offset: relax.Expr,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> relax.Expr:
    """Return causal attention over caches; see `cached_attention` for the arguments."""
    (batch, heads, _, size), keys = static_shape(queries), static_shape(caches[0])
    check_groups(heads, keys[1])
    if (keys[0], keys[3]) != (batch, size) or static_shape(caches[1])[:3] != keys[:3]:
        raise Refusal(f"keys {keys} and values do not fit queries of {size} features")
    options = {"scale": scale, "window": window, "softcap": softcap}
    return node.call(cached_attention, queries, *caches, offset, **options)


def check_groups(heads: int, groups: int) -> None:
    """Raise a refusal if query heads cannot share key heads evenly."""
    if groups < 1 or heads % groups:
        raise Refusal(f"{heads} query heads cannot share {groups} key heads")


class Mask:
    """A mask says what each query may look at: conditions, and a bias that is added to the logits.

    Conditions known now are kept as an array, so that an ordinary causal mask is a constant.
    """

    def __init__(self, node: Node, dtype: str, length: int, total: int) -> None:
        self.node, self.dtype = node, dtype
        self.length, self.total = length, total
        self.allowed: NDArray[np.bool_] | None = None
        self.conditions: list[relax.Expr] = []
        self.biases: list[relax.Expr] = []

    def restrict_by(self, mask: relax.Expr) -> None:
        """Add a mask: truth values that allow, or numbers to add."""
        if dtype_of(mask) == "bool":
            self.restrict(mask)
        else:
            self.biases.append(self.node.cast(mask, self.dtype))

    def restrict(self, condition: relax.Expr) -> None:
        """Allow only where a condition that broadcasts to [B, N, L, T] holds."""
        array = constant_value(condition)
        if array is None:
            self.conditions.append(condition)
        else:
            self.allowed = array if self.allowed is None else self.allowed & array

    def window(
        self, offset: int | relax.Expr, left: int | None = None, right: int | None = None
    ) -> None:
        """Allow keys j with p - left <= j <= p + right for the query at p = offset + i.

        Args:
            offset: keys before the first query; or an expression [B, 1, 1, 1].
            left: keys before a query's own; None for all.
            right: keys behind it; None for all.
        """
        positions = np.arange(self.length)[:, np.newaxis] - np.arange(self.total)
        if left is None and right is None:
            return
        if isinstance(offset, int):
            distance = positions + offset
            allowed = np.ones_like(distance, bool)
            if left is not None:
                allowed &= distance <= left
            if right is not None:
                allowed &= -distance <= right
            self.restrict(relax.const(allowed))
            return
        distance = self.node.call(op.add, int64(positions), offset)
        if left is not None:
            self.restrict(self.node.call(op.less_equal, distance, int64(left)))
        if right is not None:
            self.restrict(self.node.call(op.greater_equal, distance, int64(-right)))

    def bias(self) -> tuple[relax.Expr | None, relax.Expr | None]:
        """Return what is added to the logits, and which queries see nothing; None for none."""
        node = self.node
        lowest = np.array(-np.inf, self.dtype)
        terms = list(self.biases)
        if self.allowed is not None and not self.allowed.all():
            terms.append(constant_tensor(np.where(self.allowed, np.zeros_like(lowest), lowest)))
        if self.conditions:
            allowed = reduce(lambda a, b: node.call(op.logical_and, a, b), self.conditions)
            zero = scalar(0, self.dtype)
            terms.append(node.call(op.where, allowed, zero, relax.const(lowest, self.dtype)))
        if not terms:
            return None, None
        if len(terms) == 1 and (array := constant_value(terms[0])) is not None:
            blind = np.isneginf(array.max(axis=-1, keepdims=True))
            return terms[0], relax.const(blind) if blind.any() else None
        bias = reduce(lambda a, b: node.call(op.add, a, b), terms)
        # Counted, as TVM's maximum of nothing but infinities is finite.
        seen = node.call(op.not_equal, bias, relax.const(lowest, self.dtype))
        count = node.call(op.sum, node.cast(seen, "int32"), axis=-1, keepdims=True)
        return bias, node.call(op.equal, count, relax.const(0, "int32"))


@dataclass(frozen=True)
class Attended:
    """The result is the attention of every head.

    Attributes:
        output: [B, N, L, E].
        stages: [B, N, L, T], logits as multiplied, capped, masked, and the probabilities.
    """

    output: relax.Expr
    stages: tuple[relax.Expr, relax.Expr, relax.Expr, relax.Expr]


def attend(
    node: Node,
    queries: relax.Expr,
    keys: relax.Expr,
    values: relax.Expr,
    mask: Mask,
    scale: float,
    softcap: float = 0.0,
    precision: str | None = None,
) -> Attended:
    """Return dot-product attention (Vaswani et al. 2017), heads grouped (Ainslie et al. 2023).

    The query heads of a group are more rows of one product: keys are not repeated. A query that
    may see nothing gives zeros.

    Args:
        node: where it belongs.
        queries: [B, N, L, D].
        keys: [B, M, T, D].
        values: [B, M, T, E].
        mask: what may be seen.
        scale: factor of the logits.
        softcap: logits become softcap * tanh(logits / softcap), unless 0.
        precision: dtype of the softmax.
    """
    dtype = dtype_of(queries)
    batch, heads, length, size = static_shape(queries)
    groups, total = static_shape(keys)[1:3]
    check_groups(heads, groups)
    rows = heads // groups * length
    if dtype in ("float32", "float64"):
        queries = node.call(op.multiply, queries, scalar(scale, dtype))
    else:
        # As specified: the products of half precision stay in range.
        root = scalar(math.sqrt(scale), dtype)
        queries, keys = (node.call(op.multiply, item, root) for item in (queries, keys))
    grouped = node.call(op.reshape, queries, (batch, groups, rows, size))
    transposed = node.call(op.permute_dims, keys, [0, 1, 3, 2])
    product = matmul(node, grouped, transposed)
    logits = node.call(op.reshape, product, (batch, heads, length, total))
    capped = logits
    if softcap:
        shrunk = node.call(op.divide, logits, scalar(softcap, dtype))
        capped = node.call(op.multiply, node.call(op.tanh, shrunk), scalar(softcap, dtype))
    bias, blind = mask.bias()
    masked = capped if bias is None else node.call(op.add, capped, bias)
    weights = node.cast(_softmax(node, node.cast(masked, precision or dtype)), dtype)
    if blind is not None:
        weights = node.call(op.where, blind, scalar(0, dtype), weights)
    by_group = node.call(op.reshape, weights, (batch, groups, rows, total))
    output = node.call(
        op.reshape,
        matmul(node, by_group, values),
        (batch, heads, length, static_shape(values)[3]),
    )
    return Attended(output, (logits, capped, masked, weights))


def _softmax(node: Node, logits: relax.Expr) -> relax.Expr:
    """Return softmax in the precision of the logits, as specified: half rounds after every step."""
    dtype = dtype_of(logits)
    if dtype in ("float32", "float64"):
        return node.call(op.nn.softmax, logits, axis=-1)
    highest = node.call(op.max, logits, axis=-1, keepdims=True)
    powers = node.call(op.exp, node.call(op.subtract, logits, highest))
    total = node.call(op.sum, node.cast(powers, "float32"), axis=-1, keepdims=True)
    return node.call(op.divide, powers, node.cast(total, dtype))


def split_heads(node: Node, tensor: relax.Expr, heads: int) -> relax.Expr:
    """Return [B, L, N D] as [B, N, L, D]."""
    batch, length, width = static_shape(tensor)
    if heads < 1 or width % heads:
        raise Refusal(f"{width} features do not split into {heads} heads")
    parts = node.call(op.reshape, tensor, (batch, length, heads, width // heads))
    return node.call(op.permute_dims, parts, [0, 2, 1, 3])


def merge_heads(node: Node, tensor: relax.Expr) -> relax.Expr:
    """Return [B, N, L, D] as [B, L, N D]."""
    batch, heads, length, size = static_shape(tensor)
    parts = node.call(op.permute_dims, tensor, [0, 2, 1, 3])
    return node.call(op.reshape, parts, (batch, length, heads * size))


def matmul(node: Node, left: relax.Expr, right: relax.Expr) -> relax.Expr:
    """Return matrix product in the operands' dtype; half precision is rounded once."""
    dtype = dtype_of(left)
    if dtype in ("float32", "float64"):
        return node.call(op.matmul, left, right)
    return node.cast(node.call(op.matmul, left, right, out_dtype="float32"), dtype)


def int64(value: Any) -> relax.Expr:
    """Return a constant for indices."""
    return relax.const(np.asarray(value, np.int64), "int64")


def _padded(node: Node, mask: relax.Expr, total: int) -> relax.Expr:
    """Return a mask over all keys; those that it does not reach are forbidden."""
    shape = static_shape(mask)
    missing = total - shape[-1]
    if missing <= 0:
        return mask
    dtype = dtype_of(mask)
    fill = np.full((*shape[:-1], missing), False if dtype == "bool" else -np.inf, dtype)
    known = constant_value(mask)
    if known is not None:
        return constant_tensor(np.concatenate([known, fill], -1))
    return node.call(op.concat, [mask, constant_tensor(fill)], axis=len(shape) - 1)


def slice_of(node: Node, data: relax.Expr, axis: int, begin: int, end: int) -> relax.Expr:
    """Return a range of one axis; the tensor itself if that is all of it."""
    if (begin, end) == (0, static_shape(data)[axis]):
        return data
    return node.call(op.strided_slice, data, axes=[axis], begin=[begin], end=[end])


def convert_linear_attention(node: Node) -> list[relax.Expr]:
    """Return LinearAttention, unrolled over the (static) sequence; the state is float32.

    q and k of the size D, v of E, N query heads share M states S [B, M, D, E]:

        S *= exp(decay),  v = beta * (v - S^T k),  S += k v^T,  y = scale * S^T q

    where decay and beta take part as the update rule says. query [B, L, N D], key [B, L, M D],
    value [B, L, M E], decay [B, L, M] or [B, L, M D], beta [B, L, M] or [B, L, 1].

    Returns:
        output [B, L, N E], present_state [B, M, D, E].
    """
    attributes = node.attributes
    rule = attributes.get("update_rule", "gated_delta")
    heads, states = attributes["q_num_heads"], attributes["kv_num_heads"]
    query, key, value = (node.cast(node.input(index), "float32") for index in range(3))
    batch, length, _ = static_shape(query)
    queries, keys, values = (
        split_heads(node, query, heads),
        split_heads(node, key, states),
        split_heads(node, value, states),
    )
    size, width = static_shape(keys)[3], static_shape(values)[3]
    decays = betas = None
    if rule in ("gated", "gated_delta"):
        decay = node.cast(node.input(4), "float32")
        decays = node.call(op.exp, split_heads(node, decay, states))
    if rule in ("delta", "gated_delta"):
        beta = node.cast(node.input(5), "float32")
        betas = split_heads(node, beta, static_shape(beta)[2])
    scale = scalar(attributes.get("scale", 0.0) or 1 / math.sqrt(size), "float32")
    queries = node.call(op.multiply, queries, scale)

    def at(tensor: relax.Expr, step: int) -> relax.Expr:
        return slice_of(node, tensor, 2, step, step + 1)

    if node.optional(3) is None:
        state: relax.Expr = relax.const(np.zeros((batch, states, size, width), np.float32))
    else:
        state = node.cast(node.input(3), "float32")
    outputs = []
    for step in range(length):
        k, v = at(keys, step), at(values, step)
        if decays is not None:
            # [B, M, 1, D or 1] as a factor of the state's rows.
            factor = node.call(op.permute_dims, at(decays, step), [0, 1, 3, 2])
            state = node.call(op.multiply, state, factor)
        if betas is not None:
            error = node.call(op.subtract, v, node.call(op.matmul, k, state))
            v = node.call(op.multiply, at(betas, step), error)
        outer = node.call(op.multiply, node.call(op.permute_dims, k, [0, 1, 3, 2]), v)
        state = node.call(op.add, state, outer)
        q = node.call(op.reshape, at(queries, step), (batch, states, heads // states, size))
        read = node.call(op.matmul, q, state)
        outputs.append(node.call(op.reshape, read, (batch, 1, heads * width)))
    result = node.call(op.concat, outputs, axis=1) if length > 1 else outputs[0]
    stored = dtype_of(node.input(0) if node.optional(3) is None else node.input(3))
    return [node.cast(result, dtype_of(node.input(0))), node.cast(state, stored)]


def convert_causal_conv_with_state(node: Node) -> list[relax.Expr]:
    """Convert CausalConvWithState.

    Depthwise convolution of the past and the input, maybe silu behind.

    input [B, C, L], weight [C, 1, k], bias [C], past_state [B, C, k - 1].

    Returns:
        output [B, C, L], present_state: the last k - 1 positions.
    """
    data, weight, bias = node.input(0), node.input(1), node.optional(2)
    dtype = dtype_of(data)
    batch, channels, length = static_shape(data)
    reach = static_shape(weight)[2] - 1
    past = node.optional(3)
    if past is None:
        past = relax.const(np.zeros((batch, channels, reach), dtype))
    padded = node.call(op.concat, [past, data], axis=2) if reach else data
    accumulator = accumulator_dtype(dtype)
    result = node.call(
        op.nn.conv1d,
        node.cast(padded, accumulator),
        node.cast(weight, accumulator),
        groups=channels,
    )
    if bias is not None:
        column = node.call(op.reshape, node.cast(bias, accumulator), (1, channels, 1))
        result = node.call(op.add, result, column)
    result = node.cast(result, dtype)
    activation = node.attributes.get("activation", "none")
    if activation in ("silu", "swish"):
        active = node.call(op.nn.silu, node.cast(result, accumulator))
        result = node.cast(active, dtype)
    elif activation != "none":
        raise Refusal(f"activation {activation!r} is not supported")
    return [result, slice_of(node, padded, 2, length, length + reach)]


def convert_tensor_scatter(node: Node) -> relax.Expr:
    """Convert TensorScatter: rows of a cache from an index of each sequence on are replaced.

    past_cache [B, ..., T, D] with the rows along `axis`, update likewise with S rows,
    write_indices [B], 0 if they are left out.
    """
    past, update, attributes = node.input(0), node.input(1), node.attributes
    shape = static_shape(past)
    axis = attributes.get("axis", -2) % len(shape)
    if attributes.get("mode", "linear") != "linear":
        raise Refusal("mode circular is not supported")
    if axis == 0:
        raise Refusal("axis 0 is that of the sequences")
    places = node.optional(2)
    offset = int64(np.zeros(shape[0])) if places is None else node.cast(places, "int64")
    before, after = math.prod(shape[1:axis]), math.prod(shape[axis + 1 :])
    changed = list(static_shape(update))
    if len(changed) != len(shape) or [*changed[:axis], *changed[axis + 1 :]] != [
        *shape[:axis],
        *shape[axis + 1 :],
    ]:
        raise Refusal(f"an update {tuple(changed)} does not fit a cache {shape}")
    old, new = (
        node.call(op.reshape, item, (shape[0], before, static_shape(item)[axis], after))
        for item in (past, update)
    )
    return op.reshape(node.call(append_rows, old, new, offset), shape)
