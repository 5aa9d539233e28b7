"""Relax operators of our own.

Composite activations that networks spell out in several nodes. As one operator the later
stages see what the network means: one epilogue to fuse, one function to tabulate. Relax takes
operators registered from Python, with their type inference and their legalization.
"""

from typing import Any

from tvm import ir, relax, te, tirx

_registered: set[str] = set()


def hard_sigmoid(data: relax.Expr, alpha: float, beta: float) -> relax.Call:
    """min(1, max(0, alpha * data + beta)), elementwise on floats."""
    attributes = {"alpha": float(alpha), "beta": float(beta)}
    return relax.Call(
        ir.Op.get("edgec.hard_sigmoid"), [data], ir.make_node("ir.DictAttrs", **attributes)
    )


def hard_swish(data: relax.Expr) -> relax.Call:
    """Data * min(6, max(0, data + 3)) / 6, elementwise on floats (Howard et al. 2019, eq. 1)."""
    return relax.Call(ir.Op.get("edgec.hard_swish"), [data])


def _clamp(value: tirx.Expr, upper: float) -> tirx.Expr:
    zero, limit = tirx.const(0, value.ty.dtype), tirx.const(upper, value.ty.dtype)
    return tirx.min(tirx.max(value, zero), limit)


def _compute_hard_sigmoid(data: te.Tensor, alpha: float, beta: float) -> te.Tensor:
    scale, shift = tirx.const(alpha, data.dtype), tirx.const(beta, data.dtype)
    return te.compute(
        data.shape, lambda *i: _clamp(data(*i) * scale + shift, 1), name="hard_sigmoid"
    )


def _compute_hard_swish(data: te.Tensor) -> te.Tensor:
    three, sixth = tirx.const(3, data.dtype), tirx.const(1 / 6, data.dtype)
    return te.compute(
        data.shape,
        lambda *i: data(*i) * (_clamp(data(*i) + three, 6) * sixth),
        name="hard_swish",
    )


def _legalize_hard_sigmoid(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    return builder.call_te(
        _compute_hard_sigmoid, call.args[0], call.attrs["alpha"], call.attrs["beta"]
    )


def _legalize_hard_swish(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    return builder.call_te(_compute_hard_swish, call.args[0])


def _same_type(call: relax.Call, _builder: relax.BlockBuilder) -> Any:
    return call.args[0].ty


def _register(name: str, inputs: int, infer: Any, legalize: Any) -> None:
    if name in _registered:
        return
    _registered.add(name)
    ir.op._ffi_api.RegisterOp(name, "an operator of edgec")
    operator = ir.Op.get(name)
    operator.set_num_inputs(inputs)
    ir.register_op_attr(name, "FInferType", infer)
    ir.register_op_attr(name, "FLegalize", legalize)
    ir.register_op_attr(name, "FPurity", True)
    ir.register_op_attr(name, "TScriptPrinterName", name)


_register("edgec.hard_sigmoid", 1, _same_type, _legalize_hard_sigmoid)
_register("edgec.hard_swish", 1, _same_type, _legalize_hard_swish)
