"""Provide direct convolution of quantized values.

The register tiles of `conv`, four input channels at a time.

Layouts, with c float32 lanes in a vector:

    activation [N, ceil(channels / c), H, W, c] quantized; to this kernel a line of groups of four
                channels, 32 bits each.
    weight      int8 as the rows of `weights.pack_weight`, each lane one group.
    bias        int32 [blocks * c]: the bias in units of the products, less the sum of all weights
                of the channel times the zero point.
    rows        int32 [kh, blocks * c]: the sum of the weights of a row of the window times the
                zero point, put back where the row is above or below the image.

Padding stands for zero, so its code is the zero point: in columns outside the image that code is
multiplied like any other. The epilogue begins with the accumulator as float32.
"""

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from numpy.typing import NDArray

from edgec.compiler.kernels.conv.cost import code_bytes, estimate_cycles
from edgec.compiler.kernels.conv.decision import MOST_VECTORS, ConvDecision, direct_space, flattened
from edgec.compiler.kernels.conv.weights import groups_of, pack_weight, packed_size
from edgec.compiler.kernels.conv.workload import ConvWorkload, QuantizedConvWorkload
from edgec.compiler.kernels.emit.machine_model import ISSUE_WIDTH, LOOP_STEP_INSTRUCTIONS
from edgec.compiler.kernels.emit.requantize import stores_again
from edgec.compiler.kernels.isa import Dot, dot_of
from edgec.compiler.numerics.pair_sums import DOT_WIDTH
from edgec.targets.target import Target

# How fast code that a run reads once comes from beyond the first level.
CODE_BYTES_PER_CYCLE = 2.0

# Instructions that load what requantizes accumulators, for a vector of channels, with what that
# pushes out of registers: counted in tiles of two and of five vectors.
_SCALES = 18

# Where a product takes several instructions: what part of the time of the units that multiply, and
# cycles of a load beside them, and of vectors that are stored alone or two by two. Fitted to what
# eleven layers take with fifteen tiles on a Zen 4: the tile of the lowest estimate takes 2 % longer
# than the best in the mean, where 5 % were lost with units alone.
_PRODUCT_SHARE, _LOAD_CYCLES, _ALONE_CYCLES, _PAIR_CYCLES = 0.8, 0.3, 13, 3
_CHANNEL_LOOP_CYCLES = 3
# Where four vectors are stored, one of them again: see `stores_again`.
_AGAIN_CYCLES = 3

# Around the products of a row of the window: addresses and counting.
_ROW_INSTRUCTIONS = 8

# To begin a task: its place, addresses, and the numbers of the requantization for each vector.
_TASK_INSTRUCTIONS, _TASK_VECTOR_INSTRUCTIONS = 100, 60
# Counted where products take a lane of the data: nothing is spread beforehand.
_TASK_VECTOR_BY_LANE = 14

# Four vectors of quantized values are stored at once; two, or one alone, cost as much more.
_PAIR, _ALONE = 2, 8

# Groups of channels, or sums of groups, in a turn of the loop over them, of windows of one tap.
BLOCKS_TOGETHER = 4

# Where the last four values of a line that are loaded overlap those before: loads, and moves.
_OVERLAP = 4

# Registers for sums in int16, and for weights or values, where products of groups are added.
_SUMS = 5

# Vectors of weights of a tile there.
_MOST_VECTORS = 10

# Taps of a row that are multiplied with a value while it is in all lanes.
TAPS_TOGETHER = 3


@dataclass(frozen=True)
class IntegerConvWorkload(QuantizedConvWorkload):
    """An integer conv workload describes a convolution of quantized values, of one group.

    Attributes:
        together: groups of channels, side by side, whose products fit the int16 accumulators of
            `pair_sums`.
        wide: whether the weights would saturate the target's int16 accumulators.
    """

    conv: ConvWorkload
    together: int = field(default=1, metadata={"omit_if_default": True})
    wide: bool = field(default=False, metadata={"omit_if_default": True})

    @property
    def grouped(self) -> ConvWorkload:
        """Return it as a convolution whose channels are groups of channels."""
        return _grouped(self.conv)


@lru_cache(maxsize=256)
def _grouped(conv: ConvWorkload) -> ConvWorkload:
    return flattened(replace(conv, in_channels=math.ceil(conv.in_channels / DOT_WIDTH)))


def product_of(workload: IntegerConvWorkload, target: Target) -> Dot:
    """Return how quantized values are multiplied."""
    dot = dot_of(target)
    if dot is not None and workload.wide:
        dot = dot.exact_fallback
    assert dot is not None
    return dot


def groups_in_block(target: Target) -> int:
    """Return groups of four channels in a block of the input."""
    return target.float_lanes // DOT_WIDTH


