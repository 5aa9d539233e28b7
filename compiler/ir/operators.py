"""Provide Relax operators of our own.

Relax takes operators registered from Python, with their type inference and their legalization.

Composite activations are what networks spell out in several nodes. As one operator the later
stages see what the network means: one epilogue to fuse, one function to tabulate.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from tvm import ir, relax, te, tirx, topi

from edgec.compiler.numerics.grouped_codes import PLANES, UNIT_VALUES, GroupForm
from edgec.compiler.numerics.grouped_product import LARGEST, SMALLEST


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


def grouped_matmul(
    data: relax.Expr,
    weights: Sequence[relax.Expr],
    form: GroupForm,
) -> relax.Call:
    """Return data times weights of a few bits, data rounded to 8 bits for each row and group.

    The arithmetic is that of `numerics.grouped_product`.

    Args:
        data: float32 [..., K].
        weights: the arrays of the form, in its order; a row of them is a column of the weight.
        form: how they are kept.
    """
    attributes = ir.make_node("ir.DictAttrs", **asdict(form))
    return relax.Call(ir.Op.get("edgec.grouped_matmul"), [data, *weights], attributes)


def grouped_take(
    indices: relax.Expr,
    table: Sequence[relax.Expr],
    form: GroupForm,
    columns: int,
) -> relax.Call:
    """Return rows of a table of a few bits as float32 [..., columns].

    Args:
        indices: int32 or int64 [...]; those below 0 count from the end of the table.
        table: the arrays of the form, in its order.
        form: how they are kept.
        columns: values of a row.
    """
    attributes = ir.make_node("ir.DictAttrs", **asdict(form), columns=columns)
    return relax.Call(ir.Op.get("edgec.grouped_take"), [indices, *table], attributes)


def form_of(call: relax.Call) -> GroupForm:
    """Return the form of the weights of a product or a look-up."""
    attributes = call.attrs
    return GroupForm(
        int(attributes["bits"]),
        int(attributes["group"]),
        str(attributes["scales"]),  # type: ignore[arg-type]
        bool(attributes["zeros"]),
        str(attributes["minima"]),  # type: ignore[arg-type]
    )


def _grouped_value(form: GroupForm, tensors: Sequence[te.Tensor], n: Any, k: Any) -> Any:
    """Return the float of a code: row n, value k of the arrays of a form."""
    arrays = dict(zip(form.names, tensors, strict=True))
    codes, group = arrays["codes"], k // form.group
    values = int(codes.shape[1]) * 8 // form.bits
    code: Any = tirx.const(0, "int32")
    start = shift = 0
    for width in PLANES[form.bits]:
        each = 8 // width
        byte = codes(n, start + k // each).astype("int32")
        part = (byte >> ((k % each).astype("int32") * width)) & ((1 << width) - 1)
        code, start, shift = code | part << shift, start + values * width // 8, shift + width

    def number(name: str, units: str) -> Any:
        value = arrays[name](n, group).astype("float32")
        if units not in arrays:
            return value
        return value * arrays[units](n, k // UNIT_VALUES).astype("float32")

    scale = number("scales", "scale_units")
    if form.minima:
        return code.astype("float32") * scale + number("minima", "minimum_units")
    zero = arrays["zeros"](n, group).astype("int32") if form.zeros else 1 << form.bits - 1
    return (code - zero).astype("float32") * scale


def _compute_grouped_take(
    indices: te.Tensor, *tensors: te.Tensor, form: GroupForm, columns: int
) -> te.Tensor:
    rows = int(tensors[0].shape[0])

    def element(*at: Any) -> Any:
        given = indices(*at[:-1])
        none, past, last = (tirx.const(number, given.ty.dtype) for number in (0, rows, rows - 1))
        row = tirx.max(tirx.min(tirx.Select(given < none, given + past, given), last), none)
        return _grouped_value(form, tensors, row, at[-1])

    return te.compute((*indices.shape, columns), element, name="grouped_take")


def _legalize_grouped_take(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    columns = int(call.attrs["columns"])
    compute = partial(_compute_grouped_take, form=form_of(call), columns=columns)
    return builder.call_te(compute, *call.args, primfunc_name_hint="grouped_take")


def _grouped_take_type(call: relax.Call, _builder: relax.BlockBuilder) -> Any:
    shape = [*call.args[0].ty.shape.values, int(call.attrs["columns"])]
    return relax.TensorType(shape, "float32")


def _compute_rounded(data: te.Tensor, group: int) -> te.Tensor:
    """Return [M, K] float32 as what its codes stand for."""
    rows, columns = data.shape
    groups = -(-int(columns) // group)
    k = te.reduce_axis((0, group), "k")

    def magnitude(m: Any, g: Any) -> Any:
        at = g * group + k
        inside = tirx.if_then_else(at < columns, data(m, tirx.min(at, columns - 1)), 0.0)
        return te.max(tirx.abs(inside), axis=k)

    largest = te.compute((rows, groups), magnitude, name="largest")

    def rounded(m: Any, at: Any) -> Any:
        most = largest(m, at // group)
        inverse = tirx.Select(most >= float(SMALLEST), float(LARGEST) / most, 0.0)
        return tirx.nearbyint(data(m, at) * inverse) * (most * float(np.float32(1 / LARGEST)))

    return te.compute((rows, columns), rounded, name="rounded")


def _compute_grouped_matmul(
    data: te.Tensor,
    *tensors: te.Tensor,
    form: GroupForm,
) -> te.Tensor:
    columns = int(data.shape[-1])
    rows = topi.reshape(data, (math.prod(int(extent) for extent in data.shape[:-1]), columns))
    values = _compute_rounded(rows, form.group)
    k = te.reduce_axis((0, columns), "k")

    def element(m: Any, n: Any) -> Any:
        return te.sum(values(m, k) * _grouped_value(form, tensors, n, k), axis=k)

    product = te.compute((rows.shape[0], tensors[0].shape[0]), element, name="grouped_matmul")
    return topi.reshape(product, (*data.shape[:-1], tensors[0].shape[0]))


def _legalize_grouped_matmul(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    compute = partial(_compute_grouped_matmul, form=form_of(call))
    return builder.call_te(compute, *call.args, primfunc_name_hint="grouped_matmul")


def _grouped_matmul_type(call: relax.Call, _builder: relax.BlockBuilder) -> Any:
    data, codes = call.args[0].ty, call.args[1].ty
    return relax.TensorType([*data.shape.values[:-1], codes.shape.values[0]], "float32")


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
register("edgec.grouped_matmul", _grouped_matmul_type, _legalize_grouped_matmul)
register("edgec.grouped_take", _grouped_take_type, _legalize_grouped_take)
register("edgec.hard_sigmoid", _same_type, _legalize_hard_sigmoid)
register("edgec.hard_swish", _same_type, _legalize_hard_swish)
