"""Provide decisions about a direct convolution: its register tile, and the order of its tasks."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

from edgec.compiler.kernels.conv.winograd_decision import WinogradDecision, winograd_space
from edgec.compiler.kernels.conv.workload import ConvWorkload
from edgec.compiler.kernels.emit.machine_model import tile_room
from edgec.targets.target import Target

# Blocks of output channels in a register tile.
MOST_VECTORS = 8


@dataclass(frozen=True)
class ConvDecision:
    """A conv decision describes how a convolution is computed.

    Attributes:
        tile_h: lines in the register tile; above 1 only where a tile spans whole lines.
        tile_w: pixels of a line in the register tile.
        tile_o: blocks of output channels in the register tile.
        rows_first: consecutive tasks share weights (true) or input lines (false).
        segment: register tiles of a line in one task, where a 1x1 convolution makes one long
            line of the image; 0 is the whole line.
    """

    tile_h: int
    tile_w: int
    tile_o: int
    rows_first: bool = True
    segment: int = 0


@lru_cache(maxsize=256)
def flattened(workload: ConvWorkload) -> ConvWorkload:
    """Return the workload; of a 1x1 convolution without stride, with one long line.

    Every estimate of a decision asks for it.
    """
    whole = workload.out_extent == (workload.out_h, workload.out_w)
    same = (workload.in_h, workload.in_w) == (workload.out_h, workload.out_w)
    if workload.kernel != (1, 1) or workload.stride != (1, 1) or not whole or not same:
        return workload
    pixels = workload.in_h * workload.in_w
    return replace(
        workload, in_h=1, in_w=pixels, out_h=1, out_w=pixels, full_out=(0, 0), padding=(0, 0)
    )


def fitted(decision: ConvDecision, phase: ConvWorkload) -> ConvDecision:
    """Return the decision for a phase that may be a pixel narrower."""
    width = min(decision.tile_w, phase.out_w)
    height = 1 if width != phase.out_w else min(decision.tile_h, phase.out_h)
    return replace(decision, tile_w=width, tile_h=height)


def conv_space(workload: ConvWorkload, target: Target) -> list[ConvDecision | WinogradDecision]:
    """Return every decision that makes sense, direct or by Winograd's algorithm."""
    return [*direct_space(workload, target), *winograd_space(workload, target)]


def direct_space(
    workload: ConvWorkload,
    target: Target,
    room_of: Callable[[int], int] | None = None,
    most_vectors: int = MOST_VECTORS,
) -> list[ConvDecision]:
    """Return decisions whose register tile fits the registers.

    Args:
        workload: the convolution.
        target: where.
        room_of: pixels that fit beside so many vectors of weights, see `tile_room`.
        most_vectors: blocks of output channels in a register tile.
    """
    flat = flattened(workload)
    blocks = math.ceil(flat.out_channels / target.float_lanes)
    decisions = []
    for tile_o in range(1, min(blocks, most_vectors) + 1):
        room = room_of(tile_o) if room_of is not None else tile_room(tile_o, target)
        if room < 1:
            continue
        widths = {min(flat.out_w, width) for width in range(1, room + 1)}
        for tile_w in sorted(widths):
            heights = [1]
            if tile_w == flat.out_w:
                heights += range(2, min(flat.out_h, room // tile_w) + 1)
            for tile_h in heights:
                for segment in _segments(flat, tile_w) if tile_h == 1 else [0]:
                    for rows_first in (True, False):
                        decisions.append(ConvDecision(tile_h, tile_w, tile_o, rows_first, segment))
    return decisions


def _is_long_line(flat: ConvWorkload) -> bool:
    """Return whether this is a 1x1 convolution without rows, so that a line can be cut anywhere."""
    return flat.kernel == (1, 1) and flat.out_h == 1 and flat.in_w == flat.out_w


def _segments(flat: ConvWorkload, tile_w: int) -> list[int]:
    """Return ways to cut a long line: whole, in halves, quarters and so on."""
    if not _is_long_line(flat):
        return [0]
    tiles = math.ceil(flat.out_w / tile_w)
    counts = {math.ceil(tiles / 2**power) for power in range(1, tiles.bit_length())}
    return [0, *sorted(count for count in counts if 1 < count < tiles)]
