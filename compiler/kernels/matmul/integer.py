"""Provide matrix products of quantized values with constant weights.

The tiles of `matmul`, four rows of B at a time.

A is row-major quantized values, its rows a whole number of groups. The bias is int32 [N] in units
of the products, less the sum of each column of B times the zero point. The epilogue begins with the
sum as float32.

Where an instruction multiplies matrices (`Isa.matrix_dot`), a step takes 8 quantized values of two
rows and of two columns, where the tile and K are whole numbers of those; B then holds pairs of
groups.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from edgec.compiler.kernels.conv.weights import groups_of
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.isa import Dot, dot_of, isa_of
from edgec.compiler.kernels.matmul.dense import (
    MatmulDecision,
    MatmulWorkload,
    MatmulWriter,
    estimate_matmul_cycles,
    matmul_space,
    pack_matrix,
    pack_operand,
    packed_matrix_size,
)
from edgec.compiler.kernels.template import INT32_BIAS, Template
from edgec.compiler.kernels.vectors import shuffle, vector_dtype
from edgec.compiler.numerics.pair_sums import DOT_WIDTH
from edgec.targets.target import Target


@dataclass(frozen=True)
class IntegerMatmulWorkload:
    """An integer matmul workload describes a product of quantized values.

    Attributes:
        matmul: its extents, the second operand packed, and epilogue.
        wide: whether the weights would saturate the target's int16 accumulators.
    """

    matmul: MatmulWorkload
    wide: bool = field(default=False, metadata={"omit_if_default": True})

    @property
    def macs(self) -> int:
        """Return multiply-accumulates."""
        return self.matmul.macs

    @property
    def epilogue(self) -> Any:
        """Return steps after the accumulation."""
        return self.matmul.epilogue

    @property
    def grouped(self) -> MatmulWorkload:
        """Return it as a product over groups."""
        return replace(self.matmul, k=self.matmul.k // DOT_WIDTH)


def _dot(workload: IntegerMatmulWorkload, target: Target) -> Dot:
    dot = dot_of(target)
    if dot is not None and workload.wide:
        dot = dot.exact_fallback
    assert dot is not None
    return dot


def integer_matmul_space(workload: IntegerMatmulWorkload, target: Target) -> list[MatmulDecision]:
    """Return tiles that fit the registers; those of matrix instructions where there are any."""
    left = max(8, target.vector_registers - _dot(workload, target).temporaries)
    found = matmul_space(workload.grouped, target.model_copy(update={"vector_registers": left}))
    return [each for each in found if _in_squares(workload, each, target)] or found


def estimate_integer_matmul_cycles(
    workload: IntegerMatmulWorkload, decision: MatmulDecision, target: Target
) -> float:
    """Return the cycles by the model of float products."""
    return estimate_matmul_cycles(
        workload.grouped, decision, target, instructions=_dot(workload, target).instructions
    )


def default_integer_matmul_decision(
    workload: IntegerMatmulWorkload, target: Target
) -> MatmulDecision:
    """Return the decision of the lowest estimate; ties go to the one with more rows."""
    return min(
        integer_matmul_space(workload, target),
        key=lambda d: (estimate_integer_matmul_cycles(workload, d, target), -d.tile_m),
    )


def integer_matrix_size(
    workload: IntegerMatmulWorkload, decision: MatmulDecision, target: Target
) -> int:
    """Return values in a packed B."""
    return packed_matrix_size(workload.grouped, decision, target)


def pack_integer_matrix(
    workload: IntegerMatmulWorkload, decision: MatmulDecision, target: Target, matrix: NDArray[Any]
) -> NDArray[Any]:
    """Return B int8 [K, N] as int32 groups in the order of the kernel."""
    groups = np.ascontiguousarray(groups_of(matrix.T).T)
    if _in_squares(workload, decision, target):
        # Two groups of a column side by side.
        pairs = np.ascontiguousarray(groups.reshape(-1, 2, groups.shape[1]).transpose(0, 2, 1))
        return pack_matrix(pairs.view(np.int64)[..., 0], decision).view(np.int32)
    packed = pack_matrix(groups, decision)
    return _dot(workload, target).arrange(packed, decision.lanes)


def emit_integer_matmul(
    workload: IntegerMatmulWorkload, decision: MatmulDecision, target: Target, name: str
) -> Kernel:
    """Write the kernel; its buffers are A, packed B, bias, the epilogue's operands, and C."""
    work, dot = workload.grouped, _dot(workload, target)
    if _in_squares(workload, decision, target):
        return _SquareMatmul(replace(work, k=work.k // 2), decision, target, name, dot).kernel()
    return IntegerMatmulWriter(work, decision, target, name, dot).kernel()


def _in_squares(workload: IntegerMatmulWorkload, decision: MatmulDecision, target: Target) -> bool:
    """Return whether matrices are multiplied.

    Two rows by two columns, two groups of quantized values of each.
    """
    whole = workload.matmul.k % (2 * DOT_WIDTH) == 0 and decision.tile_m % 2 == 0
    return whole and decision.lanes == DOT_WIDTH and isa_of(target).matrix_dot() is not None


class IntegerMatmulWriter(MatmulWriter):
    """Writes one product of quantized values with packed weights."""

    dtype = "int32"

    def __init__(
        self,
        workload: MatmulWorkload,
        decision: MatmulDecision,
        target: Target,
        name: str,
        dot: Dot,
    ) -> None:
        self.dot = dot
        super().__init__(workload, decision, target, name)
        self.begins_with_bias = False

    def declare(self) -> None:
        """Write the parameters before the operands of the epilogue."""
        w, p, e = self.work, self.plan, self.emit
        self.a = e.buffer("a", w.m * w.k, "int32")
        self.b = e.buffer("b", w.k * self.tiles_n * self.width, "int32")
        self.bias = e.buffer("bias", math.ceil(w.n / p.lanes) * p.lanes, "int32")

    def start(self, column: Any) -> Any:
        """Return the bias of a vector of columns."""
        return self.emit.let("bias", self.emit.load(self.bias, column, self.plan.lanes))

    def read(self, at: Any) -> Any:
        """Return a group of values of A for all columns."""
        return self.dot.read(self.emit, self.a, at, self.plan.lanes)

    def add(self, accumulator: Any, value: Any, weights: Any) -> Any:
        """Accumulate the products of a group."""
        return self.dot.add(accumulator, [value], [weights])

    def total(self, accumulator: Any) -> Any:
        """Return the sum as float32."""
        lanes = int(accumulator.ty.dtype.lanes)
        return tirx.Cast(vector_dtype("float32", lanes), accumulator)


class _SquareMatmul(IntegerMatmulWriter):
    """Compute steps of two groups.

    The accumulator of row 2 i holds the first two columns of rows 2 i and 2 i + 1, that of row
    2 i + 1 the last two.
    """

    def declare(self) -> None:
        w, p, e = self.work, self.plan, self.emit
        self.a = e.buffer("a", w.m * w.k, "int64")
        self.b = e.buffer("b", 2 * w.k * self.tiles_n * self.width, "int32")
        self.bias = e.buffer("bias", math.ceil(w.n / p.lanes) * p.lanes, "int32")

    def begin(self, row: int, start: Any) -> Any:
        return shuffle([start], (2, 3, 2, 3) if row % 2 else (0, 1, 0, 1))

    def weights(self, at: Any) -> Any:
        return self.emit.let("b", self.emit.load(self.b, 2 * at, 2 * self.plan.lanes))

    def multiply(self, a: Any, k: Any, b: Sequence[Any]) -> None:
        p, e = self.plan, self.emit
        multiply = e.isa.matrix_dot()
        assert multiply is not None
        halves = [[shuffle([value], range(4 * i, 4 * i + 4)) for i in range(2)] for value in b]
        for m in range(0, p.tile_m, 2):
            pair = [e.load(self.a, a + (m + i) * self.work.k + k) for i in range(2)]
            x = tirx.reinterpret("int8x16", e.let("x", shuffle(pair, (0, 1))))
            for v, each in enumerate(halves):
                for i, half in enumerate(each):
                    place = (m + i) * p.tile_n + v
                    columns = tirx.reinterpret("int8x16", half)
                    e.store(self.acc, place, multiply(e.load(self.acc, place), x, columns))

    def finish(self, vectors: int) -> None:
        p, e = self.plan, self.emit
        for m in range(0, p.tile_m, 2):
            for v in range(vectors):
                places = m * p.tile_n + v, (m + 1) * p.tile_n + v
                pair = [e.let("sum", e.load(self.acc, place)) for place in places]
                for i, place in enumerate(places):
                    lanes = (2 * i, 2 * i + 1, 2 * i + 4, 2 * i + 5)
                    e.store(self.acc, place, shuffle(pair, lanes))


def _pack(
    workload: IntegerMatmulWorkload,
    decision: MatmulDecision,
    target: Target,
    position: int,
    array: NDArray[Any],
) -> NDArray[Any]:
    if position == 1:
        return pack_integer_matrix(workload, decision, target, array)
    return pack_operand(workload.matmul, decision, target, position, array)


TEMPLATE = Template(
    IntegerMatmulWorkload,
    MatmulDecision,
    integer_matmul_space,
    default_integer_matmul_decision,
    emit_integer_matmul,
    _pack,
    estimate_integer_matmul_cycles,
    integer_matrix_size,
    epilogue="matmul",
    accumulator="int32",
    bias=INT32_BIAS,
    output_channels=1,
    why_dense="there are no sparse kernels for integers",
)
