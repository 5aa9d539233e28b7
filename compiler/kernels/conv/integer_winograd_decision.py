"""Provide decisions about a convolution of quantized values by Winograd's algorithm.

`integer_winograd.py` has the algorithm and the meaning of its parts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.kernels.conv.integer_winograd_changes import CHANGES, GROUPS
from edgec.compiler.kernels.conv.winograd_decision import (
    FEW_TASKS,
    STACK_BYTES,
    TILE_SIZES,
    WinogradDecision,
    tiles_of,
)
from edgec.compiler.kernels.conv.winograd_task import lines_apart
from edgec.compiler.kernels.conv.workload import ConvWorkload, QuantizedConvWorkload
from edgec.compiler.kernels.emit.epilogue import cost
from edgec.compiler.kernels.emit.machine_model import (
    FAR_BYTES_PER_CYCLE,
    FMA_LATENCY_CYCLES,
    ISSUE_WIDTH,
    KIB,
    LOOP_STEP_INSTRUCTIONS,
    half_l2,
    imbalance_of,
)
from edgec.compiler.kernels.isa import dot_of, isa_of
from edgec.compiler.numerics.pair_sums import pair_sums
from edgec.targets.target import Target

Ends = tuple[int, int]
"""The smallest and the largest value."""

WORD_BYTES = 4
# Of one block, copied at once: the bytes of a vector of int32.
COPIED_PIXELS = 4
# By rows of output pixels in a tile: how many values sums of windows may have; see the kernel.
MOST_SUMS = {2: 2**30, 4: 2**26}
# To change a patch of two blocks, the weights of a pair of input channels, and the products of a
# tile, each for a vector, and to copy a vector of pixels of either block, in the cycles of the
# model for each instruction of a product. Fitted on a Zen 4 to kernels for m = 4, half with
# vpmaddwd and half with vpdpwssd, of which the estimate is within a tenth, relative to each other;
# for m = 2 in proportion.
PATCH_CYCLES = {2: 50, 4: 105}
WINDOW_CYCLES = {2: 20, 4: 45}
TOTAL_CYCLES = {2: 20, 4: 60}
COPY_CYCLES = 5
# How much less a core waits for what it reads in order from beyond the second-level cache.
IN_ORDER_GAIN = 8.0
# Beside accumulators and weights: a value in all lanes, and a product.
TEMPORARIES = 2


def suits_integer_winograd(work: ConvWorkload, out: int, target: Target) -> bool:
    """Return whether a convolution is 3x3, of this kind, and at least as large as a tile."""
    return (
        isa_of(target).pair_dot() is not None
        and work.kernel == (3, 3)
        and work.stride == (1, 1)
        and work.dilation == (1, 1)
        and work.groups == 1
        and not work.plain_input
        and work.out_extent == (work.out_h, work.out_w)
        and min(work.padding) >= 0
        and min(work.out_h, work.out_w) >= out
    )


def data_ends(wide: bool, target: Target, weight: NDArray[np.int8]) -> Ends:
    """Return the smallest and the largest quantized value that the data of a layer can have.

    Where products are added in int16, they are known to fit (`Dot.cannot_saturate`), which bounds
    the data.

    Args:
        wide: whether they are not added in int16.
        target: where.
        weight: [out_channels, in_channels, 3, 3].
    """
    dot = dot_of(target)
    assert dot is not None
    limits = np.iinfo(dot.data)
    if wide or dot.exact_fallback is None:
        return int(limits.min), int(limits.max)
    most = max(1, int(pair_sums(weight, 1, 1).max(initial=0)))
    return int(limits.min), min(int(limits.max), np.iinfo(np.int16).max // most)


def bounds_of_sums(weight: NDArray[np.int8], ends: Ends) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the least and the most that sums of windows can be, by output channel; int64."""
    flat = weight.reshape(len(weight), -1).astype(np.int64)
    products = [flat * end for end in ends]
    return np.minimum(*products).sum(axis=1), np.maximum(*products).sum(axis=1)


