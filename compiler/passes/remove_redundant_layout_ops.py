"""Remove transposes and reshapes that change nothing.

    reshape(reshape(x, a), b)             ->  reshape(x, b)
    reshape(x, shape of x)                ->  x
    permute_dims(permute_dims(x, p), q)   ->  permute_dims(x, p[q])
    permute_dims(x, identity)             ->  x
    permute_dims that moves only dimensions of extent 1  ->  reshape
    squeeze, expand_dims, flatten         ->  reshape

A reshape of a row-major tensor costs nothing, a transpose is a pass over memory.
"""

from dataclasses import dataclass

import numpy as np
from tvm import IRModule, relax

from edgec.compiler.ir.relax_helpers import constant, op_name, shape_of, value_of
from edgec.compiler.passes.base import CallRewriter, Pass

_RESHAPES = ("relax.reshape", "relax.squeeze", "relax.expand_dims", "relax.flatten")


@dataclass(frozen=True)
class RemoveRedundantLayoutOps(Pass):
    """Merge chains of transposes and reshapes, and drop those that change nothing.

    1. All shapes are static.
    """

    def apply(self, module: IRModule) -> IRModule:
        """Rewrite `main` from front to back, so that chains collapse in one run."""
        return _RemoveRedundantLayoutOpsRewriter(module).run()


@relax.expr_functor.mutator
class _RemoveRedundantLayoutOpsRewriter(CallRewriter):
    def rewrite(self, call: relax.Call) -> relax.Expr | None:
        name = op_name(call)
        if name not in (*_RESHAPES, "relax.permute_dims"):
            return None
        before, after = shape_of(call.args[0]), shape_of(call)
        # (1)
        if before is None or after is None:
            return None
        if name in _RESHAPES:
            return self._reshape(call.args[0], after)
        axes = _permutation(call, len(before))
        return self._transpose(call.args[0], before, axes)

    def _reshape(self, data: relax.Expr, shape: tuple[int, ...]) -> relax.Expr:
        inner = self.definition(data, *_RESHAPES)
        if inner is not None:
            data = inner.args[0]
        array = value_of(data)
        if array is not None:
            return constant(array.reshape(shape))
        return data if shape_of(data) == shape else relax.op.reshape(data, shape)

    def _transpose(
        self, data: relax.Expr, shape: tuple[int, ...], axes: tuple[int, ...]
    ) -> relax.Expr:
        array = value_of(data)
        if array is not None:
            return constant(np.transpose(array, axes))
        inner = self.definition(data, "relax.permute_dims")
        if inner is not None:
            first = _permutation(inner, len(axes))
            axes = tuple(first[axis] for axis in axes)
            data = inner.args[0]
            shape = shape_of(data) or shape
        moved = [axis for axis in axes if shape[axis] != 1]
        if moved == sorted(moved):
            return self._reshape(data, tuple(shape[axis] for axis in axes))
        return relax.op.permute_dims(data, list(axes))


def _permutation(call: relax.Call, rank: int) -> tuple[int, ...]:
    """Return axes of a permute_dims, counted from the front; none given reverses them."""
    if call.attrs.axes is None:
        return tuple(reversed(range(rank)))
    return tuple(int(axis) % rank for axis in call.attrs.axes)
