"""Provide sparse weights as kernels read them: for each block of outputs the inputs that it needs.

A block of outputs (some vectors of columns of a matrix, or of output channels) shares one list of
inputs: those for which one of its weights is not zero. Weights of a list's inputs are stored one
after the other, a row of vectors each, and so are the inputs' places. A kernel is the dense one
with its loop over inputs replaced by a loop over a list.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.kernels.emit.emitter import Emitter, wide
from edgec.targets.target import Target

# Vectors of outputs that may share a list.
MAX_VECTORS = 4


@dataclass(frozen=True)
class Lists:
    """Lists describe weights and the inputs that they are for.

    Attributes:
        values: float32 [entries, width]; one row of zeros if there are no entries.
        places: int32 [entries]: of the inputs.
        starts: int32 [lists + 1]: first entry of each list, and the end of the last.
    """

    values: NDArray[np.float32]
    places: NDArray[np.int32]
    starts: NDArray[np.int32]

    @property
    def entries(self) -> int:
        """Return rows of values, at least 1."""
        return len(self.values)


def make_lists(weights: NDArray[np.float32], places: NDArray[Any]) -> Lists:
    """Keep the rows that are not all zero.

    Args:
        weights: [lists, inputs, width].
        places: [inputs]: where the kernel finds each input.

    >>> lists = make_lists(np.array([[[0, 0], [1, 0]], [[2, 3], [0, 0]]]), np.array([0, 7]))
    >>> lists.places.tolist(), lists.starts.tolist()
    ([7, 0], [0, 1, 2])
    """
    needed = weights.any(axis=2)
    starts = np.concatenate([[0], np.cumsum(needed.sum(axis=1))]).astype(np.int32)
    found = np.broadcast_to(places, needed.shape)[needed].astype(np.int32)
    if not found.size:
        return Lists(np.zeros((1, weights.shape[2]), np.float32), np.zeros(1, np.int32), starts)
    return Lists(np.ascontiguousarray(weights[needed]), found, starts)


@dataclass(frozen=True)
class ListBuffers:
    """List buffers describe parameters that hold lists.

    Attributes:
        places: the places of all entries.
        starts: the starts of all lists.
    """

    places: Any
    starts: Any

    @staticmethod
    def sizes(entries: int, lists: int) -> list[tuple[str, int]]:
        """Return name and size of both, int32."""
        return [("places", entries), ("starts", lists + 1)]

    def bounds(self, e: Emitter, number: Any) -> tuple[Any, Any]:
        """Return first entry of a list, and how many it has."""
        first = e.let("first_entry", e.load(self.starts, number))
        return first, e.let("entries", e.load(self.starts, number + 1) - first)

    def place(self, e: Emitter, entry: Any) -> Any:
        """Return the place of an entry's input."""
        return e.let("place", wide(e.load(self.places, entry)))


def entry_cycles(positions: int, vectors: int, target: Target) -> float:
    """Return cycles to load and issue what one entry needs.

    Args:
        positions: rows or pixels of the register tile.
        vectors: the vectors of its outputs.
        target: where.
    """
    fmas = positions * vectors
    load = (positions + vectors + 1) / target.load_units
    return max(load, (fmas + positions + vectors + 3) / 4)
