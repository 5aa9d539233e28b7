"""Provide matrix products: on floats, on quantized values, and with weight-only quantization."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax

from edgec.compiler.ir.relax_helpers import constant, dtype_of, op_name, shape_of, value_of
from edgec.compiler.kernels.emit.epilogue import EpilogueStep
from edgec.compiler.kernels.isa import Dot
from edgec.compiler.kernels.matmul.dense import MatmulWorkload
from edgec.compiler.kernels.matmul.grouped_writer import GroupedMatmulWorkload
from edgec.compiler.kernels.matmul.integer import IntegerMatmulWorkload
from edgec.compiler.kernels.matmul.quantize_rows import QuantizeRowsWorkload
from edgec.compiler.kernels.matmul.weight_only import MIDDLE, Format, WeightOnlyMatmulWorkload
from edgec.compiler.lowering.pack.context import Context
from edgec.compiler.lowering.pack.values import PackedValue, QParams, QuantizedConstant
from edgec.compiler.lowering.pack.weights import (
    grouped_codes,
    half_weight,
    is_grouped,
    quantized_weight,
)
from edgec.compiler.numerics.affine import unpack_nibbles
from edgec.compiler.numerics.grouped_product import group_is_supported
from edgec.compiler.numerics.support import Declined, Supported, integer_matmul_support


def match_matmul(context: Context, call: relax.Call) -> PackedValue | Declined:
    """Choose a kernel for a matrix product."""
    for kernel in (_integer_matmul, _weight_only_matmul):
        found = kernel(context, call)
        if isinstance(found, PackedValue):
            return found
        if found is not None:
            context.decline(found)
    left, right = (context.plain(context.float_value(argument)) for argument in call.args)
    shape = shape_of(call)
    if shape is None or len(left.shape) < 2 or len(right.shape) < 2:
        return Declined("no kernel multiplies vectors")
    k, n = right.shape[-2:]
    matrix = value_of(right.expression)
    if len(right.shape) == 2 or (matrix is not None and math.prod(right.shape[:-2]) == 1):
        rows = math.prod(left.shape[:-1])
        workload = MatmulWorkload(1, rows, n, k, packed=matrix is not None)
        if matrix is not None:
            right = replace(right, expression=constant(matrix.reshape(k, n)))
    elif left.shape[:-2] == right.shape[:-2]:
        batch = math.prod(left.shape[:-2])
        workload = MatmulWorkload(batch, left.shape[-2], n, k, packed=False)
    else:
        return Declined("its batches are not those of one matrix for each")
    arguments = [left.expression, right.expression]
    return PackedValue(context.emit("edgec.matmul", arguments, workload, shape), shape, False, 1)


def _integer_matmul(context: Context, call: relax.Call) -> PackedValue | Declined | None:
    """Emit an exact product of quantized values with constant weights; None for floats."""
    left, shape = context.value(call.args[0]), shape_of(call)
    packed_weight = quantized_weight(context, call.args[1], -1)
    qparams, dynamic = left.qparams, _dynamic_operand(context, call.args[0])
    if dynamic is not None:
        left = dynamic[0]
        qparams = QParams.of(dtype_of(left.expression), 1.0, 0)
    if shape is None or context.dot is None or qparams is None:
        return None
    if packed_weight is None:
        return Declined("only a constant int8 matrix has a kernel of integers")
    matrix = packed_weight.values
    declined = integer_matmul_support(matrix.shape)
    if declined is not None:
        return declined
    if len(left.shape) < 2 or packed_weight.scales.size != matrix.shape[1]:
        return Declined("the kernel of integers multiplies matrices with a scale for each column")
    rows = math.prod(left.shape[:-1])
    kernel = _integer_kernel(rows, packed_weight, qparams, context.dot)
    if isinstance(kernel, Declined):
        return kernel
    operands = [*map(constant, kernel.operands)]
    if dynamic is not None:
        weight_sums = matrix.astype(np.int64).sum(axis=0)
        operands[1:] = _scaled(context, dynamic, weight_sums, packed_weight.scales)
    arguments = [context.plain(left).expression, *operands]
    variable = context.emit(kernel.operator, arguments, kernel.workload, shape)
    return PackedValue(variable, shape, False, 1)


def _dynamic_operand(context: Context, expression: Any) -> tuple[PackedValue, Any, Any] | None:
    """Return quantized values whose zero point the graph computes, their scale and zero point."""
    call = context.old.get(expression)
    if call is None or op_name(call) != "relax.dequantize":
        return None
    if any(shape_of(x) != () for x in call.args[1:]) or value_of(call.args[2]) is not None:
        return None
    scale, zero = (context.plain_expression(argument) for argument in call.args[1:])
    return context.value(call.args[0]), scale, zero


def _scaled(
    context: Context,
    dynamic: tuple[PackedValue, Any, Any],
    weight_sums: NDArray[Any],
    scales: NDArray[np.float32],
) -> list[Any]:
    """Emit bias and scale of each channel, computed in each run, padded to whole vectors.

    Args:
        context: the state of the packing.
        dynamic: as `_dynamic_operand` gives it.
        weight_sums: the sums of the weights of each channel.
        scales: the scales of the weights.
    """
    _, scale, zero = dynamic
    op, emit = relax.op, context.builder.emit
    pad = (0, -weight_sums.size % context.lanes)
    whole = emit(op.astype(zero, "int32"))
    bias = op.multiply(whole, constant(np.pad(-weight_sums, pad).astype(np.int32)))
    return [emit(bias), emit(op.multiply(scale, constant(np.pad(scales, pad))))]


def _weight_only_matmul(context: Context, call: relax.Call) -> PackedValue | None:
    """Emit a product of floats with weights in the form in which they are stored."""
    left, shape = context.float_value(call.args[0]), shape_of(call)
    weight = shape_of(call.args[1])
    if shape is None or weight is None or len(left.shape) < 2 or len(weight) < 2:
        return None
    k, n = weight[-2:]
    if math.prod(weight[:-2]) != 1:
        return None
    product = MatmulWorkload(1, math.prod(left.shape[:-1]), n, k, packed=True)
    decode = context.old.get(call.args[1])
    rounded, half = quantized_weight(context, call.args[1], -1), half_weight(context, call.args[1])
    if rounded is not None and rounded.scales.size == n:
        scaled = replace(product, epilogue=(EpilogueStep("multiply", "channel"),))
        workload = WeightOnlyMatmulWorkload(scaled, "int8")
        operands = [rounded.values.reshape(k, n), rounded.scales]
    elif half is not None:
        workload = WeightOnlyMatmulWorkload(product, half[1])
        operands = [half[0].reshape(k, n)]
    elif decode is not None and is_grouped(decode):
        arrays = [value_of(argument) for argument in decode.args]
        quantized, *parameters = [array for array in arrays if array is not None]
        kind: Format = "log2" if decode.attrs["format"] == "log2" else "int4"
        group = int(decode.attrs["group"])
        if kind == "int4" and np.all(parameters[1] == MIDDLE):
            del parameters[1]
        workload = WeightOnlyMatmulWorkload(product, kind, group, len(parameters) == 2)
        operands = [unpack_nibbles(quantized)[:, :k].T, *(array.T for array in parameters)]
    else:
        return None
    arguments = [context.plain(left).expression, *map(constant, operands)]
    variable = context.emit("edgec.stored_matmul", arguments, workload, shape)
    return PackedValue(variable, shape, False, 1)


def match_grouped_matmul(context: Context, call: relax.Call) -> PackedValue | Declined:
    """Choose kernels for a product with grouped weights: rows are quantized, then multiplied.

    Where a target does not multiply integers, activations stay as they are.
    """
    data, shape = context.plain(context.float_value(call.args[0])), shape_of(call)
    weights = grouped_codes(call)
    if shape is None or weights is None:
        return Declined("its weights are not constant")
    form, arrays = weights.form, weights.arrays
    if not group_is_supported(form.group):
        return Declined(f"no kernel has groups of {form.group}")
    k, n = data.shape[-1], len(arrays["codes"])
    product = MatmulWorkload(1, math.prod(data.shape[:-1]), n, k, packed=True)
    if context.dot is None:
        if form.bits != 4 or form.minima or form.scales == "int8":
            return Declined("only weights of 4 bits with whole zero points are unpacked to floats")
        scales = arrays["scales"].T.astype(np.float32)
        operands: list[NDArray[Any]] = [unpack_nibbles(arrays["codes"])[:, :k].T, scales]
        operands += [arrays["zeros"].T] if form.zeros else []
        stored = WeightOnlyMatmulWorkload(product, "int4", form.group, form.zeros)
        arguments = [data.expression, *map(constant, operands)]
        variable = context.emit("edgec.stored_matmul", arguments, stored, shape)
        return PackedValue(variable, shape, False, 1)
    rows = context.quantized_rows(data.expression, QuantizeRowsWorkload(product.m, k, form.group))
    workload = GroupedMatmulWorkload(product, form)
    variable = context.emit("edgec.grouped_product", [rows, *call.args[1:]], workload, shape)
    return PackedValue(variable, shape, False, 1)


def _integer_kernel(
    rows: int, packed_weight: QuantizedConstant, qparams: QParams, dot: Dot
) -> Supported | Declined:
    """Return the kernel of an exact product of quantized values with constant weights.

    Args:
        rows: the rows of the left matrix.
        packed_weight: the right one, [K, N].
        qparams: the qparams of the left one.
        dot: how the target multiplies quantized values.
    """
    matrix = packed_weight.values
    k, n = matrix.shape
    if qparams.dtype != dot.data:
        return Declined(f"the target multiplies {dot.data}, not {qparams.dtype}")
    fits = dot.cannot_saturate(matrix, 0, 1, qparams.largest)
    product = MatmulWorkload(1, rows, n, k, True, (EpilogueStep("multiply", "channel"),))
    bias = -qparams.zero_point * matrix.astype(np.int64).sum(axis=0)
    scale = (packed_weight.scales * qparams.scale).astype(np.float32)
    operands = (matrix, bias.astype(np.int32), scale)
    return Supported(
        "edgec.integer_matmul", IntegerMatmulWorkload(product, wide=not fits), operands
    )
