"""Provide Relax operators that stand for one call of a kernel template.

They carry the template's workload as text, so that a dump shows all there is to know, and have no
legalization: the schedule stage turns each into code.
"""

from collections.abc import Sequence
from typing import Any

from tvm import ir, relax

from edgec.compiler.ir.operators import register
from edgec.compiler.kernels.templates import TEMPLATES


def kernel_call(
    operator: str,
    arguments: Sequence[relax.Expr],
    workload: str,
    shape: Sequence[int],
    dtype: str = "float32",
    label: str = "",
) -> relax.Call:
    """Return a call of a kernel template.

    Args:
        operator: key in `edgec.compiler.kernels.templates.TEMPLATES`.
        arguments: operands in the order of the kernel's buffers, without the output.
        workload: the workload as text.
        shape: the shape of the result.
        dtype: the dtype of the result.
        label: the value that it computes, for people.
    """
    attributes = {"workload": workload, "shape": list(shape), "dtype": dtype, "label": label}
    return relax.Call(
        ir.Op.get(operator), list(arguments), ir.make_node("ir.DictAttrs", **attributes)
    )


def _kernel_type(call: relax.Call, _builder: relax.BlockBuilder) -> Any:
    shape = [int(extent) for extent in call.attrs["shape"]]
    return relax.TensorType(shape, str(call.attrs["dtype"]))


for _name in TEMPLATES:
    register(_name, _kernel_type)