def is_exact(weight: NDArray[np.int8], out: int, ends: Ends) -> bool:
    """Return whether all sums of such data and these weights are exact.

    Args:
        weight: [out_channels, in_channels, 3, 3].
        out: rows and columns of output pixels in a tile.
        ends: the smallest and the largest quantized value of the data.
    """
    least, most = bounds_of_sums(weight, ends)
    return bool((most - least).max(initial=0) < MOST_SUMS[out])


def pairs_of(work: ConvWorkload) -> int:
    """Return pairs of input channels."""
    return math.ceil(work.in_channels / 2)


@dataclass(frozen=True)
class TileGroup:
    """A tile group is tiles of a task that are changed alike.

    Attributes:
        first: the number of the first one in the task.
        count: how many.
        columns: tiles in a row of them.
        row: the first output row of the first one.
        column: its first output column.
        outs: output rows and columns of each.
    """

    first: int
    count: int
    columns: int
    row: int
    column: int
    outs: tuple[int, int]


def tile_groups(work: ConvWorkload, decision: WinogradDecision) -> list[TileGroup]:
    """Return the tiles of a task by what they are changed by.

    Where a task is a whole image, tiles at its end are as small as what is left, and need fewer
    products. They are in such an order that tiles with a product at the same position follow each
    other: those with few columns, whole ones, those with few rows, the one with few of both. Else
    the last tiles overlap their neighbours.
    """
    out, (rows, columns) = decision.out, tiles_of(work, decision.out)
    if decision.register_tiles * decision.repeats < rows * columns:
        count = decision.register_tiles * decision.repeats
        return [TileGroup(0, count, columns, 0, 0, (out, out))]
    whole_rows, rest_rows = divmod(work.out_h, out)
    whole_columns, rest_columns = divmod(work.out_w, out)
    row, column = whole_rows * out, whole_columns * out
    parts = [
        (whole_rows, 1, 0, column, (out, rest_columns)),
        (whole_rows, whole_columns, 0, 0, (out, out)),
        (1, whole_columns, row, 0, (rest_rows, out)),
        (1, 1, row, column, (rest_rows, rest_columns)),
    ]
    groups: list[TileGroup] = []
    for high, wide, top, left, outs in parts:
        if min(outs):
            first = groups[-1].first + groups[-1].count if groups else 0
            groups.append(TileGroup(first, high * wide, wide, top, left, outs))
    return groups


def range_of(groups: Sequence[TileGroup], points: tuple[str, str]) -> tuple[int, int]:
    """Return the first tile that has a product at a position, and behind the last one."""
    having = [
        group
        for group in groups
        if all(point in CHANGES[m].points for point, m in zip(points, group.outs, strict=True))
    ]
    return having[0].first, having[-1].first + having[-1].count


def products_of(work: ConvWorkload, decision: WinogradDecision) -> int:
    """Return register tiles that a task multiplies for a tile of output channels."""
    groups, points = tile_groups(work, decision), CHANGES[decision.out].points
    ranges = [range_of(groups, (y, x)) for y in points for x in points]
    return sum(math.ceil((end - first) / decision.register_tiles) for first, end in ranges)


