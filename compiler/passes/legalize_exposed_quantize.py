"""Compute quantized values that a run returns exactly as ONNX says.

Between kernels a value is multiplied by the reciprocal of the scale before it is rounded, and the
quantized values are those of the type that the target multiplies. Nobody can tell, up to values
that lie between two quantized values. Quantized values that something else than a dequantize reads
are computed by a division, in code of their own.
"""

from dataclasses import dataclass

import tvm
from tvm import IRModule, relax

from edgec.compiler.ir.relax_helpers import op_name
from edgec.compiler.passes.base import CallRewriter, Pass


@dataclass(frozen=True)
class LegalizeExposedQuantize(Pass):
    """Turn quantizations whose results are exposed into TIR.

    1. Something else than a dequantize reads the quantized values, or the model returns them.
    """

    def apply(self, module: IRModule) -> IRModule:
        """Rewrite `main`."""
        return _LegalizeExposedQuantizeRewriter(module).run()


@relax.expr_functor.mutator
class _LegalizeExposedQuantizeRewriter(CallRewriter):
    def __init__(self, module: IRModule) -> None:
        super().__init__(module)
        self.seen = _seen(module["main"])

    def rewrite(self, call: relax.Call) -> relax.Expr | None:
        # (1)
        if op_name(call) != "relax.quantize" or self.binding not in self.seen:
            return None
        legalize = tvm.ir.Op.get("relax.quantize").get_attr("FLegalize")
        result: relax.Expr = legalize(self.builder_, call)
        return result


def _seen(function: relax.Function) -> set[relax.Var]:
    """Return variables that something else than a dequantize reads."""
    bindings = [b for block in function.body.blocks for b in block.bindings]
    values = [b.value for b in bindings if op_name(b.value) != "relax.dequantize"]
    return {
        variable
        for value in [*values, function.body.body]
        for variable in relax.analysis.free_vars(value)
    }
