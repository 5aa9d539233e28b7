"""Move constant factors and summands into weights, and merge what is left of them.

With a linear operator L of weight W, and c constant along the output channels,

    L(x, W) * c        =  L(x, W * c)
    (y + a) * c        =  y * c + a * c
    (y * a) * c        =  y * (a * c)
    (y + a) + c        =  y + (a + c)
    y / c              =  y * (1 / c)         c is a scalar

Each rule moves the multiplication towards the weights; the bias that exporters and batch
normalization leave behind becomes one addition.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import IRModule, relax

from edgec.compiler.ir.relax_helpers import constant, dtype_of, scalar_of, shape_of, value_of
from edgec.compiler.passes.base import CallRewriter, Pass

# Operator to (axis of output channels in its result from the front or the back, axis of the
# output channels in its weight). Transposed convolutions have weights [I, O/groups, ...].
_CONVOLUTIONS = ("relax.nn.conv1d", "relax.nn.conv2d", "relax.nn.conv3d")
_TRANSPOSED = ("relax.nn.conv1d_transpose", "relax.nn.conv2d_transpose")


@dataclass(frozen=True)
class FoldAffine(Pass):
    """Fold constant multiplications and additions.

    1. The intermediate value has no other use.
    2. The constant does not change the shape of the value.
    3. For weights: it varies along the output channels only.
    4. Values are floats.
    """

    def apply(self, module: IRModule) -> IRModule:
        """Rewrite `main` from front to back, so that chains collapse in one run."""
        return _FoldAffineRewriter(module).run()


@relax.expr_functor.mutator
class _FoldAffineRewriter(CallRewriter):
    def rewrite(self, call: relax.Call) -> relax.Expr | None:
        name = call.op.name if hasattr(call.op, "name") else ""
        if name not in ("relax.multiply", "relax.add", "relax.divide", "relax.subtract"):
            return None
        # (4)
        if not dtype_of(call).startswith(("float", "bfloat")):
            return None
        value, factor = call.args
        if value_of(value) is not None and name in ("relax.multiply", "relax.add"):
            value, factor = factor, value
        array = value_of(factor)
        # (2)
        if array is None or value_of(value) is not None or shape_of(call) != shape_of(value):
            return None
        if name == "relax.divide":
            divisor = scalar_of(factor)
            if divisor is None or divisor == 0:
                return None
            return self._scaled(value, (1 / array.astype(np.float64)).astype(array.dtype))
        if name == "relax.multiply":
            return self._scaled(value, array)
        return self._shifted(value, -array if name == "relax.subtract" else array)

    def _scaled(self, value: relax.Expr, factor: NDArray[Any]) -> relax.Expr | None:
        """Return value * factor, as near to the weights as it goes."""
        if np.all(factor == 1):
            return value
        inner = self.sole_definition(
            value, "relax.multiply", "relax.add", *_CONVOLUTIONS, *_TRANSPOSED, "relax.matmul"
        )
        default = relax.op.multiply(value, constant(factor))
        # (1)
        if inner is None:
            return default
        name = inner.op.name
        if name in ("relax.multiply", "relax.add"):
            operand, other = inner.args
            array = value_of(other)
            if array is None:
                operand, other = other, operand
                array = value_of(other)
            if array is None or shape_of(operand) != shape_of(inner):
                return default
            if name == "relax.multiply":
                return self._scaled(operand, _product(array, factor))
            scaled = self._scaled(operand, factor)
            return relax.op.add(self.emit(scaled), constant(_product(array, factor)))
        scaled = self._into_weight(inner, factor)
        return default if scaled is None else scaled

    def _shifted(self, value: relax.Expr, summand: NDArray[Any]) -> relax.Expr | None:
        """Return value + summand, merged with an addition before it."""
        if not np.any(summand):
            return value
        inner = self.sole_definition(value, "relax.add")
        if inner is not None:
            for operand, other in (inner.args, reversed(inner.args)):
                array = value_of(other)
                if array is not None and shape_of(operand) == shape_of(inner):
                    total = array.astype(np.float64) + summand.astype(np.float64)
                    return self._shifted(operand, total.astype(array.dtype))
        return relax.op.add(value, constant(summand))

    def _into_weight(self, call: relax.Call, factor: NDArray[Any]) -> relax.Expr | None:
        """Return the linear operator with its weight scaled; None if (3) does not hold."""
        data, weight = call.args
        array = value_of(weight)
        result_shape = shape_of(call)
        if array is None or result_shape is None:
            return None
        name = call.op.name
        channel_axis = len(result_shape) - 1 if name == "relax.matmul" else 1
        channels = _along(factor, channel_axis, len(result_shape))
        if channels is None:
            return None
        channels = np.broadcast_to(channels, (result_shape[channel_axis],))
        if name == "relax.matmul":
            if array.ndim < 2:
                return None
            scaled = array * channels
        elif name in _TRANSPOSED:
            # [I, O/groups, ...]: input channel block g holds the outputs of group g.
            groups = int(call.attrs.groups)
            per_group = channels.reshape(groups, 1, -1, *(1,) * (array.ndim - 2))
            split = array.reshape(groups, array.shape[0] // groups, *array.shape[1:])
            scaled = (split * per_group).reshape(array.shape)
        else:
            scaled = array * channels.reshape(-1, *(1,) * (array.ndim - 1))
        arguments = [data, constant(scaled.astype(array.dtype))]
        return relax.Call(call.op, arguments, call.attrs)


def _product(left: NDArray[Any], right: NDArray[Any]) -> NDArray[Any]:
    product: NDArray[Any] = left.astype(np.float64) * right.astype(np.float64)
    return product.astype(left.dtype)


def _along(factor: NDArray[Any], axis: int, rank: int) -> NDArray[Any] | None:
    """Return the factor as a vector if it varies along one axis at most.

    >>> _along(np.array([[[2.0]], [[3.0]]]), axis=1, rank=4)
    array([2., 3.])
    >>> _along(np.array([2.0, 3.0]), axis=1, rank=4) is None
    True
    """
    shape = (1,) * (rank - factor.ndim) + factor.shape
    if any(extent != 1 for index, extent in enumerate(shape) if index != axis):
        return None
    return factor.reshape(-1)
