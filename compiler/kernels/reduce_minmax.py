"""Provide the smallest or largest value of a tensor.

What scales that each run computes begin with.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from tvm import tirx

from edgec.compiler.kernels.emit.across import reduce_lanes
from edgec.compiler.kernels.emit.emitter import Emitter
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.template import undecided
from edgec.compiler.kernels.vectors import select, vector_dtype
from edgec.targets.target import Target

# Vectors of one task, and in flight: one alone would wait for its own latency.
TASK_VECTORS = 1024
UNROLL = 4


@dataclass(frozen=True)
class ReduceMinMaxWorkload:
    """A min-max workload describes the smallest or largest value of each share of a tensor.

    A second call finds that of the shares.

    Attributes:
        mode: which.
        size: values.
        shares: tasks, each of which gives one value.
    """

    mode: Literal["min", "max"]
    size: int
    shares: int

    @property
    def macs(self) -> int:
        """Return values compared."""
        return self.size


def shares_of(size: int, lanes: int) -> int:
    """Return how many shares are worth handing out.

    >>> shares_of(100, 8), shares_of(100_000, 8)
    (1, 13)
    """
    return math.ceil(size / (TASK_VECTORS * lanes))


def smaller_or_larger(mode: Literal["min", "max"]) -> Callable[[Any, Any], Any]:
    """Return what chooses the smaller or larger of two values; NaN if one of them is."""
    choose = tirx.min if mode == "min" else tirx.max

    def combine(best: Any, value: Any) -> Any:
        # A comparison with NaN gives the second operand.
        return select(tirx.isnan(best), best, choose(best, value))

    return combine


def emit_reduce_minmax(workload: ReduceMinMaxWorkload, target: Target, name: str) -> Kernel:
    """Write the kernel; its buffers are data and output, a value for each share.

    The last share overlaps the one before: to look at a value twice changes nothing.
    """
    w = workload
    combine = smaller_or_larger(w.mode)
    share = math.ceil(w.size / w.shares)
    c = min(target.float_lanes, 2 ** int(math.log2(share)))
    e = Emitter(target)
    data = e.buffer("data", w.size, "float32")
    output = e.buffer("output", w.shares, "float32")
    with e.tasks() as task:
        start = e.let("start", tirx.min(task * share, tirx.IntImm("int32", w.size - share)))
        count = min(UNROLL, share // c)
        best = e.local("best", count, vector_dtype("float32", c))
        for part in range(count):
            e.store(best, part, e.load(data, start + part * c, c))
        with e.loop("group", share // (count * c)) as group:
            for part in range(count):
                value = e.load(data, start + (group * count + part) * c, c)
                e.store(best, part, combine(e.load(best, part), value))
        # What is left is less than a group: vectors that end with the share.
        for part in range(math.ceil(share % (count * c) / c)):
            value = e.load(data, start + (share - (part + 1) * c), c)
            e.store(best, 0, combine(e.load(best, 0), value))
        total = e.load(best, 0)
        for part in range(1, count):
            total = combine(total, e.load(best, part))
        e.store(output, task, reduce_lanes(e, e.let("total", total), combine))
    return Kernel(e.function(name), w.shares)


TEMPLATE = undecided(ReduceMinMaxWorkload, emit_reduce_minmax)
