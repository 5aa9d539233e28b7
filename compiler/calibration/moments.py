"""Provide second moments of what convolutions and matrix products read.

With x one input vector of a dot product (an image patch, or a row), rounding weights W to W + D
adds the error E[(D x)^2] = D E[x x^T] D^T to an output in the mean. So E[x x^T] is all that
rounding must know.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.calibration.float_model import FloatModel, observe
from edgec.compiler.calibration.samples import Samples
from edgec.compiler.ir.anchors import Operator
from edgec.compiler.ir.graph import Graph
from edgec.compiler.ir.relax_helpers import shape_of
from edgec.compiler.numerics.affine import Floats
from edgec.compiler.support.progress import Progress

# Patches of each batch that are looked at, and over all batches for each input of a dot product:
# enough for a mean, few enough to be quick.
MAX_PATCHES = 1024
PATCHES_PER_INPUT = 8
MIN_PATCHES = 8192

# Matrices that are in memory at a time; operators beyond that are seen in another run.
MAX_BYTES = 400 * 2**20

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
) -> Iterator[tuple[Operator, Moments]]:
    """Yield the moments of one operator after the other; `MAX_BYTES` of them in memory."""
    chunk: list[Operator] = []
    size = 0
    for operator in operators:
        added = 4 * _matrix_size(operator, model.graph)
        if chunk and size + added > MAX_BYTES:
            yield from _measure(model, chunk, samples, progress)
            chunk, size = [], 0
        chunk.append(operator)
        size += added
    if chunk:
        yield from _measure(model, chunk, samples, progress)


def _matrix_size(operator: Operator, graph: Graph) -> int:
    return groups_of(operator, graph) * patch_length(operator) ** 2


def patch_length(operator: Operator) -> int:
    """Return length of one patch."""
    assert operator.weight is not None
    array = operator.weight.array
    return array.shape[0] if operator.kind == "matmul" else int(array[0].size)


def _measure(
    model: FloatModel,
    operators: Sequence[Operator],
    samples: Samples,
    progress: Progress | None,
) -> Iterator[tuple[Operator, Moments]]:
    random = np.random.default_rng(_SEED)
    totals: dict[str, list[Floats]] = {}
    count = dict.fromkeys((o.name for o in operators), 0)
    graph = model.graph
    limits = {o.name: patches_per_batch(o, samples.count) for o in operators}
    for values in observe(model, samples, "moments", progress):
        for operator in operators:
            data = values[graph.names[operator.inputs[0]]]
            places = choose_patches(operator, limits[operator.name], random)
            patches = input_patches(operator, graph, data, places)
            second, mean = patches.transpose(0, 2, 1) @ patches, patches.sum(axis=1)
            if operator.name in totals:
                totals[operator.name][0] += second
                totals[operator.name][1] += mean
            else:
                totals[operator.name] = [second, mean]
            count[operator.name] += patches.shape[1]
    for operator in operators:
        second, mean = totals.pop(operator.name)
        number = np.float32(count[operator.name])
        yield operator, Moments(second / number, mean / number, count[operator.name])


def patches_per_batch(operator: Operator, batches: int | None, times: int = 1) -> int:
    """Return how many patches of each batch are looked at, `times` as many as a mean needs."""
    if batches is None:
        return MAX_PATCHES
    wanted = times * max(MIN_PATCHES, PATCHES_PER_INPUT * patch_length(operator))
    return min(MAX_PATCHES, -(-wanted // max(batches, 1)))


def choose_patches(operator: Operator, limit: int, random: np.random.Generator) -> NDArray[np.intp]:
    """Return places of the patches of a batch, all of them or `limit` at random."""
    shape = shape_of(operator.anchor) or ()
    count = math.prod(shape) // (shape[-1] if operator.kind == "matmul" else shape[1])
    return np.arange(count) if count <= limit else random.choice(count, limit, replace=False)


def input_patches(
    operator: Operator, graph: Graph, data: NDArray[np.float32], places: NDArray[np.intp]
) -> Floats:
    """Return the input patches in some places of an operator, [groups, patches, patch length].

    The order in a patch is that of the weights: input channel, then place in the kernel.
    """
    if operator.kind == "matmul":
        return np.asarray(data, np.float32).reshape(-1, data.shape[-1])[places][None]
    assert operator.weight is not None
    attributes = graph.definitions[operator.anchor].attrs
    top, left, bottom, right = (int(n) for n in attributes.padding)
    strides = [int(n) for n in attributes.strides]
    dilation = [int(n) for n in attributes.dilation]
    kernel = operator.weight.array.shape[2:]
    padded = data
    if any((top, left, bottom, right)):
        padded = np.pad(data, ((0, 0), (0, 0), (top, bottom), (left, right)))
    span = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, span, axis=(2, 3))
    windows = windows[:, :, :: strides[0], :: strides[1], :: dilation[0], :: dilation[1]]
    # [N, C, H, W, kh, kw] -> [patches, C, kh, kw] -> [groups, patches, C / groups * kh * kw]
    batch, channels, height, width = windows.shape[:4]
    image, row, column = np.unravel_index(places, (batch, height, width))
    patches = windows[image, :, row, column]
    groups = int(attributes.groups)
    split = patches.reshape(len(places), groups, channels // groups * kernel[0] * kernel[1])
    return np.ascontiguousarray(split.transpose(1, 0, 2))
