"""Find normalization by the root mean square, which the graph spells out.

    x / sqrt(mean(x * x) + epsilon) * gamma   (Zhang and Sennrich 2019)

over one or more axes at the end. The normalization is found first; a multiplication by a constant
behind it becomes its gamma. What prunes and trains knows the single steps; so this comes last
before the choice of kernels.
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
class FuseRmsNorm(Pass):
    """Replace spelled-out normalization by the root mean square by `nn.rms_norm`.

    1. x is float32 and the mean is taken over its last axes, with `keepdims`.
    2. x is divided by the root, or multiplied by its reciprocal.
    3. epsilon is a scalar constant; gamma is a constant over exactly those axes.
    """

    def apply(self, module: IRModule) -> IRModule:
        """Rewrite `main`."""
        return _FuseRmsNormRewriter(module).run()


@relax.expr_functor.mutator
class _FuseRmsNormRewriter(CallRewriter):
    def rewrite(self, call: relax.Call) -> relax.Expr | None:
        name = op_name(call)
        if name == "relax.divide":
            return self._normalization(call.args[0], self.definition(call.args[1], "relax.sqrt"))
        if name != "relax.multiply":
            return None
        found = self._gamma(call)
        for x, other in (call.args, call.args[::-1]):
            if found is None:
                # (2)
                found = self._normalization(x, self._reciprocal(other))
        return found

    def _reciprocal(self, expression: relax.Expr) -> relax.Call | None:
        """Return the root of which an expression is the reciprocal."""
        divided = self.definition(expression, "relax.divide")
        if divided is not None and scalar_of(divided.args[0]) == 1:
            return self.definition(divided.args[1], "relax.sqrt")
        return self.definition(expression, "relax.rsqrt")

    def _normalization(self, x: relax.Expr, root: relax.Call | None) -> relax.Expr | None:
        added = None if root is None else self.definition(root.args[0], "relax.add")
        if added is None:
            return None
        epsilon = scalar_of(added.args[1])
        mean = self.definition(added.args[0], "relax.mean")
        # (3)
        if epsilon is None or mean is None or not self._is_square(mean.args[0], x):
            return None
        shape, axes = shape_of(x), mean.attrs.axis
        # (1)
        if shape is None or dtype_of(x) != "float32" or not mean.attrs.keepdims or axes is None:
            return None
        last = sorted(int(axis) % len(shape) for axis in axes)
        if last != list(range(len(shape) - len(last), len(shape))):
            return None
        gamma = constant(np.ones(shape[last[0] :], np.float32))
        return relax.op.nn.rms_norm(x, gamma, axes=last, epsilon=float(epsilon))

    def _is_square(self, expression: relax.Expr, of: relax.Expr) -> bool:
        power = self.definition(expression, "relax.power")
        if power is not None:
            return power.args[0].same_as(of) and scalar_of(power.args[1]) == 2
        product = self.definition(expression, "relax.multiply")
        return product is not None and all(arg.same_as(of) for arg in product.args)

    def _gamma(self, call: relax.Call) -> relax.Expr | None:
        for value, other in (call.args, call.args[::-1]):
            norm, array = self.sole_definition(value, "relax.nn.rms_norm"), value_of(other)
            if norm is None or array is None:
                continue
            gamma = value_of(norm.args[1])
            # (3)
            if gamma is not None and array.shape == gamma.shape:
                return relax.Call(norm.op, [norm.args[0], constant(gamma * array)], norm.attrs)
        return None
