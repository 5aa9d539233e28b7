"""Describe what the analytic models of the kernels have in common."""

import math
from collections.abc import Sequence

from edgec.compiler.kernels.emit.epilogue import EpilogueStep, cost
from edgec.targets.target import Target

FLOAT_BYTES = 4
KIB = 1024

# Four on current x86 and Arm cores, and one that the scheduler loses: tiles with just enough
# accumulators for four measure a fifth slower than larger ones.
FMA_LATENCY_CYCLES = 5.0
# What a core gets from beyond its second-level cache, and how much less it waits for what the
# kernel asks for in time: measured on two x86 servers.
FAR_BYTES_PER_CYCLE = 8.0
PREFETCH_GAIN = 4.0
# What it gets from its second-level cache.
NEAR_BYTES_PER_CYCLE = 32.0
# Instructions that can start in a cycle.
ISSUE_WIDTH = 4
# To count, compare and branch at the end of a step of a loop over channels.
LOOP_STEP_INSTRUCTIONS = 3
# To compute the addresses of a register tile, clear its accumulators and leave its loops.
TILE_START_CYCLES = 30
# Register tiles of a line for which what accumulators begin with is not worth to be written down.
FEW_TILES = 4
# To move an accumulator to its place: load, address, store; so many of them, and of the
# instructions of an epilogue, run in a cycle.
STORE_INSTRUCTIONS = 3
STORE_INSTRUCTIONS_PER_CYCLE = 2


def tile_room(vectors: int, target: Target) -> int:
    """Return pixels of a register tile with `vectors` weight vectors.

    All accumulators in registers.

    Where a multiply-add broadcasts a lane, the compiler keeps a vector of each pixel's channels
    in registers; elsewhere one broadcast value at a time.
    """
    free = target.vector_registers - vectors - 1
    return max(1, free // (vectors + 1) if target.multiplies_by_lane else free // vectors)


def load_cycles(pixels: int, vectors: int, target: Target) -> float:
    """Return cycles to load the operands of one step of a register tile."""
    values = pixels / target.float_lanes if target.multiplies_by_lane else pixels
    return (values + vectors) / target.load_units


def multiply_cycles(fmas: int, target: Target) -> float:
    """Return cycles of one step of a register tile of `fmas` independent accumulators."""
    waiting = FMA_LATENCY_CYCLES if fmas < FMA_LATENCY_CYCLES * target.fma_units else 0.0
    return max(fmas / target.fma_units, waiting)


def tile_overhead_cycles(fmas: int, epilogue: Sequence[EpilogueStep]) -> float:
    """Return the cycles around the products of a register tile of `fmas` accumulators."""
    stores = fmas * (STORE_INSTRUCTIONS + cost(epilogue)) / STORE_INSTRUCTIONS_PER_CYCLE
    return TILE_START_CYCLES + stores


def imbalance_of(tasks: int, target: Target) -> float:
    """Return how much longer the cores take than if `tasks` were shared evenly."""
    return math.ceil(tasks / target.cores) * target.cores / tasks


def half_l1(target: Target) -> int:
    """Return the bytes that stay in the first-level cache beside what else a kernel touches."""
    return target.l1d_kib * KIB // 2


def half_l2(target: Target) -> int:
    """Return the bytes that stay in the second-level cache beside what else a kernel touches."""
    return target.l2_kib * KIB // 2
