"""Provide the analytic model of direct convolution, and the decision that it recommends."""

import math
from collections.abc import Collection

from edgec.compiler.kernels.conv.decision import ConvDecision, direct_space, flattened
from edgec.compiler.kernels.conv.weights import block_size, mean_depth
from edgec.compiler.kernels.conv.windows import tile_spans, valid_tap_runs
from edgec.compiler.kernels.conv.winograd_decision import (
    TILE_SIZES,
    WinogradDecision,
    estimate_winograd_cycles,
    winograd_space,
)
from edgec.compiler.kernels.conv.workload import ConvWorkload
from edgec.compiler.kernels.emit.epilogue import cost
from edgec.compiler.kernels.emit.machine_model import (
    FAR_BYTES_PER_CYCLE,
    FLOAT_BYTES,
    ISSUE_WIDTH,
    LOOP_STEP_INSTRUCTIONS,
    NEAR_BYTES_PER_CYCLE,
    PREFETCH_GAIN,
    STORE_INSTRUCTIONS,
    half_l1,
    half_l2,
    imbalance_of,
    load_cycles,
    multiply_cycles,
    tile_overhead_cycles,
)
from edgec.targets.target import Target

# To start the loop over the channels of a block, for each tap.
CHANNEL_LOOP_CYCLES = 4
# Around the products of a tap in the code: addresses, prefetches, counting.
TAP_INSTRUCTIONS = 12
INSTRUCTION_BYTES = 7


def estimate_cycles(
    workload: ConvWorkload,
    decision: ConvDecision,
    target: Target,
    block: int | None = None,
    instructions: int = 1,
    step: float | None = None,
) -> float:
    """Return analytic model: the slower of multiplying, loading and issuing, for all tiles.

    A step of the register tile does p * o FMAs (p pixels, o vectors), loads o weights and
    broadcasts p inputs. Four instructions can start in a cycle. With fewer than
    latency * units independent accumulators, FMAs wait for each other. Weights that a tile
    streams from beyond the first level cost bandwidth, and so does what comes from beyond the
    second level: once, or once for every tile of output channels or line when it does not stay.

    Args:
        workload: the convolution.
        decision: how it is computed.
        target: where.
        block: input channels in a block; by default what the layout of floats has.
        instructions: for each multiply-add.
        step: cycles of a step of the register tile, where this model does not hold for it.
    """
    flat = flattened(workload)
    given = step is not None
    c = target.float_lanes
    size = block or block_size(flat, c)
    out_tiles = math.ceil(math.ceil(flat.out_channels / c) / decision.tile_o)
    depth = mean_depth(flat, decision.tile_o, c, block)
    pixels, vectors = decision.tile_h * decision.tile_w, decision.tile_o
    fmas = pixels * vectors
    multiply = max(multiply_cycles(fmas, target), fmas * instructions / target.fma_units)
    load = load_cycles(pixels, vectors, target)
    issue = (fmas * instructions + pixels + vectors + LOOP_STEP_INSTRUCTIONS) / ISSUE_WIDTH
    step_bytes = vectors * c * FLOAT_BYTES
    panel_bytes = depth * step_bytes
    stream = 0.0
    if panel_bytes > half_l1(target):
        near = panel_bytes < half_l2(target)
        stream = step_bytes / (NEAR_BYTES_PER_CYCLE if near else FAR_BYTES_PER_CYCLE)
    step = max(step or max(multiply, load, issue), stream)
    starts_w = math.ceil(flat.out_w / decision.tile_w)
    starts_h = math.ceil(flat.out_h / decision.tile_h)
    tiles = flat.batch * out_tiles * starts_w * starts_h
    overhead = tile_overhead_cycles(fmas, flat.epilogue)
    loops = 0.0 if given else depth / max(1, size) * CHANNEL_LOOP_CYCLES
    lines = starts_h if not decision.segment else math.ceil(starts_w / decision.segment)
    tasks = flat.batch * lines * out_tiles
    compute = tiles * (depth * step + loops + overhead) * imbalance_of(tasks, target)
    keeps = half_l2(target)
    rows_read = min(1.0, flat.kernel[0] / flat.stride[0])
    in_bytes = FLOAT_BYTES * flat.in_channels * flat.in_h * flat.in_w * rows_read
    weight_bytes = panel_bytes * out_tiles
    if decision.rows_first:
        again = out_tiles if in_bytes > keeps else 1
        far = in_bytes * again + weight_bytes / PREFETCH_GAIN
    else:
        again = lines if weight_bytes > keeps else 1
        far = in_bytes + weight_bytes * again
    return compute + flat.batch * far / FAR_BYTES_PER_CYCLE


def code_bytes(
    workload: ConvWorkload, decision: ConvDecision, target: Target, block: int, instructions: int
) -> float:
    """Return rough size of a kernel whose loops over channels stay loops.

    Products are written once for each run of taps that are inside for the same pixels, the
    epilogue once for each kind of tile.

    Args:
        workload: the convolution.
        decision: how it is computed.
        target: where.
        block: input channels in a block.
        instructions: for each multiply-add.
    """
    w, p = flattened(workload), decision
    columns = tile_spans(w.window(1), p.tile_w)
    by_rows = [1]
    if p.tile_h > 1:
        by_rows = [len(valid_tap_runs(span.valid)) for span in tile_spans(w.window(0), p.tile_h)]
    by_columns = sum(len(valid_tap_runs(span.valid)) for span in columns)
    parts = 1 if w.in_channels % block == 0 or w.in_channels < block else 2
    pixels, vectors = p.tile_h * p.tile_w, p.tile_o
    products = pixels * vectors * instructions + pixels + vectors + TAP_INSTRUCTIONS
    stores = pixels * vectors * (STORE_INSTRUCTIONS + cost(w.epilogue)) + TAP_INSTRUCTIONS
    tiles = len(by_rows) * len(columns)
    written = sum(by_rows) * by_columns * parts * products + tiles * stores
    return INSTRUCTION_BYTES * written


def default_direct_decision(workload: ConvWorkload, target: Target) -> ConvDecision:
    """Return the decision of the lowest estimate; ties go to the one with more pixels."""
    return min(
        direct_space(workload, target),
        key=lambda d: (estimate_cycles(workload, d, target), -d.tile_h * d.tile_w),
    )


def default_decision(
    workload: ConvWorkload, target: Target, tile_sizes: Collection[int] = TILE_SIZES
) -> ConvDecision | WinogradDecision:
    """Return the better of the best direct decision and the best by Winograd's algorithm.

    Args:
        workload: the convolution.
        target: where.
        tile_sizes: rows of output pixels of the tiles to consider; see `decision_for_weights`.
    """
    direct = default_direct_decision(workload, target)
    others = [
        (estimate_winograd_cycles(workload, decision, target), decision)
        for decision in winograd_space(workload, target)
        if decision.out in tile_sizes
    ]
    cycles, winograd = min(others, key=lambda pair: pair[0], default=(math.inf, None))
    if winograd is None or cycles >= estimate_cycles(workload, direct, target):
        return direct
    return winograd
