"""Provide weights that share few values (Han et al. 2016, section 3).

A row is its scale times entries of one table for the whole tensor. The entries are what k-means
finds: weights w with importances m move the entries to where sum m (w - entry)^2 is least. The
importance of a weight is the mean square of what it is multiplied with.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.numerics.affine import Floats, pack_nibbles, unpack_nibbles

_ITERATIONS = 60


@dataclass(frozen=True)
class CodebookWeight:
    """A codebook weight describes rows of indices into a table, with a scale for each row.

    Attributes:
        quantized: uint8 [rows, columns]; of 16 entries two to a byte, [rows, (columns + 1) / 2].
        table: float32 [entries], ascending, in -1..1.
        scales: float32 [rows].
        columns: the columns of the rows, without padding.
    """

    quantized: NDArray[np.uint8]
    table: Floats
    scales: Floats
    columns: int

    @property
    def indices(self) -> NDArray[np.uint8]:
        """Return uint8 [rows, columns]."""
        whole = self.quantized if len(self.table) > 16 else unpack_nibbles(self.quantized)
        return whole[:, : self.columns]

    @property
    def values(self) -> Floats:
        """Return what the quantized values stand for, float32 [rows, columns]."""
        return (self.table[self.indices] * self.scales[:, None]).astype(np.float32)

    @property
    def size(self) -> int:
        """Return bytes."""
        return self.quantized.nbytes + self.table.nbytes + self.scales.nbytes

    def with_indices(self, indices: NDArray[Any]) -> "CodebookWeight":
        """Return the same table with other indices [rows, columns]."""
        return replace(self, quantized=_pack_indices(indices, len(self.table)))


def _pack_indices(indices: NDArray[Any], entries: int) -> NDArray[np.uint8]:
    if entries > 16:
        return indices.astype(np.uint8)
    return pack_nibbles(np.pad(indices, ((0, 0), (0, indices.shape[1] % 2))).astype(np.uint8))


def fit_codebook(rows: Floats, entries: int, importance: Floats | None = None) -> CodebookWeight:
    """Return the table and the nearest entries.

    Args:
        rows: weights [rows, columns].
        entries: the entries of the table, 16 or 256.
        importance: the importance of the weights, at least 0, [rows, columns] or what spreads to
            it; None if all are alike.
    """
    scales = np.abs(rows).max(axis=1)
    scales = np.where(scales > 0, scales, 1).astype(np.float32)
    units = (rows / scales[:, None]).astype(np.float64)
    masses = np.square(scales[:, None].astype(np.float64))
    masses = np.broadcast_to(masses if importance is None else masses * importance, units.shape)
    order = np.argsort(units, axis=None, kind="stable")
    line, mass = units.ravel()[order], masses.ravel()[order]
    mass = mass + 1e-9 * max(float(mass.mean()), 1e-30)
    shares = (np.arange(entries) + 0.5) / entries
    even = line[0] + (line[-1] - line[0]) * np.arange(entries) / (entries - 1)
    starts = (even, line[np.minimum((shares * len(line)).astype(int), len(line) - 1)])
    table = min((_converged(start, line, mass) for start in starts), key=lambda found: found[0])[1]
    if not units.all():
        # What was pruned stays exactly zero.
        table[np.abs(table).argmin()] = 0
    exact = np.sort(table).astype(np.float32)
    return CodebookWeight(
        _pack_indices(nearest(exact, units), entries), exact, scales, columns=rows.shape[1]
    )


def _converged(
    table: NDArray[Any], line: NDArray[Any], mass: NDArray[Any]
) -> tuple[float, NDArray[Any]]:
    """k-means along a sorted line: the error, and the entries."""
    total, moment, square = (
        np.concatenate([[0.0], np.cumsum(mass * line**power)]) for power in range(3)
    )
    table = table.astype(np.float64)
    error = np.inf
    for _ in range(_ITERATIONS):
        ends = np.searchsorted(line, (table[1:] + table[:-1]) / 2)
        ends = np.concatenate([[0], ends, [len(line)]])
        m, first, second = (np.diff(sums[ends]) for sums in (total, moment, square))
        table = np.sort(np.where(m > 0, first / np.where(m > 0, m, 1), table))
        before, error = error, float(np.sum(second - first**2 / np.where(m > 0, m, 1)))
        if error >= before * (1 - 1e-6):
            break
    return error, table


def nearest(table: Floats, units: NDArray[Any]) -> NDArray[np.int64]:
    """Return index of the nearest entry of an ascending table."""
    middles = (table[1:].astype(np.float64) + table[:-1]) / 2
    return np.searchsorted(middles, units)
