"""Provide grouped convolution on channel-blocked activations of floats.

Groups need not begin where blocks of channels do: 34 channels of a group are two blocks and an
eighth. A tile of output channels reads exactly the input channels of the groups that it lies in,
those of one group for most tiles; only a tile across the border of two groups multiplies zeros.

    weight      for each tile of output channels as many rows of (tile_o * c) values as the tile
                that reads most: for every (input block, kh, kw, channel in the block that it
                reads); `pack_grouped_weight` makes it.
"""

import math
from collections.abc import Sequence
from typing import Any

from tvm import tirx

from edgec.compiler.kernels.conv.decision import ConvDecision
from edgec.compiler.kernels.conv.direct import DirectConv
from edgec.compiler.kernels.conv.weights import grouped_rows
from edgec.compiler.kernels.conv.workload import ChannelRun, ConvBuffers, ConvWorkload
from edgec.compiler.kernels.emit.emitter import Emitter


class GroupedConv(DirectConv):
    """Writes one grouped convolution into an emitter."""

    def __init__(
        self,
        workload: ConvWorkload,
        decision: ConvDecision,
        c: int,
        emit: Emitter,
        buffers: ConvBuffers,
        weight_base: int,
    ) -> None:
        super().__init__(workload, decision, c, emit, buffers, weight_base)
        self.depth = grouped_rows(workload, decision.tile_o, c)

    def start_block(self, tile: Any) -> None:
        """Write the first input channel of a tile, and the one past its last."""
        w, e = self.work, self.emit
        out_group = tirx.IntImm("int32", w.out_channels // w.groups)
        in_group = w.in_channels // w.groups
        last = tirx.min((tile + 1) * self.width, tirx.IntImm("int32", w.out_channels)) - 1
        self.first = e.let("first_read", tirx.floordiv(tile * self.width, out_group) * in_group)
        self.past = e.let("past_read", (tirx.floordiv(last, out_group) + 1) * in_group)

    def accumulate_taps(self, column: Any, valid: Sequence[Sequence[bool]], window: Any) -> None:
        """Add the products with the input channels of the tile's groups, block by block."""
        w, e, size = self.work, self.emit, self.block
        taps = math.prod(w.kernel)
        first_block = e.let("first_block", tirx.floordiv(self.first, size))
        past_block = e.let("past_block", tirx.floordiv(self.past + (size - 1), size))
        with e.loop("block", past_block - first_block, first_block) as block:
            begin = e.let("begin", tirx.max(self.first, block * size))
            used = e.let("used", tirx.min(self.past, (block + 1) * size) - begin)
            rows = e.let("rows", self.tile * self.depth + (begin - self.first) * taps)
            source = (self.image * self.in_blocks + block) * w.in_h
            run = ChannelRun(rows, source, used, skipped=begin - block * size)
            self.add_channels(run, column, valid, window)
