"""Provide packed weights of direct convolution: the order in which the kernel reads them."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.kernels.conv.decision import ConvDecision
from edgec.compiler.kernels.conv.workload import ConvWorkload
from edgec.compiler.numerics.pair_sums import DOT_WIDTH
from edgec.targets.target import Target


def block_size(workload: ConvWorkload, c: int) -> int:
    """Return channels in a block of the input."""
    return 1 if workload.plain_input else c


@dataclass(frozen=True)
class InputChannels:
    """Input channels describe which input blocks each tile of output channels reads.

    Attributes:
        blocks: number of input blocks that a tile reads, the same for all.
        last: channels used of the last of them.
        starts: first input block by tile.
    """

    blocks: int
    last: int
    starts: tuple[int, ...]


@lru_cache(maxsize=256)
def input_channels(workload: ConvWorkload, tile_o: int, c: int, size: int) -> InputChannels:
    """Return which input blocks the tiles of `tile_o` blocks of output channels read.

    Args:
        workload: the convolution.
        tile_o: blocks of output channels in a tile.
        c: lanes.
        size: channels in a block of the input.
    """
    total = math.ceil(workload.in_channels / size)
    tiles = math.ceil(math.ceil(workload.out_channels / c) / tile_o)
    if workload.groups == 1:
        return InputChannels(total, workload.in_channels - (total - 1) * size, (0,) * tiles)
    spans = [
        (first // size, math.ceil(past / size)) for first, past in group_spans(workload, tile_o, c)
    ]
    blocks = max(end - start for start, end in spans)
    starts = tuple(min(start, total - blocks) for start, _ in spans)
    return InputChannels(blocks, size, starts)


@lru_cache(maxsize=256)
def group_spans(workload: ConvWorkload, tile_o: int, c: int) -> tuple[tuple[int, int], ...]:
    """Return the first input channel that each tile reads, and the one past its last.

    Args:
        workload: a convolution in groups.
        tile_o: blocks of output channels in a tile.
        c: lanes.
    """
    out_group = workload.out_channels // workload.groups
    in_group = workload.in_channels // workload.groups
    spans = []
    for first in range(0, workload.out_channels, tile_o * c):
        last = min(workload.out_channels, first + tile_o * c) - 1
        spans.append((first // out_group * in_group, (last // out_group + 1) * in_group))
    return tuple(spans)


def grouped_rows(workload: ConvWorkload, tile_o: int, c: int) -> int:
    """Return the rows of packed weights of the tile that reads most; see `group_spans`."""
    spans = group_spans(workload, tile_o, c)
    return math.prod(workload.kernel) * max(past - first for first, past in spans)


def mean_depth(workload: ConvWorkload, tile_o: int, c: int, block: int | None = None) -> float:
    """Return the products that a tile adds for each output, on average.

    Args:
        workload: the convolution.
        tile_o: blocks of output channels in a tile.
        c: lanes.
        block: channels in a block of the input; None: what the layout of floats has.
    """
    taps = math.prod(workload.kernel)
    if workload.groups > 1 and block is None:
        spans = group_spans(workload, tile_o, c)
        return taps * sum(past - first for first, past in spans) / len(spans)
    size = block or block_size(workload, c)
    channels = input_channels(workload, tile_o, c, size)
    return taps * ((channels.blocks - 1) * size + channels.last)


def pack_weight(
    workload: ConvWorkload, decision: ConvDecision, weight: NDArray[Any], c: int, size: int
) -> NDArray[Any]:
    """Return weights in the order in which the kernel reads them.

    Args:
        workload: the convolution.
        decision: its register tile.
        weight: [out_channels, in_channels / groups, kh, kw].
        c: lanes.
        size: channels in a block of the input.

    Returns:
        [tiles, rows, tile_o * c], zero where an output channel does not exist or belongs to
        another group than the input channel.
    """
    channels = input_channels(workload, decision.tile_o, c, size)
    kh, kw = workload.kernel
    width = decision.tile_o * c
    in_group = workload.in_channels // workload.groups
    out_group = workload.out_channels // workload.groups
    tiles = []
    for tile, start in enumerate(channels.starts):
        block = np.zeros((channels.blocks * size, kh, kw, width), weight.dtype)
        for lane in range(width):
            out = tile * width + lane
            if out >= workload.out_channels:
                break
            first = (out // out_group) * in_group - start * size
            block[first : first + in_group, :, :, lane] = weight[out]
        rows = []
        for index in range(channels.blocks):
            used = channels.last if index == channels.blocks - 1 else size
            part = block[index * size : index * size + used]
            rows.append(part.transpose(1, 2, 0, 3).reshape(-1, width))
        tiles.append(np.concatenate(rows))
    return np.stack(tiles)


def pack_grouped_weight(
    workload: ConvWorkload, decision: ConvDecision, weight: NDArray[Any], c: int
) -> NDArray[Any]:
    """Return weights of groups in the order in which the kernel of `grouped.py` reads them.

    Args:
        workload: the convolution.
        decision: its register tile.
        weight: [out_channels, in_channels / groups, kh, kw].
        c: lanes.

    Returns:
        [tiles, rows of the tile that reads most, tile_o * c], zero where an output channel does
        not exist or belongs to another group than the input channel, and past a tile's rows.
    """
    spans = group_spans(workload, decision.tile_o, c)
    width = decision.tile_o * c
    in_group = workload.in_channels // workload.groups
    out_group = workload.out_channels // workload.groups
    rows = grouped_rows(workload, decision.tile_o, c)
    packed = np.zeros((len(spans), rows, width), weight.dtype)
    for tile, (first, past) in enumerate(spans):
        every = np.zeros((past - first, *workload.kernel, width), weight.dtype)
        for lane in range(min(width, workload.out_channels - tile * width)):
            out = tile * width + lane
            start = out // out_group * in_group - first
            every[start : start + in_group, :, :, lane] = weight[out]
        # Blocks of input channels, cut where the activations are.
        cuts = range(first // c * c + c, past, c)
        parts = np.split(every, [cut - first for cut in cuts])
        used = np.concatenate([part.transpose(1, 2, 0, 3).reshape(-1, width) for part in parts])
        packed[tile, : len(used)] = used
    return packed


def pack_scales(decision: ConvDecision, scales: NDArray[Any], c: int) -> NDArray[Any]:
    """Return scales [out_channels, groups] as [tiles, groups, tile_o * c]."""
    width = decision.tile_o * c
    outputs, groups = scales.shape
    padded = np.pad(scales, ((0, -outputs % width), (0, 0)))
    return np.ascontiguousarray(padded.reshape(-1, width, groups).transpose(0, 2, 1))


def pack_groups(workload: ConvWorkload, groups: NDArray[Any], c: int) -> NDArray[Any]:
    """Return the group of each weight [1, in_channels, kh, kw], by row of the packed weights."""
    alone = replace(workload, out_channels=1)
    return pack_weight(alone, ConvDecision(1, 1, 1), groups, c, block_size(workload, c))[0, :, 0]


def packed_size(
    workload: ConvWorkload, decision: ConvDecision, target: Target, block: int | None = None
) -> int:
    """Return values in a packed weight."""
    c = target.float_lanes
    if workload.groups > 1 and block is None:
        tiles = len(group_spans(workload, decision.tile_o, c))
        return tiles * grouped_rows(workload, decision.tile_o, c) * decision.tile_o * c
    size = block or block_size(workload, c)
    channels = input_channels(workload, decision.tile_o, c, size)
    depth = (channels.blocks - 1) * size + channels.last
    return len(channels.starts) * depth * math.prod(workload.kernel) * decision.tile_o * c


def groups_of(weight: NDArray[Any]) -> NDArray[Any]:
    """Return weights int8 [outputs, inputs, …] as int32 [outputs, groups, …].

    >>> groups_of(np.array([[1, 0, 0, 1, 2]], np.int8)).tolist()
    [[16777217, 2]]
    """
    outputs, inputs, *window = weight.shape
    padded = np.zeros((outputs, math.ceil(inputs / DOT_WIDTH) * DOT_WIDTH, *window), np.int8)
    padded[:, :inputs] = weight
    split = padded.reshape(outputs, -1, DOT_WIDTH, *window)
    return np.ascontiguousarray(np.moveaxis(split, 2, -1)).view(np.int32)[..., 0]
