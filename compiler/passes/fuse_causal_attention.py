"""Find causal attention of a fixed length, which the graph spells out.

    softmax(scale Q K^T + mask) V   (Vaswani et al. 2017, equation 1)

What reads a cache of T keys with a constant offset computes the same, without the products that the
mask throws away and without a matrix of logits. Compression and quantization know the single steps;
so this comes last before the choice of kernels.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tvm import IRModule, relax

from edgec.compiler.ir.cache_operators import cached_attention
from edgec.compiler.ir.relax_helpers import (
    constant,
    dtype_of,
    op_name,
    scalar_of,
    shape_of,
    value_of,
)
from edgec.compiler.passes.base import CallRewriter, Pass

op = relax.op
# What is added to the logits of keys that a query does not see is at most so much.
HIDDEN = -1e4


@dataclass(frozen=True)
class FuseCausalAttention(Pass):
    """Replace spelled-out causal attention by `edgec.cached_attention`.

    1. Q [B, N, L, D], K [B, M, T, D] and V [B, M, T, E] are float32; heads that share keys are rows
       of one product, reshaped before and behind.
    2. The mask is constant, the same for all sequences and heads: query i sees keys up to
       i + T - L, all of them or a window of the last.
    3. The scale is a scalar constant, or several: of queries, keys or logits.
    4. Nothing else reads logits or weights.
    """

    def apply(self, module: IRModule) -> IRModule:
        """Rewrite `main`."""
        return _FuseCausalAttentionRewriter(module).run()


@relax.expr_functor.mutator
class _FuseCausalAttentionRewriter(CallRewriter):
    def rewrite(self, call: relax.Call) -> relax.Expr | None:
        if op_name(call) != "relax.matmul" or dtype_of(call) != "float32":
            return None
        softmax = self.sole_definition(self._reshaped(call.args[0]), "relax.nn.softmax")
        values, shape = shape_of(call.args[1]), shape_of(call)
        if softmax is None or values is None or shape is None or len(values) != 4:
            return None
        weights = shape_of(softmax)
        # (1)
        if weights is None or len(weights) != 4 or int(softmax.attrs.axis) not in (-1, 3):
            return None
        logits, seen = self._mask(softmax.args[0], weights)
        if seen is None:
            return None
        logits, scale = self._scaled(logits)
        product = self.sole_definition(self._reshaped(logits), "relax.matmul")
        if product is None:
            return None
        query, of_query = self._scaled(product.args[0])
        keys, of_keys = self._keys(product.args[1])
        batch, heads, length, total = weights
        key_shape, query_shape = shape_of(keys) if keys is not None else None, shape_of(query)
        if keys is None or key_shape is None or query_shape is None:
            return None
        size = query_shape[-1]
        # (1)
        if key_shape != (batch, values[1], total, size) or values[:3:2] != (batch, total):
            return None
        if heads % values[1] or int(np.prod(query_shape)) != batch * heads * length * size:
            return None
        if query_shape != (batch, heads, length, size):
            query = self.emit(op.reshape(query, (batch, heads, length, size)))
        offset = constant(np.full(batch, total - length, np.int64))
        window = 0 if seen >= total else seen
        scale *= of_query * of_keys
        found = cached_attention(query, keys, call.args[1], offset, scale=scale, window=window)
        if shape == (batch, heads, length, values[3]):
            return found
        return op.reshape(self.emit(found), shape)

    def _reshaped(self, expression: relax.Expr) -> relax.Expr:
        """Return what a reshape that nothing else reads was made of."""
        reshape = self.sole_definition(expression, "relax.reshape")
        return expression if reshape is None else reshape.args[0]

    def _scaled(self, expression: relax.Expr) -> tuple[relax.Expr, float]:
        """Return a value without its scalar factors and reshapes, and their product."""
        scale = 1.0
        while True:
            found = self.sole_definition(
                expression, "relax.multiply", "relax.divide", "relax.reshape"
            )
            if found is None:
                return expression, scale
            if op_name(found) == "relax.reshape":
                before, behind = shape_of(found.args[0]), shape_of(found)
                # Heads of queries and their rows; not the tokens of a hidden state.
                if before is None or behind is None or len(before) != 4 or len(behind) != 4:
                    return expression, scale
                expression = found.args[0]
                continue
            factor = scalar_of(found.args[1])
            # (3)
            if factor is None or factor == 0:
                return expression, scale
            scale = scale * factor if op_name(found) == "relax.multiply" else scale / factor
            expression = found.args[0]

    def _keys(self, expression: relax.Expr) -> tuple[relax.Expr | None, float]:
        """Return [B, M, T, D] of keys [B, M, D, T], and their scale."""
        expression, scale = self._scaled(expression)
        permuted = self.sole_definition(expression, "relax.permute_dims")
        if permuted is None:
            return None, scale
        axes = [int(axis) for axis in permuted.attrs.axes or ()]
        if axes == [0, 1, 3, 2]:
            keys, more = self._scaled(permuted.args[0])
            return keys, scale * more
        if axes == [0, 2, 3, 1]:
            return self.emit(op.permute_dims(permuted.args[0], [0, 2, 1, 3])), scale
        return None, scale

    def _mask(
        self, expression: relax.Expr, shape: tuple[int, ...]
    ) -> tuple[relax.Expr, int | None]:
        """Return the logits behind a mask, and how many keys a query sees; None: it is another."""
        added = self.sole_definition(expression, "relax.add")
        if added is not None:
            for logits, mask in (added.args, added.args[::-1]):
                bias = value_of(mask)
                if bias is not None:
                    allowed = bias == 0
                    hides = allowed | (bias <= HIDDEN)
                    return logits, _seen(allowed, shape) if hides.all() else None
        chosen = self.sole_definition(expression, "relax.where")
        if chosen is not None:
            condition, hidden = value_of(chosen.args[0]), scalar_of(chosen.args[2])
            if condition is not None and hidden is not None and hidden <= HIDDEN:
                return chosen.args[1], _seen(condition, shape)
        return expression, None


def _seen(allowed: NDArray[np.bool_], shape: tuple[int, ...]) -> int | None:
    """Return how many keys, its own among them, a query sees at most; None if it is not causal.

    Args:
        allowed: which keys may be seen; broadcasts to the logits.
        shape: of the logits, [B, N, L, T].
    """
    length, total = shape[2:]
    if allowed.ndim > 4 or np.broadcast_shapes(allowed.shape, shape) != shape or length > total:
        return None
    planes = np.broadcast_to(allowed, (*allowed.shape[:-2], length, total)).reshape(
        -1, length, total
    )
    distance = np.arange(length)[:, np.newaxis] + (total - length) - np.arange(total)
    most = int(planes[0, -1].sum())
    # (2)
    expected = (distance >= 0) & (distance < most)
    return most if most and (planes == expected).all() else None
