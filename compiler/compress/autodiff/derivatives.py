"""Provide the table of operators that the gradient engine knows: NumPy values.

Each with its derivative.

To add one, write its maker (see `rule.py`) in the file of its kind and name it here.
"""

from typing import Any

import numpy as np

from edgec.compiler.compress.autodiff import elementwise, reduce, shape, windows
from edgec.compiler.compress.autodiff.rule import Maker, Rule
from edgec.compiler.ir.relax_helpers import op_name
from edgec.compiler.numerics.activations import BY_OPERATOR


def rule_of(call: Any, needed: tuple[bool, ...]) -> Rule | None:
    """Return the rule of a call, None if there is none.

    Args:
        call: a call of an operator.
        needed: for each operand, those inside tuples included, whether its gradient is wanted.
    """
    maker = MAKERS.get(op_name(call))
    return maker(call, needed) if maker is not None else None


MAKERS: dict[str, Maker] = {
    **{operator: elementwise.activation(name) for operator, name in BY_OPERATOR.items()},
    "relax.add": elementwise.binary(np.add, lambda g, _x, _y: g, lambda g, _x, _y: g),
    "relax.astype": elementwise.astype,
    "relax.concat": shape.concat,
    "relax.divide": elementwise.binary(
        np.divide, lambda g, _x, y: g / y, lambda g, x, y: -g * x / (y * y)
    ),
    "relax.equal": elementwise.constant_result(np.equal),
    "relax.expand_dims": shape.reshape,
    "relax.flatten": shape.reshape,
    "relax.image.resize2d": shape.resize,
    "relax.less": elementwise.constant_result(np.less),
    "relax.matmul": reduce.matmul,
    "relax.maximum": elementwise.binary(
        np.maximum, lambda g, x, y: g * (x >= y), lambda g, x, y: g * (x < y)
    ),
    "relax.mean": reduce.reduction(mean=True),
    "relax.minimum": elementwise.binary(
        np.minimum, lambda g, x, y: g * (x <= y), lambda g, x, y: g * (x > y)
    ),
    "relax.multiply": elementwise.binary(
        np.multiply, lambda g, _x, y: g * y, lambda g, x, _y: g * x
    ),
    "relax.negative": elementwise.unary(lambda x: (-x, lambda: -np.ones_like(x))),
    "relax.nn.adaptive_avg_pool2d": shape.adaptive_pool,
    "relax.nn.avg_pool1d": windows.average_pool,
    "relax.nn.avg_pool2d": windows.average_pool,
    "relax.nn.conv1d": windows.convolution,
    "relax.nn.conv1d_transpose": windows.transposed_convolution,
    "relax.nn.conv2d": windows.convolution,
    "relax.nn.conv2d_transpose": windows.transposed_convolution,
    "relax.nn.conv3d": windows.convolution,
    "relax.nn.layer_norm": reduce.layer_norm,
    "relax.nn.max_pool1d": windows.max_pool,
    "relax.nn.max_pool2d": windows.max_pool,
    "relax.nn.pad": shape.pad,
    "relax.nn.prelu": elementwise.prelu,
    "relax.nn.softmax": reduce.softmax,
    "relax.permute_dims": shape.permute,
    "relax.reshape": shape.reshape,
    "relax.split": lambda _call, _needed: lambda x: (x, lambda g: (g,)),
    "relax.squeeze": shape.reshape,
    "relax.strided_slice": shape.strided_slice,
    "relax.subtract": elementwise.binary(np.subtract, lambda g, _x, _y: g, lambda g, _x, _y: -g),
    "relax.sum": reduce.reduction(mean=False),
    "relax.take": shape.take,
    "relax.where": elementwise.where,
}
