"""Provide elementwise chains with no matrix product or window before them.

The first operand is read, the steps of an epilogue follow, the result is stored: one pass over
memory for the whole chain. All operands but per-channel ones have the layout of the result.
"""

import math
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from edgec.compiler.kernels.emit.emitter import Emitter
from edgec.compiler.kernels.emit.epilogue import (
    EpilogueStep,
    OperandKind,
    Places,
    apply,
    declare_operands,
    operand_loader,
    output_dtype,
)
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.emit.quantized_values import load_as_float, store_values
from edgec.compiler.kernels.template import undecided
from edgec.targets.target import Target

# Vectors of one task: enough work to be worth handing out, little enough to stay in L1.
TASK_VECTORS = 256
# Vectors in flight, so that the latency of one chain hides behind the others.
UNROLL = 4


@dataclass(frozen=True)
class ElementwiseWorkload:
    """An elementwise workload describes an elementwise chain.

    The result is seen as [outer, channels, inner]: `outer` planes of `inner` values, each plane
    times `channels`. A channel operand is indexed by the middle dimension; with a blocked layout
    [N, B, H, W, c] there are B channels of H * W * c values, and the operand has c values for
    each; in a row-major layout whose last dimension is the channel, inner is 1.

    Attributes:
        outer: planes.
        channels: values of a channel operand, or blocks of them.
        inner: values to which one channel (or one block) applies.
        lanes: values in a channel operand for each channel: 1, or c.
        steps: the chain.
        data: dtype of the first operand; quantized values are read without their scale.
        zero_point: the zero point of its quantized values.
    """

    outer: int
    channels: int
    inner: int
    lanes: int
    steps: tuple[EpilogueStep, ...]
    data: str = "float32"
    zero_point: int = 0

    @property
    def size(self) -> int:
        """Return values of the result."""
        return self.outer * self.channels * self.inner

    @property
    def macs(self) -> int:
        """Return steps computed."""
        return self.size * max(1, len(self.steps))


def emit_elementwise(workload: ElementwiseWorkload, target: Target, name: str) -> Kernel:
    """Write the kernel; its buffers are the first operand, one per binary step, and output."""
    uses_channels = any(s.operand in ("channel", "image_channel") for s in workload.steps)
    if not uses_channels:
        return _emit_flat(workload, target, name)
    if workload.inner == 1:
        return _emit_rows(workload, target, name)
    return _emit_planes(workload, target, name)


def _buffers(workload: ElementwiseWorkload, e: Emitter) -> tuple[Any, list[Any], Any]:
    size = workload.size
    data = e.buffer("data", size, workload.data)
    operands = declare_operands(
        e,
        workload.steps,
        {
            "channel": workload.channels * workload.lanes,
            "image_channel": workload.outer * workload.channels * workload.lanes,
            "element": size,
        },
    )
    return data, operands, e.buffer("output", size, output_dtype(workload.steps))


def _emit_flat(workload: ElementwiseWorkload, target: Target, name: str) -> Kernel:
    """Return all operands are elements: one long vector."""
    e = Emitter(target)
    data, operands, output = _buffers(workload, e)
    c = target.float_lanes
    size = workload.size

    def step(at: Any, lanes: int) -> Any:
        operand = operand_loader(e, operands, {"element": at}, lanes)
        return apply(
            workload.steps, load_as_float(e, data, at, lanes, workload.zero_point), operand
        )

    span = TASK_VECTORS * c
    tasks = max(1, math.ceil(size / span))
    with e.tasks() as task:
        start = e.let("start", task * span)
        past = tirx.min(start + span, tirx.IntImm("int32", size))
        count = e.let("count", past - start)
        _run(e, output, start, count, c, step)
    return Kernel(e.function(name), tasks)


def _run(
    e: Emitter, output: Any, start: Any, count: Any, c: int, step: Any, origin: Any = 0
) -> None:
    """Store `step(position, lanes)` over a range: unrolled vectors, vectors, single values."""
    wide = UNROLL * c
    with e.loop("group", tirx.floordiv(count, wide)) as group:
        at = e.let("at", start + group * wide)
        values = [step(at + part * c, c) for part in range(UNROLL)]
        store_values(e, output, origin + at, values)
    done = e.let("done", tirx.floordiv(count, wide) * wide)
    with e.loop("vector", tirx.floordiv(count - done, c)) as vector:
        at = e.let("at", start + done + vector * c)
        store_values(e, output, origin + at, [step(at, c)])
    if isinstance(count, tirx.IntImm) and int(count) % c == 0:
        return
    rest = e.let("rest", tirx.floordiv(count, c) * c)
    with e.loop("single", count - rest) as single:
        at = e.let("at", start + rest + single)
        store_values(e, output, origin + at, [step(at, 1)])


def _emit_planes(workload: ElementwiseWorkload, target: Target, name: str) -> Kernel:
    """Return a channel operand that is constant over a plane: one task per plane."""
    e = Emitter(target)
    data, operands, output = _buffers(workload, e)
    c = target.float_lanes
    with e.tasks() as task:
        plane = e.let("plane", tirx.floormod(task, workload.channels))
        start = e.let("start", task * workload.inner)
        held: dict[int, Any] = {}
        kinds = [s.operand for s in workload.steps if s.operand]
        for number, kind in enumerate(kinds):
            if kind not in ("channel", "image_channel"):
                continue
            place = (plane if kind == "channel" else task) * workload.lanes
            held[number] = e.let("channel", e.load(operands[number], place, workload.lanes))

        def step(at: Any, lanes: int) -> Any:
            load = operand_loader(e, operands, {"element": at}, lanes)

            def operand(number: int, kind: OperandKind) -> Any:
                if number not in held:
                    return load(number, kind)
                value = held[number]
                return tirx.Broadcast(value, lanes) if workload.lanes < lanes else value

            return apply(
                workload.steps, load_as_float(e, data, at, lanes, workload.zero_point), operand
            )

        _run(e, output, start, tirx.IntImm("int32", workload.inner), c, step)
    return Kernel(e.function(name), workload.outer * workload.channels)


def _emit_rows(workload: ElementwiseWorkload, target: Target, name: str) -> Kernel:
    """Return a channel operand along the last dimension: one task per row."""
    e = Emitter(target)
    data, operands, output = _buffers(workload, e)
    with e.tasks() as task:
        start = e.let("start", task * workload.channels)

        def step(column: Any, lanes: int) -> Any:
            at = start + column
            places: Places = {"channel": column, "image_channel": at, "element": at}
            operand = operand_loader(e, operands, places, lanes)
            return apply(
                workload.steps, load_as_float(e, data, at, lanes, workload.zero_point), operand
            )

        _run(
            e,
            output,
            tirx.IntImm("int32", 0),
            tirx.IntImm("int32", workload.channels),
            target.float_lanes,
            step,
            start,
        )
    return Kernel(e.function(name), workload.outer)


TEMPLATE = undecided(ElementwiseWorkload, emit_elementwise, epilogue="steps")
