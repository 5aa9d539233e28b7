"""Provide normalization operators.

Statistics are computed in float32 (`stash_type`) or, for doubles, in float64, whatever the dtype
of the data, in two passes: the variance is the mean of squared deviations.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from tvm import relax

from edgec.compiler.frontend.node import (
    Node,
    Refusal,
    accumulator_dtype,
    constant_value,
    dtype_of,
    scalar,
    static_shape,
)
from edgec.compiler.frontend.te_operators import constant_tensor

op = relax.op


def convert_batch_normalization(node: Node) -> list[relax.Expr]:
    """Return BatchNormalization over axis 1.

    y = (x - mean) / sqrt(variance + epsilon) * scale + bias, with the given statistics in
    inference, with those of the batch in training mode. Then there are two more outputs:
    running = given * momentum + batch's * (1 - momentum).
    """
    attributes = node.attributes
    epsilon = attributes.get("epsilon", 1e-5)
    outputs = [name for name in node.proto.output if name]
    if node.opset < 14 and len(outputs) > 1:
        raise Refusal("training mode is not supported before operator set 14")
    if not attributes.get("spatial", 1):
        raise Refusal("statistics per position (spatial=0) are not supported")
    data, scale, bias, mean, variance = (node.input(index) for index in range(5))
    if any(dtype_of(item) != dtype_of(data) for item in (scale, bias, mean, variance)):
        raise Refusal("parameters of another dtype than the data are not supported")
    if not attributes.get("training_mode", 0):
        return [_batch_norm(node, data, scale, bias, mean, variance, epsilon)]
    axes = [axis for axis in range(len(static_shape(data))) if axis != 1]
    batch_mean = node.call(op.mean, data, axes)
    batch_variance = node.call(op.variance, data, axes)
    momentum = scalar(attributes.get("momentum", 0.9), dtype_of(data))
    rest = scalar(1 - attributes.get("momentum", 0.9), dtype_of(data))
    running = [
        op.add(node.call(op.multiply, old, momentum), node.call(op.multiply, new, rest))
        for old, new in ((mean, batch_mean), (variance, batch_variance))
    ]
    return [_batch_norm(node, data, scale, bias, batch_mean, batch_variance, epsilon), *running]


def _batch_norm(
    node: Node,
    data: relax.Expr,
    scale: relax.Expr,
    bias: relax.Expr,
    mean: relax.Expr,
    variance: relax.Expr,
    epsilon: float,
) -> relax.Expr:
    result = node.call(
        op.nn.batch_norm,
        data,
        scale,
        bias,
        mean,
        variance,
        axis=1,
        epsilon=epsilon,
        training=False,
    )
    return relax.TupleGetItem(result, 0)


def convert_layer_normalization(node: Node) -> list[relax.Expr]:
    """Return LayerNormalization over the axes from `axis` on: Y, mean, inverse standard deviation.

    Scale and bias broadcast over the data.
    """
    data, scale, bias = node.input(0), node.input(1), node.optional(2)
    epsilon = node.attributes.get("epsilon", 1e-5)
    axes = _axes_from(node, static_shape(data))
    stash = _stash_dtype(node, data)
    result = layer_norm(node, data, scale, bias, axes, epsilon, stash)
    if not any(node.proto.output[1:]):
        return [result]
    mean, inverse = moments(node, node.cast(data, stash), axes, epsilon)
    # ONNX names their dtype apart from that of the computation.
    declared = [spec.dtype if spec else stash for spec in (*node.outputs[1:], None, None)]
    return [result, node.cast(mean, declared[0]), node.cast(inverse, declared[1])]


def convert_rms_normalization(node: Node) -> relax.Expr:
    """Return RMSNormalization over the axes from `axis` on.

    X / sqrt(mean(x * x) + epsilon) * scale.
    """
    data, scale = node.input(0), node.input(1)
    axes = _axes_from(node, static_shape(data))
    epsilon = node.attributes.get("epsilon", 1e-5)
    normalized = rms_norm(node, node.cast(data, _stash_dtype(node, data)), axes, epsilon)
    # The function's body casts to the scale's dtype, which the output has.
    return op.multiply(node.cast(normalized, dtype_of(scale)), scale)


def convert_instance_normalization(node: Node) -> relax.Expr:
    """Convert InstanceNormalization: data [N, C, *space] normalized over space.

    Scale and bias [C].
    """
    channels = static_shape(node.input(0))[1]
    return _by_groups(node, channels, node.input(1), node.input(2))


def convert_group_normalization(node: Node) -> relax.Expr:
    """Convert GroupNormalization.

    Data [N, C, *space] normalized over each group of channels and space.

    Scale and bias are per group in operator set 18, per channel since 21.
    """
    groups = node.attributes["num_groups"]
    channels = static_shape(node.input(0))[1]
    if groups < 1 or channels % groups:
        raise Refusal(f"{channels} channels do not split into {groups} groups")
    scale, bias = node.input(1), node.input(2)
    if node.opset < 21:
        scale, bias = (
            node.call(op.repeat, item, channels // groups, axis=0) for item in (scale, bias)
        )
    return _by_groups(node, groups, scale, bias)


def _by_groups(node: Node, groups: int, scale: relax.Expr, bias: relax.Expr) -> relax.Expr:
    data = node.input(0)
    shape, dtype = static_shape(data), dtype_of(data)
    if 0 in shape:
        return data
    rows = node.call(op.reshape, node.cast(data, _stash_dtype(node, data)), (shape[0], groups, -1))
    normalized = _standardize(node, rows, [2], node.attributes.get("epsilon", 1e-5))
    image = node.call(op.reshape, node.cast(normalized, dtype), shape)
    per_channel = (shape[1], *(1,) * (len(shape) - 2))
    scaled = node.call(op.multiply, image, node.call(op.reshape, scale, per_channel))
    return op.add(scaled, node.call(op.reshape, bias, per_channel))


def convert_mean_variance_normalization(node: Node) -> relax.Expr:
    """Convert MeanVarianceNormalization: (x - mean) / (sqrt(variance) + 1e-9) over `axes`."""
    data = node.input(0)
    dtype, rank = dtype_of(data), len(static_shape(data))
    axes = [axis % rank for axis in node.attributes.get("axes", (0, 2, 3))]
    x = node.cast(data, accumulator_dtype(dtype))
    deviation = node.call(op.subtract, x, node.call(op.mean, x, axes, keepdims=True))
    variance = node.call(op.mean, node.call(op.multiply, deviation, deviation), axes, keepdims=True)
    root = node.call(op.sqrt, variance)
    divisor = node.call(op.add, root, scalar(1e-9, dtype_of(x)))
    return node.cast(node.call(op.divide, deviation, divisor), dtype)


def convert_lrn(node: Node) -> relax.Expr:
    """Convert LRN: x / (bias + alpha / size * sum of squares of neighbouring channels) ^ beta.

    The neighbours of channel c are c - floor((size - 1) / 2) to c + ceil((size - 1) / 2),
    without those that do not exist.
    """
    data, attributes = node.input(0), node.attributes
    shape, dtype, size = static_shape(data), dtype_of(data), attributes["size"]
    x = node.cast(data, accumulator_dtype(dtype))
    squares = node.call(op.multiply, x, x)
    # Channels as lines of an image; padding counts as zeros, so the mean is sum / size.
    image = node.call(op.reshape, squares, (shape[0], 1, shape[1], math.prod(shape[2:])))
    before = (size - 1) // 2
    mean = node.call(
        op.nn.avg_pool2d,
        image,
        pool_size=(size, 1),
        padding=(before, 0, size - 1 - before, 0),
        count_include_pad=True,
    )
    mean = node.call(op.reshape, mean, shape)
    scaled = node.call(op.multiply, mean, scalar(attributes.get("alpha", 1e-4), dtype_of(x)))
    base = node.call(op.add, scaled, scalar(attributes.get("bias", 1.0), dtype_of(x)))
    divisor = node.call(op.power, base, scalar(attributes.get("beta", 0.75), dtype_of(x)))
    return node.cast(node.call(op.divide, x, divisor), dtype)


def convert_softmax(node: Node) -> relax.Expr:
    """Return softmax and LogSoftmax along an axis.

    Before operator set 13 over all axes from it on.
    """
    data = node.input(0)
    shape = static_shape(data)
    if 0 in shape:
        return data
    axis = node.attributes.get("axis", 1 if node.opset < 13 else -1) % len(shape)
    operator = op.nn.softmax if node.op_type == "Softmax" else op.nn.log_softmax
    # Half precision is rounded once.
    exact = node.cast(data, accumulator_dtype(dtype_of(data)))
    if node.opset >= 13:
        return node.cast(node.call(operator, exact, axis=axis), dtype_of(data))
    rows = node.call(op.reshape, exact, (math.prod(shape[:axis]), math.prod(shape[axis:])))
    result = node.call(op.reshape, node.call(operator, rows, axis=1), shape)
    return node.cast(result, dtype_of(data))


# Parts that other converters use


def layer_norm(
    node: Node,
    data: relax.Expr,
    scale: relax.Expr | None,
    bias: relax.Expr | None,
    axes: Sequence[int],
    epsilon: float,
    stash: str,
) -> relax.Expr:
    """Return layer normalization over the last axes.

    The passes merge constant scale and bias into it.

    Args:
        node: where it belongs.
        data: any shape.
        scale: broadcasts over the data; 1 if left out.
        bias: likewise; 0 if left out.
        axes: the last ones, ascending.
        epsilon: added to the variance.
        stash: dtype of the statistics.
    """
    shape, dtype = static_shape(data), dtype_of(data)
    scales, biases = constant_value(scale), constant_value(bias)
    inner = shape[axes[0] :]
    known = (scale is None or scales is not None) and (bias is None or biases is not None)
    if dtype == stash and known and _fits(scales, inner) and _fits(biases, inner):
        return _standardize(node, data, axes, epsilon, scales, biases)
    result = node.cast(_standardize(node, node.cast(data, stash), axes, epsilon), dtype)
    if scale is not None:
        result = node.call(op.multiply, result, scale)
    return result if bias is None else op.add(result, bias)


def moments(
    node: Node, data: relax.Expr, axes: Sequence[int], epsilon: float
) -> tuple[relax.Expr, relax.Expr]:
    """Return mean and 1 / sqrt(variance + epsilon), with the axes kept."""
    mean = node.call(op.mean, data, list(axes), keepdims=True)
    deviation = node.call(op.subtract, data, mean)
    squares = node.call(op.multiply, deviation, deviation)
    variance = node.call(op.mean, squares, list(axes), keepdims=True)
    shifted = node.call(op.add, variance, scalar(epsilon, dtype_of(data)))
    return mean, node.call(op.divide, scalar(1, dtype_of(data)), node.call(op.sqrt, shifted))


def rms_norm(node: Node, data: relax.Expr, axes: Sequence[int], epsilon: float) -> relax.Var:
    """Return X / sqrt(mean(x * x) + epsilon)."""
    squares = node.call(op.multiply, data, data)
    mean = node.call(op.mean, squares, list(axes), keepdims=True)
    shifted = node.call(op.add, mean, scalar(epsilon, dtype_of(data)))
    return node.call(op.divide, data, node.call(op.sqrt, shifted))


def _standardize(
    node: Node,
    data: relax.Expr,
    axes: Sequence[int],
    epsilon: float,
    scale: NDArray[Any] | None = None,
    bias: NDArray[Any] | None = None,
) -> relax.Expr:
    """Return layer normalization with constant parameters.

    TVM legalizes its operator with variance = mean(x * x) - mean(x)^2, which cancels; our kernel,
    which computes float32, does not. Other dtypes are spelled out.
    """
    dtype = dtype_of(data)
    inner = static_shape(data)[axes[0] :]
    if dtype == "float32":
        scales = np.ones(inner, dtype) if scale is None else np.broadcast_to(scale, inner)
        biases = np.zeros(inner, dtype) if bias is None else np.broadcast_to(bias, inner)
        constants = [constant_tensor(item) for item in (scales, biases)]
        return node.call(op.nn.layer_norm, data, *constants, axes=list(axes), epsilon=epsilon)
    mean, inverse = moments(node, data, axes, epsilon)
    result = node.call(op.multiply, node.call(op.subtract, data, mean), inverse)
    if scale is not None:
        result = node.call(op.multiply, result, constant_tensor(scale))
    return result if bias is None else node.call(op.add, result, constant_tensor(bias))


def _fits(array: NDArray[Any] | None, inner: tuple[int, ...]) -> bool:
    """Return whether an array broadcasts to the normalized axes alone."""
    if array is None:
        return True
    try:
        return np.broadcast_shapes(array.shape, inner) == inner
    except ValueError:
        return False


def _axes_from(node: Node, shape: tuple[int, ...]) -> list[int]:
    return list(range(node.attributes.get("axis", -1) % len(shape), len(shape)))


def _stash_dtype(node: Node, data: relax.Expr) -> str:
    """Return dtype of the statistics: what `stash_type` says; a double is not narrowed for it."""
    stash = node.attributes.get("stash_type", onnx.TensorProto.FLOAT)
    if stash not in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
        raise Refusal(f"stash_type {onnx.TensorProto.DataType.Name(stash)} is not supported")
    if dtype_of(data) == "float64" or stash == onnx.TensorProto.DOUBLE:
        return "float64"
    return "float32"
