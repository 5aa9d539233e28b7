"""Provide Relax operators of our own.

Relax takes operators registered from Python, with their type inference and their legalization.

Composite activations are what networks spell out in several nodes. As one operator the later
stages see what the network means: one epilogue to fuse, one function to tabulate.
"""

from collections.abc import Sequence
from typing import Any

from tvm import ir, relax, te, tirx


def hard_sigmoid(data: relax.Expr, alpha: float, beta: float) -> relax.Call:
    """Return min(1, max(0, alpha * data + beta)), elementwise on floats."""
    attributes = {"alpha": float(alpha), "beta": float(beta)}
    return relax.Call(
        ir.Op.get("edgec.hard_sigmoid"), [data], ir.make_node("ir.DictAttrs", **attributes)
    )


def hard_swish(data: relax.Expr) -> relax.Call:
    """Return data * min(6, max(0, data + 3)) / 6, elementwise (Howard et al. 2019, eq. 1)."""
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


def decode_weight(
    quantized: relax.Expr,
    parameters: Sequence[relax.Expr],
    *,
    format: str,
    shape: Sequence[int],
    group: int = 0,
    rows_last: bool = False,
) -> relax.Call:
    """Return weights out of what the bundle stores of them, as float32.

    Args:
        quantized: `int4` and `log2`: uint8 [rows, bytes], see `quantize.numerics.GroupWeight`;
            codebooks: uint8 [rows, bytes], see `quantize.codebook.CodebookWeight`; `float`: half
            floats in the shape of the result.
        parameters: scales float32 [rows, groups], and for `int4` zero points uint8 of that shape;
            of codebooks the table float32 [entries], and scales float32 [rows].
        format: `int4`, `log2`, `codebook16`, `codebook256` or `float`.
        shape: the shape of the weights.
        group: quantized values that share a scale.
        rows_last: whether rows are the last axis of the weights, not the first; columns are all
            the others, flattened.
    """
    attributes = {
        "format": format,
        "shape": list(shape),
        "group": group,
        "rows_last": rows_last,
    }
    return relax.Call(
        ir.Op.get("edgec.decode_weight"),
        [quantized, *parameters],
        ir.make_node("ir.DictAttrs", **attributes),
    )


def _compute_decode_weight(
    quantized: te.Tensor,
    *parameters: te.Tensor,
    format: str,
    shape: Sequence[int],
    group: int,
    rows_last: bool,
) -> te.Tensor:
    def value(*indices: tirx.Var) -> tirx.Expr:
        if format == "float":
            return quantized(*indices).astype("float32")
        row = indices[-1] if rows_last else indices[0]
        rest = slice(0, -1) if rows_last else slice(1, None)
        column = tirx.const(0, "int64")
        for extent, index in zip(shape[rest], indices[rest], strict=True):
            column = column * extent + index
        if format == "codebook256":
            return parameters[0](quantized(row, column).astype("int32")) * parameters[1](row)
        byte = quantized(row, column // 2).astype("int32")
        code = (byte >> ((column % 2).astype("int32") * 4)) & 15
        if format == "codebook16":
            return parameters[0](code) * parameters[1](row)
        scale = parameters[0](row, column // group)
        if format == "int4":
            return (code - parameters[1](row, column // group).astype("int32")) * scale
        power = tirx.reinterpret("float32", (128 - (code & 7)) << 23)
        signed = tirx.Select(code >= 8, -power, power)
        return tirx.Select((code & 7) == 0, tirx.const(0, "float32"), signed) * scale

    return te.compute(shape, value, name="decode_weight")


def _legalize_decode_weight(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    attributes = call.attrs
    return builder.call_te(
        _compute_decode_weight,
        *call.args,
        format=str(attributes["format"]),
        shape=[int(extent) for extent in attributes["shape"]],
        group=int(attributes["group"]),
        rows_last=bool(attributes["rows_last"]),
    )


def _same_type(call: relax.Call, _builder: relax.BlockBuilder) -> Any:
    return call.args[0].ty


def register(name: str, infer: Any, legalize: Any = None) -> None:
    """Register an operator with its type inference and its legalization, if it has one."""
    ir.op._ffi_api.RegisterOp(name, "an operator of edgec")
    ir.register_op_attr(name, "FInferType", infer)
    if legalize is not None:
        ir.register_op_attr(name, "FLegalize", legalize)
    ir.register_op_attr(name, "FPurity", True)
    ir.register_op_attr(name, "TScriptPrinterName", name)


def _decoded_type(call: relax.Call, _builder: relax.BlockBuilder) -> Any:
    return relax.TensorType([int(extent) for extent in call.attrs["shape"]], "float32")


register("edgec.decode_weight", _decoded_type, _legalize_decode_weight)
register("edgec.hard_sigmoid", _same_type, _legalize_hard_sigmoid)
register("edgec.hard_swish", _same_type, _legalize_hard_swish)
