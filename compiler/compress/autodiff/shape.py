"""Provide operators that move or mix values along axes, with their derivatives."""

import math
from typing import Any

import numpy as np

from edgec.compiler.compress.autodiff.elementwise import constant_result
from edgec.compiler.compress.autodiff.rule import Array, Backward, Rule, Shape, numbers
from edgec.compiler.ir.relax_helpers import shape_of
from edgec.compiler.numerics.resize_table import resize_table


def _batched(array: Array, call: Any, operand: Any) -> Shape:
    """Return the shape that a call states, for the batch that its operand has now."""
    stated, before = shape_of(call) or (), math.prod(shape_of(operand) or ())
    times = array.size // before if before else 1
    return stated if times == 1 else (stated[0] * times, *stated[1:])


def reshape(call: Any, _needed: tuple[bool, ...]) -> Rule:
    """Make a change of shape."""

    def rule(x: Array) -> tuple[Array, Backward]:
        return x.reshape(_batched(x, call, call.args[0])), lambda g: (g.reshape(x.shape),)

    return rule


def permute(call: Any, _needed: tuple[bool, ...]) -> Rule:
    """Make a transpose."""
    rank = len(shape_of(call) or ())
    given = call.attrs.axes
    axes = tuple(range(rank))[::-1] if given is None else tuple(n % rank for n in numbers(given))
    back = np.argsort(axes)

    def rule(x: Array) -> tuple[Array, Backward]:
        return x.transpose(axes), lambda g: (g.transpose(back),)

    return rule


def concat(call: Any, _needed: tuple[bool, ...]) -> Rule:
    """Make a concatenation."""
    axis = int(call.attrs.axis)

    def rule(*parts: Array) -> tuple[Array, Backward]:
        ends = np.cumsum([part.shape[axis] for part in parts])[:-1]
        return np.concatenate(parts, axis=axis), lambda g: np.split(g, ends, axis=axis)

    return rule


def split_part(call: Any, index: int) -> Rule:
    """Return one part of `relax.split`."""
    data, axis = call.args[0], int(call.attrs.axis)
    where = call.attrs.indices_or_sections
    extent = (shape_of(data) or ())[axis]
    if hasattr(where, "value"):
        size = -(-extent // int(where))
        ends = [min(size * i, extent) for i in range(int(where) + 1)]
    else:
        ends = [0, *numbers(where), extent]
    rank = len(shape_of(data) or ())
    part = slice(ends[index], ends[index + 1])
    return _picking(tuple(part if i == axis % rank else slice(None) for i in range(rank)))


def _picking(index: tuple[slice, ...]) -> Rule:
    def rule(x: Array) -> tuple[Array, Backward]:
        def backward(g: Array) -> tuple[Array]:
            full = np.zeros(x.shape, x.dtype)
            full[index] = g
            return (full,)

        return x[index], backward

    return rule


def strided_slice(call: Any, _needed: tuple[bool, ...]) -> Rule:
    """Make a slice with constant bounds."""
    rank = len(shape_of(call.args[0]) or ())
    axes, begin, end, *rest = (numbers(argument) for argument in call.args[1:])
    steps = rest[0] if rest else (1,) * len(axes)
    index = [slice(None)] * rank
    for axis, first, last, step in zip(axes, begin, end, steps, strict=True):
        index[axis % rank] = slice(first, last, step)
    return _picking(tuple(index))


def take(call: Any, needed: tuple[bool, ...]) -> Rule | None:
    """Make a look-up in a table, which has no gradient."""
    axis = None if call.attrs.axis is None else int(call.attrs.axis)
    return constant_result(lambda table, index: np.take(table, index, axis=axis))(call, needed)


def pad(call: Any, _needed: tuple[bool, ...]) -> Rule | None:
    """Make padding by a constant; None for the other modes."""
    widths = numbers(call.attrs.pad_width)
    if str(call.attrs.pad_mode) != "constant":
        return None
    pairs = list(zip(widths[::2], widths[1::2], strict=True))
    value = float(call.attrs.pad_value)

    def rule(x: Array) -> tuple[Array, Backward]:
        inner = tuple(slice(b, b + n) for (b, _), n in zip(pairs, x.shape, strict=True))
        return np.pad(x, pairs, constant_values=value), lambda g: (g[inner],)

    return rule


def _mixing(matrices: dict[int, Array]) -> Rule:
    """Return each axis mixed by a matrix [after, before]."""

    def mixed(x: Array, transposed: bool) -> Array:
        for axis, matrix in matrices.items():
            used = (matrix.T if transposed else matrix).astype(x.dtype)
            x = np.moveaxis(np.tensordot(x, used, axes=(axis, 1)), -1, axis)
        return x

    return lambda x: (mixed(x, False), lambda g: (mixed(g, True),))


def resize(call: Any, _needed: tuple[bool, ...]) -> Rule | None:
    """Make a resize of an image [N, C, H, W]; None where no table of shares describes it."""
    before, after = shape_of(call.args[0]), shape_of(call)
    attributes = call.attrs
    if before is None or after is None or str(attributes.layout) != "NCHW":
        return None
    matrices = {}
    for axis in (2, 3):
        table = resize_table(
            before[axis],
            after[axis],
            str(attributes.method),
            str(attributes.coordinate_transformation_mode),
            str(attributes.rounding_method),
        )
        if table is None:
            return None
        matrix = np.zeros((after[axis], before[axis]))
        for row, (places, shares) in enumerate(zip(*table, strict=True)):
            np.add.at(matrix[row], places, shares)
        matrices[axis] = matrix
    return _mixing(matrices)


def adaptive_pool(call: Any, _needed: tuple[bool, ...]) -> Rule:
    """Make a mean over as many windows as the result has places."""
    before, after = shape_of(call.args[0]) or (), shape_of(call) or ()
    matrices = {}
    for axis in (2, 3):
        matrix = np.zeros((after[axis], before[axis]))
        for row in range(after[axis]):
            first = row * before[axis] // after[axis]
            last = -(-(row + 1) * before[axis] // after[axis])
            matrix[row, first:last] = 1 / (last - first)
        matrices[axis] = matrix
    return _mixing(matrices)
