"""Quantize what is concatenated, not the concatenation.

    quantize(concat(a, b), s, z)  ->  concat(r(a), r(b)) with r(x) = dequantize(quantize(x, s, z))

and the outer quantize, which changes nothing any more. Quantized values are then concatenated, and
each quantize goes to the kernel before it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import IRModule, relax

from edgec.compiler.ir.relax_helpers import op_name, scalar_of, value_of
from edgec.compiler.passes.base import CallRewriter, Pass


@dataclass(frozen=True)
class QuantizeBeforeConcat(Pass):
    """Move quantizations over concatenations.

    1. One constant scale and zero point for the tensor.
    2. Nothing else reads the concatenation.
    3. What has these very quantized values already stays.
    """

    def apply(self, module: IRModule) -> IRModule:
        """Rewrite `main`."""
        return _QuantizeBeforeConcatRewriter(module).run()


@relax.expr_functor.mutator
class _QuantizeBeforeConcatRewriter(CallRewriter):
    def rewrite(self, call: relax.Call) -> relax.Expr | None:
        if op_name(call) != "relax.quantize" or not _is_scalar(call):
            return None
        concat = self.sole_definition(call.args[0], "relax.concat")
        if concat is None:
            return None
        joined = concat.args[0]
        if isinstance(joined, relax.Var):
            joined = self.lookup_binding(joined)
        if not isinstance(joined, relax.Tuple):
            return None
        fields = [self._rounded(field, call) for field in joined.fields]
        if all(new is old for new, old in zip(fields, joined.fields, strict=True)):
            return None
        result = self.emit(relax.op.concat(fields, axis=concat.attrs.axis))
        return relax.Call(call.op, [result, *call.args[1:]], call.attrs)

    def _rounded(self, value: Any, quantize: relax.Call) -> Any:
        known = self.definition(value, "relax.dequantize")
        # (3)
        if known is not None and _is_quantized_by(known, quantize):
            return value
        quantized = self.emit(relax.Call(quantize.op, [value, *quantize.args[1:]], quantize.attrs))
        return self.emit(
            relax.op.dequantize(quantized, *quantize.args[1:], axis=0, out_dtype="float32")
        )


def _is_scalar(call: relax.Call) -> bool:
    # (1)
    return all(scalar_of(argument) is not None for argument in call.args[1:])


def _is_quantized_by(dequantize: relax.Call, quantize: relax.Call) -> bool:
    pairs = zip(dequantize.args[1:], quantize.args[1:], strict=True)
    arrays = [(value_of(left), value_of(right)) for left, right in pairs]
    return all(
        left is not None
        and right is not None
        and left.dtype == right.dtype
        and np.array_equal(left.reshape(-1), right.reshape(-1))
        for left, right in arrays
    )
