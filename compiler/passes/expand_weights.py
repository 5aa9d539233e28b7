"""Fold packed weights back into float constants.

What a quantized model computes is the same; it is larger, and float kernels that want constant
weights can compute it. That is how quantized graphs run where nothing but their results matters:
for calibration, sensitivity and the reference.
"""

from dataclasses import dataclass

import numpy as np
from tvm import IRModule, relax

from edgec.compiler.ir.relax_helpers import constant, op_name, value_of
from edgec.compiler.passes.base import CallRewriter, Pass


@dataclass(frozen=True)
class ExpandWeights(Pass):
    """Compute every dequantization and decoding of constants."""

    def apply(self, module: IRModule) -> IRModule:
        """Fold constants.

        TVM's folding makes machine code for each constant of another shape. Dequantization, which
        a network has most of, is an array product.
        """
        return relax.transform.FoldConstant()(_Dequantize(module).run())


@relax.expr_functor.mutator
class _Dequantize(CallRewriter):
    """Compute (values - zero point) * scale of constants, in float32 as TVM does."""

    def rewrite(self, call: relax.Call) -> relax.Expr | None:
        if op_name(call) != "relax.dequantize" or call.attrs.out_dtype != "float32":
            return None
        values, scale, zero = (value_of(argument) for argument in call.args)
        if values is None or scale is None or zero is None:
            return None
        if not np.issubdtype(values.dtype, np.integer) or scale.dtype != np.float32:
            return None
        along = [1] * values.ndim
        along[call.attrs.axis] = -1
        scale, zero = (p.reshape(along if p.size > 1 else ()) for p in (scale, zero))
        steps = values.astype(np.int32) - zero.astype(np.int32)
        return constant(steps.astype(np.float32) * scale)
