"""Provide decisions about a convolution of quantized values by Winograd's algorithm.

And the weights after its change of basis. `lane_winograd.py` has the algorithm.
"""

import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.kernels.conv.winograd_decision import FEW_TASKS, suits_winograd
from edgec.compiler.kernels.conv.workload import ConvWorkload
from edgec.compiler.kernels.emit.epilogue import cost
from edgec.compiler.kernels.emit.machine_model import (
    FAR_BYTES_PER_CYCLE,
    ISSUE_WIDTH,
    KIB,
    LOOP_STEP_INSTRUCTIONS,
    NEAR_BYTES_PER_CYCLE,
    PREFETCH_GAIN,
    STORE_INSTRUCTIONS,
    half_l2,
    imbalance_of,
)
from edgec.targets.target import Target

OUT, PATCH = 4, 6
POSITIONS = PATCH * PATCH
# Channels that are multiplied by lanes of one vector of data.
DEPTH = 8
# Accumulators count as multiples of this.
WHOLE = 576

WINDOW_CHANGE = np.array(
    [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 6]], np.int64
)
"""24 times the paper's G, the last row 6 times."""

# An accumulator is a quotient by `WHOLE` of 32 bits, so it has 26.
_MOST = 2**25
_MOST_PARTS = 4
# Products of a register tile with 8 channels are written out: code that the first level can hold.
_MOST_ACCUMULATORS = 24
_MOST_TILES = 64
_STACK_BYTES = 512 * KIB

# Instructions of the changes of basis, counted in what LLVM makes of them: of a patch of eight
# channels, where it lies inside and where not; of a vector of a tile's outputs.
_GATHER, _BORDER, _SCATTER = 330, 330, 300
# To begin a register tile, and for each of its accumulators.
_START, _MOVE = 16, 2


@dataclass(frozen=True)
class LaneWinogradDecision:
    """A lane winograd decision describes how the tiles of an image are computed.

    Attributes:
        tiles: tiles in a register tile.
        vectors: blocks of output channels in a register tile.
        repeats: register tiles in a task.
        splits: tasks that share the output channels of the same tiles; each makes its patches.
        parts: of the input channels, whose accumulators are found one by one.
    """

    tiles: int
    vectors: int
    repeats: int
    splits: int = field(default=1, metadata={"omit_if_default": True})
    parts: int = field(default=1, metadata={"omit_if_default": True})

    @property
    def block(self) -> int:
        """Return tiles in a task."""
        return self.tiles * self.repeats


def suits(conv: ConvWorkload, lanes: int) -> bool:
    """Return whether a convolution of quantized values can be computed so."""
    whole_tiles = min(conv.out_h, conv.out_w) >= OUT
    return lanes == 4 and whole_tiles and suits_winograd(conv)


def tiles_of(conv: ConvWorkload) -> tuple[int, int]:
    """Return rows and columns of tiles; the last ones overlap their neighbours."""
    return math.ceil(conv.out_h / OUT), math.ceil(conv.out_w / OUT)


def pairs_of(conv: ConvWorkload, lanes: int) -> int:
    """Return groups of eight input channels."""
    return math.ceil(conv.in_channels / (2 * lanes))


def lane_winograd_bytes(conv: ConvWorkload, vectors: int, lanes: int) -> int:
    """Return bytes of the changed weights."""
    width = vectors * lanes
    tiles = math.ceil(conv.out_channels / width)
    return 2 * tiles * POSITIONS * pairs_of(conv, lanes) * DEPTH * width


