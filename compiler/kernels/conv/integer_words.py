"""Provide direct convolution of quantized values of so few channels that groups of four waste.

Values are widened to int16 as they are loaded, weights when they are packed, and one channel of a
pixel is multiplied with a vector of output channels at a time; see `Isa.multiply_by_lane`. All
else is that of `integer.py`.

    weight  int16 as the rows of `weights.pack_weight`, a row for each tap and channel.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from edgec.compiler.kernels.conv.decision import ConvDecision, direct_space
from edgec.compiler.kernels.conv.direct import Mask
from edgec.compiler.kernels.conv.integer import (
    IntegerConvWorkload,
    computing_cycles,
    row_groups,
)
from edgec.compiler.kernels.conv.integer_writer import IntegerConv, emit_phases
from edgec.compiler.kernels.conv.weights import pack_weight
from edgec.compiler.kernels.emit.emitter import wide
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.emit.machine_model import ISSUE_WIDTH
from edgec.compiler.kernels.vectors import constant, reinterpret, shuffle
from edgec.compiler.numerics.pair_sums import DOT_WIDTH
from edgec.targets.target import Target

# Around the products of a row of the window: addresses and counting.
_ROW_INSTRUCTIONS = 8
# Pixels of one vector of int16.
_PIXELS = 2


@dataclass(frozen=True)
class WordsDecision:
    """A words decision describes a convolution by products of int16.

    Attributes:
        words: its register tile, and the order of its tasks.
    """

    words: ConvDecision


def words_space(workload: IntegerConvWorkload, target: Target) -> list[WordsDecision]:
    """Return decisions whose register tile fits the registers; none where groups waste nothing."""
    conv = workload.conv
    few = conv.groups == 1 and conv.in_channels < DOT_WIDTH and math.prod(conv.kernel) > 1
    if not few or target.float_lanes != DOT_WIDTH:
        return []

    def room_of(vectors: int) -> int:
        free = target.vector_registers - 2

        def fits(pixels: int) -> bool:
            data = math.ceil(row_groups(workload.grouped, pixels) / _PIXELS)
            return pixels * vectors + data <= free

        return max(filter(fits, range(1, free // vectors + 1)), default=0)

    return [WordsDecision(d) for d in direct_space(workload.grouped, target, room_of)]


def estimate_words_cycles(
    workload: IntegerConvWorkload, decision: WordsDecision, target: Target
) -> float:
    """Return the cycles by the model of `integer.py` for what is multiplied here."""
    tile, conv = decision.words, workload.conv
    taps, lines = conv.kernel[1], tile.tile_h
    groups = lines * row_groups(workload.grouped, tile.tile_w)
    products = lines * tile.tile_w * tile.tile_o * taps * conv.in_channels
    widened = groups / _PIXELS
    loads = groups / (2 * DOT_WIDTH) + math.ceil(tile.tile_o / 2) * taps * conv.in_channels / 2
    units = (products + widened) / target.fma_units
    issued = (products + widened + loads + _ROW_INSTRUCTIONS) / ISSUE_WIDTH
    return computing_cycles(workload, tile, target, (units + issued) / taps)


def words_size(workload: IntegerConvWorkload, tile: ConvDecision, target: Target) -> int:
    """Return values in a packed weight."""
    conv, width = workload.conv, tile.tile_o * target.float_lanes
    rows = math.prod(conv.kernel) * conv.in_channels
    return math.ceil(conv.out_channels / width) * rows * width


def pack_words(
    workload: IntegerConvWorkload, decision: WordsDecision, target: Target, weight: NDArray[Any]
) -> NDArray[Any]:
    """Return weights int8 [out_channels, in_channels, kh, kw] as int16, in the kernel's order."""
    words = weight.astype(np.int16)
    return pack_weight(workload.conv, decision.words, words, target.float_lanes, DOT_WIDTH)


def emit_words_conv(
    workload: IntegerConvWorkload, decision: WordsDecision, target: Target, name: str
) -> Kernel:
    """Write the kernel; its buffers are those of `emit_integer_conv`."""
    return emit_phases([(workload, decision.words)], target, name, _WordsConv, words_size)


class _WordsConv(IntegerConv):
    """Multiplies channels of pixels one by one."""

    weight_dtype = "int16"

    def __init__(self, workload: IntegerConvWorkload, *others: Any) -> None:
        self.in_channels = workload.conv.in_channels
        super().__init__(workload, *others)

    def window_row(
        self, base: Any, rows: Any, used: Any, valid: Sequence[Mask], lines: Mask
    ) -> None:
        e, p, c = self.emit, self.plan, self.c
        taps, channels = self.work.kernel[1], self.in_channels
        weights = e.let("weights", wide(rows * (channels * self.width)))
        at = e.let("at", wide(base))
        pixels: dict[int, tuple[Any, int]] = {}
        for line in range(p.tile_h):
            places = {self.place(line, x, tap) for x, tap in self.read_of(line, valid, lines)}
            if places:
                pixels |= self._widened(at, sorted(places))
        inside = [set(self.read_of(line, valid, lines)) for line in range(p.tile_h)]
        padding = (constant(self.code, "int16", 2 * c), 0)
        for tap, channel in ((tap, channel) for tap in range(taps) for channel in range(channels)):
            row = weights + (tap * channels + channel) * self.width
            for first in range(0, p.tile_o, 2):
                lanes = c * min(2, p.tile_o - first)
                both = e.let("w", e.load(self.weight, row + first * c, lanes))
                for half in range(lanes // c):
                    for line in range(p.tile_h):
                        for x in range(p.tile_w):
                            if (x, tap) in inside[line]:
                                vector, lane = pixels[self.place(line, x, tap)]
                            elif self.border:
                                vector, lane = padding
                            else:
                                continue
                            position = (line * p.tile_w + x) * p.tile_o + first + half
                            by = lane + channel
                            product = e.isa.multiply_by_lane(both, half, vector, by)
                            e.store(self.acc, position, e.load(self.acc, position) + product)

    def _widened(self, base: Any, places: Sequence[int]) -> dict[int, tuple[Any, int]]:
        """Return by place the vector of int16 that has the channels of a pixel, and where."""
        e, found = self.emit, {}
        first, last = places[0], places[-1]
        while first <= last:
            count = min(DOT_WIDTH, last - first + 1)
            # Two vectors of one line overlap where the last one would reach beyond it.
            start = max(places[0], min(first, last - DOT_WIDTH + 1))
            size = min(DOT_WIDTH, last - start + 1)
            values = reinterpret(
                e.load(self.data, base + start, size), self.dot.data, DOT_WIDTH * size
            )
            values = e.let("bytes", values)
            for pair in range(0, size, _PIXELS):
                picks = [DOT_WIDTH * min(pair + n // 4, size - 1) + n % 4 for n in range(8)]
                eight = e.let("x", tirx.Cast("int16x8", shuffle([values] * 2, picks)))
                for place in range(pair, min(pair + _PIXELS, size)):
                    found[start + place] = (eight, DOT_WIDTH * (place - pair))
            first += count
        return found
