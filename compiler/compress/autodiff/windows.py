"""Provide convolutions and pools with their derivatives.

Convolutions are matrix products of unfolded inputs, so that the time goes into BLAS. They keep
the channels outermost in memory and give views [N, C, ...] of that.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgec.compiler.compress.autodiff.rule import Array, Backward, Rule, Shape, numbers
from edgec.compiler.ir.relax_helpers import shape_of


@dataclass(frozen=True)
class Windows:
    """Windows describe how a kernel moves over an image of any number of dimensions.

    Attributes:
        kernel: extents.
        strides: the strides of the windows.
        dilation: the dilation of the kernel's places.
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
        """Return whether windows are single values, all of them."""
        return set(self.kernel) == set(self.strides) == {1} and not any(self.before)

    def _places(self) -> list[tuple[slice, ...]]:
        places = []
        for offset in itertools.product(*map(range, self.kernel)):
            parts = zip(offset, self.dilation, self.strides, self.output, strict=True)
            places.append(tuple(slice(o * d, o * d + (n - 1) * s + 1, s) for o, d, s, n in parts))
        return places

    def _padded(self, extents: Shape) -> Shape:
        """Return extents with padding, as far as windows reach."""
        spans = zip(self.kernel, self.dilation, self.strides, self.output, strict=True)
        reach = [(n - 1) * s + (k - 1) * d + 1 for k, d, s, n in spans]
        shifted = zip(extents, self.before, reach, strict=True)
        return tuple(max(n + b, r) for n, b, r in shifted)

    def unfold(self, x: Array, fill: float = 0) -> Array:
        """Return [N, C, ...] -> [C, places of the kernel, N * windows]."""
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
        """Return the transpose of `unfold`: columns are added up where they came from."""
        if self.is_pointwise:
            return columns.reshape(shape[1], shape[0], *shape[2:]).swapaxes(0, 1)
        extents = shape[2:]
        split = columns.reshape(shape[1], -1, shape[0], *self.output)
        total = np.zeros((shape[1], shape[0], *self._padded(extents)), columns.dtype)
        for index, place in enumerate(self._places()):
            total[(slice(None), slice(None), *place)] += split[:, index]
        inner = tuple(slice(b, b + n) for b, n in zip(self.before, extents, strict=True))
        return total[(slice(None), slice(None), *inner)].swapaxes(0, 1)


def _windows(call: Any, kernel: Shape, output: Shape) -> Windows:
    attributes = call.attrs
    return Windows(
        kernel,
        numbers(attributes.strides),
        numbers(attributes.dilation),
        numbers(attributes.padding)[: len(kernel)],
        output,
    )


# Elements of unfolded inputs that are worked on at a time: what a cache holds.
_BLOCK = 2**19


def _blocks(groups: int, batch: int, size: int) -> list[tuple[slice, slice]]:
    """Return groups and images that are unfolded together; `size` elements each."""
    some = max(1, min(groups, _BLOCK // size))
    images = max(1, min(batch, _BLOCK // (size * some)))
    return [
        (slice(g, min(g + some, groups)), slice(n, min(n + images, batch)))
        for g in range(0, groups, some)
        for n in range(0, batch, images)
    ]


def _times_transposed(rows: Array, data: Array) -> Array:
    """Return rows^T @ data by group; BLAS is slow at a sum of one term."""
    product: Array = (
        rows.swapaxes(1, 2) * data if rows.shape[1] == 1 else rows.swapaxes(1, 2) @ data
    )
    return product


@dataclass(frozen=True)
class Lattice:
    """A lattice describes products of one side's channels with windows of the other side, by group.

    A convolution reads the wide side (`unfold`) and gives the narrow one; a transposed one the
    other way round.

    Attributes:
        groups: the groups that are told apart.
        windows: over the wide side.
    """

    groups: int
    windows: Windows

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
        """Return the narrow side [N, narrow channels, ...]."""
        rows = weight.reshape(self.groups, len(weight) // self.groups, -1)
        result = np.empty((len(weight), len(wide), *self.windows.output), wide.dtype)
        split = result.reshape(self.groups, rows.shape[1], len(wide), -1)
        for groups, images in self._split(wide, weight):
            product = rows[groups] @ self._columns(wide, groups, images)
            split[groups, :, images] = product.reshape(split[groups, :, images].shape)
        return result.swapaxes(0, 1)

    def scatter(self, narrow: Array, weight: Array, shape: Shape) -> Array:
        """Return the wide side, of this shape: the transpose of `gather`."""
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
        """Return the weight gradient of a sum of narrow * gather(wide, weight)."""
        result = np.zeros((self.groups, weight[0].size, len(weight) // self.groups), weight.dtype)
        for groups, images in self._split(wide, weight):
            flat = self._narrow(narrow, groups, images).swapaxes(1, 2)
            result[groups] += self._columns(wide, groups, images) @ flat
        return result.swapaxes(1, 2).reshape(weight.shape)


def _lattice(call: Any, narrow: Any) -> Lattice:
    kernel = (shape_of(call.args[1]) or ())[2:]
    return Lattice(int(call.attrs.groups), _windows(call, kernel, (shape_of(narrow) or ())[2:]))


def convolution(call: Any, needed: tuple[bool, ...]) -> Rule:
    """Make a convolution of one, two or three dimensions."""
    lattice = _lattice(call, call)

    def rule(x: Array, weight: Array) -> tuple[Array, Backward]:
        def backward(g: Array) -> tuple[Array | None, Array | None]:
            return (
                lattice.scatter(g, weight, x.shape) if needed[0] else None,
                lattice.weight_gradient(x, g, weight) if needed[1] else None,
            )

        return lattice.gather(x, weight), backward

    return rule


def transposed_convolution(call: Any, needed: tuple[bool, ...]) -> Rule:
    """Make a transposed convolution of one or two dimensions."""
    lattice, stated = _lattice(call, call.args[0]), shape_of(call) or ()

    def rule(x: Array, weight: Array) -> tuple[Array, Backward]:
        def backward(g: Array) -> tuple[Array | None, Array | None]:
            return (
                lattice.gather(g, weight) if needed[0] else None,
                lattice.weight_gradient(g, x, weight) if needed[1] else None,
            )

        return lattice.scatter(x, weight, (len(x), *stated[1:])), backward

    return rule


def max_pool(call: Any, _needed: tuple[bool, ...]) -> Rule:
    """Make a maximum over windows; the gradient goes to the first of equals."""
    windows = _windows(call, numbers(call.attrs.pool_size), (shape_of(call) or ())[2:])

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


def average_pool(call: Any, _needed: tuple[bool, ...]) -> Rule:
    """Make a mean over windows, with or without their padding."""
    data_shape = shape_of(call.args[0]) or ()
    windows = _windows(call, numbers(call.attrs.pool_size), (shape_of(call) or ())[2:])
    ones = np.ones((1, 1, *data_shape[2:]))
    counted = windows
    if call.attrs.count_include_pad:
        padding = numbers(call.attrs.padding)
        both = zip(padding[: len(padding) // 2], padding[len(padding) // 2 :], strict=True)
        ones = np.pad(ones, [(0, 0), (0, 0), *both], constant_values=1)
        counted = Windows(
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
