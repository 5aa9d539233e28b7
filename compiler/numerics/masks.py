"""Decide which weights of a matrix stay, given how salient each is.

Matrices are rows of sums, [outputs, inputs].
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Pattern:
    """A pattern describes what is removed together.

    Attributes:
        block: outputs and inputs of the smallest piece that goes or stays.
        keep: the keep of `group` neighbouring inputs of an output, those that stay; 0: any.
        group: see `keep`.
    """

    block: tuple[int, int] = (1, 1)
    keep: int = 0
    group: int = 0

    @classmethod
    def of_groups(cls, text: str) -> "Pattern":
        """Return the of groups of `N:M`.

        Raises:
            ValueError: that is no pattern, or not 0 < N < M.
        """
        found = re.fullmatch(r"(\d+):(\d+)", text)
        keep, group = (int(number) for number in found.groups()) if found else (0, 0)
        if not 0 < keep < group:
            raise ValueError(f"pattern {text!r}: expected N:M with 0 < N < M, such as 2:4")
        return cls(keep=keep, group=group)

    def mask(self, scores: Scores, ratio: float) -> Mask:
        """Return true for what stays.

        Args:
            scores: [outputs, inputs]; of groups, their whole number.
            ratio: share of the weights that goes; of groups, what the pattern says goes.
        """
        if self.group:
            return _mask_groups(scores, self.keep, self.group)
        pooled = self.pooled(scores)
        gone = round(ratio * pooled.size)
        kept = np.ones(pooled.size, bool)
        kept[np.argsort(pooled, axis=None, kind="stable")[:gone]] = False
        return self._spread(kept.reshape(pooled.shape), scores.shape)

    def pooled(self, scores: Scores) -> Scores:
        """Return the sum over each piece."""
        outputs, inputs = (range(0, n, b) for n, b in zip(scores.shape, self.block, strict=True))
        return np.add.reduceat(np.add.reduceat(scores, outputs, axis=0), inputs, axis=1)

    def _spread(self, kept: Mask, shape: Sequence[int]) -> Mask:
        outputs, inputs = self.block
        return kept.repeat(outputs, axis=0).repeat(inputs, axis=1)[: shape[0], : shape[1]]


def _mask_groups(scores: Scores, keep: int, group: int) -> Mask:
    """Return the best of each group; ties go to the first."""
    grouped = scores.reshape(len(scores), -1, group)
    order = np.argsort(-grouped, axis=2, kind="stable")
    kept = np.zeros(grouped.shape, bool)
    np.put_along_axis(kept, order[:, :, :keep], True, axis=2)
    return kept.reshape(scores.shape)


def spread_ratio(energies: Sequence[Scores], ratio: float) -> list[float]:
    """Return ratios by matrix that remove a ratio of all weights where least is lost.

    The saliency of a piece is its share of what is left of its matrix when all smaller ones are
    gone (LAMP: Lee et al. 2021, eq. 3), so that no matrix is emptied.

    Args:
        energies: squares of the weights, summed over each piece, of each matrix.
        ratio: the ratio of all pieces.
    """
    saliencies = []
    for energy in energies:
        ordered = np.sort(energy, axis=None)
        left = np.cumsum(ordered[::-1])[::-1]
        saliencies.append(ordered / np.maximum(left, np.finfo(np.float64).tiny))
    every: Any = np.concatenate(saliencies)
    gone = round(ratio * every.size)
    limit = np.sort(every)[gone] if gone < every.size else np.inf
    return [float(np.count_nonzero(scores < limit) / scores.size) for scores in saliencies]
