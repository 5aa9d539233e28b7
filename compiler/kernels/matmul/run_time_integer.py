"""Provide matrix products of quantized values that are both known at run time only.

The tiles of `integer`, on a second operand that is not packed: four rows of it are interleaved, a
group of four values for each column, [K / 4, N, 4]. The result is the sums, int32.
"""

from dataclasses import dataclass
from typing import Any

from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.isa import Dot, dot_of
from edgec.compiler.kernels.matmul.dense import (
    MatmulDecision,
    MatmulWorkload,
    estimate_matmul_cycles,
    matmul_space,
)
from edgec.compiler.kernels.matmul.integer import IntegerMatmulWriter
from edgec.compiler.kernels.template import Template
from edgec.compiler.kernels.vectors import constant, reinterpret, shuffle
from edgec.compiler.numerics.pair_sums import DOT_WIDTH
from edgec.targets.target import Target


@dataclass(frozen=True)
class RunTimeIntegerMatmulWorkload:
    """This workload describes products of quantized values, without zero points.

    Attributes:
        batch: independent products.
        m: rows of A and C.
        n: columns of B and C, as many as a vector has lanes at least.
        k: columns of A and rows of B, a whole number of groups of four.
    """

    batch: int
    m: int
    n: int
    k: int

    @property
    def macs(self) -> int:
        """Return multiply-accumulates."""
        return self.batch * self.m * self.n * self.k

    @property
    def grouped(self) -> MatmulWorkload:
        """Return it as products over groups."""
        return MatmulWorkload(self.batch, self.m, self.n, self.k // DOT_WIDTH, packed=False)


def _dot(target: Target) -> Dot:
    """Return how any values are multiplied: nobody knows whether sums in int16 would saturate."""
    dot = dot_of(target)
    assert dot is not None
    return dot.exact_fallback or dot


def run_time_integer_space(
    workload: RunTimeIntegerMatmulWorkload, target: Target
) -> list[MatmulDecision]:
    """Return tiles that fit the registers."""
    left = max(8, target.vector_registers - _dot(target).temporaries)
    return matmul_space(workload.grouped, target.model_copy(update={"vector_registers": left}))


def estimate_run_time_integer_cycles(
    workload: RunTimeIntegerMatmulWorkload, decision: MatmulDecision, target: Target
) -> float:
    """Return the cycles by the model of float products."""
    instructions = _dot(target).instructions
    return estimate_matmul_cycles(workload.grouped, decision, target, instructions=instructions)


def default_run_time_integer_decision(
    workload: RunTimeIntegerMatmulWorkload, target: Target
) -> MatmulDecision:
    """Return the decision of the lowest estimate; ties go to the one with more rows."""
    return min(
        run_time_integer_space(workload, target),
        key=lambda d: (estimate_run_time_integer_cycles(workload, d, target), -d.tile_m),
    )


def emit_run_time_integer_matmul(
    workload: RunTimeIntegerMatmulWorkload, decision: MatmulDecision, target: Target, name: str
) -> Kernel:
    """Write the kernel.

    Its buffers are A [batch, M, K], B [batch, K / 4, N, 4] and C int32 [batch, M, N].
    """
    return _Writer(workload.grouped, decision, target, name, _dot(target)).kernel()


class _Writer(IntegerMatmulWriter):
    result = "int32"

    def declare(self) -> None:
        w, e = self.work, self.emit
        self.a = e.buffer("a", w.batch * w.m * w.k, "int32")
        self.b = e.buffer("b", w.batch * w.k * w.n, "int32")

    def start(self, _column: Any) -> Any:
        return constant(0, self.dtype, self.plan.lanes)

    def weights(self, at: Any) -> Any:
        lanes = self.plan.lanes
        groups = self.emit.let("groups", self.emit.load(self.b, at, lanes))
        if not self.dot.in_halves:
            return groups
        pairs = reinterpret(groups, "int16", 2 * lanes)
        ordered = shuffle([pairs], [2 * lane + half for half in range(2) for lane in range(lanes)])
        return self.emit.let("b", reinterpret(ordered, "int32", lanes))

    def total(self, accumulator: Any) -> Any:
        return accumulator


TEMPLATE = Template(
    RunTimeIntegerMatmulWorkload,
    MatmulDecision,
    run_time_integer_space,
    default_run_time_integer_decision,
    emit_run_time_integer_matmul,
    estimate=estimate_run_time_integer_cycles,
)
