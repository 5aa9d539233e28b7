"""Pool windows of volumes in row-major layout.

For each row of the result the rows that its windows reach are combined into one line, vector by
vector; then windows along that line. Padding is a few values at both ends of the line.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from tvm import tirx

from edgec.compiler.kernels.emit.emitter import Emitter
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.reduce_minmax import smaller_or_larger
from edgec.compiler.kernels.template import undecided
from edgec.compiler.kernels.vectors import broadcast, constant, shuffle, vector_dtype
from edgec.targets.target import Target

Triple = tuple[int, int, int]
Mode = Literal["max", "average", "average_padded"]

# The line is on the stack.
LONGEST_ROW = 8192
# Neighbouring windows are further apart than this: value by value.
_LONGEST_STRIDE = 4
# Vectors in flight.
_UNROLL = 4


@dataclass(frozen=True)
class VolumePoolWorkload:
    """A volume pool workload describes windows over depth, rows and columns.

    Attributes:
        mode: the largest value of a window, or the mean, of its values or of padding, too.
        planes: volumes, one for each channel of each image.
        extents: of a volume.
        outputs: windows along each axis.
        kernel: taps along each axis.
        stride: between windows.
        padding: in front of each axis.
        dilation: between taps; 1 for a mean.
    """

    mode: Mode
    planes: int
    extents: Triple
    outputs: Triple
    kernel: Triple
    stride: Triple
    padding: Triple
    dilation: Triple

    @property
    def macs(self) -> int:
        """Return values combined."""
        return self.planes * math.prod(self.outputs) * sum(self.kernel)


def emit_volume_pool(workload: VolumePoolWorkload, target: Target, name: str) -> Kernel:
    """Write the kernel; its buffers are data and output. A task is one slice of the result."""
    return _Writer(workload, target, name).kernel()


class _Writer:
    def __init__(self, workload: VolumePoolWorkload, target: Target, name: str) -> None:
        self.work = w = workload
        self.name = name
        self.c = target.float_lanes
        self.emit = e = Emitter(target)
        self.data = e.buffer("data", w.planes * math.prod(w.extents), "float32")
        self.output = e.buffer("output", w.planes * math.prod(w.outputs), "float32")
        if w.mode == "max":
            self.identity = -math.inf
            self.combine: Callable[[Any, Any], Any] = smaller_or_larger("max")
        else:
            self.identity = 0.0
            self.combine = lambda one, other: one + other

    def kernel(self) -> Kernel:
        w, e, c = self.work, self.emit, self.c
        depth, rows, columns = w.outputs
        reach = (columns - 1) * w.stride[2] + (w.kernel[2] - 1) * w.dilation[2] + 1
        # The last vectors of a line read beyond what their windows need.
        length = max(reach, w.padding[2] + w.extents[2]) + c * _LONGEST_STRIDE
        with e.tasks() as task:
            self.line = e.local("line", length, "float32")
            with e.loop("end", length) as end:
                e.store(self.line, end, constant(self.identity, "float32"))
            slice_ = e.let("slice", tirx.floormod(task, depth))
            plane = e.let("plane", tirx.floordiv(task, depth))
            z = e.let("z", slice_ * w.stride[0] - w.padding[0])
            deep = self._taps(z, 0)
            with e.loop("row", rows) as row:
                y = e.let("y", row * w.stride[1] - w.padding[1])
                high = self._taps(y, 1)
                self._gather(plane * w.extents[0], z, y, deep, high)
                self._windows(e.let("to", (task * rows + row) * columns), deep[1] * high[1])
        return Kernel(e.function(self.name), w.planes * depth)

    def _taps(self, start: Any, axis: int) -> tuple[Any, Any]:
        """Return the first tap of a window inside an axis, and how many are inside."""
        w, e = self.work, self.emit
        apart, extent = w.dilation[axis], w.extents[axis]
        zero, kernel = tirx.IntImm("int32", 0), tirx.IntImm("int32", w.kernel[axis])
        first = e.let("first", tirx.max(tirx.floordiv(apart - 1 - start, apart), zero))
        past = tirx.min(tirx.floordiv(extent - 1 - start, apart) + 1, kernel)
        return first, e.let("count", tirx.max(past - first, zero))

    def _gather(
        self, plane: Any, z: Any, y: Any, deep: tuple[Any, Any], high: tuple[Any, Any]
    ) -> None:
        """Combine the rows that windows reach into the line."""
        w, e, c = self.work, self.emit, self.c
        _, height, width = w.extents

        def combined(column: Any, lanes: int, count: int) -> None:
            held = e.local("held", count, vector_dtype("float32", lanes))
            for part in range(count):
                e.store(held, part, constant(self.identity, "float32", lanes))
            with e.loop("deep", deep[1], deep[0]) as tap_z:
                image = e.let("image", plane + z + tap_z * w.dilation[0])
                with e.loop("high", high[1], high[0]) as tap_y:
                    row = image * height + y + tap_y * w.dilation[1]
                    at = e.let("at", row * width + column)
                    for part in range(count):
                        value = e.load(self.data, at + part * lanes, lanes)
                        e.store(held, part, self.combine(e.load(held, part), value))
            for part in range(count):
                to = column + w.padding[2] + part * lanes
                e.store(self.line, to, e.load(held, part))

        wide = c * _UNROLL
        with e.loop("group", width // wide) as group:
            combined(group * wide, c, _UNROLL)
        done = width // wide * wide
        if (width - done) // c:
            combined(done, c, (width - done) // c)
        if width % c:
            with e.loop("single", width % c, width // c * c) as single:
                combined(single, 1, 1)

    def _windows(self, to: Any, inside: Any) -> None:
        """Write a row of the result: windows along the line.

        Args:
            to: where the row begins.
            inside: rows that are in the line.
        """
        w, e, c = self.work, self.emit, self.c
        columns, stride = w.outputs[2], w.stride[2]
        inside = e.let("inside", inside)
        lanes = c if stride <= _LONGEST_STRIDE and columns >= c else 1

        def write(column: Any, lanes: int) -> None:
            taps = [
                self._every(column * stride + tap * w.dilation[2], lanes)
                for tap in range(w.kernel[2])
            ]
            total = taps[0]
            for value in taps[1:]:
                total = self.combine(total, value)
            if w.mode != "max":
                total = total / self._count(column, inside, lanes)
            e.store(self.output, to + column, total)

        last = tirx.IntImm("int32", columns - lanes)
        with e.loop("vector", math.ceil(columns / lanes)) as vector:
            write(e.let("column", tirx.min(vector * lanes, last)), lanes)

    def _every(self, at: Any, lanes: int) -> Any:
        """Return values of the line that are a stride apart."""
        e, stride = self.emit, self.work.stride[2]
        if lanes == 1 or stride == 1:
            return e.let("tap", e.load(self.line, at, lanes))
        vectors = [e.load(self.line, at + part * lanes, lanes) for part in range(stride)]
        return e.let("tap", shuffle(vectors, [lane * stride for lane in range(lanes)]))

    def _count(self, column: Any, inside: Any, lanes: int) -> Any:
        """Return how many values the mean of each window is of, as floats."""
        w = self.work
        if w.mode == "average_padded":
            return constant(math.prod(w.kernel), "float32", lanes)
        start = column * w.stride[2] - w.padding[2]
        if lanes > 1:
            start = tirx.Ramp(start, tirx.IntImm("int32", w.stride[2]), lanes)
        starts = self.emit.let("starts", start)
        past = tirx.min(
            starts + constant(w.kernel[2], "int32", lanes), constant(w.extents[2], "int32", lanes)
        )
        count = past - tirx.max(starts, constant(0, "int32", lanes))
        return tirx.Cast(vector_dtype("float32", lanes), count * broadcast(inside, lanes))


TEMPLATE = undecided(VolumePoolWorkload, emit_volume_pool)
