"""Provide constant weights in the form in which a quantized graph stores them."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax

from edgec.compiler.ir.operators import form_of
from edgec.compiler.ir.relax_helpers import op_name, value_of
from edgec.compiler.kernels.matmul.weight_only import Format
from edgec.compiler.lowering.pack.context import Context
from edgec.compiler.lowering.pack.values import QuantizedConstant, quantized_constant
from edgec.compiler.numerics.affine import log2_values, unpack_nibbles
from edgec.compiler.numerics.grouped_codes import GroupedCodes

# Formats of `edgec.decode_weight` with a scale for each group; codebooks have no kernel.
_GROUPED = ("int4", "log2")


def grouped_weight(
    context: Context, expression: Any
) -> tuple[NDArray[np.int8], NDArray[np.float32], int] | None:
    """Return 4-bit weights, first axis that of the rows, as int8 less their zero points.

    Returns:
        Values in the shape of the weights, scales [rows, groups], columns of a group.
    """
    call = context.old.get(expression)
    if call is None or not is_grouped(call) or call.attrs["rows_last"]:
        return None
    packed, *parameters = [value_of(argument) for argument in call.args]
    if packed is None:
        return None
    shape, group = [int(extent) for extent in call.attrs["shape"]], int(call.attrs["group"])
    quantized, scales = unpack_nibbles(packed)[:, : math.prod(shape[1:])], parameters[0]
    assert scales is not None
    if call.attrs["format"] == "log2":
        # The least of them is 2**-6.
        whole = (log2_values(quantized) * 64).astype(np.int8)
        return whole.reshape(shape), (scales / 64).astype(np.float32), group
    zeros = parameters[1]
    assert zeros is not None
    along = np.repeat(zeros, group, axis=1)[:, : quantized.shape[1]]
    less = quantized.astype(np.int8) - along.astype(np.int8)
    return less.reshape(shape), scales, group


def grouped_codes(call: relax.Call) -> GroupedCodes | None:
    """Return the weights of a call, operands 1 and up; None if they are not constant."""
    form, arrays = form_of(call), {}
    for name, argument in zip(form.names, call.args[1:], strict=True):
        array = value_of(argument)
        if array is None:
            return None
        arrays[name] = array
    return GroupedCodes(form, arrays)


def is_grouped(call: relax.Call) -> bool:
    """Tell whether a call decodes weights with a scale for each group."""
    return op_name(call) == "edgec.decode_weight" and call.attrs["format"] in _GROUPED


def half_weight(context: Context, expression: Any) -> tuple[NDArray[np.uint16], Format] | None:
    """Return bits and format of constant weights that are stored as half floats."""
    call = context.old.get(expression)
    if call is None or op_name(call) != "edgec.decode_weight":
        return None
    quantized = value_of(call.args[0])
    if quantized is None or call.attrs["format"] != "float":
        return None
    return quantized.view(np.uint16), "float16" if quantized.dtype == np.float16 else "bfloat16"


def quantized_weight(context: Context, expression: Any, axis: int) -> QuantizedConstant | None:
    """Return the constant int8 weights behind a dequantize, whose outputs are along an axis."""
    call = context.old.get(expression)
    if call is None or op_name(call) != "relax.dequantize":
        return None
    rounded = quantized_constant(call, axis)
    return rounded if rounded is not None and rounded.values.dtype == np.int8 else None
