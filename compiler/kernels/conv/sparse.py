"""Provide convolutions with weights that are mostly zeros; see `sparse`.

The register tile is that of `conv`: pixels, and the blocks of output channels that share lists.
Each place of the window has a list of its own, so that border pixels are handled as they are
there. The place of an input is its channel's distance from the first channel, in values.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.kernels.conv.decision import ConvDecision, direct_space, flattened
from edgec.compiler.kernels.conv.direct import DirectConv
from edgec.compiler.kernels.conv.windows import valid_tap_runs
from edgec.compiler.kernels.conv.workload import ConvBuffers, ConvWorkload
from edgec.compiler.kernels.emit.emitter import Emitter, wide
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.emit.machine_model import (
    FAR_BYTES_PER_CYCLE,
    FLOAT_BYTES,
    NEAR_BYTES_PER_CYCLE,
    half_l2,
    imbalance_of,
    multiply_cycles,
    tile_overhead_cycles,
)
from edgec.compiler.kernels.sparse_lists import ListBuffers, Lists, entry_cycles, make_lists
from edgec.compiler.kernels.template import Template
from edgec.targets.target import Target

# To find the bounds of a list and start its loop.
_LIST_CYCLES = 12.0


@dataclass(frozen=True)
class SparseConvWorkload:
    """A sparse conv workload describes a convolution with lists, of one group and a blocked input.

    Attributes:
        conv: its extents and epilogue.
        width: output channels that share lists: whole blocks.
        entries: the entries of all lists, at least 1.
    """

    conv: ConvWorkload
    width: int
    entries: int

    @property
    def macs(self) -> int:
        """Return multiply-accumulates that are left."""
        return self.conv.batch * self.conv.out_h * self.conv.out_w * self.entries * self.width

    @property
    def tiles(self) -> int:
        """Return the tiles of output channels."""
        return math.ceil(self.conv.out_channels / self.width)

    @property
    def lists(self) -> int:
        """Return one for each tile of output channels and place of the window."""
        return self.tiles * math.prod(self.conv.kernel)


def lists_of_weight(
    workload: ConvWorkload, weight: NDArray[np.float32], width: int, c: int
) -> Lists:
    """Return the lists of weights [O, C, kh, kw], for an input of blocks of c channels."""
    out_channels, channels, *window = weight.shape
    tiles = math.ceil(out_channels / width)
    padded = np.zeros((tiles * width, channels, *window), np.float32)
    padded[:out_channels] = weight
    split = padded.reshape(tiles, width, channels, *window).transpose(0, 3, 4, 2, 1)
    channel = np.arange(channels)
    places = channel // c * (workload.in_h * workload.in_w * c) + channel % c
    return make_lists(split.reshape(-1, channels, width), places)


def sparse_conv_space(workload: SparseConvWorkload, target: Target) -> list[ConvDecision]:
    """Register tiles of as many blocks as share lists."""
    vectors = workload.width // target.float_lanes
    return [d for d in direct_space(workload.conv, target) if d.tile_o == vectors]


def estimate_sparse_conv_cycles(
    workload: SparseConvWorkload, decision: ConvDecision, target: Target
) -> float:
    """Return multiplying, loading and issuing for each entry.

    And streaming what no cache keeps near.
    """
    flat = flattened(workload.conv)
    pixels, vectors = decision.tile_h * decision.tile_w, decision.tile_o
    fmas = pixels * vectors
    step = max(multiply_cycles(fmas, target), entry_cycles(pixels, vectors, target))
    starts_w = math.ceil(flat.out_w / decision.tile_w)
    starts_h = math.ceil(flat.out_h / decision.tile_h)
    lines = starts_h if not decision.segment else math.ceil(starts_w / decision.segment)
    overhead = tile_overhead_cycles(fmas, flat.epilogue)
    lists = workload.lists / workload.tiles
    each = workload.entries / workload.tiles * step + lists * _LIST_CYCLES + overhead
    tasks = flat.batch * lines * workload.tiles
    compute = flat.batch * starts_w * starts_h * workload.tiles * each * imbalance_of(tasks, target)
    # What is read again for every tile of output channels, or for every line.
    in_bytes = FLOAT_BYTES * flat.in_channels * flat.in_h * flat.in_w
    value_bytes = FLOAT_BYTES * workload.entries * (workload.width + 1)
    again, kept = (workload.tiles, in_bytes) if decision.rows_first else (lines, value_bytes)
    other = value_bytes if decision.rows_first else in_bytes
    speed = FAR_BYTES_PER_CYCLE if kept > half_l2(target) else NEAR_BYTES_PER_CYCLE
    return compute + flat.batch * (kept * again / speed + other / FAR_BYTES_PER_CYCLE)


def default_sparse_conv_decision(workload: SparseConvWorkload, target: Target) -> ConvDecision:
    """Return the decision of the lowest estimate; ties go to the one with more pixels."""
    return min(
        sparse_conv_space(workload, target),
        key=lambda d: (estimate_sparse_conv_cycles(workload, d, target), -d.tile_h * d.tile_w),
    )


def emit_sparse_conv(
    workload: SparseConvWorkload, decision: ConvDecision, target: Target, name: str
) -> Kernel:
    """Write the kernel.

    Its buffers are data, values, places and starts of the lists, the operands of the epilogue,
    and output.
    """
    e, c = Emitter(target), target.float_lanes
    work, values = flattened(workload.conv), workload.entries * workload.width
    others = ListBuffers.sizes(workload.entries, workload.lists)
    buffers = ConvBuffers.declare(e, work, values, c, others=others)
    conv = _SparseConv(work, decision, c, e, buffers, 0)
    conv.lists = ListBuffers(*buffers.others)
    with e.tasks() as task:
        conv.body(task)
    return Kernel(e.function(name), conv.tasks)


class _SparseConv(DirectConv):
    """Writes one convolution with lists into an emitter."""

    lists: ListBuffers

    def accumulate_taps(self, column: Any, valid: Sequence[Sequence[bool]], window: Any) -> None:
        w, e = self.work, self.emit
        taps_h, taps_w = w.kernel
        source = self.image * self.in_blocks * w.in_h
        left = column * w.stride[1] - w.padding[1]
        for kh, top, lines in window():
            base = e.let("base", ((source + top) * w.in_w + left) * self.block)
            for first, count in valid_tap_runs(valid, self.border):
                inside = [pixel[first] for pixel in valid]
                with e.loop("kw", self.hide_from_llvm(count), first) as kw:
                    at = e.let("at", wide(base + kw * (w.dilation[1] * self.block)))
                    number = (self.tile * taps_h + kh) * taps_w + kw
                    start, entries = self.lists.bounds(e, e.let("list", number))
                    with e.loop("entry", entries, wide=True) as entry:
                        row = e.let("row", wide(start) + entry)
                        place = self.lists.place(e, row)
                        vectors = [
                            [e.let("w", self.weights_at(row * self.width + o * self.c))]
                            for o in range(self.plan.tile_o)
                        ]
                        self.multiply(vectors, at, [place], inside, lines)


TEMPLATE = Template(
    SparseConvWorkload,
    ConvDecision,
    sparse_conv_space,
    default_sparse_conv_decision,
    emit_sparse_conv,
    estimate=estimate_sparse_conv_cycles,
)
