"""Operators of a canonical module in NumPy, each with its derivative.

A *maker* reads the attributes of a call once and gives a rule. A rule takes the arrays of the
call's operands and gives the result and a function that carries a gradient of the result back to
the operands. The batch may be a multiple of the one that the module was made for: it is the first
axis, and results that state their shape grow along it.

Convolutions are matrix products of unfolded inputs, so that the time goes into BLAS. They keep
the channels outermost in memory and give views [N, C, ...] of that.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax

from edgec.compiler.ir.relax_helpers import op_name, shape_of
from edgec.compiler.numerics.resize_table import resize_table

Array = NDArray[Any]
Backward = Callable[[Array], Sequence[Array | None]]
Rule = Callable[..., tuple[Array, Backward]]
Maker = Callable[[Any, tuple[bool, ...]], Rule | None]
Shape = tuple[int, ...]


def rule_of(call: Any, needed: tuple[bool, ...]) -> Rule | None:
    """The rule of a call, None if there is none.

    Args:
        call: a call of an operator.
        needed: for each operand, those inside tuples included, whether its gradient is wanted.
    """
    maker = _MAKERS.get(op_name(call))
    return maker(call, needed) if maker is not None else None


# Functions of one value, as x -> (y, () -> dy/dx).
_Function = Callable[[Array], tuple[Array, Callable[[], Array]]]


def _elementwise(function: _Function) -> Maker:
    def make(_call: Any, _needed: tuple[bool, ...]) -> Rule:
        def rule(x: Array) -> tuple[Array, Backward]:
            y, slope = function(x)
            return y, lambda g: (g * slope(),)

        return rule

    return make


def _logistic(x: Array) -> Array:
    result: Array = 0.5 * np.tanh(0.5 * x) + 0.5
    return result


def _sigmoid(x: Array) -> tuple[Array, Callable[[], Array]]:
    y = _logistic(x)
    return y, lambda: y * (1 - y)


def _silu(x: Array) -> tuple[Array, Callable[[], Array]]:
    s = _logistic(x)
    return x * s, lambda: s * (1 + x * (1 - s))


def _tanh(x: Array) -> tuple[Array, Callable[[], Array]]:
    y = np.tanh(x)
    return y, lambda: 1 - y * y


def _erf(x: Array) -> Array:
    """Abramowitz and Stegun 7.1.26, off by 1.5e-7 at most."""
    t = 1 / (1 + 0.3275911 * np.abs(x))
    poly = t * (
        0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429)))
    )
    result: Array = np.sign(x) * (1 - poly * np.exp(-x * x))
    return result


def _gelu(x: Array) -> tuple[Array, Callable[[], Array]]:
    below = 0.5 * (1 + _erf(x * math.sqrt(0.5)))
    return x * below, lambda: below + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _gelu_tanh(x: Array) -> tuple[Array, Callable[[], Array]]:
    factor = math.sqrt(2 / math.pi)
    t = np.tanh(factor * (x + 0.044715 * x**3))

    def slope() -> Array:
        inner = factor * (1 + 3 * 0.044715 * x * x)
        return np.asarray(0.5 * (1 + t) + 0.5 * x * (1 - t * t) * inner)

    return 0.5 * x * (1 + t), slope


def _hard_swish(x: Array) -> tuple[Array, Callable[[], Array]]:
    gate = np.clip(x + 3, 0, 6) / 6
    inside = (x > -3) & (x < 3)
    return x * gate, lambda: gate + x * inside / 6


def _exp(x: Array) -> tuple[Array, Callable[[], Array]]:
    y = np.exp(x)
    return y, lambda: y


def _sqrt(x: Array) -> tuple[Array, Callable[[], Array]]:
    y = np.sqrt(x)
    return y, lambda: 0.5 / y


def _leaky_relu(call: Any, _needed: tuple[bool, ...]) -> Rule:
    alpha = float(call.attrs.alpha)

    def rule(x: Array) -> tuple[Array, Backward]:
        return np.where(x > 0, x, x * alpha), lambda g: (np.where(x > 0, g, g * alpha),)

    return rule


def _prelu(call: Any, _needed: tuple[bool, ...]) -> Rule:
    rank, axis = len(shape_of(call) or ()), int(call.attrs.axis)
    along = tuple(-1 if i == axis % rank else 1 for i in range(rank))

    def rule(x: Array, slopes: Array) -> tuple[Array, Backward]:
        shaped = slopes.reshape(along)
        return np.where(x > 0, x, x * shaped), lambda g: (np.where(x > 0, g, g * shaped), None)

    return rule


def _clip(call: Any, _needed: tuple[bool, ...]) -> Rule:
    low, high = (float(argument.value) for argument in call.args[1:])

    def rule(x: Array) -> tuple[Array, Backward]:
        return np.clip(x, low, high), lambda g: (g * ((x > low) & (x < high)),)

    return rule


def _hard_sigmoid(call: Any, _needed: tuple[bool, ...]) -> Rule:
    alpha, beta = float(call.attrs["alpha"]), float(call.attrs["beta"])

    def rule(x: Array) -> tuple[Array, Backward]:
        line = alpha * x + beta
        return np.clip(line, 0, 1), lambda g: (g * alpha * ((line > 0) & (line < 1)),)

    return rule


def _reduced_to(g: Array, like: Array) -> Array:
    """A gradient summed over the axes along which an operand was repeated."""
    if g.shape == like.shape:
        return g
    g = g.sum(axis=tuple(range(g.ndim - like.ndim)))
    axes = tuple(i for i, n in enumerate(like.shape) if n == 1 and g.shape[i] != 1)
    return g.sum(axis=axes, keepdims=True) if axes else g


# Functions of two values: the result, and the gradients of both.
_Pair = Callable[[Array, Array], Array]
_PairGradient = Callable[[Array, Array, Array], Array]


def _binary(function: _Pair, left: _PairGradient, right: _PairGradient) -> Maker:
    def make(_call: Any, needed: tuple[bool, ...]) -> Rule:
        def rule(x: Array, y: Array) -> tuple[Array, Backward]:
            def backward(g: Array) -> tuple[Array | None, Array | None]:
                return (
                    _reduced_to(left(g, x, y), x) if needed[0] else None,
                    _reduced_to(right(g, x, y), y) if needed[1] else None,
                )

            return function(x, y), backward

        return rule

    return make


def _where(_call: Any, needed: tuple[bool, ...]) -> Rule:
    def rule(condition: Array, x: Array, y: Array) -> tuple[Array, Backward]:
        def backward(g: Array) -> tuple[Array | None, ...]:
            return (
                None,
                _reduced_to(np.where(condition, g, 0), x) if needed[1] else None,
                _reduced_to(np.where(condition, 0, g), y) if needed[2] else None,
            )

        return np.where(condition, x, y), backward

    return rule


def _constant_result(compute: Callable[..., Array]) -> Maker:
    """An operator whose operands have no gradient."""

    def make(_call: Any, needed: tuple[bool, ...]) -> Rule | None:
        if any(needed):
            return None

        def rule(*operands: Array) -> tuple[Array, Backward]:
            return compute(*operands), lambda _: [None] * len(operands)

        return rule

    return make


def _astype(call: Any, needed: tuple[bool, ...]) -> Rule | None:
    dtype = str(call.ty.dtype.dtype)
    return _constant_result(lambda x: x.astype(dtype))(call, needed)


def _take(call: Any, needed: tuple[bool, ...]) -> Rule | None:
    axis = None if call.attrs.axis is None else int(call.attrs.axis)
    return _constant_result(lambda table, index: np.take(table, index, axis=axis))(call, needed)


def _numbers(values: Any) -> tuple[int, ...]:
    fields = values.fields if isinstance(values, relax.Tuple) else values
    return tuple(int(getattr(number, "value", number)) for number in fields)


def _axes(call: Any) -> tuple[int, ...]:
    rank = len(shape_of(call.args[0]) or ())
    axis = call.attrs.axis
    return tuple(range(rank)) if axis is None else tuple(n % rank for n in _numbers(axis))


def _reduction(mean: bool) -> Maker:
    def make(call: Any, _needed: tuple[bool, ...]) -> Rule:
        axes, keep = _axes(call), bool(call.attrs.keepdims)

        def rule(x: Array) -> tuple[Array, Backward]:
            count = math.prod(x.shape[i] for i in axes) if mean else 1

            def backward(g: Array) -> tuple[Array]:
                shaped = g if keep else np.expand_dims(g, axes)
                return (np.broadcast_to(shaped / count, x.shape),)

            return x.sum(axis=axes, keepdims=keep) / count, backward

        return rule

    return make


def _softmax(call: Any, _needed: tuple[bool, ...]) -> Rule:
    axis = int(call.attrs.axis)

    def rule(x: Array) -> tuple[Array, Backward]:
        powers = np.exp(x - x.max(axis=axis, keepdims=True))
        y = powers / powers.sum(axis=axis, keepdims=True)
        return y, lambda g: (y * (g - (g * y).sum(axis=axis, keepdims=True)),)

    return rule


def _layer_norm(call: Any, _needed: tuple[bool, ...]) -> Rule:
    rank = len(shape_of(call) or ())
    axes = tuple(n % rank for n in _numbers(call.attrs.axes))
    epsilon = float(call.attrs.epsilon)

    def rule(x: Array, gamma: Array, beta: Array) -> tuple[Array, Backward]:
        centred = x - x.mean(axis=axes, keepdims=True)
        scale = 1 / np.sqrt(np.square(centred).mean(axis=axes, keepdims=True) + epsilon)
        unit = centred * scale

        def backward(g: Array) -> tuple[Array | None, ...]:
            g = g * gamma
            along = (g * unit).mean(axis=axes, keepdims=True)
            return scale * (g - g.mean(axis=axes, keepdims=True) - unit * along), None, None

        return unit * gamma + beta, backward

    return rule


def _batched(array: Array, call: Any, operand: Any) -> Shape:
    """The shape that a call states, for the batch that its operand has now."""
    stated, before = shape_of(call) or (), math.prod(shape_of(operand) or ())
    times = array.size // before if before else 1
    return stated if times == 1 else (stated[0] * times, *stated[1:])


def _reshape(call: Any, _needed: tuple[bool, ...]) -> Rule:
    def rule(x: Array) -> tuple[Array, Backward]:
        return x.reshape(_batched(x, call, call.args[0])), lambda g: (g.reshape(x.shape),)

    return rule


def _permute(call: Any, _needed: tuple[bool, ...]) -> Rule:
    rank = len(shape_of(call) or ())
    given = call.attrs.axes
    axes = tuple(range(rank))[::-1] if given is None else tuple(n % rank for n in _numbers(given))
    back = np.argsort(axes)

    def rule(x: Array) -> tuple[Array, Backward]:
        return x.transpose(axes), lambda g: (g.transpose(back),)

    return rule


def _concat(call: Any, _needed: tuple[bool, ...]) -> Rule:
    axis = int(call.attrs.axis)

    def rule(*parts: Array) -> tuple[Array, Backward]:
        ends = np.cumsum([part.shape[axis] for part in parts])[:-1]
        return np.concatenate(parts, axis=axis), lambda g: np.split(g, ends, axis=axis)

    return rule


def split_part(call: Any, index: int) -> Rule:
    """One part of `relax.split`."""
    data, axis = call.args[0], int(call.attrs.axis)
    where = call.attrs.indices_or_sections
    extent = (shape_of(data) or ())[axis]
    if hasattr(where, "value"):
        size = -(-extent // int(where))
        ends = [min(size * i, extent) for i in range(int(where) + 1)]
    else:
        ends = [0, *_numbers(where), extent]
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


def _strided_slice(call: Any, _needed: tuple[bool, ...]) -> Rule:
    rank = len(shape_of(call.args[0]) or ())
    axes, begin, end, *rest = (_numbers(argument) for argument in call.args[1:])
    steps = rest[0] if rest else (1,) * len(axes)
    index = [slice(None)] * rank
    for axis, first, last, step in zip(axes, begin, end, steps, strict=True):
        index[axis % rank] = slice(first, last, step)
    return _picking(tuple(index))


def _pad(call: Any, _needed: tuple[bool, ...]) -> Rule | None:
    widths = _numbers(call.attrs.pad_width)
    if str(call.attrs.pad_mode) != "constant":
        return None
    pairs = list(zip(widths[::2], widths[1::2], strict=True))
    value = float(call.attrs.pad_value)

    def rule(x: Array) -> tuple[Array, Backward]:
        inner = tuple(slice(b, b + n) for (b, _), n in zip(pairs, x.shape, strict=True))
        return np.pad(x, pairs, constant_values=value), lambda g: (g[inner],)

    return rule


def _mixing(matrices: dict[int, Array]) -> Rule:
    """Each axis mixed by a matrix [after, before]."""

    def mixed(x: Array, transposed: bool) -> Array:
        for axis, matrix in matrices.items():
            used = (matrix.T if transposed else matrix).astype(x.dtype)
            x = np.moveaxis(np.tensordot(x, used, axes=(axis, 1)), -1, axis)
        return x

    return lambda x: (mixed(x, False), lambda g: (mixed(g, True),))


def _resize(call: Any, _needed: tuple[bool, ...]) -> Rule | None:
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


def _adaptive_pool(call: Any, _needed: tuple[bool, ...]) -> Rule:
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


def _matmul(_call: Any, needed: tuple[bool, ...]) -> Rule | None:
    if any(len(shape_of(argument) or ()) < 2 for argument in _call.args):
        return None

    def rule(x: Array, y: Array) -> tuple[Array, Backward]:
        if y.ndim == 2:
            rows = x.reshape(-1, x.shape[-1])

            def flat(g: Array) -> tuple[Array | None, Array | None]:
                flat_g = g.reshape(-1, g.shape[-1])
                return (
                    (flat_g @ y.T).reshape(x.shape) if needed[0] else None,
                    rows.T @ flat_g if needed[1] else None,
                )

            return (rows @ y).reshape(*x.shape[:-1], y.shape[-1]), flat

        def backward(g: Array) -> tuple[Array | None, Array | None]:
            return (
                _reduced_to(g @ y.swapaxes(-1, -2), x) if needed[0] else None,
                _reduced_to(x.swapaxes(-1, -2) @ g, y) if needed[1] else None,
            )

        return x @ y, backward

    return rule


@dataclass(frozen=True)
class _Windows:
    """How a kernel moves over an image of any number of dimensions.

    Attributes:
        kernel: extents.
        strides: of the windows.
        dilation: of the kernel's places.
        before: padding at the begin of each dimension.
        output: windows along each dimension.
    """

    kernel: Shape
    strides: Shape
    dilation: Shape
    before: Shape
    output: Shape

    @property
    def is_pointwise(self) -> bool:
        """Whether windows are single values, all of them."""
        return set(self.kernel) == set(self.strides) == {1} and not any(self.before)

    def _places(self) -> list[tuple[slice, ...]]:
        places = []
        for offset in itertools.product(*map(range, self.kernel)):
            parts = zip(offset, self.dilation, self.strides, self.output, strict=True)
            places.append(tuple(slice(o * d, o * d + (n - 1) * s + 1, s) for o, d, s, n in parts))
        return places

    def _padded(self, extents: Shape) -> Shape:
        """Extents with padding, as far as windows reach."""
        spans = zip(self.kernel, self.dilation, self.strides, self.output, strict=True)
        reach = [(n - 1) * s + (k - 1) * d + 1 for k, d, s, n in spans]
        shifted = zip(extents, self.before, reach, strict=True)
        return tuple(max(n + b, r) for n, b, r in shifted)

    def unfold(self, x: Array, fill: float = 0) -> Array:
        """[N, C, ...] -> [C, places of the kernel, N * windows]."""
        if self.is_pointwise:
            return x.swapaxes(0, 1).reshape(x.shape[1], 1, -1)
        after = zip(self._padded(x.shape[2:]), self.before, x.shape[2:], strict=True)
        widths = [(0, 0), (0, 0)]
        widths += [(b, total - b - n) for total, b, n in after]
        padded = np.pad(x, widths, constant_values=fill) if np.any(widths) else x
        places = self._places()
        result = np.empty((x.shape[1], len(places), len(x), *self.output), x.dtype)
        for index, place in enumerate(places):
            result[:, index] = padded[(slice(None), slice(None), *place)].swapaxes(0, 1)
        return result.reshape(x.shape[1], len(places), -1)

    def fold(self, columns: Array, shape: Shape) -> Array:
        """The transpose of `unfold`: columns are added up where they came from."""
        if self.is_pointwise:
            return columns.reshape(shape[1], shape[0], *shape[2:]).swapaxes(0, 1)
        extents = shape[2:]
        split = columns.reshape(shape[1], -1, shape[0], *self.output)
        total = np.zeros((shape[1], shape[0], *self._padded(extents)), columns.dtype)
        for index, place in enumerate(self._places()):
            total[(slice(None), slice(None), *place)] += split[:, index]
        inner = tuple(slice(b, b + n) for b, n in zip(self.before, extents, strict=True))
        return total[(slice(None), slice(None), *inner)].swapaxes(0, 1)


def _windows(call: Any, kernel: Shape, output: Shape) -> _Windows:
    attributes = call.attrs
    return _Windows(
        kernel,
        _numbers(attributes.strides),
        _numbers(attributes.dilation),
        _numbers(attributes.padding)[: len(kernel)],
        output,
    )


# Elements of unfolded inputs that are worked on at a time: what a cache holds.
_BLOCK = 2**19


def _blocks(groups: int, batch: int, size: int) -> list[tuple[slice, slice]]:
    """Groups and images that are unfolded together; `size` elements each."""
    some = max(1, min(groups, _BLOCK // size))
    images = max(1, min(batch, _BLOCK // (size * some)))
    return [
        (slice(g, min(g + some, groups)), slice(n, min(n + images, batch)))
        for g in range(0, groups, some)
        for n in range(0, batch, images)
    ]


def _times_transposed(rows: Array, data: Array) -> Array:
    """rows^T @ data by group; BLAS is slow at a sum of one term."""
    product: Array = (
        rows.swapaxes(1, 2) * data if rows.shape[1] == 1 else rows.swapaxes(1, 2) @ data
    )
    return product


@dataclass(frozen=True)
class _Lattice:
    """Products of one side's channels with windows of the other side, by group.

    A convolution reads the wide side (`unfold`) and gives the narrow one; a transposed one the
    other way round.

    Attributes:
        groups: that are told apart.
        windows: over the wide side.
    """

    groups: int
    windows: _Windows

    def _split(self, wide: Array, weight: Array) -> list[tuple[slice, slice]]:
        size = wide.shape[1] // self.groups * math.prod(weight.shape[2:])
        return _blocks(self.groups, len(wide), size * math.prod(self.windows.output))

    def _columns(self, wide: Array, groups: slice, images: slice) -> Array:
        each = wide.shape[1] // self.groups
        part = wide[images, groups.start * each : groups.stop * each]
        columns = self.windows.unfold(part)
        return columns.reshape(groups.stop - groups.start, -1, columns.shape[2])

    def _narrow(self, narrow: Array, groups: slice, images: slice) -> Array:
        each = narrow.shape[1] // self.groups
        part = narrow[images, groups.start * each : groups.stop * each]
        return part.swapaxes(0, 1).reshape(groups.stop - groups.start, each, -1)

    def gather(self, wide: Array, weight: Array) -> Array:
        """The narrow side [N, narrow channels, ...]."""
        rows = weight.reshape(self.groups, len(weight) // self.groups, -1)
        result = np.empty((len(weight), len(wide), *self.windows.output), wide.dtype)
        split = result.reshape(self.groups, rows.shape[1], len(wide), -1)
        for groups, images in self._split(wide, weight):
            product = rows[groups] @ self._columns(wide, groups, images)
            split[groups, :, images] = product.reshape(split[groups, :, images].shape)
        return result.swapaxes(0, 1)

    def scatter(self, narrow: Array, weight: Array, shape: Shape) -> Array:
        """The wide side, of this shape: the transpose of `gather`."""
        rows = weight.reshape(self.groups, len(weight) // self.groups, -1)
        each = shape[1] // self.groups
        result = np.empty((shape[1], shape[0], *shape[2:]), narrow.dtype).swapaxes(0, 1)
        for groups, images in self._split(np.broadcast_to(narrow.dtype.type(0), shape), weight):
            columns = _times_transposed(rows[groups], self._narrow(narrow, groups, images))
            channels = slice(groups.start * each, groups.stop * each)
            part = (images.stop - images.start, channels.stop - channels.start, *shape[2:])
            result[images, channels] = self.windows.fold(columns, part)
        return result

    def weight_gradient(self, wide: Array, narrow: Array, weight: Array) -> Array:
        """Of a sum of narrow * gather(wide, weight)."""
        result = np.zeros((self.groups, weight[0].size, len(weight) // self.groups), weight.dtype)
        for groups, images in self._split(wide, weight):
            flat = self._narrow(narrow, groups, images).swapaxes(1, 2)
            result[groups] += self._columns(wide, groups, images) @ flat
        return result.swapaxes(1, 2).reshape(weight.shape)


def _lattice(call: Any, narrow: Any) -> _Lattice:
    kernel = (shape_of(call.args[1]) or ())[2:]
    return _Lattice(int(call.attrs.groups), _windows(call, kernel, (shape_of(narrow) or ())[2:]))


def _convolution(call: Any, needed: tuple[bool, ...]) -> Rule:
    lattice = _lattice(call, call)

    def rule(x: Array, weight: Array) -> tuple[Array, Backward]:
        def backward(g: Array) -> tuple[Array | None, Array | None]:
            return (
                lattice.scatter(g, weight, x.shape) if needed[0] else None,
                lattice.weight_gradient(x, g, weight) if needed[1] else None,
            )

        return lattice.gather(x, weight), backward

    return rule


def _transposed_convolution(call: Any, needed: tuple[bool, ...]) -> Rule:
    lattice, stated = _lattice(call, call.args[0]), shape_of(call) or ()

    def rule(x: Array, weight: Array) -> tuple[Array, Backward]:
        def backward(g: Array) -> tuple[Array | None, Array | None]:
            return (
                lattice.gather(g, weight) if needed[0] else None,
                lattice.weight_gradient(g, x, weight) if needed[1] else None,
            )

        return lattice.scatter(x, weight, (len(x), *stated[1:])), backward

    return rule


def _max_pool(call: Any, _needed: tuple[bool, ...]) -> Rule:
    windows = _windows(call, _numbers(call.attrs.pool_size), (shape_of(call) or ())[2:])

    def rule(x: Array) -> tuple[Array, Backward]:
        columns = windows.unfold(x, -math.inf)
        best = columns.argmax(axis=1)[:, None]
        y = np.take_along_axis(columns, best, axis=1)

        def backward(g: Array) -> tuple[Array]:
            spread = np.zeros(columns.shape, g.dtype)
            np.put_along_axis(spread, best, g.swapaxes(0, 1).reshape(y.shape), axis=1)
            return (windows.fold(spread, x.shape),)

        return y.reshape(x.shape[1], len(x), *windows.output).swapaxes(0, 1), backward

    return rule


def _average_pool(call: Any, _needed: tuple[bool, ...]) -> Rule:
    data_shape = shape_of(call.args[0]) or ()
    windows = _windows(call, _numbers(call.attrs.pool_size), (shape_of(call) or ())[2:])
    ones = np.ones((1, 1, *data_shape[2:]))
    counted = windows
    if call.attrs.count_include_pad:
        padding = _numbers(call.attrs.padding)
        both = zip(padding[: len(padding) // 2], padding[len(padding) // 2 :], strict=True)
        ones = np.pad(ones, [(0, 0), (0, 0), *both], constant_values=1)
        counted = _Windows(
            windows.kernel,
            windows.strides,
            windows.dilation,
            (0,) * len(windows.before),
            windows.output,
        )
    counts = counted.unfold(ones).sum(axis=1).reshape(1, 1, *windows.output)

    def rule(x: Array) -> tuple[Array, Backward]:
        shares = (1 / counts).astype(x.dtype)
        total = windows.unfold(x).sum(axis=1).reshape(x.shape[1], len(x), *windows.output)

        def backward(g: Array) -> tuple[Array]:
            each = (g * shares).swapaxes(0, 1).reshape(x.shape[1], 1, -1)
            spread = np.broadcast_to(each, (x.shape[1], math.prod(windows.kernel), each.shape[2]))
            return (windows.fold(spread, x.shape),)

        return total.swapaxes(0, 1) * shares, backward

    return rule


_MAKERS: dict[str, Maker] = {
    "edgec.hard_sigmoid": _hard_sigmoid,
    "edgec.hard_swish": _elementwise(_hard_swish),
    "relax.add": _binary(np.add, lambda g, _x, _y: g, lambda g, _x, _y: g),
    "relax.astype": _astype,
    "relax.clip": _clip,
    "relax.concat": _concat,
    "relax.divide": _binary(np.divide, lambda g, _x, y: g / y, lambda g, x, y: -g * x / (y * y)),
    "relax.equal": _constant_result(np.equal),
    "relax.exp": _elementwise(_exp),
    "relax.expand_dims": _reshape,
    "relax.flatten": _reshape,
    "relax.image.resize2d": _resize,
    "relax.less": _constant_result(np.less),
    "relax.matmul": _matmul,
    "relax.maximum": _binary(np.maximum, lambda g, x, y: g * (x >= y), lambda g, x, y: g * (x < y)),
    "relax.mean": _reduction(mean=True),
    "relax.minimum": _binary(np.minimum, lambda g, x, y: g * (x <= y), lambda g, x, y: g * (x > y)),
    "relax.multiply": _binary(np.multiply, lambda g, _x, y: g * y, lambda g, x, _y: g * x),
    "relax.negative": _elementwise(lambda x: (-x, lambda: -np.ones_like(x))),
    "relax.nn.adaptive_avg_pool2d": _adaptive_pool,
    "relax.nn.avg_pool1d": _average_pool,
    "relax.nn.avg_pool2d": _average_pool,
    "relax.nn.conv1d": _convolution,
    "relax.nn.conv1d_transpose": _transposed_convolution,
    "relax.nn.conv2d": _convolution,
    "relax.nn.conv2d_transpose": _transposed_convolution,
    "relax.nn.conv3d": _convolution,
    "relax.nn.gelu": _elementwise(_gelu),
    "relax.nn.gelu_tanh": _elementwise(_gelu_tanh),
    "relax.nn.layer_norm": _layer_norm,
    "relax.nn.leakyrelu": _leaky_relu,
    "relax.nn.max_pool1d": _max_pool,
    "relax.nn.max_pool2d": _max_pool,
    "relax.nn.pad": _pad,
    "relax.nn.prelu": _prelu,
    "relax.nn.relu": _elementwise(lambda x: (np.maximum(x, 0), lambda: x > 0)),
    "relax.nn.silu": _elementwise(_silu),
    "relax.nn.softmax": _softmax,
    "relax.permute_dims": _permute,
    "relax.reshape": _reshape,
    "relax.sigmoid": _elementwise(_sigmoid),
    "relax.split": lambda _call, _needed: lambda x: (x, lambda g: (g,)),
    "relax.sqrt": _elementwise(_sqrt),
    "relax.squeeze": _reshape,
    "relax.strided_slice": _strided_slice,
    "relax.subtract": _binary(np.subtract, lambda g, _x, _y: g, lambda g, _x, _y: -g),
    "relax.sum": _reduction(mean=False),
    "relax.take": _take,
    "relax.tanh": _elementwise(_tanh),
    "relax.where": _where,
}
