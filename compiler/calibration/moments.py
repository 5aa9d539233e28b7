"""Provide second moments of what convolutions and matrix products read.

With x one input vector of a dot product (an image patch, or a row), rounding weights W to W + D
adds the error E[(D x)^2] = D E[x x^T] D^T to an output in the mean. So E[x x^T] is all that
rounding must know.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.calibration.float_model import FloatModel, observe
from edgec.compiler.calibration.samples import Samples
from edgec.compiler.ir.anchors import Operator
from edgec.compiler.ir.graph import Graph
from edgec.compiler.ir.relax_helpers import shape_of
from edgec.compiler.ir.signature import Tensors
from edgec.compiler.numerics.affine import Floats
from edgec.compiler.support.progress import Progress

# Patches of each batch that are looked at, and over all batches for each input of a dot product:
# enough for a mean, few enough to be quick.
MAX_PATCHES = 1024
PATCHES_PER_INPUT = 8
MIN_PATCHES = 8192

# Sums that are in memory at a time; operators beyond that are seen in another run.
MAX_BYTES = 256 * 2**20

_SEED = 0


@dataclass(frozen=True)
class Moments:
    """Moments describe the inputs of one operator.

    Attributes:
        second: E[x x^T], float32 [groups, patch length, the same].
        mean: E[x], float32 [groups, patch length].
        count: patches that they were seen in; 0 if they are assumed.
    """

    second: Floats
    mean: Floats
    count: int = 0


def joined_moments(every: Sequence[Moments]) -> Moments:
    """Return the moments of all that several operators of one shape read."""
    total = sum(moments.count for moments in every)
    shares = [np.float32(m.count / total if total else 1 / len(every)) for m in every]
    second = sum((m.second * share for m, share in zip(every, shares, strict=True)), np.float32(0))
    mean = sum((m.mean * share for m, share in zip(every, shares, strict=True)), np.float32(0))
    return Moments(np.asarray(second), np.asarray(mean), total)


def has_moments(operator: Operator) -> bool:
    """Return whether an operator's weights are rows of independent dot products."""
    if operator.weight is None:
        return False
    if operator.kind == "matmul":
        return operator.weight.array.ndim == 2
    return operator.kind in ("conv", "depthwise_conv") and operator.weight.array.ndim == 4


def groups_of(operator: Operator, graph: Graph) -> int:
    """Return groups of a convolution, 1 for a matrix product."""
    if operator.kind == "matmul":
        return 1
    return int(graph.definitions[operator.anchor].attrs.groups)


