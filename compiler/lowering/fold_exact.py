"""Fold calls of constants that NumPy computes to the bit, before TVM would compile them.

TVM's `FoldConstant` sends every constant expression through LLVM, some fifty milliseconds for each.
What only moves, compares or counts has one right answer, which NumPy has at once.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import IRModule, relax

from edgec.compiler.ir.relax_helpers import (
    constant,
    dtype_of,
    op_name,
    shape_of,
    value_of,
    with_bindings,
)

Array = NDArray[Any]

_ELEMENTWISE: Mapping[str, Callable[..., Array]] = MappingProxyType(
    {
        "relax.equal": np.equal,
        "relax.not_equal": np.not_equal,
        "relax.greater": np.greater,
        "relax.greater_equal": np.greater_equal,
        "relax.less": np.less,
        "relax.less_equal": np.less_equal,
        "relax.logical_and": np.logical_and,
        "relax.logical_or": np.logical_or,
        "relax.logical_not": np.logical_not,
        "relax.where": np.where,
    }
)
_SAME_ORDER = frozenset({"relax.reshape", "relax.expand_dims", "relax.squeeze"})


def fold_exact(module: IRModule) -> IRModule:
    """Return the module with constants in the place of calls whose values are exact."""
    known: dict[Any, Any] = {}
    bindings = []
    for block in module["main"].body.blocks:
        for binding in block.bindings:
            call = binding.value
            if isinstance(call, relax.Call):
                array = _folded(call, [known.get(item, item) for item in call.args])
                if array is not None:
                    known[binding.var] = constant(array)
                    continue
            bindings.append((binding.var, call))
    if not known:
        return module
    return with_bindings(module, bindings, known)


def _folded(call: relax.Call, arguments: list[Any]) -> Array | None:
    """Return the value of a call; None if it is not constant, or another's to compute."""
    name, shape = op_name(call), shape_of(call)
    values = [value_of(item) for item in arguments if not isinstance(item, relax.ShapeExpr)]
    arrays = [value for value in values if value is not None]
    if shape is None or not arrays or len(arrays) < len(values):
        return None
    first = arrays[0]
    if name in _ELEMENTWISE:
        return np.asarray(_ELEMENTWISE[name](*arrays), dtype_of(call))
    if name in _SAME_ORDER:
        return first.reshape(shape)
    if name == "relax.astype" and _counts(first.dtype) and _counts(np.dtype(dtype_of(call))):
        return first.astype(dtype_of(call))
    if name == "relax.sum" and first.dtype.kind in "iu":
        axes = call.attrs.axis
        axis = None if axes is None else tuple(int(item) for item in axes)
        return np.asarray(first.sum(axis, dtype=first.dtype)).reshape(shape)
    return None


def _counts(dtype: np.dtype[Any]) -> bool:
    """Return whether values are integers or booleans, whose casts wrap alike everywhere."""
    return dtype.kind in "iub"
