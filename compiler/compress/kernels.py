"""Which operators run sparse, and why others with zeros among their weights do not."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tvm import IRModule

from edgec.compiler.passes.base import is_static
from edgec.compiler.passes.choose_sparse import sparse_choices
from edgec.targets import Target


@dataclass(frozen=True)
class KernelRow:
    """One operator with many zeros among its weights.

    Attributes:
        name: of the value that it gives.
        density: share of its weights that is not zero.
        sparse: whether a sparse kernel computes it.
        reason: for people.
    """

    name: str
    density: float
    sparse: bool
    reason: str


def kernel_rows(packed: IRModule, target: Target) -> tuple[KernelRow, ...]:
    """Look at a module packed for dense kernels, in the order of its operators."""
    if not is_static(packed):
        return ()
    return tuple(
        KernelRow(
            choice.label,
            float(np.count_nonzero(choice.weight) / choice.weight.size),
            choice.kernel is not None,
            choice.reason,
        )
        for choice in sparse_choices(packed, target).values()
    )


def describe_kernels(rows: Sequence[KernelRow]) -> str:
    """A line for each operator, below one for all."""
    count = sum(row.sparse for row in rows)
    lines = [f"sparse kernels for {count} of {len(rows)} operators with many zeros"]
    lines += [
        f"  {row.name}: {row.density:.0%} nonzero, {'sparse' if row.sparse else 'dense'}: "
        f"{row.reason}"
        for row in rows
    ]
    return "\n".join(lines)