def assumed_moments(operator: Operator, graph: Graph) -> Moments:
    """Return moments without samples.

    Inputs of mean 1 and variance 1, neighbours in an image alike.

    What follows a ReLU has a mean of the size of its deviation, and a deviation in the mean is
    what costs most: the rounded weights of a dot product should have the sum that they had.
    """
    assert operator.weight is not None
    groups = groups_of(operator, graph)
    if operator.kind == "matmul":
        length, kernel = operator.weight.array.shape[0], 1
    else:
        length, kernel = operator.weight.array[0].size, operator.weight.array[0, 0].size
    same_channel = np.kron(np.eye(length // kernel), np.ones((kernel, kernel)))
    second = 1 + 0.5 * np.eye(length) + 0.5 * same_channel
    return Moments(
        np.broadcast_to(second.astype(np.float32), (groups, length, length)),
        np.ones((groups, length), np.float32),
    )


def measure_moments(
    model: FloatModel,
    operators: Sequence[Operator],
    samples: Samples,
    progress: Progress | None = None,
    begun: "MomentSums | None" = None,
) -> Iterator[tuple[Operator, Moments]]:
    """Yield the moments of one operator after the other; `MAX_BYTES` of them in memory.

    Operators that read the same vectors, such as the three matrices of an attention, share them.

    Args:
        model: gives what operators read.
        operators: their order is kept.
        samples: what is run.
        progress: is told of each batch.
        begun: sums of the first of them that have seen all samples already.
    """
    for alike in _at_a_time(operators, model.graph, samples.count):
        if begun is not None and begun.is_of(alike):
            sums, begun = begun, None
        else:
            sums = MomentSums(alike, model.graph, samples.count)
            for values in observe(model, samples, "moments", progress):
                sums.see(values)
        yield from sums.moments(alike)


def begin_moments(
    operators: Sequence[Operator], graph: Graph, batches: int | None
) -> "MomentSums | None":
    """Return the sums of what `measure_moments` needs first, for a run that sees it anyway."""
    alike = next(_at_a_time(operators, graph, batches), None)
    return None if alike is None else MomentSums(alike, graph, batches)


def _at_a_time(
    operators: Sequence[Operator], graph: Graph, batches: int | None
) -> Iterator[list[list[Operator]]]:
    """Yield operators whose sums are in memory at a time, those that read the same together."""
    chunk: dict[Any, list[Operator]] = {}
    size = 0
    for operator in operators:
        read = _what_is_read(operator, graph, batches)
        added = 0 if read in chunk else _bytes(operator, graph)
        if chunk and size + added > MAX_BYTES:
            yield list(chunk.values())
            chunk, size, added = {}, 0, _bytes(operator, graph)
        chunk.setdefault(read, []).append(operator)
        size += added
    if chunk:
        yield list(chunk.values())


def _what_is_read(operator: Operator, graph: Graph, batches: int | None) -> Any:
    """Return the same for operators that read the same vectors: all rows of one value."""
    limit = patches_per_batch(operator, batches)
    if operator.kind == "matmul" and _places(operator) <= limit:
        return graph.names[operator.inputs[0]]
    return operator.anchor


def _bytes(operator: Operator, graph: Graph) -> int:
    """Return the memory that a sum over an operator's patches takes, about."""
    length = patch_length(operator)
    return 4 * groups_of(operator, graph) * length * (length + _patches_at_once(length))


def patch_length(operator: Operator) -> int:
    """Return length of one patch."""
    assert operator.weight is not None
    array = operator.weight.array
    return array.shape[0] if operator.kind == "matmul" else int(array[0].size)


def _patches_at_once(length: int) -> int:
    """Return how many patches are kept for one product: each writes a whole matrix."""
    return min(length, MAX_PATCHES)


class _Sum:
    """A sum adds up the products of patches, those of several batches at a time."""

    def __init__(self) -> None:
        self._second: Floats | None = None
        self._mean: Floats | None = None
        self._waiting: list[Floats] = []
        self._count = 0

    def add(self, patches: Floats) -> None:
        """Add patches [groups, patch length, patches]."""
        self._waiting.append(patches)
        if sum(p.shape[2] for p in self._waiting) >= _patches_at_once(patches.shape[1]):
            self._multiply()

    def _multiply(self) -> None:
        some = self._waiting
        patches = some[0] if len(some) == 1 else np.concatenate(some, axis=2)
        self._waiting = []
        self._count += patches.shape[2]
        second, mean = patches @ patches.transpose(0, 2, 1), patches.sum(axis=2)
        if self._second is None or self._mean is None:
            self._second, self._mean = second, mean
        else:
            self._second += second
            self._mean += mean

    def moments(self) -> Moments:
        """Return the moments of all that was added, once."""
        if self._waiting:
            self._multiply()
        assert self._second is not None
        assert self._mean is not None
        self._second /= np.float32(self._count)
        self._mean /= np.float32(self._count)
        return Moments(self._second, self._mean, self._count)


class MomentSums:
    """Moment sums are added up in one run over the samples.

    Args:
        alike: operators, of which those in one sequence read the same vectors.
        graph: what they are part of.
        batches: number of batches, None if only reading tells.
    """

    def __init__(
        self, alike: Sequence[Sequence[Operator]], graph: Graph, batches: int | None
    ) -> None:
        self._names = [[operator.name for operator in operators] for operators in alike]
        self._first = [operators[0] for operators in alike]
        self._limits = [patches_per_batch(first, batches) for first in self._first]
        self._graph = graph
        self._random = np.random.default_rng(_SEED)
        self._sums = [_Sum() for _ in alike]

    def is_of(self, alike: Sequence[Sequence[Operator]]) -> bool:
        """Return whether these are the operators."""
        return self._names == [[operator.name for operator in operators] for operators in alike]

    def see(self, values: Tensors) -> None:
        """Add what the operators read of one batch, given the values by name."""
        for first, limit, total in zip(self._first, self._limits, self._sums, strict=True):
            places = choose_patches(first, limit, self._random)
            data = values[self._graph.names[first.inputs[0]]]
            total.add(input_patches(first, self._graph, data, places))

    def moments(self, alike: Sequence[Sequence[Operator]]) -> Iterator[tuple[Operator, Moments]]:
        """Yield the moments of each operator, once: sums are let go."""
        self._sums.reverse()
        for operators in alike:
            moments = self._sums.pop().moments()
            yield from ((operator, moments) for operator in operators)


def patches_per_batch(operator: Operator, batches: int | None, times: int = 1) -> int:
    """Return how many patches of each batch are looked at, `times` as many as a mean needs."""
    if batches is None:
        return MAX_PATCHES
    wanted = times * max(MIN_PATCHES, PATCHES_PER_INPUT * patch_length(operator))
    return min(MAX_PATCHES, -(-wanted // max(batches, 1)))


def choose_patches(operator: Operator, limit: int, random: np.random.Generator) -> NDArray[np.intp]:
    """Return places of the patches of a batch, all of them or `limit` at random."""
    count = _places(operator)
    return np.arange(count) if count <= limit else random.choice(count, limit, replace=False)


def _places(operator: Operator) -> int:
    """Return how many patches a batch has."""
    shape = shape_of(operator.anchor) or ()
    return math.prod(shape) // (shape[-1] if operator.kind == "matmul" else shape[1])


def input_patches(
    operator: Operator, graph: Graph, data: NDArray[np.float32], places: NDArray[np.intp]
) -> Floats:
    """Return the input patches in some places of an operator, [groups, patch length, patches].

    The order in a patch is that of the weights: input channel, then place in the kernel.
    """
    if operator.kind == "matmul":
        rows = np.asarray(data, np.float32).reshape(-1, data.shape[-1])
        return np.ascontiguousarray(rows[places].T)[None]
    assert operator.weight is not None
    attributes = graph.definitions[operator.anchor].attrs
    top, left, bottom, right = (int(n) for n in attributes.padding)
    if any((top, left, bottom, right)):
        data = np.pad(data, ((0, 0), (0, 0), (top, bottom), (left, right)))
    batch, channels, height, width = data.shape
    strides = [int(n) for n in attributes.strides]
    dilation = [int(n) for n in attributes.dilation]
    kernel = operator.weight.array.shape[2:]
    tall, wide = (
        (size - (k - 1) * d - 1) // s + 1
        for size, k, d, s in zip((height, width), kernel, dilation, strides, strict=True)
    )
    image, row, column = np.unravel_index(places, (batch, tall, wide))
    # Where a patch begins in a channel of all images, and how far from there its values are.
    begin = (image * height + row * strides[0]) * width + column * strides[1]
    down, along = (np.arange(k) * d for k, d in zip(kernel, dilation, strict=True))
    offsets = (down[:, None] * width + along).reshape(-1, 1)
    flat = data.transpose(1, 0, 2, 3).reshape(channels, -1)
    patches = np.take(flat, offsets + begin, axis=1)
    groups = int(attributes.groups)
    return patches.reshape(groups, channels // groups * offsets.size, len(places))
