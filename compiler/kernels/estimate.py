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


def multiply_cycles(fmas: int, target: Target) -> float:
    """Cycles of one step of a register tile of `fmas` independent accumulators."""
    waiting = FMA_LATENCY_CYCLES if fmas < FMA_LATENCY_CYCLES * target.fma_units else 0.0
    return max(fmas / target.fma_units, waiting)
