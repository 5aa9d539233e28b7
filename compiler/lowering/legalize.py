"""Lead from Relax operators to fused loop nests, for what no kernel template covers.

Every remaining operator becomes a TIR function and neighbours are fused into one. Reshapes stay:
the static executor needs no code for them.

Constants are folded, with one exception: what a model stores of quantized weights stays as small
as it is, and kernels make floats of it.
"""

from typing import Any

import tvm
from tvm import IRModule, relax, te, topi
from tvm.ir import GenericConst

from edgec.compiler.ir.relax_helpers import is_static, op_name, with_bindings
from edgec.compiler.lowering.fold_exact import fold_exact
from edgec.targets.target import Target

KEPT_SMALL = ("relax.dequantize", "edgec.decode_weight")
"""What turns packed weights into floats: folded, the bundle would hold the floats."""


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
            relax.transform.LegalizeOps(OWN_LEGALIZATION, skip_ops=["relax.reshape"]),
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FoldConstant(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
            relax.transform.DeadCodeElimination(["main"]),
        ]
    )
    opened, bound = _open_constants(fold_exact(module))
    with tvm.target.Target(target.llvm()):
        lowered = passes(opened)
    return relax.transform.BindParams("main", bound)(lowered) if bound else lowered


def _legalize_take(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Return elements at positions that are known to be there, without TVM's warning about them."""
    data, indices = call.args
    mode, axis = str(call.attrs.mode), call.attrs.axis
    if mode != "fast" or axis is None:
        return builder.call_te(topi.take, data, indices, axis, mode=mode)
    before = int(axis) % len(data.ty.shape.values)

    def take(source: te.Tensor, places: te.Tensor) -> te.Tensor:
        count = len(places.shape)
        shape = (*source.shape[:before], *places.shape, *source.shape[before + 1 :])

        def element(*at: Any) -> Any:
            place = places(*at[before : before + count])
            return source(*at[:before], place, *at[before + count :])

        return te.compute(shape, element, name="take")

    return builder.call_te(take, data, indices, primfunc_name_hint="take")


OWN_LEGALIZATION = {"relax.take": _legalize_take}
"""Operators that TVM legalizes otherwise than edgec wants."""


def _open_constants(module: IRModule) -> tuple[IRModule, dict[str, Any]]:
    """Return the module with its packed weights as parameters.

    Whose values are unknown to passes.
    """
    bound: dict[str, Any] = {}
    parameters: list[relax.Var] = []
    bindings = []
    for block in module["main"].body.blocks:
        for binding in block.bindings:
            value = binding.value
            if op_name(value) in KEPT_SMALL and isinstance(value.args[0], GenericConst):
                name = f"stored_{len(bound)}"
                parameters.append(relax.Var(name, value.args[0].ty))
                bound[name] = value.args[0].value
                arguments = [parameters[-1], *value.args[1:]]
                value = relax.Call(value.op, arguments, value.attrs, ty_args=value.ty_args)
            bindings.append((binding.var, value))
    if not bound:
        return module, bound
    return with_bindings(module, bindings, parameters=parameters), bound
