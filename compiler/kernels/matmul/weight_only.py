"""Write matrix products with packed weights, which are unpacked in registers.

C [M, N] = A [M, K] * B, where B holds quantized values. What a code stands for before its scale:

    int8      itself
    float16   itself
    bfloat16  the upper half of a float32
    int4      itself, 0 to 15
    log2      0, or a power of two with sign: see `quantize.numerics.log2_values`

4-bit values stand for (value - zero_point) * scale, with one scale and zero point for each group
of consecutive rows of B in each column. Eight of them are in an int32 lane: rows k to k + 7 of
one column, so that a shift and a mask bring the same row of all columns into place. Where the
target has a permutation of 16 floats, that looks the values up.

Few rows of A (`direct`): a register tile sums x * value over a group, then

    C += scale * (sum - zero_point * sum of x)

so that scales and zero points cost nothing in the inner loop. Sums of x are made once for each
call. Many rows (`panel`): one task decodes a block of rows of B for its columns into a buffer that
fits the first-level cache, and multiplies it with tiles of A as `matmul` does.

This file is long because it is one algorithm: both loops share the unpacker of every format.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from edgec.compiler.kernels.emit.emitter import wide
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.emit.machine_model import ISSUE_WIDTH, multiply_cycles
from edgec.compiler.kernels.emit.quantized_values import LOAD_DTYPES, weight_to_float
from edgec.compiler.kernels.isa import isa_of
from edgec.compiler.kernels.matmul.dense import (
    MatmulDecision,
    MatmulWorkload,
    MatmulWriter,
    matmul_space,
    pack_matrix,
    pack_operand,
)
from edgec.compiler.kernels.template import Template
from edgec.compiler.kernels.vectors import broadcast, constant, vector_dtype
from edgec.targets.target import Target

Format = Literal["int8", "float16", "bfloat16", "int4", "log2"]

# 4-bit values in an int32 lane; other formats are unrolled as often.
WORD = 8
# Rows of A up to which a register tile holds them all.
DIRECT_ROWS = 4
# Bytes of accumulators of one task that decodes panels.
TASK_BYTES = 64 * 1024
# To decode a vector of weights: alone, or where several classes share words and masks.
UNPACK_INSTRUCTIONS = 3.0
CLASS_UNPACK_INSTRUCTIONS = 2.0
# To scale an accumulator at the end of a group.
GROUP_END_INSTRUCTIONS = 3.0
# To start a register tile, and to store an accumulator of it.
TILE_CYCLES = 40
STORE_CYCLES = 2
# What the quantized values of symmetric int4 weights are about.
MIDDLE = 8


@dataclass(frozen=True)
class WeightOnlyMatmulWorkload:
    """A weight-only workload describes a matrix product with packed weights.

    Attributes:
        matmul: its extents, the second operand packed, and epilogue.
        format: the format of the quantized values.
        group: rows of B that share a scale; 0 where there are no scales.
        zero_points: whether groups have zero points of their own; int4 without them has 8.
    """

    matmul: MatmulWorkload
    format: Format
    group: int = 0
    zero_points: bool = False

    @property
    def macs(self) -> int:
        """Return multiply-accumulates."""
        return self.matmul.macs

    @property
    def epilogue(self) -> Any:
        """Return steps after the accumulation."""
        return self.matmul.epilogue

    @property
    def groups(self) -> int:
        """Return groups of a column."""
        return math.ceil(self.matmul.k / self.group) if self.group else 0

    @property
    def parameters(self) -> int:
        """Return operands between the quantized values and those of the epilogue.

        Scales, zero points.
        """
        return int(self.group > 0) + int(self.zero_points)

    @property
    def is_nibbles(self) -> bool:
        """Return whether quantized values have 4 bits."""
        return self.format in ("int4", "log2")

    @property
    def direct(self) -> bool:
        """Return whether one register tile holds all rows of A."""
        return self.matmul.m <= DIRECT_ROWS


def weight_only_matmul_space(
    workload: WeightOnlyMatmulWorkload, target: Target
) -> list[MatmulDecision]:
    """Return tiles that fit the registers; all rows in one tile where they are few."""
    decisions = matmul_space(workload.matmul, target)
    if workload.direct:
        rows = workload.matmul.m
        return [d for d in decisions if d.tile_m == rows and d.tile_n <= 8 and d.rows_first]
    return [d for d in decisions if d.rows_first]


def _classes(workload: WeightOnlyMatmulWorkload, decision: MatmulDecision, target: Target) -> int:
    """See `_Unpacker`: as many as leave accumulators, words and masks in registers."""
    if not workload.direct or workload.format != "int4" or target.vector_registers > 16:
        return 1
    tile, free = decision.tile_m * decision.tile_n, target.vector_registers - 3
    return max((c for c in (2, 4) if (tile + 1) * c + decision.tile_n <= free), default=1)


def estimate_weight_only_cycles(
    workload: WeightOnlyMatmulWorkload, decision: MatmulDecision, target: Target
) -> float:
    """Return multiplying, issuing and decoding; the weights are too small to wait for."""
    w, rows, vectors = workload.matmul, decision.tile_m, decision.tile_n
    fmas = rows * vectors
    tiles_m = math.ceil(w.m / rows)
    tiles_n = math.ceil(math.ceil(w.n / decision.lanes) / vectors)
    unpack = vectors * (
        CLASS_UNPACK_INSTRUCTIONS
        if _classes(workload, decision, target) > 1
        else UNPACK_INSTRUCTIONS
    )
    step = max(multiply_cycles(fmas, target), (rows + vectors) / target.load_units)
    if workload.direct:
        step = max(
            step, (fmas + unpack) / target.fma_units, (fmas + unpack + rows + 1) / ISSUE_WIDTH
        )
        unpack = 0.0
    ends = workload.groups * GROUP_END_INSTRUCTIONS * fmas / target.fma_units
    tile = w.k * step + (ends if workload.direct else 0.0) + TILE_CYCLES + STORE_CYCLES * fmas
    return tiles_n * (tiles_m * tile + w.k * unpack)


def default_weight_only_decision(
    workload: WeightOnlyMatmulWorkload, target: Target
) -> MatmulDecision:
    """Return the decision of the lowest estimate; ties go to the one with more rows."""
    return min(
        weight_only_matmul_space(workload, target),
        key=lambda d: (estimate_weight_only_cycles(workload, d, target), -d.tile_m),
    )


def pack_weight_only_matrix(
    workload: WeightOnlyMatmulWorkload, decision: MatmulDecision, array: NDArray[Any]
) -> NDArray[Any]:
    """Return quantized values in the order of the kernel.

    Args:
        workload: the product.
        decision: how it is computed.
        array: quantized values [K, N]; those of 4 bits uint8, one to a byte, halves of floats
            uint16.
    """
    if not workload.is_nibbles:
        return pack_matrix(array, decision)
    k, n = array.shape
    quantized = _signs_first(array) if workload.format == "log2" else array
    words = np.zeros((math.ceil(k / WORD), WORD, n), np.uint32)
    words.reshape(-1, n)[:k] = quantized
    shifts = 4 * np.arange(WORD, dtype=np.uint32).reshape(1, -1, 1)
    return pack_matrix(np.bitwise_or.reduce(words << shifts, axis=1).view(np.int32), decision)


def _signs_first(quantized: NDArray[Any]) -> NDArray[Any]:
    """Return quantized values of powers of two as the upper bits of a small float.

    Sign, 7 for 1, 6 for 1/2, etc.

    >>> _signs_first(np.array([0, 1, 7, 9])).tolist()
    [0, 7, 1, 15]
    """
    size = quantized & 7
    return np.where(size == 0, 0, (quantized & 8) | (8 - size))


def weight_only_matrix_size(
    workload: WeightOnlyMatmulWorkload, decision: MatmulDecision, _target: Target
) -> int:
    """Return elements of packed quantized values."""
    width = decision.tile_n * decision.lanes
    k = math.ceil(workload.matmul.k / WORD) if workload.is_nibbles else workload.matmul.k
    return math.ceil(workload.matmul.n / width) * width * k


def emit_weight_only_matmul(
    workload: WeightOnlyMatmulWorkload, decision: MatmulDecision, target: Target, name: str
) -> Kernel:
    """Write the kernel; its buffers are A, quantized values, parameters.

    The epilogue's operands, and C.
    """
    return _WeightOnlyMatmul(workload, decision, target, name).kernel()


class _Unpacker:
    """An unpacker dequantizes 4-bit values.

    Attributes:
        classes: masked quantized values are not shifted down to their place but multiplied by 16 to
            the power of one of so many classes, which whoever sums them has to undo.
        offset: what all values are too large by.
    """

    def __init__(self, workload: WeightOnlyMatmulWorkload, target: Target, classes: int) -> None:
        self.format = workload.format
        self.table: Any = None
        isa = isa_of(target)
        self.fixed_to_float, self.permute = isa.fixed_to_float(), isa.permute_16()
        self.classes, self.offset = 1, 0
        symmetric = workload.format == "int4" and not workload.zero_points
        if self.permute is not None:
            values = np.arange(16) - (MIDDLE if symmetric else 0)
            if workload.format == "log2":
                powers = np.array([0.0, *(2.0**k for k in range(-6, 1))])
                values = np.concatenate([powers, -powers])
            self.table = shuffle_constants(values)
        else:
            self.offset = MIDDLE if symmetric else 0
            self.classes = classes

    def __call__(self, word: Any, j: int) -> Any:
        """Return values of row j of a vector of words; of class `j % classes`."""
        lanes = int(word.ty.dtype.lanes)
        floats = vector_dtype("float32", lanes)

        def number(value: int) -> Any:
            return constant(int(np.uint32(value).view(np.int32)), "int32", lanes)

        def down(value: Any, bits: int) -> Any:
            return value if bits == 0 else value >> number(bits)

        if self.permute is not None:
            return self.permute(self.table, down(word, 4 * j))
        if self.format == "log2":
            up = word if j == WORD - 1 else word << number(4 * (WORD - 1 - j))
            # Sign and the three lowest bits of the exponent; then the exponent is as it should be.
            bits = down(up, 5) & number(0x83800000)
            return tirx.reinterpret(floats, bits) * constant(2.0**120, "float32", lanes)
        if self.fixed_to_float is not None:
            masked = word & number(15 << 4 * j)
            if j == 0:
                return tirx.Cast(floats, masked)
            return self.fixed_to_float(masked, 4 * j)
        place = j % self.classes
        shifted = down(word, 4 * (j - place))
        return tirx.Cast(floats, shifted & number(15 << 4 * place))


def shuffle_constants(values: NDArray[Any]) -> Any:
    """Return a vector of given float32 numbers."""
    numbers = [tirx.const(float(value), "float32") for value in values]
    return tirx.Shuffle(numbers, [tirx.IntImm("int32", i) for i in range(len(numbers))])


class _WeightOnlyMatmul(MatmulWriter):
    def __init__(
        self,
        workload: WeightOnlyMatmulWorkload,
        decision: MatmulDecision,
        target: Target,
        name: str,
    ) -> None:
        self.weight_only = workload
        self.target = target
        super().__init__(workload.matmul, decision, target, name)
        classes = _classes(workload, decision, target)
        self.unpack = _Unpacker(workload, target, classes)
        self.classes = self.unpack.classes
        # Whether sums of x are needed.
        self.shifts = workload.zero_points or self.unpack.offset != 0

    def declare(self) -> None:
        w, s, e = self.work, self.weight_only, self.emit
        columns = self.tiles_n * self.width
        self.rows = math.ceil(w.k / WORD) if s.is_nibbles else w.k
        unit = LOAD_DTYPES.get(s.format, "int32")
        self.a = e.buffer("a", w.m * w.k, "float32")
        self.b = e.buffer("b", self.rows * columns, unit)
        self.scales = self.zeros = None
        if s.group:
            self.scales = e.buffer("scales", s.groups * columns, "float32")
        if s.zero_points:
            self.zeros = e.buffer("zero_points", s.groups * columns, "uint8")

    def kernel(self) -> Kernel:
        p, e = self.plan, self.emit
        tasks_m = 1
        if self.weight_only.direct:
            self._sum_rows()
        else:
            most = max(1, TASK_BYTES // (4 * p.tile_m * self.width))
            tasks_m = math.ceil(self.tiles_m / most)
            self.tiles = math.ceil(self.tiles_m / tasks_m)
        with e.tasks() as task:
            self.batch = tirx.IntImm("int32", 0)
            self.tile = e.let("tile", tirx.floordiv(task, tasks_m))
            self.part = e.let("part", tirx.floormod(task, tasks_m))
            self.acc = e.local("acc", p.tile_m * p.tile_n, vector_dtype("float32", p.lanes))
            self.write_tile(self._direct if self.weight_only.direct else self._panel)
        return Kernel(e.function(self.name), tasks_m * self.tiles_n)

    # Quantized values

    def _values(self, row: Any, vectors: int, count: int) -> list[list[Any]]:
        """Return values [code][vector] of `count` rows of B from `row` * WORD on."""
        e, p, s = self.emit, self.plan, self.weight_only
        if s.is_nibbles:
            start = self.b_tile + row * self.width
            words = [
                e.let("word", e.load(self.b, start + v * p.lanes, p.lanes)) for v in range(vectors)
            ]
            return [[self.unpack(word, j) for word in words] for j in range(count)]
        start = self.b_tile + row * (WORD * self.width)
        return [
            [self._plain_value(start + j * self.width + v * p.lanes) for v in range(vectors)]
            for j in range(count)
        ]

    def _plain_value(self, place: Any) -> Any:
        code = self.emit.load(self.b, place, self.plan.lanes)
        return weight_to_float(code, self.weight_only.format, self.emit.isa.converts_float16)

    def _parameters(self, group: Any, vectors: int) -> tuple[list[Any], list[Any]]:
        """Return scales and zero points of a group; no zero points if they are 0."""
        e, lanes = self.emit, self.plan.lanes
        place = self.tile * (self.weight_only.groups * self.width) + group * self.width
        places = [e.let("place", place + v * lanes) for v in range(vectors)]
        scales = [e.let("scale", e.load(self.scales, at, lanes)) for at in places]
        floats = vector_dtype("float32", lanes)
        if self.zeros is not None:
            loaded = [e.load(self.zeros, at, lanes) for at in places]
            return scales, [e.let("zero", tirx.Cast(floats, value)) for value in loaded]
        offset = self.unpack.offset
        return scales, [constant(offset, "float32", lanes)] * vectors if offset else []

    # Few rows

    def _sum_rows(self) -> None:
        """Write sums of each group of each row of A, before the tasks."""
        w, s, e = self.work, self.weight_only, self.emit
        if not self.shifts:
            return
        lanes = self.target.float_lanes
        self.sums_of_x = e.local("sums_of_x", w.m * s.groups, "float32")
        partial = e.local("partial", 1, vector_dtype("float32", lanes))
        spill = e.local("spill_x", lanes, "float32")
        single = e.local("single", 1, "float32")

        def total(row: Any, group: Any, count: int) -> None:
            start = e.let("start", row * w.k + group * s.group)
            e.store(partial, 0, constant(0, "float32", lanes))
            e.store(single, 0, tirx.const(0.0, "float32"))
            with e.loop("vector", count // lanes) as vector:
                value = e.load(self.a, start + vector * lanes, lanes)
                e.store(partial, 0, e.load(partial, 0) + value)
            if count % lanes:
                with e.loop("rest", count % lanes, count // lanes * lanes) as at:
                    e.store(single, 0, e.load(single, 0) + e.load(self.a, start + at))
            e.store(spill, 0, e.load(partial, 0))
            parts = [e.load(spill, lane) for lane in range(lanes)]
            while len(parts) > 1:
                half = len(parts) // 2
                parts = [x + y for x, y in zip(parts[:half], parts[half:], strict=True)]
            e.store(self.sums_of_x, row * s.groups + group, parts[0] + e.load(single, 0))

        whole, rest = divmod(w.k, s.group)
        with e.loop("row", w.m) as row:
            if whole:
                with e.loop("group", whole) as group:
                    total(row, group, s.group)
            if rest:
                total(row, tirx.IntImm("int32", whole), rest)

    def _direct(self, vectors: int) -> None:
        w, p, s, e = self.work, self.plan, self.weight_only, self.emit
        self.row = tirx.IntImm("int32", 0)
        columns = [e.let("column", self._column(v)) for v in range(vectors)]
        self.b_tile = wide(e.let("b_tile", self.tile * (self.rows * self.width)))
        for v in range(vectors):
            start = self.start(columns[v])
            for m in range(p.tile_m):
                e.store(self.acc, m * p.tile_n + v, start)
        if not s.group:
            self._span(self.acc, 0, w.k, vectors)
        else:
            tile = p.tile_m * p.tile_n
            self.accumulators = e.local(
                "sums", tile * self.classes, vector_dtype("float32", p.lanes)
            )
            whole, rest = divmod(w.k, s.group)
            if whole:
                with e.loop("group", whole, wide=True) as group:
                    self._group(group, s.group, vectors)
            if rest:
                self._group(tirx.IntImm("int64", whole), rest, vectors)
        for v in range(vectors):
            self._store(v, columns[v])

    def _group(self, group: Any, count: int, vectors: int) -> None:
        """Add the products of a group: its sums, scaled."""
        p, s, e = self.plan, self.weight_only, self.emit
        tile = p.tile_m * p.tile_n
        zero = constant(0, "float32", p.lanes)
        for place in range(tile * self.classes):
            e.store(self.accumulators, place, zero)
        self._span(self.accumulators, group * (s.group // WORD), count, vectors)
        scales, zeros = self._parameters(group, vectors)
        for m in range(p.tile_m):
            x = None
            if self.shifts:
                loaded = e.load(self.sums_of_x, group + m * s.groups)
                x = e.let("sum_of_x", broadcast(loaded, p.lanes))
            for v in range(vectors):
                place = m * p.tile_n + v
                total = e.load(self.accumulators, place)
                for other in range(1, self.classes):
                    scaled = e.load(self.accumulators, other * tile + place)
                    total = total + scaled * constant(16.0**-other, "float32", p.lanes)
                if x is not None:
                    total = total - zeros[v] * x
                e.store(self.acc, place, e.load(self.acc, place) + scales[v] * total)

    def _span(self, into: Any, first: Any, count: int, vectors: int) -> None:
        """Sum products of `count` rows of B from word `first` on."""
        w, p, e = self.work, self.plan, self.emit
        tile = p.tile_m * p.tile_n

        def word(number: Any, quantized: int) -> None:
            values = self._values(number, vectors, quantized)
            for j in range(quantized):
                row = [e.let("value", value) for value in values[j]]
                for m in range(p.tile_m):
                    at = wide(number) * WORD + (m * w.k + j)
                    x = e.let("x", broadcast(e.load(self.a, at), p.lanes))
                    for v, value in enumerate(row):
                        place = j % self.classes * tile + m * p.tile_n + v
                        e.store(into, place, e.load(into, place) + x * value)

        whole, rest = divmod(count, WORD)
        if whole:
            with e.loop("word", whole, wide=True) as step:
                word(step + first, WORD)
        if rest:
            word(wide(first) + whole, rest)

    # Many rows

    def _panel(self, vectors: int) -> None:
        w, p, s, e = self.work, self.plan, self.weight_only, self.emit
        columns = [e.let("column", self._column(v)) for v in range(vectors)]
        self.b_tile = wide(e.let("b_tile", self.tile * (self.rows * self.width)))
        unit = s.group or 4 * WORD
        room = self.target.l1d_kib * 1024 // 2 // (4 * self.width)
        block = min(max(1, room // unit) * unit, math.ceil(w.k / unit) * unit)
        self.panel = e.local("panel", block * self.width, "float32")
        tile = p.tile_m * p.tile_n
        totals = e.local("totals", self.tiles * tile, vector_dtype("float32", p.lanes))
        starts = [self.start(columns[v]) for v in range(vectors)]
        with e.loop("row_tile", self.tiles) as number:
            for v in range(vectors):
                for m in range(p.tile_m):
                    e.store(totals, number * tile + m * p.tile_n + v, starts[v])

        def multiply(first: Any, count: int) -> None:
            self._decode(first, count, vectors)
            with e.loop("row_tile", self.tiles) as number:
                base = e.let("base", number * tile)
                self._load_tile(totals, base, vectors)
                a = wide(self._first_row(number)) * w.k + first
                with e.loop("k", count, wide=True) as k:
                    places = [k * self.width + v * p.lanes for v in range(vectors)]
                    values = [e.let("b", e.load(self.panel, at, p.lanes)) for at in places]
                    for m in range(p.tile_m):
                        x = self.read(a + m * w.k + k)
                        for v, value in enumerate(values):
                            place = m * p.tile_n + v
                            e.store(self.acc, place, e.load(self.acc, place) + x * value)
                for v in range(vectors):
                    for m in range(p.tile_m):
                        place = m * p.tile_n + v
                        e.store(totals, base + place, e.load(self.acc, place))

        whole, rest = divmod(w.k, block)
        if whole:
            with e.loop("block", whole, wide=True) as number:
                multiply(e.let("first", number * block), block)
        if rest:
            multiply(tirx.IntImm("int64", whole * block), rest)
        with e.loop("row_tile", self.tiles) as number:
            self.row = self._first_row(number)
            self._load_tile(totals, number * tile, vectors)
            for v in range(vectors):
                self._store(v, columns[v])

    def _first_row(self, number: Any) -> Any:
        """Return the first row of a tile of this task; the last tile overlaps the one before."""
        first = (self.part * self.tiles + number) * self.plan.tile_m
        last = self.work.m - self.plan.tile_m
        return self.emit.let("first_row", tirx.min(first, tirx.IntImm("int32", last)))

    def _load_tile(self, totals: Any, base: Any, vectors: int) -> None:
        p, e = self.plan, self.emit
        for v in range(vectors):
            for m in range(p.tile_m):
                place = m * p.tile_n + v
                e.store(self.acc, place, e.load(totals, base + place))

    def _decode(self, first: Any, count: int, vectors: int) -> None:
        """Write rows of B from `first` on, as floats, into the panel."""
        p, s, e = self.plan, self.weight_only, self.emit

        def words(start: Any, into: Any, size: int, finish: Any) -> None:
            whole, rest = divmod(size, WORD)

            def one(number: Any, quantized: int) -> None:
                values = self._values(start + number, vectors, quantized)
                for j in range(quantized):
                    for v, value in enumerate(values[j]):
                        at = (into + number * WORD + j) * self.width + v * p.lanes
                        e.store(self.panel, at, finish(v, value))

            if whole:
                with e.loop("word", whole, wide=True) as number:
                    one(number, WORD)
            if rest:
                one(tirx.IntImm("int64", whole), rest)

        zero = tirx.IntImm("int64", 0)
        if not s.group:
            words(tirx.floordiv(first, WORD), zero, count, lambda _v, value: value)
            return

        def group(number: Any, size: int) -> None:
            index = tirx.floordiv(first, s.group) + number
            scales, zeros = self._parameters(index, vectors)

            def finish(v: int, value: Any) -> Any:
                return (value - zeros[v] if zeros else value) * scales[v]

            words(index * (s.group // WORD), number * s.group, size, finish)

        whole, rest = divmod(count, s.group)
        if whole:
            with e.loop("group", whole, wide=True) as number:
                group(number, s.group)
        if rest:
            group(tirx.IntImm("int64", whole), rest)


def _pack(
    workload: WeightOnlyMatmulWorkload,
    decision: MatmulDecision,
    target: Target,
    position: int,
    array: NDArray[Any],
) -> NDArray[Any]:
    if position == 1:
        return pack_weight_only_matrix(workload, decision, array)
    if 1 < position <= 1 + workload.parameters:
        return pack_matrix(array, decision)
    return pack_operand(workload.matmul, decision, target, position, array)


TEMPLATE = Template(
    WeightOnlyMatmulWorkload,
    MatmulDecision,
    weight_only_matmul_space,
    default_weight_only_decision,
    emit_weight_only_matmul,
    _pack,
    estimate_weight_only_cycles,
    weight_only_matrix_size,
    epilogue="matmul",
    output_channels=1,
    why_dense="there are no sparse kernels for packed weights",
)
