"""From Relax operators to fused loop nests, for what no kernel template covers.

Every remaining operator becomes a TIR function and neighbours are fused into one. Reshapes stay:
the static executor needs no code for them.
"""

import tvm
from tvm import IRModule, relax

from edgec.compiler.passes.base import is_static
from edgec.targets.target import Target


def lower(module: IRModule, target: Target) -> IRModule:
    """Legalize and fuse.

    Returns:
        A module whose `main` holds kernel operators, reshapes, and one call for each fused group
        of the rest. A module of shapes that only a run can tell stays as it is.
    """
    if not is_static(module):
        return module
    passes = tvm.ir.transform.Sequential(
        [
            relax.transform.LegalizeOps(skip_ops=["relax.reshape"]),
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FoldConstant(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
            relax.transform.DeadCodeElimination(["main"]),
        ]
    )
    with tvm.target.Target(target.llvm()):
        return passes(module)