def lane_winograd_space(conv: ConvWorkload, target: Target) -> list[LaneWinogradDecision]:
    """Return decisions whose register tile fits the registers, its patches and products a stack."""
    c = target.float_lanes
    if not suits(conv, c):
        return []
    blocks, count = math.ceil(conv.out_channels / c), math.prod(tiles_of(conv))
    decisions = []
    for vectors in range(1, min(blocks, 6) + 1):
        free = target.vector_registers - math.ceil(vectors / 2) - 1
        room = min(free // (vectors + 1), _MOST_ACCUMULATORS // vectors)
        for tiles in range(1, min(count, room) + 1):
            for repeats in range(1, min(_MOST_TILES, count) // tiles + 1):
                decision = LaneWinogradDecision(tiles, vectors, repeats)
                if stack_bytes(conv, decision, c) <= _STACK_BYTES:
                    tasks = conv.batch * math.ceil(count / decision.block)
                    most = math.ceil(blocks / vectors) if tasks < FEW_TASKS else 1
                    splits = range(1, min(target.cores, most) + 1)
                    decisions += [replace(decision, splits=number) for number in splits]
    return decisions


def stack_bytes(conv: ConvWorkload, decision: LaneWinogradDecision, lanes: int) -> int:
    """Return bytes of the patches and products of a task."""
    patches = 2 * pairs_of(conv, lanes) * DEPTH
    return POSITIONS * decision.block * (patches + 4 * decision.vectors * lanes)


def estimate_lane_winograd_cycles(
    conv: ConvWorkload, decision: LaneWinogradDecision, target: Target
) -> float:
    """Return cycles by counting instructions, and what weights cost that no near cache holds."""
    d, c = decision, target.float_lanes
    tiles, vectors = d.tiles, d.vectors
    all_out_tiles = math.ceil(math.ceil(conv.out_channels / c) / vectors)
    out_tiles = math.ceil(all_out_tiles / d.splits)
    rows, columns = tiles_of(conv)
    blocks = conv.batch * math.ceil(rows * columns / d.block)
    tasks = blocks * d.splits
    pairs = pairs_of(conv, c)
    products = DEPTH * tiles * vectors
    loads = (tiles + DEPTH * math.ceil(vectors / 2)) / 2
    step = products + loads + LOOP_STEP_INSTRUCTIONS
    start = _START + _MOVE * tiles * vectors
    multiply = out_tiles * POSITIONS * d.repeats * (pairs * step + start)
    inner = max(0, rows - 2) * max(0, columns - 2)
    gather = pairs * (_GATHER + _BORDER * (1 - inner / (rows * columns)))
    store = OUT * OUT * (STORE_INSTRUCTIONS + cost(conv.epilogue)) + _SCATTER
    task = multiply + d.block * (gather + out_tiles * vectors * store)
    cycles = task * (1 / target.fma_units + 1 / ISSUE_WIDTH)
    weights = lane_winograd_bytes(conv, vectors, c)
    near = blocks * weights / NEAR_BYTES_PER_CYCLE
    # As for floats: what no cache holds comes over a bus that all cores share.
    again = blocks if weights > half_l2(target) else 1
    held = weights <= max(target.l2_kib, target.l3_kib) * KIB
    sharing = 1.0 if held else max(1.0, target.cores / 2)
    fetch = sharing * weights / FAR_BYTES_PER_CYCLE
    waits = again * max(fetch / PREFETCH_GAIN, fetch - cycles * tasks / again / 2)
    return tasks * cycles * imbalance_of(tasks, target) + near + waits


def pairs_of_part(conv: ConvWorkload, parts: int, lanes: int) -> int:
    """Return groups of eight input channels in a part, of which the last may have fewer."""
    return math.ceil(pairs_of(conv, lanes) / parts)


def parts_needed(weight: NDArray[np.int8], dtype: str) -> int | None:
    """Return in how many parts of channels accumulators are small enough to be found again.

    Whatever the data.

    Args:
        weight: [out_channels, in_channels, 3, 3].
        dtype: the dtype of the data.

    Returns:
        None where it takes more than `_MOST_PARTS`.
    """
    limits = np.iinfo(dtype)
    largest = max(int(limits.max), -int(limits.min))
    sums = np.abs(weight.astype(np.int64)).sum(axis=(2, 3))
    eights = np.add.reduceat(sums, range(0, sums.shape[1], DEPTH), axis=1)
    for parts in range(1, _MOST_PARTS + 1):
        begins = range(0, eights.shape[1], math.ceil(eights.shape[1] / parts))
        if largest * np.add.reduceat(eights, begins, axis=1).max(initial=0) < _MOST:
            return parts
    return None


def pack_lane_winograd(
    conv: ConvWorkload, decision: LaneWinogradDecision, weight: NDArray[np.int8], lanes: int
) -> NDArray[np.int16]:
    """Return what G makes of every window, in the order in which the kernel reads it.

    Args:
        conv: the convolution.
        decision: its register tile.
        weight: [out_channels, in_channels, 3, 3].
        lanes: of float32 in a vector.

    Returns:
        [tiles of output channels, positions, input channels, vectors * lanes], zero past the last
        channel of either kind.
    """
    g, width = WINDOW_CHANGE, decision.vectors * lanes
    tiles = math.ceil(conv.out_channels / width)
    depth = pairs_of(conv, lanes) * DEPTH
    changed = np.einsum("ai,ocij,bj->oabc", g, weight.astype(np.int64), g, optimize=True)
    padded = np.zeros((tiles * width, POSITIONS, depth), np.int16)
    flat = changed.reshape(conv.out_channels, POSITIONS, conv.in_channels)
    padded[: conv.out_channels, :, : conv.in_channels] = flat
    order = padded.reshape(tiles, width, POSITIONS, depth)
    return np.ascontiguousarray(order.transpose(0, 2, 3, 1))
