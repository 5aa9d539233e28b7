"""Bring quantized constants into the form that kernels take.

    reshape(dequantize(W))            ->  dequantize(reshape(W))
    permute_dims(dequantize(W))       ->  dequantize(permute_dims(W))
    dequantize(W uint8, s, 128)       ->  dequantize(W - 128 as int8, s, 0)

What cannot be quantized around zero becomes floats, and so does what is no weight of a matrix
product or a convolution, no table whose rows are looked up, and no bias in int32.
"""

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import IRModule, relax

from edgec.compiler.ir.relax_helpers import constant, op_name, shape_of, value_of
from edgec.compiler.numerics.pair_sums import DOT_WIDTH
from edgec.compiler.passes.base import CallRewriter, Pass

# Kernels take quantized values as their weights.
_PRODUCTS = (
    "relax.matmul",
    "relax.nn.conv1d",
    "relax.nn.conv1d_transpose",
    "relax.nn.conv2d",
    "relax.nn.conv2d_transpose",
)
_RESHAPES = ("relax.reshape", "relax.squeeze", "relax.expand_dims", "relax.flatten")


@dataclass(frozen=True)
class NormalizeQuantizedConstants(Pass):
    """Rewrite dequantizations of constants.

    1. Quantized values less their zero point are int8, or int32 where they were.
    2. Scales of each channel go along one axis of the result.
    3. No kernel reads other quantized values.
    """

    def apply(self, module: IRModule) -> IRModule:
        """Rewrite `main` from front to back."""
        return _NormalizeQuantizedConstantsRewriter(module).run()


@relax.expr_functor.mutator
class _NormalizeQuantizedConstantsRewriter(CallRewriter):
    def __init__(self, module: IRModule) -> None:
        super().__init__(module)
        self.roles = _roles(module["main"])

    def visit_dataflow_var_(self, variable: relax.Var) -> relax.Expr:
        visited = super().visit_dataflow_var_(variable)
        bound = self.lookup_binding(visited) if isinstance(visited, relax.Var) else None
        # Those who read floats shall see that they are constant.
        return visited if value_of(bound) is None else bound

    def rewrite(self, call: relax.Call) -> relax.Expr | None:
        name = op_name(call)
        if name == "relax.dequantize":
            arrays = [value_of(argument) for argument in call.args]
            quantized, scales, zeros = arrays
            if quantized is None or scales is None or zeros is None:
                return None
            # (3)
            axis = int(call.attrs.axis) % max(quantized.ndim, 1)
            allowed = {"summand"} if quantized.dtype == np.int32 else {"weight"}
            if quantized.dtype != np.int32 and (axis == 0 or scales.size == 1):
                allowed.add("table")
            roles = self.roles[self.binding]
            as_floats = quantized.ndim == 0 or not roles or not roles <= allowed
            return _normalized(quantized, scales, zeros, axis, as_floats=as_floats)
        shape = shape_of(call)
        if shape is None or name not in (*_RESHAPES, "relax.permute_dims"):
            return None
        inner = self.definition(call.args[0], "relax.dequantize")
        arrays = [value_of(argument) for argument in inner.args] if inner is not None else [None]
        if inner is None or any(array is None for array in arrays):
            return None
        quantized, scales, zeros = (array for array in arrays if array is not None)
        axis = int(inner.attrs.axis) % quantized.ndim
        if name == "relax.permute_dims":
            axes = [
                int(a) % quantized.ndim for a in call.attrs.axes or reversed(range(quantized.ndim))
            ]
            return _dequantize(np.transpose(quantized, axes), scales, zeros, axes.index(axis))
        moved = (
            _axis_after_reshape(axis, quantized.shape, shape)
            if scales.size > 1
            else _longest(shape)
        )
        # (2)
        return (
            None if moved is None else _dequantize(quantized.reshape(shape), scales, zeros, moved)
        )


def _roles(function: relax.Function) -> dict[relax.Var, set[str]]:
    """Return as what each variable is read: `weight` of a product, `table`, `summand`, `other`."""
    roles: dict[relax.Var, set[str]] = defaultdict(set)
    # From back to front: what moves a value reads it as its own readers do.
    for binding in reversed(function.body.blocks[0].bindings):
        name, value = op_name(binding.value), binding.value
        for variable in relax.analysis.free_vars(value):
            if isinstance(value, relax.Var):
                roles[variable] |= roles[binding.var]
            elif name in (*_RESHAPES, "relax.permute_dims"):
                # The rows of a table that was moved are not its own.
                moved = {"other" if role == "table" else role for role in roles[binding.var]}
                roles[variable] |= moved
            elif _is_table(value, variable):
                roles[variable].add("table")
            elif _is_weight(value, variable):
                roles[variable].add("weight")
            else:
                roles[variable].add("summand" if name == "relax.add" else "other")
    return roles


def _is_weight(call: relax.Call, variable: relax.Var) -> bool:
    """Return whether a kernel reads quantized values of a variable as the weights of a call.

    Those of matrices read whole groups.
    """
    name, shape = op_name(call), shape_of(variable)
    if shape is None or name not in _PRODUCTS or variable != call.args[1]:
        return False
    return name != "relax.matmul" or (len(shape) == 2 and shape[0] % DOT_WIDTH == 0)


def _is_table(call: relax.Call, variable: relax.Var) -> bool:
    """Return whether a kernel looks up rows of a variable, quantized with a scale for each."""
    if op_name(call) != "relax.take" or variable != call.args[0] or call.attrs.axis is None:
        return False
    return len(shape_of(variable) or ()) == 2 and int(call.attrs.axis) % 2 == 0


def _longest(shape: tuple[int, ...]) -> int:
    return int(np.argmax(shape)) if shape else 0


def _axis_after_reshape(axis: int, before: tuple[int, ...], after: tuple[int, ...]) -> int | None:
    """Return where an axis is after a reshape, None if it is split or merged."""
    outer = math.prod(before[:axis])
    for moved, extent in enumerate(after):
        if extent == before[axis] and math.prod(after[:moved]) == outer:
            return moved
    return None


def _normalized(
    quantized: NDArray[Any],
    scales: NDArray[Any],
    zeros: NDArray[Any],
    axis: int,
    *,
    as_floats: bool,
) -> relax.Expr | None:
    along = [-1 if index == axis else 1 for index in range(quantized.ndim)]
    spread = [a.reshape(along) if a.size > 1 else a.reshape(()) for a in (scales, zeros)]
    wide = quantized.astype(np.int64) - spread[1]
    kind = np.int32 if quantized.dtype == np.int32 else np.int8
    limits = np.iinfo(kind)
    # (1)
    if as_floats or wide.min() < limits.min or wide.max() > limits.max:
        return constant((wide * spread[0].astype(np.float64)).astype(np.float32))
    if quantized.dtype == kind and not zeros.any():
        return None
    return _dequantize(wide.astype(kind), scales, np.zeros(scales.shape, kind), axis)


def _dequantize(
    quantized: NDArray[Any], scales: NDArray[Any], zeros: NDArray[Any], axis: int
) -> relax.Call:
    return relax.op.dequantize(
        constant(quantized), constant(scales), constant(zeros), axis=axis, out_dtype="float32"
    )
