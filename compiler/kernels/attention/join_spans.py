"""Bring together what attention over spans of the keys kept of each row."""

from dataclasses import dataclass

from tvm import tirx

from edgec.compiler.kernels.attention.rotation import fitting_lanes
from edgec.compiler.kernels.attention.workload import (
    LOWEST,
    CachedAttentionWorkload,
    one_over,
    place_of,
    query_of,
)
from edgec.compiler.kernels.emit.emitter import Emitter
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.emit.vector_math import exp2_below_zero
from edgec.compiler.kernels.template import undecided
from edgec.compiler.kernels.vectors import broadcast, constant
from edgec.targets.target import Target


@dataclass(frozen=True)
class JoinSpansWorkload:
    """This workload makes one attention of that over several spans of the keys.

    Attributes:
        attention: what was computed.
        token_major_output: whether the result is [B, S, N, E], not [B, N, S, E].
    """

    attention: CachedAttentionWorkload
    token_major_output: bool = False

    @property
    def macs(self) -> int:
        """Return values read."""
        return self.attention.result_size


def emit_join_spans(workload: JoinSpansWorkload, target: Target, name: str) -> Kernel:
    """Write the kernel; its buffers are what `cached_attention` gives, and the result."""
    w = workload.attention
    e, c = Emitter(target), fitting_lanes(target.float_lanes, w.width)
    data = e.buffer("data", w.result_size, "float32")
    output = e.buffer("output", w.batch * w.heads * w.count * w.width, "float32")
    with e.tasks() as task:
        # Names for all of them: simplified together, their bounds leave 32 bits.
        plane = e.let("plane", tirx.floordiv(task, w.rows))
        number = e.let("number", tirx.floormod(task, w.rows))
        sequence = e.let("sequence", tirx.floordiv(plane, w.groups))
        group = e.let("group", tirx.floormod(plane, w.groups))
        step, head = query_of(e, number, w.heads // w.groups, group)
        starts = [
            e.let("start", ((plane * w.spans + span) * w.rows + number) * (w.width + 2))
            for span in range(w.spans)
        ]
        largest = tirx.const(LOWEST, "float32")
        for start in starts:
            largest = e.let("largest", tirx.max(largest, e.load(data, start + (w.width + 1))))
        factors, total = [], tirx.const(0, "float32")
        for start in starts:
            change = e.let("change", e.load(data, start + (w.width + 1)) - largest)
            factors.append(e.let("factor", exp2_below_zero(change)))
            total = e.let("total", total + e.load(data, start + w.width) * factors[-1])
        part = e.let("part", one_over(total))
        to = place_of(w, sequence, step, head, workload.token_major_output) * w.width
        to = e.let("to", to)
        with e.loop("vector", w.width // c) as vector:
            at = e.let("at", vector * c)
            value = constant(0, "float32", c)
            for start, factor in zip(starts, factors, strict=True):
                value = value + e.load(data, start + at, c) * broadcast(factor, c)
            e.store(output, to + at, value * broadcast(part, c))
    return Kernel(e.function(name), w.batch * w.groups * w.rows)


TEMPLATE = undecided(JoinSpansWorkload, emit_join_spans)
