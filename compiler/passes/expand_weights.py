"""Fold stored weights back into float constants.

What a quantized model computes is the same; it is larger, and float kernels that want constant
weights can compute it. That is how quantized graphs run where nothing but their results matters:
for calibration, sensitivity and the reference.
"""

from dataclasses import dataclass

from tvm import IRModule, relax

from edgec.compiler.passes.base import Pass


@dataclass(frozen=True)
class ExpandWeights(Pass):
    """Compute every dequantization and decoding of constants."""

    def apply(self, module: IRModule) -> IRModule:
        """Fold constants."""
        return relax.transform.FoldConstant()(module)
