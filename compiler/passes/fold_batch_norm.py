"""Turn batch normalization into one multiplication and one addition per channel.

With the statistics of training, which are constants,

    (x - mean) / sqrt(variance + epsilon) * gamma + beta  =  x * scale + shift
    scale = gamma / sqrt(variance + epsilon),  shift = beta - mean * scale

(Ioffe and Szegedy 2015, algorithm 2). `FoldAffine` then moves both into the weights of the
convolution before, where there is one.
"""

from dataclasses import dataclass

import numpy as np
from tvm import IRModule, relax

from edgec.compiler.ir.relax_helpers import constant, op_name, shape_of, value_of
from edgec.compiler.passes.base import CallRewriter, Pass, log


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Replace `nn.batch_norm` in inference by constants.

    1. All four parameters are constants.
    2. Only the normalized data are used, not the statistics.
    """

    def apply(self, module: IRModule) -> IRModule:
        """Rewrite every batch normalization of `main`."""
        return _FoldBatchNormRewriter(module).run()


@relax.expr_functor.mutator
class _FoldBatchNormRewriter(CallRewriter):
    def visit_tuple_getitem_(self, item: relax.TupleGetItem) -> relax.Expr:
        visited = super().visit_tuple_getitem_(item)
        call = self.definition(visited.tuple_value, "relax.nn.batch_norm")
        # (2) Statistics in other fields are not used in inference.
        if call is None or visited.index != 0:
            return visited
        affine = self._affine(call)
        return visited if affine is None else affine

    def _affine(self, call: relax.Call) -> relax.Expr | None:
        data = call.args[0]
        parameters = [value_of(argument) for argument in call.args[1:]]
        gamma, beta, mean, variance = parameters
        # (1)
        if gamma is None or beta is None or mean is None or variance is None:
            log.debug("%s stays: its parameters are not constant", op_name(call))
            return None
        epsilon = float(call.attrs.epsilon)
        scale = gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
        shift = beta - mean * scale
        rank = len(shape_of(data) or ())
        shape = [1] * rank
        shape[int(call.attrs.axis)] = -1
        scaled = self.emit(
            relax.op.multiply(data, constant(scale.reshape(shape).astype(gamma.dtype)))
        )
        return relax.op.add(scaled, constant(shift.reshape(shape).astype(gamma.dtype)))