def integer_space(workload: IntegerConvWorkload, target: Target) -> list[ConvDecision]:
    """Return decisions whose register tile fits the registers."""
    work, dot = workload.grouped, product_of(workload, target)
    registers = target.vector_registers - dot.temporaries
    if groups_in_block(target) > 1:
        # Weights of all groups whose products are added in int16 are in registers at once.
        return direct_space(work, target, lambda vectors: registers // vectors - workload.together)

    def room_of(vectors: int) -> int:
        free, added = registers, workload.together
        if added > 1 and math.prod(work.kernel) == 1:
            fitting = [w for w in range(1, free + 1) if _sums_fit(w, vectors, added, target)]
            return max(fitting, default=0)
        if not dot.by_lane and math.prod(work.kernel) == 1:
            # What orders each of the four values of a vector for all lanes stays in registers.
            free -= DOT_WIDTH
        widths = range(1, free // vectors + 1)
        fitting = [w for w in widths if _row_registers(work, w, vectors, dot, added) <= free]
        return max(fitting, default=0)

    most = MOST_VECTORS if workload.together == 1 else _MOST_VECTORS
    space = direct_space(work, target, room_of, most)
    if dot.by_lane:
        return space
    # A pixel alone is loaded and brought into order for few products.
    return [d for d in space if d.tile_w * d.tile_h > 1] or space


def weights_first(pixels: int, vectors: int) -> bool:
    """Return whether values of all pixels are held, as fewer than the vectors of weights.

    Of a window of one tap, where products of several groups are added in int16.
    """
    return vectors >= pixels


def _sums_fit(pixels: int, vectors: int, added: int, target: Target) -> bool:
    """Return whether a tile of 1x1 windows fits where products of groups are added in int16."""
    if weights_first(pixels, vectors):
        # What orders each of the values of a vector stays in registers, too.
        held = pixels * vectors + added * pixels + min(pixels, DOT_WIDTH)
    else:
        held = pixels * vectors + added * vectors + DOT_WIDTH
    return held <= target.vector_registers - _SUMS and pixels < 2 * DOT_WIDTH


def _row_registers(work: ConvWorkload, pixels: int, vectors: int, dot: Dot, added: int) -> int:
    """Return registers of a tile where a row of the window is accumulated at once."""
    taps = 1 if dot.by_lane else min(work.kernel[1], TAPS_TOGETHER)
    data = math.ceil(row_groups(work, pixels) / DOT_WIDTH)
    return pixels * vectors + added * (taps * vectors + max(1, min(data, 4)))


def row_groups(work: ConvWorkload, pixels: int) -> int:
    """Return groups of channels of a line that a row of the window reads for some pixels."""
    taps, stride = work.kernel[1], work.stride[1]
    return (pixels - 1) * min(stride, taps) + taps


def estimate_integer_cycles(
    workload: IntegerConvWorkload, decision: ConvDecision, target: Target
) -> float:
    """Return how long it computes, and fetching its code once."""
    return computing_cycles(workload, decision, target) + _fetching(workload, decision, target)


def _fetching(workload: IntegerConvWorkload, decision: ConvDecision, target: Target) -> float:
    """Return how long its code takes to come, once."""
    dot, block = product_of(workload, target), groups_in_block(target)
    code = code_bytes(workload.grouped, decision, target, block, dot.instructions)
    return code / CODE_BYTES_PER_CYCLE


def computing_cycles(
    workload: IntegerConvWorkload,
    decision: ConvDecision,
    target: Target,
    step: float | None = None,
) -> float:
    """Return the cycles by the model of the direct convolution and what it does not know.

    Each vector of a tile loads its scales.

    Args:
        workload: the convolution.
        decision: how it is computed.
        target: where.
        step: cycles of a tap of a register tile, where they are known.
    """
    dot, work = product_of(workload, target), workload.grouped
    several = groups_in_block(target) > 1 and dot.instructions > 1
    if step is None and groups_in_block(target) == 1:
        step = _row_step(work, decision, dot, target, workload.together)
    elif step is None and several:
        step = unit_step(decision, dot, target) + _CHANNEL_LOOP_CYCLES / groups_in_block(target)
    cycles = estimate_cycles(
        work, decision, target, groups_in_block(target), dot.instructions, step
    )
    pixels, vectors = decision.tile_h * decision.tile_w, decision.tile_o
    blocks = math.ceil(work.out_channels / target.float_lanes)
    tiles = math.ceil(work.out_h * work.out_w / pixels) * math.ceil(blocks / vectors)
    alone, pair = decision.tile_w % 2, decision.tile_w // 2 % 2
    if several:
        lines = vectors * decision.tile_h
        rest = alone * _ALONE_CYCLES + pair * _PAIR_CYCLES
        if alone and pair and decision.tile_w > DOT_WIDTH and stores_again(target.float_lanes):
            rest = _AGAIN_CYCLES
        return cycles + work.batch * tiles * lines * rest
    more = vectors * _SCALES
    if groups_in_block(target) > 1:
        return cycles + work.batch * tiles * more / target.fma_units
    more = vectors * decision.tile_h * (alone * _ALONE + pair * _PAIR)
    starts = math.ceil(work.out_w / decision.tile_w)
    parts = math.ceil(starts / decision.segment) if decision.segment else 1
    tasks = math.ceil(work.out_h / decision.tile_h) * parts * math.ceil(blocks / vectors)
    each = _TASK_VECTOR_BY_LANE if dot.by_lane else _TASK_VECTOR_INSTRUCTIONS
    begin = _TASK_INSTRUCTIONS + vectors * each
    instructions = work.batch * (tiles * more + tasks * begin)
    return cycles + instructions * (1 / target.fma_units + 1 / ISSUE_WIDTH)


def blocks_in_a_turn(work: ConvWorkload, dot: Dot, blocks: int, added: int) -> int:
    """Return groups of channels in a turn; several where a tap of one is too little for it.

    Args:
        work: the convolution of groups.
        dot: how groups are multiplied.
        blocks: groups of channels.
        added: groups whose products are added in int16.
    """
    if math.prod(work.kernel) > 1:
        return added
    if dot.by_lane and blocks >= 4 * BLOCKS_TOGETHER:
        return 2 * BLOCKS_TOGETHER
    # Without a loop LLVM would keep products, and spill them.
    most = blocks // (1 if dot.by_lane else 2)
    return max(1, min(BLOCKS_TOGETHER * added, most) // added) * added


def unit_step(decision: ConvDecision, dot: Dot, target: Target) -> float:
    """Return the cycles in which a register tile multiplies four values of each pixel."""
    pixels, vectors = decision.tile_h * decision.tile_w, decision.tile_o
    products, loads = pixels * vectors * dot.instructions, pixels + vectors + LOOP_STEP_INSTRUCTIONS
    if dot.instructions == 1:
        return max(products / target.fma_units, (products + loads) / ISSUE_WIDTH)
    return products / target.fma_units * _PRODUCT_SHARE + loads * _LOAD_CYCLES


def _row_step(
    work: ConvWorkload, decision: ConvDecision, dot: Dot, target: Target, added: int
) -> float:
    """Return cycles of a tap of a register tile where a row of the window is one step.

    All instructions count, whether they wait for units of vectors or to be issued.

    Args:
        work: the convolution of groups.
        decision: its register tile.
        dot: how groups are multiplied.
        target: where.
        added: groups whose products are added in int16.
    """
    taps, vectors = work.kernel[1], decision.tile_o
    groups = decision.tile_h * row_groups(work, decision.tile_w)
    products = decision.tile_h * decision.tile_w * vectors * taps * dot.instructions_for(added)
    spread = 0 if dot.by_lane else groups
    loads = groups / (2 * DOT_WIDTH) + vectors * taps / 2
    if row_groups(work, decision.tile_w) < DOT_WIDTH:
        # One by one.
        loads = groups + vectors * taps / 2
    elif dot.by_lane and math.prod(work.kernel) == 1 and work.stride[1] == 1:
        # Three or four vectors of data at once, see `Isa.load_together`; else two.
        whole, rest = divmod(decision.tile_w, DOT_WIDTH)
        loads = vectors / 2 + (1 if whole in (3, 4) else math.ceil(whole / 2)) + (rest > 0)
    if not dot.by_lane and decision.tile_w > DOT_WIDTH and decision.tile_w % DOT_WIDTH:
        loads += _OVERLAP
    turn = BLOCKS_TOGETHER if math.prod(work.kernel) == 1 else 1
    if not dot.by_lane:
        turn = blocks_in_a_turn(work, dot, work.in_channels, added)
    counting = _ROW_INSTRUCTIONS / turn
    units = (products + spread) / target.fma_units
    return (units + (products + spread + loads + counting) / ISSUE_WIDTH) / taps


def default_integer_decision(workload: IntegerConvWorkload, target: Target) -> ConvDecision:
    """Return the decision of the lowest estimate.

    Of those that compute as long, that of most pixels, and of fewest tasks.
    """
    computing = {d: computing_cycles(workload, d, target) for d in integer_space(workload, target)}
    best = min(computing, key=lambda d: computing[d] + _fetching(workload, d, target))
    equals = [d for d, cycles in computing.items() if cycles == computing[best]]
    return max(equals, key=lambda d: (d.tile_h * d.tile_w, d.segment or math.inf))


def integer_weight_size(
    workload: IntegerConvWorkload, decision: ConvDecision, target: Target
) -> int:
    """Return values in a packed weight."""
    return packed_size(workload.grouped, decision, target, groups_in_block(target))


def pack_integer_weight(
    workload: IntegerConvWorkload, decision: ConvDecision, target: Target, weight: NDArray[Any]
) -> NDArray[Any]:
    """Return weights int8 [out_channels, in_channels, kh, kw] as int32 groups.

    In the kernel's order.
    """
    c = target.float_lanes
    packed = pack_weight(workload.grouped, decision, groups_of(weight), c, groups_in_block(target))
    return product_of(workload, target).arrange(packed, c)
