"""Provide products of a matrix with a constant one that is mostly zeros; see `sparse`.

The register tile is that of `matmul`: tile_m rows and the vectors of columns that share a list.
Values of A are broadcast from where they are; a tile of rows stays in the first-level cache while
the lists of all columns pass by.

A tile of few accumulators takes several of each, for entries that follow one another: additions
to the same one wait for each other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.kernels.emit.emitter import wide
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.emit.machine_model import (
    FAR_BYTES_PER_CYCLE,
    FLOAT_BYTES,
    KIB,
    NEAR_BYTES_PER_CYCLE,
    multiply_cycles,
    tile_overhead_cycles,
)
from edgec.compiler.kernels.matmul.dense import (
    MatmulDecision,
    MatmulWorkload,
    MatmulWriter,
    pad_columns,
)
from edgec.compiler.kernels.sparse_lists import ListBuffers, Lists, entry_cycles, make_lists
from edgec.compiler.kernels.template import Template
from edgec.compiler.kernels.vectors import constant
from edgec.targets.target import Target

# Independent sums that keep the multipliers busy.
ACCUMULATORS = 8
# Of the time that inputs take from the second-level cache, how much a list waits.
NEAR_WAITING = 0.25


@dataclass(frozen=True)
class SparseMatmulWorkload:
    """A sparse matmul workload describes a product with lists.

    Attributes:
        matmul: its extents and epilogue.
        width: columns that share a list: whole vectors.
        entries: the entries of all lists, at least 1.
    """

    matmul: MatmulWorkload
    width: int
    entries: int

    @property
    def macs(self) -> int:
        """Return multiply-accumulates that are left."""
        return self.matmul.m * self.entries * self.width

    @property
    def lists(self) -> int:
        """Return how many there are."""
        return math.ceil(self.matmul.n / self.width)


def lists_of_matrix(matrix: NDArray[np.float32], width: int) -> Lists:
    """Return the lists of B [K, N]: one for each `width` columns; places are rows of B."""
    k, n = matrix.shape
    tiles = math.ceil(n / width)
    padded = np.zeros((k, tiles * width), np.float32)
    padded[:, :n] = matrix
    return make_lists(padded.reshape(k, tiles, width).transpose(1, 0, 2), np.arange(k))


def sparse_matmul_space(workload: SparseMatmulWorkload, target: Target) -> list[MatmulDecision]:
    """Return every tile that fits the registers."""
    lanes = target.float_lanes
    vectors = workload.width // lanes
    room = max(1, (target.vector_registers - vectors - 1) // vectors)
    return [
        MatmulDecision(rows, vectors, lanes, rows_first)
        for rows in range(1, min(workload.matmul.m, room) + 1)
        for rows_first in (True, False)
    ]


def estimate_sparse_matmul_cycles(
    workload: SparseMatmulWorkload, decision: MatmulDecision, target: Target
) -> float:
    """Return multiplying, loading and issuing for each entry.

    And streaming what no cache keeps near.
    """
    w, rows = workload.matmul, decision.tile_m
    fmas = rows * decision.tile_n
    chains = _chains(decision)
    step = max(
        multiply_cycles(fmas * chains, target) / chains,
        entry_cycles(rows, decision.tile_n, target),
    )
    each = workload.entries / workload.lists * step
    value_bytes = FLOAT_BYTES * workload.entries * (workload.width + 1)
    kept = w.m if decision.rows_first else rows
    if FLOAT_BYTES * kept * w.k > target.l1d_kib * KIB * 3 // 4:
        # A list finds its inputs in the second-level cache.
        each += FLOAT_BYTES * rows * w.k / NEAR_BYTES_PER_CYCLE * NEAR_WAITING
    tiles_m = math.ceil(w.m / rows)
    if not decision.rows_first or tiles_m == 1:
        near = value_bytes <= target.l2_kib * KIB
        speed = NEAR_BYTES_PER_CYCLE if near else FAR_BYTES_PER_CYCLE
        each = max(each, value_bytes / workload.lists / speed)
    overhead = tile_overhead_cycles(fmas, w.epilogue)
    return tiles_m * workload.lists * (each + overhead)


def default_sparse_matmul_decision(
    workload: SparseMatmulWorkload, target: Target
) -> MatmulDecision:
    """Return the decision of the lowest estimate; ties go to the one with more rows."""
    return min(
        sparse_matmul_space(workload, target),
        key=lambda d: (estimate_sparse_matmul_cycles(workload, d, target), -d.tile_m),
    )


def emit_sparse_matmul(
    workload: SparseMatmulWorkload, decision: MatmulDecision, target: Target, name: str
) -> Kernel:
    """Write the kernel.

    Its buffers are A, values, places and starts of the lists, the epilogue's operands, and C.
    """
    return _SparseMatmul(workload, decision, target, name).kernel()


def _chains(decision: MatmulDecision) -> int:
    return math.ceil(ACCUMULATORS / (decision.tile_m * decision.tile_n))


class _SparseMatmul(MatmulWriter):
    def __init__(
        self, workload: SparseMatmulWorkload, decision: MatmulDecision, target: Target, name: str
    ) -> None:
        self.sparse = workload
        self.chains = _chains(decision)
        super().__init__(workload.matmul, decision, target, name)

    def declare(self) -> None:
        w, e = self.work, self.emit
        self.a = e.buffer("a", w.m * w.k, "float32")
        self.b = e.buffer("b", self.sparse.entries * self.width, "float32")
        sizes = ListBuffers.sizes(self.sparse.entries, self.tiles_n)
        self.lists = ListBuffers(*(e.buffer(name, size, "int32") for name, size in sizes))

    def accumulate(self, vectors: int, a: Any, _b: Any, _columns: Sequence[Any]) -> None:
        p, e = self.plan, self.emit
        first, count = self.lists.bounds(e, self.tile)
        tile = p.tile_m * p.tile_n

        def entry(number: Any, chain: int) -> None:
            row = wide(first) + number
            place = self.lists.place(e, row)
            values = [self.weights(row * self.width + v * p.lanes) for v in range(vectors)]
            for m in range(p.tile_m):
                x = self.read(a + m * self.work.k + place)
                for v, value in enumerate(values):
                    at = chain * tile + m * p.tile_n + v
                    e.store(self.acc, at, self.add(e.load(self.acc, at), x, value))

        if self.chains == 1:
            with e.loop("entry", count, wide=True) as number:
                entry(number, 0)
            return
        for place in range(tile, self.chains * tile):
            e.store(self.acc, place, constant(0, self.dtype, p.lanes))
        turns = e.let("turns", count // self.chains)
        with e.loop("turn", turns, wide=True) as turn:
            for chain in range(self.chains):
                entry(turn * self.chains + chain, chain)
        done = turns * self.chains
        with e.loop("entry", count - done, wide=True) as number:
            entry(wide(done) + number, 0)
        for place in range(tile):
            parts = [e.load(self.acc, chain * tile + place) for chain in range(self.chains)]
            e.store(self.acc, place, sum(parts[1:], parts[0]))


def _pack(
    workload: SparseMatmulWorkload,
    decision: MatmulDecision,
    _target: Target,
    position: int,
    array: NDArray[Any],
) -> NDArray[Any]:
    # A, and the lists, are as the kernel reads them.
    return array if position < 4 else pad_columns(workload.matmul, decision, array)


TEMPLATE = Template(
    SparseMatmulWorkload,
    MatmulDecision,
    sparse_matmul_space,
    default_sparse_matmul_decision,
    emit_sparse_matmul,
    _pack,
    estimate_sparse_matmul_cycles,
)
