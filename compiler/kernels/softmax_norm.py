"""Provide softmax and layer normalization: several passes over a row that stays in the cache."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from tvm import tirx

from edgec.compiler.kernels.emit.across import reduce_lanes
from edgec.compiler.kernels.emit.emitter import Emitter
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.emit.vector_math import exp_below
from edgec.compiler.kernels.reduce_minmax import UNROLL
from edgec.compiler.kernels.template import undecided
from edgec.compiler.kernels.vectors import broadcast, constant, vector_dtype
from edgec.targets.target import Target

Operation = Literal["softmax", "log_softmax", "layer_norm", "rms_norm"]


@dataclass(frozen=True)
class SoftmaxNormWorkload:
    """A softmax norm workload describes an operation on each row of a row-major matrix.

    Attributes:
        operation: softmax, or a normalization with gamma (and beta for layer_norm).
        rows: how many.
        columns: values in a row.
        epsilon: added to the variance.
        inner: rows that lie interleaved: the values of one are this far apart. Only softmax.
    """

    operation: Operation
    rows: int
    columns: int
    epsilon: float = 0.0
    inner: int = 1

    @property
    def macs(self) -> int:
        """Return values read, over all passes."""
        return 3 * self.rows * self.columns


def emit_softmax_norm(workload: SoftmaxNormWorkload, target: Target, name: str) -> Kernel:
    """Write the kernel; its buffers are data, gamma and beta where there are any, and output."""
    if workload.inner > 1:
        return _interleaved_softmax(workload, target, name)
    return RowWriter(workload, target, name).kernel()


def _interleaved_softmax(w: SoftmaxNormWorkload, target: Target, name: str) -> Kernel:
    """Write one task for as many neighbouring rows as a vector has lanes.

    The last ones overlapping.
    """
    c = min(target.float_lanes, 2 ** int(math.log2(w.inner)))
    e = Emitter(target)
    data = e.buffer("data", w.rows * w.columns, "float32")
    output = e.buffer("output", w.rows * w.columns, "float32")
    vectors = math.ceil(w.inner / c)
    with e.tasks() as task:
        lane = tirx.min(tirx.floormod(task, vectors) * c, tirx.IntImm("int32", w.inner - c))
        start = e.let("start", tirx.floordiv(task, vectors) * (w.columns * w.inner) + lane)
        kept = e.local("kept", 2, vector_dtype("float32", c))
        largest, total = 0, 1
        e.store(kept, largest, constant(float("-inf"), "float32", c))
        e.store(kept, total, constant(0, "float32", c))
        with e.loop("column", w.columns) as column:
            value = e.load(data, start + column * w.inner, c)
            e.store(kept, largest, tirx.max(e.load(kept, largest), value))
        with e.loop("column", w.columns) as column:
            at = e.let("at", start + column * w.inner)
            shifted = e.let("shifted", e.load(data, at, c) - e.load(kept, largest))
            raised = e.let("raised", exp_below(shifted))
            e.store(output, at, shifted if w.operation == "log_softmax" else raised)
            e.store(kept, total, e.load(kept, total) + raised)
        if w.operation == "log_softmax":
            finish = e.let("shift", tirx.log(e.load(kept, total)))
        else:
            finish = e.let("scale", constant(1, "float32", c) / e.load(kept, total))
        with e.loop("column", w.columns) as column:
            at = e.let("at", start + column * w.inner)
            value = e.load(output, at, c)
            done = value - finish if w.operation == "log_softmax" else value * finish
            e.store(output, at, done)
    return Kernel(e.function(name), w.rows // w.inner * vectors)


class RowWriter:
    """A row writer writes the code of one row after the other."""

    def __init__(self, workload: SoftmaxNormWorkload, target: Target, name: str) -> None:
        self.work = w = workload
        self.name = name
        self.c = min(target.float_lanes, 2 ** int(math.log2(w.columns)))
        self.parts = min(UNROLL, w.columns // self.c)
        self.emit = e = Emitter(target)
        self.data = e.buffer("data", w.rows * w.columns, "float32")
        self.gamma = self.beta = None
        if w.operation in ("layer_norm", "rms_norm"):
            self.gamma = e.buffer("gamma", w.columns, "float32")
        if w.operation == "layer_norm":
            self.beta = e.buffer("beta", w.columns, "float32")
        self.declare_output()

    def declare_output(self) -> None:
        """Write the last parameter."""
        size = self.work.rows * self.work.columns
        self.output = self.emit.buffer("output", size, "float32")

    def kernel(self) -> Kernel:
        """Return the finished kernel."""
        w, e = self.work, self.emit
        with e.tasks() as task:
            self.begin_row(task)
            if w.operation in ("softmax", "log_softmax"):
                self._softmax()
            else:
                self.normalize(self.output, self.start)
        return Kernel(e.function(self.name), w.rows)

    def begin_row(self, row: Any) -> None:
        """Begin a row: what its reductions are kept in."""
        e = self.emit
        self.start = e.let("start", row * self.work.columns)
        self.partial = e.local("partial", self.parts, vector_dtype("float32", self.c))
        self.single = e.local("single", 1, "float32")

    def _each(self, body: Callable[[Any, int, int], None]) -> None:
        """Call `body(column, lanes, part)` over the row; vectors in flight are different parts."""
        w, e, c = self.work, self.emit, self.c
        vectors, parts = w.columns // c, self.parts
        with e.loop("group", vectors // parts) as group:
            for part in range(parts):
                body(e.let("column", (group * parts + part) * c), c, part)
        for vector in range(vectors // parts * parts, vectors):
            body(vector * c, c, 0)
        if vectors * c < w.columns:
            with e.loop("tail", w.columns - vectors * c, vectors * c) as column:
                body(column, 1, 0)

    def _read(self, column: Any, lanes: int) -> Any:
        return self.emit.load(self.data, self.start + column, lanes)

    def _reduce(
        self, initial: float, combine: Callable[[Any, Any], Any], value: Callable[[Any, int], Any]
    ) -> Any:
        """Combine a value of every column into one number."""
        e, c = self.emit, self.c
        for part in range(self.parts):
            e.store(self.partial, part, constant(initial, "float32", c))
        e.store(self.single, 0, constant(initial, "float32"))

        def body(column: Any, lanes: int, part: int) -> None:
            into = self.partial if lanes > 1 or c == 1 else self.single
            e.store(into, part, combine(e.load(into, part), value(column, lanes)))

        self._each(body)
        total = e.load(self.partial, 0)
        for part in range(1, self.parts):
            total = combine(total, e.load(self.partial, part))
        lanes = reduce_lanes(e, e.let("lanes", total), combine)
        return e.let("total", combine(e.load(self.single, 0), lanes))

    def _softmax(self) -> None:
        e = self.emit
        largest = self._reduce(float("-inf"), tirx.max, self._read)

        def shifted(column: Any, lanes: int) -> Any:
            return self._read(column, lanes) - broadcast(largest, lanes)

        if self.work.operation == "log_softmax":
            total = self._reduce(0, lambda x, y: x + y, lambda at, n: exp_below(shifted(at, n)))
            shift = e.let("shift", tirx.log(total))

            def logarithm(column: Any, lanes: int, _part: int) -> None:
                value = shifted(column, lanes) - broadcast(shift, lanes)
                e.store(self.output, self.start + column, value)

            self._each(logarithm)
            return

        def raised(column: Any, lanes: int) -> Any:
            value = e.let("raised", exp_below(shifted(column, lanes)))
            e.store(self.output, self.start + column, value)
            return value

        total = self._reduce(0, lambda x, y: x + y, raised)
        scale = e.let("scale", tirx.const(1.0, "float32") / total)

        def scaled(column: Any, lanes: int, _part: int) -> None:
            value = e.load(self.output, self.start + column, lanes)
            e.store(self.output, self.start + column, value * broadcast(scale, lanes))

        self._each(scaled)

    def normalize(self, output: Any, to: Any) -> None:
        """Write the normalized row into a buffer, from a place on."""
        w, e = self.work, self.emit
        share = tirx.const(1 / w.columns, "float32")
        mean: Any = None
        if w.operation == "layer_norm":
            mean = e.let("mean", self._reduce(0, lambda x, y: x + y, self._read) * share)

        def centered(column: Any, lanes: int) -> Any:
            value = self._read(column, lanes)
            return value if mean is None else value - broadcast(mean, lanes)

        def squared(column: Any, lanes: int) -> Any:
            value = e.let("centered", centered(column, lanes))
            return value * value

        variance = self._reduce(0, lambda x, y: x + y, squared) * share
        root = tirx.sqrt(variance + tirx.const(w.epsilon, "float32"))
        scale = e.let("scale", tirx.const(1.0, "float32") / root)

        def normalized(column: Any, lanes: int, _part: int) -> None:
            value = centered(column, lanes) * broadcast(scale, lanes)
            value = value * e.load(self.gamma, column, lanes)
            if self.beta is not None:
                value = value + e.load(self.beta, column, lanes)
            e.store(output, to + column, value)

        self._each(normalized)


TEMPLATE = undecided(SoftmaxNormWorkload, emit_softmax_norm)
