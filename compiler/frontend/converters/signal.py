"""Provide signal processing: Fourier transforms as products with constant matrices, mel filters."""

import math

import numpy as np
from numpy.typing import NDArray
from tvm import relax

from edgec.compiler.frontend.node import Node, Refusal, constant_value, dtype_of, static_shape
from edgec.compiler.frontend.te_operators import constant_tensor
from edgec.compiler.ir.signature import dtype_name

# A matrix grows with the square of the length: this many elements are 256 MiB of float32.
_MATRIX_LIMIT = 2**26


def convert_dft(node: Node) -> relax.Expr:
    """Return DFT and its inverse along an axis of a real or complex tensor [..., 1 or 2].

    X[k] = sum_n x[n] * exp(-2 pi i k n / N); the inverse has the other sign and divides by N. The
    inverse of one side is real: the other side is taken to be its mirror image.
    """
    data, attributes = node.input(0), node.attributes
    shape = static_shape(data)
    axis = attributes.get("axis", 1)
    if node.opset >= 20:
        axis = -2 if node.optional(2) is None else int(node.constant(2, "axis").reshape(-1)[0])
    axis %= len(shape)
    inverse, onesided = bool(attributes.get("inverse", 0)), bool(attributes.get("onesided", 0))
    real_result = inverse and onesided
    length = 2 * (shape[axis] - 1) if real_result else shape[axis]
    if node.optional(1) is not None:
        length = int(node.constant(1, "dft_length").reshape(-1)[0])
    if onesided and not inverse and shape[-1] == 2:
        raise Refusal("one side of the transform of a complex signal is not defined")
    if real_result:
        matrix = _real_inverse_matrix(shape[axis], length)
    else:
        matrix = _fourier_matrix(shape[axis], length, shape[-1], inverse, onesided)
    parts = 1 if real_result else 2
    order = [a for a in range(len(shape) - 1) if a != axis] + [axis, len(shape) - 1]
    moved = node.emit(relax.op.permute_dims(data, order))
    outer = [shape[a] for a in order[:-2]]
    result = _multiply(node, moved, [*outer, matrix.shape[1] // parts, parts], matrix)
    return relax.op.permute_dims(node.emit(result), np.argsort(order).tolist())


def convert_stft(node: Node) -> relax.Expr:
    """Convert STFT: frames of a signal [batch, length, 1 or 2], times a window, transformed."""
    data = node.input(0)
    batch, length, parts = (*static_shape(data), 1)[:3]
    step = int(node.constant(1, "frame_step").reshape(-1)[0])
    window = node.optional(2)
    if node.optional(3) is not None:
        size = int(node.constant(3, "frame_length").reshape(-1)[0])
    elif window is not None:
        (size,) = static_shape(window)
    else:
        raise Refusal("neither window nor frame_length is given")
    onesided = bool(node.attributes.get("onesided", 1))
    if onesided and parts == 2:
        raise Refusal("one side of the transform of a complex signal is not defined")
    frames = (length - size) // step + 1
    places = np.arange(frames)[:, None] * step + np.arange(size)
    signal = node.emit(relax.op.reshape(data, (batch, length, parts)))
    table = constant_tensor(places.reshape(-1).astype(np.int32))
    taken = node.emit(relax.op.take(signal, table, axis=1, mode="fast"))
    cut = node.emit(relax.op.reshape(taken, (batch, frames, size, parts)))
    matrix = _fourier_matrix(size, size, parts, False, onesided)
    known = None if window is None else constant_value(window)
    if known is not None:
        matrix = matrix * np.repeat(known.astype(np.float64), parts)[:, None]
    elif window is not None:
        column = node.emit(relax.op.reshape(window, (size, 1)))
        cut = node.emit(relax.op.multiply(cut, column))
    return _multiply(node, cut, [batch, frames, matrix.shape[1] // 2, 2], matrix)


def _fourier_matrix(
    count: int, length: int, parts: int, inverse: bool, onesided: bool
) -> NDArray[np.float64]:
    """Return the transform as a real matrix.

    Args:
        count: elements of the signal; those beyond `length` are ignored, missing ones zero.
        length: the length of the transform.
        parts: 1 for a real signal, 2 for real and imaginary parts.
        inverse: of the inverse transform.
        onesided: without the half that follows by symmetry.

    Returns:
        [count * parts, bins * 2].
    """
    bins = length // 2 + 1 if onesided else length
    if count * parts * bins * 2 > _MATRIX_LIMIT:
        raise Refusal(f"a transform of {length} elements is too long")
    # Reduced first: the angle of a large product would lose digits.
    turns = np.outer(np.arange(count), np.arange(bins)) % length / length
    angle = (2 if inverse else -2) * math.pi * turns
    scale = np.where(np.arange(count) < length, 1 / length if inverse else 1.0, 0.0)[:, None]
    real, imaginary = np.cos(angle) * scale, np.sin(angle) * scale
    matrix = np.empty((count, parts, bins, 2))
    matrix[:, 0, :, 0], matrix[:, 0, :, 1] = real, imaginary
    if parts == 2:
        matrix[:, 1, :, 0], matrix[:, 1, :, 1] = -imaginary, real
    return matrix.reshape(count * parts, bins * 2)


def _real_inverse_matrix(count: int, length: int) -> NDArray[np.float64]:
    """Return the inverse transform of one side as a real matrix [count * 2, length].

    x[n] = sum_k w[k] * (Re X[k] * cos(2 pi k n / N) - Im X[k] * sin(2 pi k n / N)) / N, where w is
    2 but for the bins that have no mirror image.
    """
    if count * 2 * length > _MATRIX_LIMIT:
        raise Refusal(f"a transform of {length} elements is too long")
    bins = np.arange(count)
    alone = (bins == 0) | (2 * bins == length)
    scale = np.where(2 * bins > length, 0.0, np.where(alone, 1.0, 2.0))[:, None] / length
    angle = 2 * math.pi * (np.outer(bins, np.arange(length)) % length / length)
    matrix = np.stack([np.cos(angle) * scale, -np.sin(angle) * scale], axis=1)
    return matrix.reshape(count * 2, length)


def _multiply(
    node: Node, signal: relax.Expr, shape: list[int], matrix: NDArray[np.float64]
) -> relax.Expr:
    """Return [..., count, parts] times a Fourier matrix, as [..., bins, 2]."""
    dtype = dtype_of(signal)
    rows = math.prod(static_shape(signal)) // matrix.shape[0]
    lines = node.emit(relax.op.reshape(signal, (rows, matrix.shape[0])))
    product = node.emit(relax.op.matmul(lines, constant_tensor(matrix.astype(dtype))))
    return relax.op.reshape(product, shape)


def convert_mel_weight_matrix(node: Node) -> relax.Expr:
    """Convert MelWeightMatrix: triangular filters, evenly spaced on the mel scale; a constant.

    mel = 2595 * log10(1 + f / 700).
    """
    names = ("num_mel_bins", "dft_length", "sample_rate", "lower_edge_hertz", "upper_edge_hertz")
    values = [float(node.constant(i, name).reshape(())) for i, name in enumerate(names)]
    bins, length, rate = (int(value) for value in values[:3])
    low, high = (2595 * math.log10(1 + edge / 700) for edge in values[3:])
    mel = np.arange(bins + 2) * ((high - low) / (bins + 2)) + low
    hertz = 700 * (10 ** (mel / 2595) - 1)
    places = ((length + 1) * hertz // rate).astype(np.int64)
    filters = np.zeros((length // 2 + 1, bins))
    for number in range(bins):
        start, center, end = places[number : number + 3]
        if center == start:
            filters[center, number] = 1
        else:
            rising = np.arange(start, center + 1)
            filters[rising, number] = (rising - start) / (center - start)
        if end > center:
            falling = np.arange(center, end)
            filters[falling, number] = (end - falling) / (end - center)
    return constant_tensor(filters.astype(dtype_name(node.attributes.get("output_datatype", 1))))
