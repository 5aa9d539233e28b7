"""Provide products of int8 activations by weights of a few bits with a scale for each group.

`numerics.grouped_product` states the arithmetic, `quantize_rows` writes the activations,
`grouped_layout` keeps the weights, `grouped_writer` has the code. The layout depends on neither
the number of rows nor the decision: programs that differ in rows share weights.
"""

import math
from typing import Any

from numpy.typing import NDArray

from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.emit.machine_model import ISSUE_WIDTH
from edgec.compiler.kernels.isa import GroupedDot
from edgec.compiler.kernels.matmul.dense import MatmulDecision, pad_columns
from edgec.compiler.kernels.matmul.grouped_layout import (
    dot_of_codes,
    pack_weights,
    panel_columns,
)
from edgec.compiler.kernels.matmul.grouped_writer import GroupedMatmulWorkload, GroupedMatmulWriter
from edgec.compiler.kernels.template import Template
from edgec.compiler.numerics.grouped_codes import PLANES
from edgec.compiler.numerics.pair_sums import DOT_WIDTH
from edgec.targets.target import Target

# Rows of a register tile, and vectors by their lanes.
MOST_TILE_ROWS, MOST_TILE_VECTORS = 8, {4: 8}
# Registers that are too few for more than the sums of a tile.
FEW_REGISTERS = 16
# To finish a group of a vector of sums: convert, scale, add; and to unpack a vector of weights.
GROUP_END_INSTRUCTIONS = 4.0
# To load what a row has for each group.
ROW_INSTRUCTIONS = 3.0
UNPACK_INSTRUCTIONS = 1.5
# For each further plane of codes, and for a minimum and units of a group.
PLANE_INSTRUCTIONS, NUMBER_INSTRUCTIONS = 2.0, 2.0
TILE_CYCLES = 40


def grouped_matmul_space(workload: GroupedMatmulWorkload, target: Target) -> list[MatmulDecision]:
    """Return tiles that fit the registers; all rows in one tile where they are few."""
    w, lanes = workload.matmul, target.float_lanes
    most = min(MOST_TILE_VECTORS.get(lanes, 4), math.ceil(w.n / lanes))
    rows = [w.m] if workload.direct else range(1, min(w.m, MOST_TILE_ROWS) + 1)
    dot = dot_of_codes(workload.form.bits, target)
    # Sums, what they are added to, and what waits to be widened; few registers hold only the sums.
    widened = 0 < dot.most < workload.form.group // DOT_WIDTH
    held = 2 + widened if target.vector_registers > FEW_REGISTERS else 1
    first = 1
    if w.m == 1:
        # One row reads panels as they lie in memory, or half of each where they take too much.
        first = panel_columns(target) // lanes
        if first * (held + 1) + DOT_WIDTH > target.vector_registers:
            first //= 2
        first = min(most, first)
    decisions = []
    for vectors in range(first, most + 1):
        for m in rows:
            used = held * m * vectors + _operand_registers(dot, m, vectors)
            if used <= target.vector_registers or (vectors == first and len(rows) == 1):
                decisions.append(MatmulDecision(m, vectors, lanes))
    return decisions


def _operand_registers(dot: GroupedDot, rows: int, vectors: int) -> int:
    """Return registers of a tile that hold what is multiplied.

    LLVM loads numbers of groups early, and activations for several units at once.
    """
    if not dot.by_lane:
        return vectors + 2
    if dot.in_halves:
        # Units brought into place, and which places these are.
        return vectors + DOT_WIDTH * (rows + 1)
    return 3 * vectors + 2 * rows


def estimate_grouped_cycles(
    workload: GroupedMatmulWorkload, decision: MatmulDecision, target: Target
) -> float:
    """Return cycles of multiplying, unpacking and finishing groups."""
    w, form = workload.matmul, workload.form
    dot = dot_of_codes(form.bits, target)
    rows, panels = decision.tile_m, decision.tile_n
    units = form.group / DOT_WIDTH
    unpack = 1.0
    if form.bits < 8:
        unpack = UNPACK_INSTRUCTIONS + PLANE_INSTRUCTIONS * (len(PLANES[form.bits]) - 1)
    tiles_m = math.ceil(w.m / rows)
    tiles_n = math.ceil(math.ceil(w.n / decision.lanes) / decision.tile_n)
    widen = units / dot.most * dot.widen_instructions if dot.most else 0.0
    multiply = rows * panels * (units * dot.instructions + widen) / target.fma_units
    loads = units * (rows / decision.lanes if dot.by_lane else rows) + units * panels
    more = bool(form.minima) + [form.scales, form.minima].count("int8")
    end = panels * (
        rows * (GROUP_END_INSTRUCTIONS + bool(form.minima)) + more * NUMBER_INSTRUCTIONS
    )
    around = end + rows * ROW_INSTRUCTIONS + loads
    unpacking = workload.layout.groups * units * panels * unpack / target.fma_units
    each = workload.layout.groups * (multiply + around / ISSUE_WIDTH) + TILE_CYCLES
    return tiles_n * (tiles_m * each + unpacking)


def default_grouped_decision(workload: GroupedMatmulWorkload, target: Target) -> MatmulDecision:
    """Return the decision of the lowest estimate; of one row, one panel at a time."""
    return min(
        grouped_matmul_space(workload, target),
        key=lambda d: (
            d.tile_n if workload.matmul.m == 1 else 0,
            estimate_grouped_cycles(workload, d, target),
        ),
    )


def _pack(
    workload: GroupedMatmulWorkload,
    decision: MatmulDecision,
    target: Target,
    position: int,
    array: NDArray[Any],
) -> NDArray[Any]:
    names = workload.form.names
    if position <= len(names):
        return pack_weights(workload.form, target, names[position - 1], array)
    return pad_columns(workload.matmul, decision, array)


def emit_grouped_matmul(
    workload: GroupedMatmulWorkload, decision: MatmulDecision, target: Target, name: str
) -> Kernel:
    """Write the kernel.

    Its buffers are quantized rows, the arrays of the form, the epilogue's operands, and C.
    """
    return GroupedMatmulWriter(workload, decision, target, name).kernel()


TEMPLATE = Template(
    GroupedMatmulWorkload,
    MatmulDecision,
    grouped_matmul_space,
    default_grouped_decision,
    emit_grouped_matmul,
    _pack,
    estimate_grouped_cycles,
    epilogue="matmul",
    output_channels=0,
    why_dense="there are no sparse kernels for packed weights",
)
