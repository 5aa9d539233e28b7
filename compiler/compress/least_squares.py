"""Fit the weights of a dot product by least squares, from what was seen of its inputs and outputs.

Sums over what was seen make a system of the size of the inputs. Where much less was seen than there
are inputs, as in the last layers of a network for images, the same weights come from a system of
the size of what was seen, by the identity of Woodbury:

    (X X^T / m + R)^-1 X / m = R^-1 X (X^T R^-1 X + m I)^-1
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.numerics.affine import Floats

# Inputs for each patch from which on the system of the patches takes less work.
INPUTS_PER_PATCH = 2


class Fit(Protocol):
    """A fit holds what was seen of one operator."""

    def add(self, x: Floats, y: Floats) -> None:
        """Add inputs [groups, length, patches] and outputs [groups, patches, outputs]."""
        ...

    def adjusted(
        self, old: NDArray[np.float64], dampings: Sequence[float]
    ) -> Iterator[NDArray[np.float64]]:
        """Yield weights by least squares, [groups, outputs, inputs], for one damping after another.

        Args:
            old: the weights as they are.
            dampings: added to the diagonal, as a share of its mean.
        """
        ...

    def nearest(self, candidates: Iterable[NDArray[np.float64]]) -> NDArray[np.float64]:
        """Return the weights with the least squared error."""
        ...

    def bias(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the bias that fits weights, [groups, outputs]."""
        ...


def fit_of(length: int, patches: int, about_mean: bool) -> Fit:
    """Return a fit that has seen nothing, of the kind that takes less work.

    Args:
        length: inputs of a dot product.
        patches: how many will be seen.
        about_mean: whether a bias takes up the means.
    """
    return PatchFit(about_mean) if INPUTS_PER_PATCH * patches <= length else SumFit(about_mean)


def _ridge(diagonal: NDArray[np.float64], count: int, damping: float) -> NDArray[np.float64]:
    """Return what is added to a diagonal [groups, inputs] of E[x x^T].

    A sum of n inputs seen m times: the fewer, the closer the weights stay to what they are.
    """
    share = diagonal.shape[1] / count
    return np.asarray(share * diagonal + damping * diagonal.mean(axis=1)[:, None] + 1e-12)


class SumFit:
    """A fit keeps sums: inputs times inputs, inputs times outputs, inputs, outputs."""

    def __init__(self, about_mean: bool) -> None:
        self._about_mean = about_mean
        self._sums: list[NDArray[np.float64]] = []
        self._count = 0

    def add(self, x: Floats, y: Floats) -> None:
        """Add inputs [groups, length, patches] and outputs [groups, patches, outputs]."""
        added = (x @ x.transpose(0, 2, 1), x @ y, x.sum(axis=2), y.sum(axis=1))
        if not self._sums:
            self._sums = [array.astype(np.float64) for array in added]
        else:
            for total, array in zip(self._sums, added, strict=True):
                total += array
        self._count += x.shape[2]

    def adjusted(
        self, old: NDArray[np.float64], dampings: Sequence[float]
    ) -> Iterator[NDArray[np.float64]]:
        """Yield weights by least squares; see `Fit`."""
        xx, xy = self._moments()
        lost = xy - xx @ old.transpose(0, 2, 1)
        diagonal = np.einsum("gii->gi", xx).copy()
        for damping in dampings:
            np.einsum("gii->gi", xx)[...] = diagonal + _ridge(diagonal, self._count, damping)
            yield old + np.linalg.solve(xx, lost).transpose(0, 2, 1)

    def nearest(self, candidates: Iterable[NDArray[np.float64]]) -> NDArray[np.float64]:
        """Return the weights with the least squared error."""
        xx, xy = self._moments()

        def error(rows: NDArray[np.float64]) -> float:
            # But for a constant.
            return float(np.sum((rows @ xx) * rows) - 2 * np.sum(rows * xy.transpose(0, 2, 1)))

        return min(candidates, key=error)

    def bias(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the bias that fits weights, [groups, outputs]."""
        _, _, x, y = self._sums
        return np.asarray((y - np.einsum("goi,gi->go", rows, x)) / self._count)

    def _moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return E[x x^T] and E[x y^T], about the means if a bias takes them up."""
        xx, xy, x, y = (total / self._count for total in self._sums)
        if self._about_mean:
            xx -= x[:, :, None] * x[:, None, :]
            xy -= x[:, :, None] * y[:, None, :]
        return xx, xy


class PatchFit:
    """A fit keeps the inputs and outputs themselves, as they are few."""

    def __init__(self, about_mean: bool) -> None:
        self._about_mean = about_mean
        self._seen: list[tuple[Floats, Floats]] = []

    def add(self, x: Floats, y: Floats) -> None:
        """Add inputs [groups, length, patches] and outputs [groups, patches, outputs]."""
        self._seen.append((x, y))

    def adjusted(
        self, old: NDArray[np.float64], dampings: Sequence[float]
    ) -> Iterator[NDArray[np.float64]]:
        """Yield weights by least squares; see `Fit`."""
        x, y = self._patches()
        count = x.shape[2]
        lost = y - x.transpose(0, 2, 1) @ old.transpose(0, 2, 1)
        diagonal = np.square(x).sum(axis=2) / count
        for damping in dampings:
            divided = x / _ridge(diagonal, count, damping)[:, :, None]
            system = x.transpose(0, 2, 1) @ divided
            np.einsum("gii->gi", system)[...] += count
            yield old + (divided @ np.linalg.solve(system, lost)).transpose(0, 2, 1)

    def nearest(self, candidates: Iterable[NDArray[np.float64]]) -> NDArray[np.float64]:
        """Return the weights with the least squared error."""
        x, y = self._patches()
        wanted = y.transpose(0, 2, 1)
        return min(candidates, key=lambda rows: float(np.square(rows @ x - wanted).sum()))

    def bias(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the bias that fits weights, [groups, outputs]."""
        x, y = self._arrays()
        return np.asarray(y.mean(axis=1) - np.einsum("goi,gi->go", rows, x.mean(axis=2)))

    def _arrays(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        x = np.concatenate([x for x, _ in self._seen], axis=2, dtype=np.float64)
        return x, np.concatenate([y for _, y in self._seen], axis=1, dtype=np.float64)

    def _patches(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return inputs and outputs, less their means if a bias takes them up."""
        x, y = self._arrays()
        if self._about_mean:
            x -= x.mean(axis=2, keepdims=True)
            y -= y.mean(axis=1, keepdims=True)
        return x, y
