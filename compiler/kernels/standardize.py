"""Standardize rows: zero mean, unit variance. Instance and group normalization are such rows.

What follows, element by element or by channel, is computed as the rows are written.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx

from edgec.compiler.kernels.emit.emitter import Emitter
from edgec.compiler.kernels.emit.epilogue import (
    EpilogueStep,
    OperandKind,
    apply,
    declare_operands,
    operand_loader,
    output_dtype,
)
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.emit.quantized_values import store_values
from edgec.compiler.kernels.template import undecided
from edgec.compiler.kernels.vectors import broadcast, constant, vector_dtype
from edgec.targets.target import Target

# Vectors in flight, so that the latency of one sum hides behind the others.
UNROLL = 4


@dataclass(frozen=True)
class StandardizeWorkload:
    """A standardize workload describes rows of a row-major matrix.

    Attributes:
        rows: how many.
        columns: values in a row.
        epsilon: added to the variance.
        channels: values of a channel operand of the epilogue, which repeat through the matrix.
        plane: values to which one channel applies: some of a row, as many of them in each.
        epilogue: what happens to each value before it is stored.
    """

    rows: int
    columns: int
    epsilon: float
    channels: int = 1
    plane: int = 0
    epilogue: tuple[EpilogueStep, ...] = ()

    @property
    def macs(self) -> int:
        """Return values read, over all passes."""
        return 3 * self.rows * self.columns

    def with_planes(self, planes: tuple[int, int, int] | None) -> "StandardizeWorkload | None":
        """Return the workload whose epilogue has channels, None if a row does not hold planes.

        Args:
            planes: outer, channels and inner extents of a channel operand; None: there is none.
        """
        if planes is None:
            return self
        _, channels, plane = planes
        known = self.plane and (self.channels, self.plane) != (channels, plane)
        if known or self.columns % plane or plane == 1:
            return None
        return replace(self, channels=channels, plane=plane)


def emit_standardize(workload: StandardizeWorkload, target: Target, name: str) -> Kernel:
    """Write the kernel; its buffers are data, one for each binary step, and output."""
    return _Writer(workload, target, name).kernel()


class _Writer:
    def __init__(self, workload: StandardizeWorkload, target: Target, name: str) -> None:
        self.work = w = workload
        self.name = name
        self.emit = e = Emitter(target)
        self.plane = w.plane or w.columns
        self.c = min(target.float_lanes, 2 ** int(math.log2(self.plane)))
        size = w.rows * w.columns
        self.data = e.buffer("data", size, "float32")
        sizes: dict[OperandKind, int] = {"channel": w.channels, "element": size}
        self.operands = declare_operands(e, w.epilogue, sizes)
        self.output = e.buffer("output", size, output_dtype(w.epilogue))

    def kernel(self) -> Kernel:
        w, e = self.work, self.emit
        share = tirx.const(1 / w.columns, "float32")
        with e.tasks() as task:
            start = e.let("start", task * w.columns)
            mean = e.let("mean", self._sum(start, lambda x, _lanes: x) * share)

            def squared(x: Any, lanes: int) -> Any:
                centered = e.let("centered", x - broadcast(mean, lanes))
                return centered * centered

            variance = self._sum(start, squared) * share + tirx.const(w.epsilon, "float32")
            scale = e.let("scale", tirx.const(1.0, "float32") / tirx.sqrt(variance))
            planes = w.columns // self.plane
            with e.loop("plane", planes) as plane:
                at = e.let("at", start + plane * self.plane)
                channel = tirx.floormod(task * planes + plane, w.channels)
                self._write(at, e.let("channel", channel), mean, scale)
        return Kernel(e.function(self.name), w.rows)

    def _each(self, count: int, body: Callable[[Any, int, int], None]) -> None:
        """Call `body(position, lanes, part)` over some values; parts are in flight together."""
        e, c = self.emit, self.c
        wide = c * UNROLL
        with e.loop("group", count // wide) as group:
            for part in range(UNROLL):
                body(group * wide + part * c, c, part)
        done = count // wide * wide
        for vector in range((count - done) // c):
            body(done + vector * c, c, vector)
        rest = count // c * c
        if rest < count:
            with e.loop("single", count - rest, rest) as single:
                body(single, 1, 0)

    def _sum(self, start: Any, value: Callable[[Any, int], Any]) -> Any:
        """Return the sum over a row of a function of its values."""
        e, c = self.emit, self.c
        partial = e.local("partial", UNROLL, vector_dtype("float32", c))
        single = e.local("single", 1, "float32")
        spill = e.local("spill", c, "float32")
        e.store(single, 0, constant(0, "float32"))
        for part in range(UNROLL):
            e.store(partial, part, constant(0, "float32", c))

        def body(position: Any, lanes: int, part: int) -> None:
            term = value(e.load(self.data, start + position, lanes), lanes)
            into, place = (single, 0) if lanes < c else (partial, part)
            e.store(into, place, e.load(into, place) + term)

        self._each(self.work.columns, body)
        total = e.load(partial, 0)
        for part in range(1, UNROLL):
            total = total + e.load(partial, part)
        e.store(spill, 0, total)
        for lane in range(c):
            e.store(single, 0, e.load(single, 0) + e.load(spill, lane))
        return e.let("total", e.load(single, 0))

    def _write(self, start: Any, channel: Any, mean: Any, scale: Any) -> None:
        """Write the values of one channel."""
        w, e = self.work, self.emit
        kinds = [step.operand for step in w.epilogue if step.operand]
        held = {
            number: e.let("held", e.load(self.operands[number], channel))
            for number, kind in enumerate(kinds)
            if kind == "channel"
        }

        def body(position: Any, lanes: int, _part: int) -> None:
            at = e.let("at", start + position)
            load = operand_loader(e, self.operands, {"element": at}, lanes)

            def operand(number: int, kind: OperandKind) -> Any:
                return broadcast(held[number], lanes) if number in held else load(number, kind)

            value = e.load(self.data, at, lanes) - broadcast(mean, lanes)
            value = apply(w.epilogue, value * broadcast(scale, lanes), operand)
            store_values(e, self.output, at, [value])

        self._each(self.plane, body)


TEMPLATE = undecided(StandardizeWorkload, emit_standardize, epilogue="epilogue")
