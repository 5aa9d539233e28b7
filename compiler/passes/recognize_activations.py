"""Find activations that the network spells out in elementwise operators.

    minimum(maximum(x, a), b)                      -> clip(x, a, b)
    x * sigmoid(x)                                 -> nn.silu(x)
    x * clip(x + 3, 0, 6) * c                      -> edgec.hard_swish(x) * 6 c
    clip(alpha x + beta, 0, 1)                     -> edgec.hard_sigmoid(x)
    x * (1 + erf(x / sqrt 2)) / 2                  -> nn.gelu(x)
    x * (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2   -> nn.gelu_tanh(x)

Products are read as sets of factors, so the order in which an exporter multiplies and where it
puts its constants makes no difference. Definitions: GELU Hendrycks and Gimpel 2016, SiLU
Elfwing et al. 2017, hard-swish Howard et al. 2019.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tvm import IRModule, relax

from edgec.compiler.ir.operators import hard_sigmoid, hard_swish
from edgec.compiler.ir.relax_helpers import constant, dtype_of, op_name, scalar_of, shape_of
from edgec.compiler.passes.base import CallRewriter, Pass

# Exporters round their constants to float32, or write 1.4142.
_RELATIVE = 1e-4


@dataclass(frozen=True)
class RecognizeActivations(Pass):
    """Replace spelled-out activations by one operator.

    1. All parts read the same variable x.
    2. Intermediate values have no other use.
    3. Constants are scalars and agree with the definition to 1 part in 10,000.
    4. Values are floats.
    """

    def apply(self, module: IRModule) -> IRModule:
        """Rewrite `main`."""
        return _RecognizeActivationsRewriter(module).run()


def _near(value: float | None, expected: float) -> bool:
    return value is not None and math.isclose(value, expected, rel_tol=_RELATIVE)


@relax.expr_functor.mutator
class _RecognizeActivationsRewriter(CallRewriter):
    def rewrite(self, call: relax.Call) -> relax.Expr | None:
        name = op_name(call)
        if name not in ("relax.minimum", "relax.multiply", "relax.divide"):
            return None
        # (4)
        if not dtype_of(call).startswith(("float", "bfloat")):
            return None
        if name == "relax.minimum":
            return self._clip(call)
        factor, factors = self._factors(call, 1.0)
        if len(factors) != 2:
            return None
        for x, gate in (factors, reversed(factors)):
            if shape_of(x) != shape_of(call):
                continue
            replacement = self._gated(x, gate, factor)
            if replacement is not None:
                return replacement
        return None

    def _clip(self, call: relax.Call) -> relax.Expr | None:
        floored, upper = call.args[0], scalar_of(call.args[1])
        inner = self.sole_definition(floored, "relax.maximum")
        lower = scalar_of(inner.args[1]) if inner is not None else None
        if inner is None or upper is None or lower is None or lower > upper:
            return None
        x = inner.args[0]
        if shape_of(x) != shape_of(call):
            return None
        if (lower, upper) == (0.0, 1.0):
            alpha, beta, source = self._line(x)
            if source is not None:
                return hard_sigmoid(source, alpha, beta)
        return relax.op.clip(x, lower, upper)

    def _line(self, expression: relax.Expr) -> tuple[float, float, relax.Expr | None]:
        """Return alpha, beta and x of `alpha x + beta`; x is None if it is no such expression."""
        added = self.sole_definition(expression, "relax.add")
        beta = scalar_of(added.args[1]) if added is not None else None
        if added is None or beta is None:
            return 1.0, 0.0, None
        scaled = self.sole_definition(added.args[0], "relax.multiply")
        alpha = scalar_of(scaled.args[1]) if scaled is not None else None
        if scaled is None or alpha is None:
            return 1.0, beta, added.args[0]
        return alpha, beta, scaled.args[0]

    def _factors(self, expression: relax.Expr, factor: float) -> tuple[float, Sequence[relax.Expr]]:
        """Return a product as its constant factor, times the one given, and its other factors."""
        if op_name(expression) == "relax.divide":
            divisor = scalar_of(expression.args[1])
            if not divisor:
                return factor, [expression]
            parts, factor = [expression.args[0]], factor / divisor
        else:
            parts = list(expression.args)
        factors: list[relax.Expr] = []
        for part in parts:
            number = scalar_of(part)
            inner = self.sole_definition(part, "relax.multiply", "relax.divide")
            if number is not None:
                factor *= number
            elif inner is not None:
                factor, deeper = self._factors(inner, factor)
                factors += deeper
            else:
                factors.append(part)
        return factor, factors

    def _gated(self, x: relax.Expr, gate: relax.Expr, factor: float) -> relax.Expr | None:
        """Return factor * x * gate as one operator."""
        sigmoid = self.sole_definition(gate, "relax.sigmoid")
        if sigmoid is not None and self._same(sigmoid.args[0], x) and factor == 1:
            return relax.op.nn.silu(x)
        hard = self.sole_definition(gate, "edgec.hard_sigmoid")
        if hard is not None and self._same(hard.args[0], x):
            if _near(hard.attrs["alpha"], 1 / 6) and _near(hard.attrs["beta"], 0.5):
                return self._times(hard_swish(x), factor)
            return None
        clip = self.sole_definition(gate, "relax.clip")
        if clip is not None:
            bounds = [float(bound.value) for bound in clip.args[1:]]
            alpha, beta, source = self._line(clip.args[0])
            if bounds == [0, 6] and (alpha, beta) == (1, 3) and self._same(source, x):
                return self._times(hard_swish(x), factor * 6)
        return self._gelu(x, gate, factor)

    def _times(self, value: relax.Expr, factor: float) -> relax.Expr:
        """A learned scale behind the activation stays a multiplication."""
        if _near(factor, 1):
            return value
        bound = self.emit(value)
        return relax.op.multiply(bound, constant(np.array(factor).astype(dtype_of(bound))))

    def _gelu(self, x: relax.Expr, gate: relax.Expr, factor: float) -> relax.Expr | None:
        """Recognize factor * x * gate, where gate is c (1 + erf(...)) or c (1 + tanh(...))."""
        added = self.sole_definition(gate, "relax.add")
        summand = scalar_of(added.args[1]) if added is not None else None
        if added is None or summand is None or not _near(factor * summand, 0.5):
            return None
        scale, curves = self._product(added.args[0])
        if len(curves) != 1 or not _near(scale, summand):
            return None
        curve = self.sole_definition(curves[0], "relax.erf", "relax.tanh")
        if curve is None:
            return None
        slope, factors = self._product(curve.args[0])
        if len(factors) != 1:
            return None
        if op_name(curve) == "relax.erf":
            matches = self._same(factors[0], x) and _near(slope, 0.5**0.5)
            return relax.op.nn.gelu(x) if matches else None
        matches = self._is_cubic(factors[0], x) and _near(slope, (2 / math.pi) ** 0.5)
        return relax.op.nn.gelu_tanh(x) if matches else None

    def _is_cubic(self, expression: relax.Expr, x: relax.Expr) -> bool:
        """Return whether it is x + 0.044715 x^3."""
        added = self.sole_definition(expression, "relax.add")
        if added is None:
            return False
        terms = list(added.args)
        for one, other in (terms, reversed(terms)):
            if not self._same(one, x):
                continue
            factor, factors = self._product(other)
            if not _near(factor, 0.044715):
                continue
            if len(factors) == 3 and all(self._same(part, x) for part in factors):
                return True
            power = self.sole_definition(factors[0], "relax.power") if len(factors) == 1 else None
            if power is not None and self._same(power.args[0], x):
                return scalar_of(power.args[1]) == 3
        return False

    def _product(self, expression: relax.Expr) -> tuple[float, Sequence[relax.Expr]]:
        inner = self.sole_definition(expression, "relax.multiply", "relax.divide")
        return (1.0, [expression]) if inner is None else self._factors(inner, 1.0)

    def _same(self, one: relax.Expr | None, other: relax.Expr) -> bool:
        # (1)
        return isinstance(one, relax.Var) and one.same_as(other)
