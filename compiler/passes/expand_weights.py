"""Fold stored weights back into float constants.

What a quantized model computes is the same; it is larger, and float kernels that want constant
weights can compute it. That is how quantized graphs run where nothing but their results matters:
for calibration and sensitivity.
"""

from dataclasses import dataclass
from typing import Any

import tvm
from numpy.typing import NDArray
from tvm import IRModule, relax

from edgec.compiler.lower import KEPT_SMALL
from edgec.compiler.passes.base import CallRewriter, Pass, constant, op_name, value_of


@dataclass(frozen=True)
class ExpandWeights(Pass):
    """Compute every dequantization and decoding of constants."""

    def apply(self, module: IRModule) -> IRModule:
        """Rewrite `main`."""
        return _Expander(module).run()


@relax.expr_functor.mutator
class _Expander(CallRewriter):
    def rewrite(self, call: relax.Call) -> relax.Expr | None:
        if op_name(call) not in KEPT_SMALL:
            return None
        if any(value_of(argument) is None for argument in call.args):
            return None
        return constant(_evaluated(call))


def _evaluated(call: relax.Call) -> NDArray[Any]:
    """The value of a call of constants."""
    body = relax.SeqExpr([], call)
    function = relax.Function([], body, call.ty).with_attr("global_symbol", "main")
    passes = [
        relax.transform.Normalize(),
        relax.transform.LegalizeOps(),
        relax.transform.FoldConstant(),
        relax.transform.CanonicalizeBindings(),
    ]
    with tvm.target.Target({"kind": "llvm"}):
        folded = tvm.ir.transform.Sequential(passes)(IRModule({"main": function}))
    body = folded["main"].body
    array = value_of(body.body if isinstance(body, relax.SeqExpr) else body)
    assert array is not None
    return array
