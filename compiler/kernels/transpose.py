"""Permute the axes of a row-major tensor.

Axes of extent 1 are dropped and axes that stay neighbours are merged first. Then

    runs         the last axis stays the last one: runs of memory are copied;
    squares      a square of vectors along the source's last axis is transposed in registers and
                 written along the result's last axis: both sides move whole vectors;
    interleaved  the result's last axis is short and its neighbour is the source's last one:
                 vectors of several rows are interleaved (channels to pixels, depth to space);
    apart        the reverse;
    single       what is left, value by value.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx

from edgec.compiler.kernels.emit.emitter import Emitter
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.layout import transpose_square
from edgec.compiler.kernels.template import undecided
from edgec.compiler.kernels.vectors import shuffle
from edgec.targets.target import Target

# Values that a task moves at least, where there are as many.
TASK_VALUES = 4096
# What only moves is moved as integers of its size.
_DTYPES = {1: "int8", 2: "int16", 4: "int32", 8: "int64"}
# A square of registers at most.
_LARGEST_SQUARE = 16


@dataclass(frozen=True)
class TransposeWorkload:
    """A transpose workload describes a permutation of axes.

    Attributes:
        shape: of the source.
        axes: for each axis of the result the one of the source.
        bytes: size of a value: 1, 2, 4 or 8.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    bytes: int = 4

    @property
    def macs(self) -> int:
        """Return values moved."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class _Axis:
    """An axis of the result.

    Attributes:
        extent: how long.
        source: distance of neighbours in the source.
        to: distance of neighbours in the result.
    """

    extent: int
    source: int
    to: int


def result_axes(workload: TransposeWorkload) -> list[_Axis]:
    """Return the axes of the result, as few as describe the same permutation.

    >>> result_axes(TransposeWorkload((2, 3, 4, 1), (2, 3, 0, 1)))
    [_Axis(extent=4, source=1, to=6), _Axis(extent=6, source=4, to=1)]
    """
    shape = workload.shape
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    merged: list[_Axis] = []
    for axis in workload.axes:
        extent, stride = shape[axis], strides[axis]
        if extent == 1:
            continue
        if merged and merged[-1].source == stride * extent:
            merged[-1] = _Axis(merged[-1].extent * extent, stride, 0)
        else:
            merged.append(_Axis(extent, stride, 0))
    distance = 1
    for place in reversed(range(len(merged))):
        merged[place] = replace(merged[place], to=distance)
        distance *= merged[place].extent
    return merged or [_Axis(1, 1, 1)]


def emit_transpose(workload: TransposeWorkload, target: Target, name: str) -> Kernel:
    """Write the kernel; its buffers are data and output."""
    return _Writer(workload, target, name).kernel()


class _Writer:
    def __init__(self, workload: TransposeWorkload, target: Target, name: str) -> None:
        self.name = name
        dtype = _DTYPES[workload.bytes]
        self.emit = Emitter(target)
        self.data = self.emit.buffer("data", workload.macs, dtype)
        self.output = self.emit.buffer("output", workload.macs, dtype)
        self.axes = result_axes(workload)
        fitting = target.float_lanes * 4 // max(4, workload.bytes)
        self.lanes = min(_LARGEST_SQUARE, max(2, fitting))

    def kernel(self) -> Kernel:
        last = self.axes[-1]
        first = next(axis for axis in self.axes if axis.source == 1)
        others = [axis for axis in self.axes if axis not in (first, last)]
        if last.source == 1:
            tasks = self._runs(others, last)
        elif min(first.extent, last.extent) >= self.lanes:
            tasks = self._squares(others, first, last)
        elif last.extent < self.lanes <= first.extent and first.to == last.extent:
            tasks = self._interleaved(others, first, last)
        elif first.extent < self.lanes <= last.extent and last.source == first.extent:
            tasks = self._apart(others, first, last)
        else:
            tasks = self._single([*others, first], last)
        return Kernel(self.emit.function(self.name), tasks)

    def _place(self, number: Any, axes: Sequence[_Axis]) -> tuple[Any, Any]:
        """Return where a position of some axes is in the source and in the result."""
        e, source, to = self.emit, 0, 0
        for axis in reversed(axes):
            position = number
            if axis is not axes[0]:
                position = e.let("position", tirx.floormod(number, axis.extent))
                number = e.let("number", tirx.floordiv(number, axis.extent))
            source, to = source + position * axis.source, to + position * axis.to
        return e.let("source", source), e.let("to", to)

    def _runs(self, others: Sequence[_Axis], last: _Axis) -> int:
        e, rows = self.emit, math.prod(axis.extent for axis in others)
        if not others:
            # Nothing moves.
            parts = math.ceil(last.extent / TASK_VALUES)
            with e.tasks() as task:
                begin = e.let("begin", task * TASK_VALUES)
                left = tirx.IntImm("int32", last.extent) - begin
                with e.loop("value", tirx.min(tirx.IntImm("int32", TASK_VALUES), left)) as value:
                    e.store(self.output, begin + value, e.load(self.data, begin + value))
            return parts
        lanes = 2 ** min(int(math.log2(last.extent)), int(math.log2(4 * self.lanes)))
        whole = last.extent // lanes
        each = min(rows, max(1, TASK_VALUES // last.extent))
        with e.tasks() as task, e.loop("number", each) as number:
            # The last task may copy the last row more than once.
            row = e.let("row", tirx.min(task * each + number, tirx.IntImm("int32", rows - 1)))
            source, to = self._place(row, others)
            with e.loop("vector", whole) as vector:
                at = e.let("at", vector * lanes)
                e.store(self.output, to + at, e.load(self.data, source + at, lanes))
            if whole * lanes < last.extent:
                at = last.extent - lanes
                e.store(self.output, to + at, e.load(self.data, source + at, lanes))
        return math.ceil(rows / each)

    def _block(self, block: Any, extent: int) -> Any:
        """Return where a block of lanes begins; the last one overlaps the one before."""
        last = tirx.IntImm("int32", extent - self.lanes)
        return self.emit.let("first", tirx.min(block * self.lanes, last))

    def _squares(self, others: Sequence[_Axis], first: _Axis, last: _Axis) -> int:
        e, c = self.emit, self.lanes
        columns, rows = math.ceil(first.extent / c), math.ceil(last.extent / c)
        # A task has some of the blocks along the result's last axis.
        each = min(rows, max(1, TASK_VALUES // (c * c)))
        parts = math.ceil(rows / each)
        with e.tasks() as task:
            part = e.let("part", tirx.floormod(task, parts))
            rest = e.let("rest", tirx.floordiv(task, parts))
            column = self._block(tirx.floormod(rest, columns), first.extent)
            source, to = self._place(e.let("outer", tirx.floordiv(rest, columns)), others)
            source, to = e.let("source", source + column), e.let("to", to + column * first.to)
            with e.loop("square", each) as square:
                row = self._block(part * each + square, last.extent)
                vectors = [
                    e.let("v", e.load(self.data, source + (row + lane) * last.source, c))
                    for lane in range(c)
                ]
                for lane, vector in enumerate(transpose_square(e, vectors)):
                    e.store(self.output, to + lane * first.to + row, vector)
        return parts * columns * math.prod(axis.extent for axis in others)

    def _interleaved(self, others: Sequence[_Axis], first: _Axis, last: _Axis) -> int:
        e, c, count = self.emit, self.lanes, last.extent
        with self._blocks(others, first.extent, count) as (source, to, at):
            rows = [
                e.let("row", e.load(self.data, source + row * last.source + at, c))
                for row in range(count)
            ]
            for part in range(count):
                lanes = range(part * c, (part + 1) * c)
                picks = [lane % count * c + lane // count for lane in lanes]
                e.store(self.output, to + at * count + part * c, shuffle(rows, picks))
        return self.tasks

    def _apart(self, others: Sequence[_Axis], first: _Axis, last: _Axis) -> int:
        e, c, count = self.emit, self.lanes, first.extent
        with self._blocks(others, last.extent, count) as (source, to, at):
            vectors = [
                e.let("v", e.load(self.data, source + at * count + part * c, c))
                for part in range(count)
            ]
            for row in range(count):
                picks = [lane * count + row for lane in range(c)]
                e.store(self.output, to + row * first.to + at, shuffle(vectors, picks))
        return self.tasks

    @contextmanager
    def _blocks(
        self, others: Sequence[_Axis], extent: int, count: int
    ) -> Iterator[tuple[Any, Any, Any]]:
        """Provide loops over blocks of an axis with `count` vectors each.

        Gives the places of the other axes in source and result, and where the block begins.
        """
        e, blocks = self.emit, math.ceil(extent / self.lanes)
        each = min(blocks, max(1, TASK_VALUES // (self.lanes * count)))
        parts = math.ceil(blocks / each)
        self.tasks = parts * math.prod(axis.extent for axis in others)
        with e.tasks() as task:
            source, to = self._place(e.let("outer", tirx.floordiv(task, parts)), others)
            part = e.let("part", tirx.floormod(task, parts))
            with e.loop("block", each) as block:
                yield source, to, self._block(part * each + block, extent)

    def _single(self, others: Sequence[_Axis], last: _Axis) -> int:
        e = self.emit
        with e.tasks() as task:
            source, to = self._place(task, others)
            with e.loop("value", last.extent) as value:
                moved = e.load(self.data, source + value * last.source)
                e.store(self.output, to + value, moved)
        return math.prod(axis.extent for axis in others)


TEMPLATE = undecided(TransposeWorkload, emit_transpose)