def copied_lines(work: ConvWorkload, decision: WinogradDecision) -> int:
    """Return lines of the image that the patches of a task lie in, at most."""
    rows, columns = tiles_of(work, decision.out)
    block = decision.register_tiles * decision.repeats
    if block >= rows * columns:
        return work.out_h + 2
    most = 0
    for first in range(0, rows * columns, block):
        first = min(first, rows * columns - block)
        ends = [tile // columns * decision.out for tile in (first, first + block - 1)]
        first_row, last_row = (min(end, work.out_h - decision.out) for end in ends)
        most = max(most, last_row - first_row + decision.patch)
    return most


def held_values(work: ConvWorkload, decision: WinogradDecision, c: int) -> tuple[int, int, int]:
    """Return int32 values between positions in patches, in weights and in products of a task."""
    tiles, width = decision.register_tiles * decision.repeats, decision.vectors * c
    patches = math.ceil(pairs_of(work) / c) * tiles * c
    weights = pairs_of(work) * width
    return lines_apart(patches), lines_apart(weights), lines_apart(tiles * width)


def held_bytes(work: ConvWorkload, decision: WinogradDecision, c: int) -> tuple[int, int, int]:
    """Return bytes of patches, of weights of some rows of positions, and of products of a task."""
    patches, weights, products = held_values(work, decision, c)
    group = len(GROUPS[decision.out][0]) * decision.patch
    return (
        decision.positions * patches * WORD_BYTES,
        group * weights * WORD_BYTES,
        decision.positions * products * WORD_BYTES,
    )


def integer_winograd_space(
    workload: QuantizedConvWorkload, target: Target
) -> list[WinogradDecision]:
    """Return decisions whose register tile fits the registers, and what a task holds its stack."""
    work, c = workload.conv, target.float_lanes
    blocks = math.ceil(work.out_channels / c)
    decisions = []
    for out in TILE_SIZES:
        if not suits_integer_winograd(work, out, target):
            continue
        count = math.prod(tiles_of(work, out))
        for vectors in range(1, min(blocks, 4) + 1):
            room = (target.vector_registers - vectors - TEMPORARIES) // vectors
            for tiles in range(1, min(count, room) + 1):
                for repeats in (1, 2, 3, 4, 5, 6, 8, 12):
                    decision = WinogradDecision(tiles, vectors, repeats, out)
                    held = sum(held_bytes(work, decision, c))
                    if tiles * repeats > count or held > STACK_BYTES:
                        continue
                    tasks = work.batch * math.ceil(count / (tiles * repeats))
                    most = math.ceil(blocks / vectors) if tasks < FEW_TASKS else 1
                    splits = range(1, min(target.cores, most) + 1)
                    decisions += [replace(decision, splits=number) for number in splits]
    return decisions


def estimate_integer_winograd_cycles(
    workload: QuantizedConvWorkload, decision: WinogradDecision, target: Target
) -> float:
    """Return cycles as the model of the direct convolution of quantized values counts them."""
    work, c, out, units = workload.conv, target.float_lanes, decision.out, target.fma_units
    pair_dot = isa_of(target).pair_dot()
    assert pair_dot is not None
    each = pair_dot.instructions
    tiles, vectors = decision.register_tiles, decision.vectors
    block = tiles * decision.repeats
    blocks = work.batch * math.ceil(math.prod(tiles_of(work, out)) / block)
    tasks = blocks * decision.splits
    all_out_tiles = math.ceil(math.ceil(work.out_channels / c) / vectors)
    out_tiles = math.ceil(all_out_tiles / decision.splits)
    words = pairs_of(work)
    products = tiles * vectors
    if each == 1:
        # What else there is to do comes beside the products, which wait for those before.
        step = max(products, FMA_LATENCY_CYCLES) / units
    else:
        step = products * each / units
        step += (tiles + vectors + LOOP_STEP_INSTRUCTIONS) / ISSUE_WIDTH
    multiplying = products_of(work, decision) * words * step
    windows = words * vectors * WINDOW_CYCLES[out] * each
    epilogue = out * out * cost(work.epilogue) / units
    totals = block * vectors * (TOTAL_CYCLES[out] * each + epilogue)
    copied = copied_lines(work, decision) * math.ceil(work.in_w / COPIED_PIXELS) * COPY_CYCLES
    patches = math.ceil(words / c) * (block * PATCH_CYCLES[out] + copied) * each
    task = patches + out_tiles * (windows + multiplying + totals)
    held, weights, products = held_bytes(work, decision, c)
    if held + weights + products > target.l2_kib * KIB:
        again = out_tiles * (held + 2 * len(GROUPS[out]) * weights) / IN_ORDER_GAIN
        task += (2 * held + again) / FAR_BYTES_PER_CYCLE
    image = work.batch * work.in_channels * work.in_h * work.in_w
    weights = 9 * work.in_channels * work.out_channels
    far = image + weights * (blocks if weights > half_l2(target) else 1)
    return tasks * task * imbalance_of(tasks, target) + far / FAR_BYTES_PER_CYCLE
