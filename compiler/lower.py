"""From Relax operators to fused loop nests.

Every operator becomes a TIR function and neighbours are fused into one. Nothing is decided yet
about how the loops run.
"""

import tvm
from tvm import IRModule, relax

from edgec.targets.target import Target


def lower(module: IRModule, target: Target) -> IRModule:
    """Legalize and fuse.

    Returns:
        A module whose `main` calls one TIR function per fused group.
    """
    passes = tvm.ir.transform.Sequential(
        [
            relax.transform.LegalizeOps(),
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FoldConstant(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
        ]
    )
    with tvm.target.Target(target.llvm()):
        return passes(module)
