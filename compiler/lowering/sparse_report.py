"""Decide which operators run sparse, and why others with zeros among their weights do not."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from edgec.compiler.lowering.choose_sparse import SparseChoice


@dataclass(frozen=True)
class KernelRow:
    """A kernel row describes one operator with many zeros among its weights.

    Attributes:
        name: the name of the value that it gives.
        density: share of its weights that is not zero.
        sparse: whether a sparse kernel computes it.
        reason: for people.
    """

    name: str
    density: float
    sparse: bool
    reason: str


def kernel_rows(choices: Iterable[SparseChoice]) -> tuple[KernelRow, ...]:
    """Return a row for each choice."""
    return tuple(
        KernelRow(
            choice.label,
            float(np.count_nonzero(choice.weight) / choice.weight.size),
            choice.kernel is not None,
            choice.reason,
        )
        for choice in choices
    )


def describe_kernels(rows: Sequence[KernelRow]) -> str:
    """Return a line for each operator, below one for all."""
    count = sum(row.sparse for row in rows)
    lines = [f"sparse kernels for {count} of {len(rows)} operators with many zeros"]
    lines += [
        f"  {row.name}: {row.density:.0%} nonzero, {'sparse' if row.sparse else 'dense'}: "
        f"{row.reason}"
        for row in rows
    ]
    return "\n".join(lines)
