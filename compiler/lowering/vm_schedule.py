"""Provide schedules for modules that only the Relax virtual machine can run."""

import tvm
from tvm import IRModule, relax, tirx

from edgec.compiler.lowering.generic_schedule import schedule_generic
from edgec.compiler.lowering.legalize import OWN_LEGALIZATION
from edgec.targets.target import Target


def schedule_for_vm(module: IRModule, target: Target) -> IRModule:
    """Lower a canonicalized module and schedule its functions by the generic rule.

    Shapes that are only known at run time are left to the virtual machine, and functions over them
    to TVM's own defaults.
    """
    passes = tvm.ir.transform.Sequential(
        [
            relax.transform.LegalizeOps(OWN_LEGALIZATION),
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FoldConstant(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
        ]
    )
    with tvm.target.Target(target.llvm()):
        lowered = passes(module)
    scheduled = IRModule(dict(lowered.functions_items()), attrs=lowered.attrs)
    for variable, function in lowered.functions_items():
        if isinstance(function, tirx.PrimFunc):
            scheduled[variable] = schedule_generic(function, target)
    return scheduled
