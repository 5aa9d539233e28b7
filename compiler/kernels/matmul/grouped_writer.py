"""Write products of int8 activations by weights of a few bits with a scale for each group.

Few rows of A (`direct`): one register tile holds them all; weights are read once, in order, and
unpacked in registers. Many rows: one task unpacks a block of rows of B for its columns into a
buffer that fits the first-level cache, and multiplies it with tiles of A.

No sums cross columns: what a register holds are columns side by side.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from edgec.compiler.kernels.emit.emitter import wide
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.emit.machine_model import half_l1
from edgec.compiler.kernels.matmul.dense import MatmulDecision, MatmulWorkload, MatmulWriter
from edgec.compiler.kernels.matmul.grouped_layout import (
    GroupNumbers,
    VectorPlace,
    WeightReader,
    dot_of_codes,
)
from edgec.compiler.kernels.matmul.grouped_panel import Units, UnpackedPanel
from edgec.compiler.kernels.matmul.quantize_rows import RowLayout
from edgec.compiler.kernels.vectors import (
    broadcast,
    constant,
    fused_multiply_add,
    reinterpret,
    shuffle,
    vector_dtype,
)
from edgec.compiler.numerics.grouped_codes import GroupForm
from edgec.compiler.numerics.pair_sums import DOT_WIDTH
from edgec.targets.target import Target

# Rows of A up to which a register tile holds them all.
DIRECT_ROWS = 4
# Bytes of accumulators of one task.
TASK_BYTES = 64 * 1024
# Values of a column that are multiplied without a loop.
STRAIGHT = 32


@dataclass(frozen=True)
class GroupedMatmulWorkload:
    """A workload of this kind describes a product of quantized rows by grouped weights.

    Attributes:
        matmul: its extents, the second operand packed, and epilogue.
        form: how the second operand is kept; its rows are columns of B.
    """

    matmul: MatmulWorkload
    form: GroupForm

    @property
    def macs(self) -> int:
        """Return multiply-accumulates."""
        return self.matmul.macs

    @property
    def epilogue(self) -> Any:
        """Return steps after the accumulation."""
        return self.matmul.epilogue

    @property
    def layout(self) -> RowLayout:
        """Return where the parts of a quantized row are."""
        return RowLayout(self.matmul.k, self.form.group)

    @property
    def direct(self) -> bool:
        """Return whether one register tile holds all rows of A."""
        return self.matmul.m <= DIRECT_ROWS


class GroupedMatmulWriter(MatmulWriter):
    """Writes one product."""

    def __init__(
        self,
        workload: GroupedMatmulWorkload,
        decision: MatmulDecision,
        target: Target,
        name: str,
    ) -> None:
        self.grouped, self.form = workload, workload.form
        self.target = target
        self.layout = workload.layout
        self.dot = dot_of_codes(self.form.bits, target)
        # Units of a group.
        self.units = self.form.group // DOT_WIDTH
        self.high: Callable[[Any, Any], Any] | None = None
        super().__init__(workload.matmul, decision, target, name)

    def declare(self) -> None:
        """Write the parameters before the operands of the epilogue."""
        w, e, layout = self.work, self.emit, self.layout
        self.a = e.buffer("a", w.m * layout.bytes, "int8")
        self.a_floats = e.view(self.a, w.m * layout.bytes // 4, "float32")
        self.a_words = e.view(self.a, w.m * layout.bytes // 4, "int32")
        self.reader = WeightReader(e, self.target, self.form, w.n, layout.groups)

    def kernel(self) -> Kernel:
        """Return the finished kernel."""
        p, e = self.plan, self.emit
        tasks_m = 1
        if not self.grouped.direct:
            most = max(1, TASK_BYTES // (4 * p.tile_m * self.width))
            tasks_m = math.ceil(self.tiles_m / most)
            self.tiles = math.ceil(self.tiles_m / tasks_m)
        with e.tasks() as task:
            self.batch = tirx.IntImm("int32", 0)
            self.tile = e.let("tile", tirx.floordiv(task, tasks_m))
            self.part = e.let("part", tirx.floormod(task, tasks_m))
            self.acc = e.local("acc", p.tile_m * p.tile_n, vector_dtype("float32", p.lanes))
            self.sums = e.local("sums", p.tile_m * p.tile_n, vector_dtype("int32", p.lanes))
            self.write_tile(self._direct if self.grouped.direct else self._blocks)
        return Kernel(e.function(self.name), tasks_m * self.tiles_n)

    # Few rows

    def _direct(self, vectors: int) -> None:
        p, e = self.plan, self.emit
        self.row = tirx.IntImm("int32", 0)
        starts = [self.start(e.let("column", self._column(v))) for v in range(vectors)]
        for v in range(vectors):
            for m in range(p.tile_m):
                e.store(self.acc, m * p.tile_n + v, starts[v])
        codes = self._codes(vectors)
        # Two vectors that share bytes are multiplied by whole ones.
        read = self.reader.units
        if self.reader.high and p.tile_n % 2 == 0 and vectors % 2 == 0:
            read, self.high = self.reader.whole_bytes, self.reader.high
        with e.loop("group", self.layout.groups, wide=True) as group:
            weights = self._packed(self._at(codes, group), read)
            self._group(group, vectors, weights, self._numbers(group, vectors))
        self.high = None
        for v in range(vectors):
            self._store(v, e.let("column", self._column(v)))

    def _vector(self, v: int) -> tuple[Any, Any]:
        """Return the panel of a vector of this tile, and which of the panel's vectors it is."""
        each, tile = self.reader.panel // self.plan.lanes, self.plan.tile_n
        start = wide(self.tile * tile)
        if tile % each == 0:
            return wide(self.tile) * (tile // each) + v // each, v % each
        # Vectors of a tile are beside each other where no tile has parts of two panels.
        inside = v if each % tile == 0 else 0
        number = start + (v - inside)
        return tirx.floordiv(number, each), tirx.floormod(number, each) + inside

    def _codes(self, vectors: int) -> list[VectorPlace]:
        """Return where the first group of each vector of columns begins."""
        found = []
        for v in range(vectors):
            panel, part = self._vector(v)
            odd = v % 2 if self.plan.tile_n % 2 == 0 else tirx.floormod(self.tile + v, 2)
            found.append(self.reader.place(panel, part, odd))
        return found

    def _packed(self, at: list[VectorPlace], read: Any) -> Units:
        """Return what loads weights [unit][vector] of units that share bytes, at a number."""
        return lambda first, _count: read(at, first)

    def _numbers(self, group: Any, vectors: int) -> list[GroupNumbers]:
        """Return what each vector of columns has in a group."""
        lanes, read = self.plan.lanes, self.reader.numbers
        return [
            read(panel, group, part * lanes, lanes)
            for panel, part in map(self._vector, range(vectors))
        ]

    # Products of a group

    def _group(
        self,
        group: Any,
        vectors: int,
        weights: Units,
        numbers: list[GroupNumbers],
    ) -> None:
        """Add the products of a group to `acc`.

        Args:
            group: its number.
            vectors: of weights, side by side.
            weights: gives weights [unit][vector] of as many units as share bytes.
            numbers: what each vector has in the group.
        """
        p, e, form = self.plan, self.emit, self.form
        rows = [wide(self.row + m) * (self.layout.bytes // 4) for m in range(p.tile_m)]
        for m, row in enumerate(rows):
            start = self._middle(row, group)
            whole = start
            if self.high is not None and (form.zeros or form.minima):
                less = self._less_sum(row, group) << constant(7, "int32", p.lanes)
                whole = e.let("whole", constant(0, "int32", p.lanes) - less)
            for v in range(vectors):
                e.store(self.sums, m * p.tile_n + v, whole if v % 2 else start)
        straight = min(form.group, STRAIGHT) // DOT_WIDTH
        with e.loop("part", self.units // straight, wide=True) as part:
            first = part * straight
            words = [row + group * (form.group // 4) for row in rows]
            self._units(first, straight, weights, words)
        floats = vector_dtype("float32", p.lanes)
        for m, row in enumerate(rows):
            step, moved = self._factors(row, group)
            less_sum = None
            if form.zeros:
                less_sum = e.let("less", tirx.Cast(floats, self._less_sum(row, group)))
            for v in range(vectors):
                place, of_group = m * p.tile_n + v, numbers[v]
                total = e.load(self.sums, place)
                if self.high is not None and v % 2:
                    total = self.high(total, e.load(self.sums, place - 1))
                else:
                    total = tirx.Cast(floats, total)
                if of_group.zero is not None:
                    total = fused_multiply_add(of_group.zero, less_sum, total)
                factor = e.let("factor", of_group.scale * step)
                total = fused_multiply_add(total, factor, e.load(self.acc, place))
                if of_group.minimum is not None:
                    total = fused_multiply_add(of_group.minimum, moved, total)
                e.store(self.acc, place, total)

    def _middle(self, row: Any, group: Any) -> Any:
        """Return what sums begin with: what codes are kept above or below theirs, times `less`."""
        none, signed = constant(0, "int32", self.plan.lanes), self.reader.signed
        above = -int(signed) if self.form.minima else int(not signed and not self.form.zeros)
        if not above:
            return none
        by = constant(self.form.bits - 1, "int32", self.plan.lanes)
        middle = self.emit.let("middle", self._less_sum(row, group) << by)
        return middle if above > 0 else self.emit.let("middle", none - middle)

    def _less_sum(self, row: Any, group: Any) -> Any:
        """Return the sum of codes of a group of a row, times -1, for all columns."""
        word = self.emit.load(self.a_words, row + self.layout.less_sums + group)
        return self.emit.let("less", broadcast(word, self.plan.lanes))

    def _factors(self, row: Any, group: Any) -> list[Any]:
        """Return the factors of a group of a row, for all columns."""
        e, lanes, at = self.emit, self.plan.lanes, row + self.layout.factors + group * 2
        if not self.dot.by_lane:
            singles = [e.load(self.a_floats, at + number) for number in range(2)]
            return [e.let("factor", broadcast(single, lanes)) for single in singles]
        both = e.let("factors", e.load(self.a_floats, at, 2))
        # As many vectors as have the lanes of the result.
        return [shuffle([both] * (lanes // 2), [number] * lanes) for number in range(2)]

    def _units(
        self,
        first: Any,
        count: int,
        weights: Units,
        words: list[Any],
    ) -> None:
        """Multiply `count` units from one on; `words` is where the group of each row begins."""
        e, dot = self.emit, self.dot
        most = min(dot.most or count, count)
        partial: dict[int, Any] = {}
        held: dict[int, Any] = {}
        shared = self.reader.together
        for unit in range(0, count, shared):
            for n, vectors in enumerate(weights(first + unit, shared)):
                number = unit + n
                for m, word in enumerate(words):
                    data = self._unit(held, m, word + first, number)
                    for v, weight in enumerate(vectors):
                        place = m * self.plan.tile_n + v
                        if not dot.most:
                            total = dot.multiply(e.load(self.sums, place), data, weight)
                            e.store(self.sums, place, total)
                            continue
                        sums = e.let("partial", dot.multiply(partial.get(place), data, weight))
                        partial[place] = sums
                if (number + 1) % most == 0:
                    for place, sums in partial.items():
                        e.store(self.sums, place, dot.widen(e.load(self.sums, place), sums))
                    partial = {}
        assert not partial, "partial sums are left"

    def _unit(self, held: dict[int, Any], m: int, first: Any, number: int) -> Any:
        """Return a unit of activations for all columns."""
        e, lanes = self.emit, self.plan.lanes
        if not self.dot.by_lane:
            return e.let("x", broadcast(e.load(self.a_words, first + number), lanes))
        lane = number % lanes
        if lane == 0:
            held[m] = e.let("xs", e.load(self.a_words, first + number, lanes))
        if not self.dot.in_halves:
            return shuffle([held[m]], [lane] * lanes)
        values = reinterpret(held[m], "int8", DOT_WIDTH * lanes)
        halves = [(DOT_WIDTH * lane + at, DOT_WIDTH * lane + at + 1) for at in (0, 2)]
        return e.let("x", shuffle([values], [each for pair in halves for each in pair * lanes]))

    # Many rows

    def _blocks(self, vectors: int) -> None:
        p, form, e = self.plan, self.form, self.emit
        tile = p.tile_m * p.tile_n
        totals = e.local("totals", self.tiles * tile, vector_dtype("float32", p.lanes))
        starts = [self.start(e.let("column", self._column(v))) for v in range(vectors)]
        with e.loop("row_tile", self.tiles) as number:
            for v in range(vectors):
                for m in range(p.tile_m):
                    place = number * tile + m * p.tile_n + v
                    e.store(totals, place, starts[v])
        codes = self._codes(vectors)
        most = max(1, half_l1(self.target) // (form.group * p.lanes * vectors))
        block = min(most, self.layout.groups)
        panel = UnpackedPanel(e, self.reader, vectors, block)

        def packed(group: Any) -> Units:
            return self._packed(self._at(codes, group), self.reader.units)

        def multiply(first: Any, count: int) -> None:
            panel.fill(first, count, packed, lambda group: self._numbers(group, vectors))
            with e.loop("row_tile", self.tiles) as number:
                base = e.let("base", number * tile)
                self.row = self._first_row(number)
                self._move(totals, base, self.acc, 0, vectors)
                with e.loop("group", count, wide=True) as offset:
                    group = first + offset
                    weights = packed(group) if form.bits == 8 else panel.units(offset)
                    self._group(group, vectors, weights, panel.group_numbers_of(offset))
                self._move(self.acc, 0, totals, base, vectors)

        whole, rest = divmod(self.layout.groups, block)
        with e.loop("block", whole, wide=True) as number:
            multiply(e.let("first", wide(number) * block), block)
        if rest:
            multiply(tirx.IntImm("int64", whole * block), rest)
        with e.loop("row_tile", self.tiles) as number:
            self.row = self._first_row(number)
            self._move(totals, number * tile, self.acc, 0, vectors)
            for v in range(vectors):
                self._store(v, e.let("column", self._column(v)))

    def _at(self, codes: list[VectorPlace], group: Any) -> list[VectorPlace]:
        """Return where a group of each vector of columns begins."""
        return [VectorPlace(c.start + group * self.reader.step_bytes, c.odd) for c in codes]

    def _first_row(self, number: Any) -> Any:
        """Return the first row of a tile of this task; the last tile overlaps the one before."""
        first = (self.part * self.tiles + number) * self.plan.tile_m
        last = self.work.m - self.plan.tile_m
        return self.emit.let("first_row", tirx.min(first, tirx.IntImm("int32", last)))

    def _move(self, source: Any, start: Any, to: Any, place: Any, vectors: int) -> None:
        p, e = self.plan, self.emit
        for v in range(vectors):
            for m in range(p.tile_m):
                at = m * p.tile_n + v
                e.store(to, place + at, e.load(source, start + at))
