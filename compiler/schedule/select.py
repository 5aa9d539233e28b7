"""Choose a schedule for every function of a lowered module.

The seam between what is computed and how: a template for a function's anchor operator, where
there is one, else the generic rule.
"""

from tvm import IRModule, tirx

from edgec.compiler.schedule.generic import schedule_generic
from edgec.targets.target import Target


def schedule_module(module: IRModule, target: Target) -> IRModule:
    """Schedule every TIR function of a module.

    Args:
        module: fused and lowered; its Relax function calls the TIR functions.
        target: decides on vector widths and threads.
    """
    scheduled = IRModule(dict(module.functions_items()), attrs=module.attrs)
    for variable, function in module.functions_items():
        if isinstance(function, tirx.PrimFunc):
            scheduled[variable] = schedule_generic(function, target)
    return scheduled
