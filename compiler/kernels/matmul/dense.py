"""Provide matrix products of row-major matrices.

C [batch, M, N] = A [batch, M, K] * B, where B is

    packed    a constant, the same for the whole batch: for each tile of columns K rows of
              tile_n vectors, made by `pack_matrix`;
    plain     computed at run time: [batch, K, N].

One task computes a register tile of tile_m rows and tile_n vectors of columns; each step over K
broadcasts one value of each row and multiplies it with tile_n vectors of B. The last tile of rows
overlaps the one before. So does the last vector of a plain B; a packed B is padded with zeros,
and what lies beyond the last column is not stored.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from edgec.compiler.kernels.emit.emitter import CACHE_LINE_BYTES, Emitter, wide
from edgec.compiler.kernels.emit.epilogue import (
    EpilogueStep,
    apply,
    begins_with_bias,
    declare_operands,
    operand_loader,
    output_dtype,
)
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.emit.machine_model import (
    FAR_BYTES_PER_CYCLE,
    FLOAT_BYTES,
    ISSUE_WIDTH,
    KIB,
    NEAR_BYTES_PER_CYCLE,
    half_l1,
    half_l2,
    multiply_cycles,
    tile_overhead_cycles,
)
from edgec.compiler.kernels.emit.quantized_values import store_values
from edgec.compiler.kernels.template import Template
from edgec.compiler.kernels.vectors import broadcast, constant, vector_dtype
from edgec.targets.target import Target

# Steps over K between requests for the next tile of B.
K_BLOCK = 16
# To count, compare and branch at the end of a step over K.
ROW_STEP_INSTRUCTIONS = 2


@dataclass(frozen=True)
class MatmulWorkload:
    """A matmul workload describes a matrix product as a kernel sees it.

    Attributes:
        batch: independent products; 1 for a packed B.
        m: rows of A and C.
        n: columns of B and C.
        k: columns of A, rows of B.
        packed: B is a constant.
        epilogue: what happens to each value before it is stored; its channel operands run along
            the columns.
    """

    batch: int
    m: int
    n: int
    k: int
    packed: bool
    epilogue: tuple[EpilogueStep, ...] = ()

    @property
    def macs(self) -> int:
        """Return multiply-accumulates."""
        return self.batch * self.m * self.n * self.k


@dataclass(frozen=True)
class MatmulDecision:
    """A matmul decision describes how a product is computed.

    Attributes:
        tile_m: rows of the register tile.
        tile_n: vectors of columns of the register tile.
        lanes: values in a vector; fewer than a register holds where N is small.
        rows_first: consecutive tasks share columns of B (true) or rows of A (false).
    """

    tile_m: int
    tile_n: int
    lanes: int
    rows_first: bool = True


def pack_matrix(matrix: NDArray[Any], decision: MatmulDecision) -> NDArray[Any]:
    """Return B [K, N] as [tiles, K, tile_n * lanes], zero beyond the last column."""
    k, n = matrix.shape
    width = decision.tile_n * decision.lanes
    tiles = math.ceil(n / width)
    padded = np.zeros((k, tiles * width), matrix.dtype)
    padded[:, :n] = matrix
    return np.ascontiguousarray(padded.reshape(k, tiles, width).transpose(1, 0, 2))


def packed_matrix_size(workload: MatmulWorkload, decision: MatmulDecision, _target: Target) -> int:
    """Return values in a packed B; in a plain one, those of all products."""
    if not workload.packed:
        return workload.batch * workload.k * workload.n
    width = decision.tile_n * decision.lanes
    return math.ceil(workload.n / width) * width * workload.k


def matmul_space(workload: MatmulWorkload, target: Target) -> list[MatmulDecision]:
    """Return every decision that makes sense: tiles that fit the registers."""
    lanes = target.float_lanes
    while lanes > workload.n and not workload.packed:
        lanes //= 2
    vectors = math.ceil(workload.n / lanes)
    decisions = []
    for tile_n in range(1, min(vectors, 12) + 1):
        room = (target.vector_registers - tile_n - 1) // tile_n
        for tile_m in range(1, min(workload.m, room) + 1):
            for rows_first in (True, False):
                decisions.append(MatmulDecision(tile_m, tile_n, lanes, rows_first))
    return decisions


def estimate_matmul_cycles(
    workload: MatmulWorkload, decision: MatmulDecision, target: Target, instructions: int = 1
) -> float:
    """Return the same model as for convolutions: multiplying, loading, issuing, streaming B.

    Args:
        workload: the product.
        decision: how it is computed.
        target: where.
        instructions: for each multiply-add.
    """
    rows, vectors = decision.tile_m, decision.tile_n
    fmas = rows * vectors
    multiply = max(multiply_cycles(fmas, target), fmas * instructions / target.fma_units)
    load = (rows + vectors) / target.load_units
    issue = (fmas * instructions + rows + vectors + ROW_STEP_INSTRUCTIONS) / ISSUE_WIDTH
    tiles_m = math.ceil(workload.m / rows)
    tiles_n = math.ceil(math.ceil(workload.n / decision.lanes) / vectors)
    step_bytes = vectors * decision.lanes * FLOAT_BYTES
    panel_bytes = workload.k * step_bytes
    matrix_bytes = workload.k * workload.n * FLOAT_BYTES
    stream = 0.0
    if tiles_m == 1 and matrix_bytes > target.l2_kib * KIB:
        stream = step_bytes / FAR_BYTES_PER_CYCLE
    elif panel_bytes > half_l1(target):
        near = panel_bytes < half_l2(target)
        stream = step_bytes / (NEAR_BYTES_PER_CYCLE if near else FAR_BYTES_PER_CYCLE)
    step = max(multiply, load, issue, stream)
    overhead = tile_overhead_cycles(fmas, workload.epilogue)
    return workload.batch * tiles_m * tiles_n * (workload.k * step + overhead)


def default_matmul_decision(workload: MatmulWorkload, target: Target) -> MatmulDecision:
    """Return the decision of the lowest estimate; ties go to the one with more rows."""
    return min(
        matmul_space(workload, target),
        key=lambda d: (estimate_matmul_cycles(workload, d, target), -d.tile_m),
    )


def emit_matmul(
    workload: MatmulWorkload, decision: MatmulDecision, target: Target, name: str
) -> Kernel:
    """Write the kernel.

    Its buffers are A, B, one for each binary step of the epilogue, and C. Channel operands are
    padded to whole vectors if B is packed.
    """
    return MatmulWriter(workload, decision, target, name).kernel()


class MatmulWriter:
    """Writes one matrix product.

    Attributes:
        dtype: the dtype of accumulators.
        result: the dtype of C; empty: what the epilogue gives.
        chains: accumulators of each vector of the result.
    """

    dtype = "float32"
    result = ""
    chains = 1

    def __init__(
        self, workload: MatmulWorkload, decision: MatmulDecision, target: Target, name: str
    ) -> None:
        self.work = w = workload
        self.plan = p = decision
        self.name = name
        self.vectors = math.ceil(w.n / p.lanes)
        self.tiles_m = math.ceil(w.m / p.tile_m)
        self.tiles_n = math.ceil(self.vectors / p.tile_n)
        self.width = p.tile_n * p.lanes
        # Columns of the last vector that exist.
        self.last = w.n - (self.vectors - 1) * p.lanes
        self.begins_with_bias = begins_with_bias(w.epilogue)
        self.emit = e = Emitter(target)
        self.declare()
        size = w.batch * w.m * w.n
        padded = self.vectors * p.lanes if w.packed else w.n
        self.operands = declare_operands(e, w.epilogue, {"channel": padded, "element": size})
        self.c = e.buffer("c", size, self.result or output_dtype(w.epilogue))

    def declare(self) -> None:
        """Write the parameters before the operands of the epilogue."""
        w, e = self.work, self.emit
        self.a = e.buffer("a", w.batch * w.m * w.k, "float32")
        columns = self.tiles_n * self.width if w.packed else w.n
        self.b = e.buffer("b", (1 if w.packed else w.batch) * w.k * columns, "float32")

    def write_tile(self, write: Callable[[int], None]) -> None:
        """Call `write(vectors)` for the columns of a tile; the last tile may have fewer vectors."""
        whole, rest = divmod(self.vectors, self.plan.tile_n)
        if rest == 0:
            write(self.plan.tile_n)
            return
        with self.emit.branch(self.tile < whole):
            write(self.plan.tile_n)
        with self.emit.branch(self.tile == whole):
            write(rest)

    def start(self, column: Any) -> Any:
        """Return what accumulators of a vector of columns begin with."""
        lanes = self.plan.lanes
        if not self.begins_with_bias:
            return constant(0, self.dtype, lanes)
        return self.emit.let("bias", self.emit.load(self.operands[0], column, lanes))

    def read(self, at: Any) -> Any:
        """Return a value of A for all columns."""
        return self.emit.let("x", broadcast(self.emit.load(self.a, at), self.plan.lanes))

    def weights(self, at: Any) -> Any:
        """Return values of B for a vector of columns."""
        return self.emit.let("b", self.emit.load(self.b, at, self.plan.lanes))

    def add(self, accumulator: Any, value: Any, weights: Any) -> Any:
        """Accumulate one product."""
        return accumulator + value * weights

    def total(self, accumulator: Any) -> Any:
        """Return what the epilogue begins with."""
        return accumulator

    def begin(self, _row: int, start: Any) -> Any:
        """Return what the accumulator of a row of the tile begins with."""
        return start

    def multiply(self, a: Any, k: Any, b: Sequence[Any]) -> None:
        """Write products of all rows of the tile.

        Args:
            a: place of the first row.
            k: step.
            b: weights of each vector.
        """
        p, e = self.plan, self.emit
        for m in range(p.tile_m):
            x = self.read(a + m * self.work.k + k)
            for v, value in enumerate(b):
                place = m * p.tile_n + v
                e.store(self.acc, place, self.add(e.load(self.acc, place), x, value))

    def finish(self, _vectors: int) -> None:
        """Bring accumulators into the order of rows."""

    def kernel(self) -> Kernel:
        """Return the finished kernel."""
        w, p, e = self.work, self.plan, self.emit
        with e.tasks() as task:
            inner = self.tiles_m if p.rows_first else self.tiles_n
            low = e.let("low", tirx.floormod(task, inner))
            rest = e.let("rest", tirx.floordiv(task, inner))
            outer = self.tiles_n if p.rows_first else self.tiles_m
            high = e.let("high", tirx.floormod(rest, outer))
            self.batch = e.let("batch", tirx.floordiv(rest, outer))
            row, self.tile = (low, high) if p.rows_first else (high, low)
            self.pass_number = row
            first = tirx.min(row * p.tile_m, tirx.IntImm("int32", w.m - p.tile_m))
            self.row = e.let("first_row", first)
            dtype = vector_dtype(self.dtype, p.lanes)
            self.acc = e.local("acc", self.chains * p.tile_m * p.tile_n, dtype)
            self.write_tile(self._tile)
        return Kernel(e.function(self.name), w.batch * self.tiles_m * self.tiles_n)

    def _column(self, vector: int) -> Any:
        """Return first column of a vector of this tile."""
        start = self.tile * self.width + vector * self.plan.lanes
        if self.work.packed or self.work.n % self.plan.lanes == 0:
            return start
        return tirx.min(start, tirx.IntImm("int32", self.work.n - self.plan.lanes))

    def _tile(self, vectors: int) -> None:
        w, p, e = self.work, self.plan, self.emit
        columns = [e.let("column", self._column(v)) for v in range(vectors)]
        for v in range(vectors):
            start = self.start(columns[v])
            for m in range(p.tile_m):
                e.store(self.acc, m * p.tile_n + v, self.begin(m, start))
        a = e.let("a_row", (self.batch * w.m + self.row) * w.k)
        b = e.let("b_tile", (self.tile * self.width if w.packed else self.batch * w.n) * w.k)
        a, b, columns_wide = wide(a), wide(b), [wide(column) for column in columns]

        self.accumulate(vectors, a, b, columns_wide)
        self.finish(vectors)
        for v in range(vectors):
            self._store(v, columns[v])

    def accumulate(self, vectors: int, a: Any, b: Any, columns: Sequence[Any]) -> None:
        """Add all products of a tile, of which `vectors` vectors exist, to the accumulators.

        Args:
            vectors: the vectors of columns.
            a: where the tile's first row of A begins.
            b: where the tile of a packed B begins, or the matrix of a plain one.
            columns: first column of each vector.
        """
        w, p, e = self.work, self.plan, self.emit

        def step(k: Any) -> None:
            if w.packed:
                places = [b + k * self.width + v * p.lanes for v in range(vectors)]
            else:
                places = [b + k * w.n + columns[v] for v in range(vectors)]
            self.multiply(a, k, [self.weights(place) for place in places])

        # One pass alone is limited by memory, whatever is asked for.
        again = w.packed and p.rows_first and self.tiles_m > 1
        blocks = w.k // K_BLOCK if again else 0
        if blocks:
            with e.loop("k_block", blocks, wide=True) as block:
                self._prefetch(b + block * (K_BLOCK * self.width))
                with e.loop("k", K_BLOCK, wide=True) as k:
                    step(block * K_BLOCK + k)
        if w.k > blocks * K_BLOCK:
            with e.loop("k", w.k - blocks * K_BLOCK, blocks * K_BLOCK, wide=True) as k:
                step(k)

    def _prefetch(self, block: Any) -> None:
        """Ask for this pass's share of the next tile of columns."""
        w = self.work
        line = CACHE_LINE_BYTES // 4
        share = math.ceil(K_BLOCK * self.width / line / self.tiles_m)
        for number in range(share):
            place = w.k * self.width + (wide(self.pass_number) * share + number) * line
            self.emit.prefetch(self.b, block + place)

    def _store(self, v: int, column: Any) -> None:
        w, p, e = self.work, self.plan, self.emit
        short = w.packed and self.last != p.lanes
        # Only the very last vector can reach beyond the last column.
        last = self.tile * p.tile_n + v == self.vectors - 1
        for m in range(p.tile_m):
            to = e.let("to", (self.batch * w.m + self.row + m) * w.n + column)
            value = e.load(self.acc, m * p.tile_n + v)
            if not short:
                self._write(to, column, value, p.lanes)
                continue
            with e.branch(tirx.Not(last)):
                self._write(to, column, value, p.lanes)
            with e.branch(last):
                self._write(to, column, value, self.last)

    def _write(self, to: Any, column: Any, value: Any, count: int) -> None:
        """Finish and store the first `count` lanes of a vector."""
        p, e = self.plan, self.emit
        skip = int(self.begins_with_bias)
        steps = self.work.epilogue[skip:]
        operands = self.operands[skip:]
        if count == p.lanes:
            operand = operand_loader(e, operands, {"channel": column, "element": to}, p.lanes)
            store_values(e, self.c, to, [apply(steps, self.total(value), operand)])
            return
        spill = e.local("spill", p.lanes, self.dtype)
        e.store(spill, 0, value)
        with e.loop("lane", count) as lane:
            single = operand_loader(e, operands, {"channel": column + lane, "element": to + lane})
            total = self.total(e.load(spill, lane))
            store_values(e, self.c, to + lane, [apply(steps, total, single)])


def pack_operand(
    workload: MatmulWorkload,
    decision: MatmulDecision,
    _target: Target,
    position: int,
    array: NDArray[Any],
) -> NDArray[Any]:
    """Return a constant operand, by its position, as the kernel reads it."""
    if not workload.packed or position == 0:
        return array
    if position == 1:
        return pack_matrix(array, decision)
    return pad_columns(workload, decision, array)


def pad_columns(
    workload: MatmulWorkload, decision: MatmulDecision, array: NDArray[Any]
) -> NDArray[Any]:
    """Return an operand of a value for each column, padded to whole vectors."""
    if array.size != workload.n:
        return array
    return np.pad(array.reshape(-1), (0, -workload.n % decision.lanes))


TEMPLATE = Template(
    MatmulWorkload,
    MatmulDecision,
    matmul_space,
    default_matmul_decision,
    emit_matmul,
    pack_operand,
    estimate_matmul_cycles,
    packed_matrix_size,
    epilogue="epilogue",
    output_channels=1,
    sparse="edgec.sparse_matmul",
)
