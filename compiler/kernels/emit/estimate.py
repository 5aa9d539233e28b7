"""What the analytic models of the kernels have in common."""

from edgec.targets.target import Target

# Four on current x86 and Arm cores, and one that the scheduler loses: tiles with just enough
# accumulators for four measure a fifth slower than larger ones.
FMA_LATENCY_CYCLES = 5.0
# What a core gets from beyond its second-level cache, and how much less it waits for what the
# kernel asks for in time: measured on two x86 servers.
FAR_BYTES_PER_CYCLE = 8.0
PREFETCH_GAIN = 4.0
# What it gets from its second-level cache.
NEAR_BYTES_PER_CYCLE = 32.0


def tile_room(vectors: int, target: Target) -> int:
    """Pixels of a register tile with `vectors` weight vectors: all accumulators in registers.

    Where a multiply-add broadcasts a lane, the compiler keeps a vector of each pixel's channels
    in registers; elsewhere one broadcast value at a time.
    """
    free = target.vector_registers - vectors - 1
    return max(1, free // (vectors + 1) if target.multiplies_by_lane else free // vectors)


def load_cycles(pixels: int, vectors: int, target: Target) -> float:
    """Cycles to load the operands of one step of a register tile."""
    values = pixels / target.float_lanes if target.multiplies_by_lane else pixels
    return (values + vectors) / target.load_units


def multiply_cycles(fmas: int, target: Target) -> float:
    """Cycles of one step of a register tile of `fmas` independent accumulators."""
    waiting = FMA_LATENCY_CYCLES if fmas < FMA_LATENCY_CYCLES * target.fma_units else 0.0
    return max(fmas / target.fma_units, waiting)
