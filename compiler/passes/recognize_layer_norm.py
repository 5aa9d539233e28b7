"""Find layer normalization that the network spells out.

    d = x - mean(x),   d / sqrt(mean(d * d) + epsilon) * gamma + beta   (Ba et al. 2016)

over one or more axes at the end. The normalization is found first; a multiplication and an
addition by constants behind it become its gamma and beta.
"""

from dataclasses import dataclass

import numpy as np
from tvm import IRModule, relax

from edgec.compiler.ir.relax_helpers import (
    constant,
    dtype_of,
    op_name,
    scalar_of,
    shape_of,
    value_of,
)
from edgec.compiler.passes.base import CallRewriter, Pass


@dataclass(frozen=True)
class RecognizeLayerNorm(Pass):
    """Replace spelled-out layer normalization by `nn.layer_norm`.

    1. Mean and variance are taken over the same last axes, with `keepdims`.
    2. Both read the same x; the deviation may have more uses, its mean square may not.
    3. epsilon is a scalar constant; gamma and beta are constants over exactly those axes.
    """

    def apply(self, module: IRModule) -> IRModule:
        """Rewrite `main`."""
        return _RecognizeLayerNormRewriter(module).run()


@relax.expr_functor.mutator
class _RecognizeLayerNormRewriter(CallRewriter):
    def rewrite(self, call: relax.Call) -> relax.Expr | None:
        name = op_name(call)
        if name == "relax.divide":
            return self._normalization(call)
        if name in ("relax.multiply", "relax.add"):
            return self._parameter(call)
        return None

    def _normalization(self, call: relax.Call) -> relax.Expr | None:
        deviation = self.definition(call.args[0], "relax.subtract")
        root = self.sole_definition(call.args[1], "relax.sqrt")
        added = self.sole_definition(root.args[0], "relax.add") if root is not None else None
        if deviation is None or added is None:
            return None
        epsilon = scalar_of(added.args[1])
        variance = self.sole_definition(added.args[0], "relax.mean")
        x, center = deviation.args
        mean = self.definition(center, "relax.mean")
        # (3)
        if epsilon is None or variance is None or mean is None:
            return None
        # (2)
        if not mean.args[0].same_as(x) or not self._is_square(variance.args[0], call.args[0]):
            return None
        axes = self._last_axes(mean)
        # (1)
        if axes is None or axes != self._last_axes(variance):
            return None
        extents = [(shape_of(x) or ())[axis] for axis in axes]
        one = constant(np.ones(extents, dtype_of(x)))
        zero = constant(np.zeros(extents, dtype_of(x)))
        return relax.op.nn.layer_norm(x, one, zero, axes=list(axes), epsilon=epsilon)

    def _is_square(self, expression: relax.Expr, of: relax.Expr) -> bool:
        power = self.sole_definition(expression, "relax.power")
        if power is not None:
            return power.args[0].same_as(of) and scalar_of(power.args[1]) == 2
        product = self.sole_definition(expression, "relax.multiply")
        return product is not None and all(arg.same_as(of) for arg in product.args)

    def _last_axes(self, mean: relax.Call) -> tuple[int, ...] | None:
        rank = len(shape_of(mean.args[0]) or ())
        if not rank or not mean.attrs.keepdims or mean.attrs.axis is None:
            return None
        axes = tuple(sorted(int(axis) % rank for axis in mean.attrs.axis))
        return axes if axes == tuple(range(rank - len(axes), rank)) else None

    def _parameter(self, call: relax.Call) -> relax.Expr | None:
        value, other = call.args
        if value_of(other) is None:
            value, other = other, value
        norm = self.sole_definition(value, "relax.nn.layer_norm")
        array = value_of(other)
        if norm is None or array is None:
            return None
        x, gamma, beta = norm.args
        gammas, betas = value_of(gamma), value_of(beta)
        # (3)
        if gammas is None or betas is None or array.shape != gammas.shape:
            return None
        if op_name(call) == "relax.multiply":
            arguments = [x, constant(gammas * array), constant(betas * array)]
        else:
            arguments = [x, gamma, constant(betas + array)]
        return relax.Call(norm.op, arguments, norm.attrs)
