"""Describe what it costs to remove channels: an order within coupled channels.

And the saliency of each step.

Saliencies are shares of the energy of what reads the channels, so that they can be compared.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.calibration.moments import Moments
from edgec.compiler.compress.channel_groups.dependencies import Dependencies, Group
from edgec.compiler.compress.channel_groups.finder import LinearOperator
from edgec.compiler.ir.anchors import Operator
from edgec.compiler.ir.relax_helpers import op_name
from edgec.compiler.numerics.affine import Floats

Score = Literal["repair", "activation", "magnitude", "redundancy", "random"]
NEEDING_SAMPLES: tuple[Score, ...] = ("repair", "activation")

# Added to the diagonal, as a share of its mean, so that a matrix of moments has an inverse.
DAMPING = 0.01

# Share of the inputs that are gone from which on what is left is worth a copy.
SHRINKING = 0.25

# Size of a triangular matrix that is inverted as a whole.
SMALL = 64


@dataclass(frozen=True)
class ChannelBlock:
    """A channel block describes groups that are removed in one go.

    So that what is left fills whole vectors.

    Attributes:
        groups: the groups of the same coupled channels.
        saliency: what removing them costs once those before them are gone.
    """

    groups: tuple[Group, ...]
    saliency: float


@dataclass
class Consumer:
    """A consumer describes a convolution or matrix product that reads channels, and shrinks.

    Attributes:
        linear: the operator.
        rows: its weights, [groups, outputs, inputs of a dot product].
        second: second moments of its inputs, centered if a bias takes up the mean,
            [groups, inputs, inputs]; None if they are taken for independent and of energy 1.
        inputs_per_index: inputs of a dot product for each index of the axis that is read.
    """

    linear: LinearOperator
    rows: Floats
    second: Floats | None
    inputs_per_index: int

    def columns(self, group: Group) -> NDArray[np.int64]:
        """Return inputs of a dot product that a group is."""
        found = [
            (
                slot.indices[:, None] * self.inputs_per_index + np.arange(self.inputs_per_index)
            ).reshape(-1)
            for slot in group.slots
            if slot.place == self.linear.weight and slot.axis == self.linear.read
        ]
        return np.concatenate(found) if found else np.zeros(0, np.int64)

    def __post_init__(self) -> None:
        self._energy = energy(self.rows, self.second) or 1.0

    def missing(self, columns: NDArray[np.int64]) -> float:
        """Return share of the energy that is missing without some inputs, nothing corrected."""
        second = self.second
        if second is not None:
            second = second[:, columns[:, None], columns[None, :]]
        return energy(self.rows[:, :, columns], second) / self._energy


def energy(rows: Floats, second: Floats | None) -> float:
    """Return energy of dot products of inputs with these moments; see `Consumer`."""
    if second is None:
        return float(np.square(rows).sum())
    return float(np.einsum("grj,grj->", rows @ second, rows))


def consumer_of(
    dependencies: Dependencies,
    found: LinearOperator,
    operator: Operator | None,
    moments: Moments | None,
) -> Consumer | None:
    """Return how a linear operator reads channels.

    None if its weights are no constant or see one channel each.
    """
    if found.weight is None or found.read is None:
        return None
    array = dependencies.array(found.weight).astype(np.float32)
    call = dependencies.graph.definitions[found.variable]
    if "conv" in op_name(call) and found.read == 1:
        groups, inputs_per_index = int(call.attrs.groups), array[0, 0].size
        rows = array.reshape(groups, len(array) // groups, -1)
    else:
        rows, inputs_per_index = (
            np.moveaxis(array, found.read, -1).reshape(1, -1, array.shape[found.read]),
            1,
        )
    second = None
    if moments is not None:
        second = centered(moments, operator is not None and operator.bias is not None)
    return Consumer(found, np.ascontiguousarray(rows), second, inputs_per_index)


def coupled_channels(groups: Sequence[Group]) -> list[list[Group]]:
    """Return groups that are coupled."""
    found: dict[frozenset[int], list[Group]] = {}
    for group in groups:
        found.setdefault(group.coupled, []).append(group)
    return list(found.values())


def block_size(coupled: Sequence[Group], lanes: int) -> int:
    """Return groups that fill a vector: heads of 64 channels do one by one.

    >>> from edgec.compiler.compress.channel_groups.dependencies import Slot
    >>> head = Group(1, (Slot((None, 0), 0, np.arange(64)),), frozenset())
    >>> block_size([head], 8)
    1
    """
    smallest = min((len(slot.indices) for group in coupled for slot in group.slots), default=1)
    return int(lanes // np.gcd(lanes, smallest))


def rank(
    coupled: Sequence[Group],
    consumers: Sequence[Consumer],
    dependencies: Dependencies,
    score: Score,
    lanes: int,
    seed: int,
) -> list[ChannelBlock]:
    """Return what can be removed from coupled channels, in order; one vector of channels stays.

    Args:
        coupled: the groups.
        consumers: what reads the channels of any group.
        dependencies: the dependencies of the module.
        score: by which criterion.
        lanes: the lanes that the number of channels shall stay a multiple of.
        seed: the seed of random scores.
    """
    mine = [r for r in consumers if any(len(r.columns(group)) for group in coupled)]
    size = block_size(coupled, lanes)
    # The first block is smaller if the number of groups is odd.
    sizes = [len(coupled) % size] * (len(coupled) % size > 0) + [size] * (len(coupled) // size - 1)
    if len(coupled) < size:
        sizes = []
    if score == "repair":
        return _by_correction(coupled, mine, sizes)
    if score == "redundancy":
        return _by_redundancy(coupled, dependencies, sizes)
    saliencies = _SALIENCIES[score](coupled, mine, dependencies, seed)
    order = np.argsort(saliencies, kind="stable")
    cuts = np.split(order, np.cumsum(sizes))[: len(sizes)]
    return [
        ChannelBlock(tuple(coupled[i] for i in cut), float(saliencies[cut].sum())) for cut in cuts
    ]


def _by_magnitude(
    coupled: Sequence[Group], _consumers: Sequence[Consumer], dependencies: Dependencies, _seed: int
) -> NDArray[np.float64]:
    """Return share of the weights' energy, as the mean over the layers that write and read."""
    weights = {s.weight for s in dependencies.linear_operators}
    shares: dict[tuple[Any, int], NDArray[np.float64]] = {}
    saliencies = []
    for group in coupled:
        found = []
        for slot in group.slots:
            key = slot.place, slot.axis
            if slot.place in weights:
                if key not in shares:
                    shares[key] = _energy_shares(dependencies.array(slot.place), slot.axis)
                found.append(float(shares[key][slot.indices].sum()))
        saliencies.append(np.mean(found) if found else 0.0)
    return np.array(saliencies)


def _energy_shares(array: NDArray[Any], axis: int) -> NDArray[np.float64]:
    """Return the energy shares of each index of an axis, as a share of all."""
    others = tuple(i for i in range(array.ndim) if i != axis % array.ndim)
    energy = np.square(array).sum(axis=others, dtype=np.float64)
    return np.asarray(energy / (energy.sum() or 1.0))


def _by_activation(
    coupled: Sequence[Group], consumers: Sequence[Consumer], _dependencies: Dependencies, _seed: int
) -> NDArray[np.float64]:
    """Return share of the readers' energy that is missing without a group, nothing corrected."""
    return np.array([sum(r.missing(r.columns(group)) for r in consumers) for group in coupled])


def _by_chance(
    coupled: Sequence[Group], _consumers: Sequence[Consumer], _dependencies: Dependencies, seed: int
) -> NDArray[np.float64]:
    random = np.random.default_rng([seed, coupled[0].identity])
    return random.random(len(coupled)) / len(coupled)


_SALIENCIES: Mapping[Score, Callable[..., NDArray[np.float64]]] = {
    "activation": _by_activation,
    "magnitude": _by_magnitude,
    "random": _by_chance,
}


def _by_redundancy(
    coupled: Sequence[Group], dependencies: Dependencies, sizes: Sequence[int]
) -> list[ChannelBlock]:
    """Return filters that have a twin go first: the distance to the nearest that is left."""
    weights = {s.weight: s.read for s in dependencies.linear_operators}
    vectors = []
    for group in coupled:
        parts = [
            np.take(dependencies.array(slot.place), slot.indices, slot.axis).reshape(-1)
            for slot in group.slots
            if slot.place in weights and weights[slot.place] != slot.axis
        ]
        vectors.append(np.concatenate(parts) if parts else np.zeros(1, np.float32))
    length = max(map(len, vectors))
    filters = np.stack([np.pad(v, (0, length - len(v))) for v in vectors]).astype(np.float64)
    squares = np.square(filters).sum(axis=1)
    distances = squares[:, None] + squares[None, :] - 2 * filters @ filters.T
    np.fill_diagonal(distances, np.inf)
    total, blocks = float(squares.sum()) or 1.0, []
    for size in sizes:
        groups, saliency = [], 0.0
        for _ in range(size):
            nearest = distances.min(axis=1)
            chosen = int(nearest.argmin())
            saliency += max(float(nearest[chosen]), 0.0) / total
            groups.append(coupled[chosen])
            # No longer there: far from all, and nothing that another could be near.
            distances[chosen], distances[:, chosen] = np.inf, np.inf
        blocks.append(ChannelBlock(tuple(groups), saliency))
    return blocks


def _by_correction(
    coupled: Sequence[Group], consumers: Sequence[Consumer], sizes: Sequence[int]
) -> list[ChannelBlock]:
    """Return error that is left after least squares over the other channels, greedily.

    With H = E[x x^T], dropping the inputs S of a dot product and adjusting the weights of the
    others costs tr(w_S (H^-1_SS)^-1 w_S^T), and the adjusted weights and inverse are w - w_S
    (H^-1_SS)^-1 H^-1_S and H^-1 - H^-1_:S (H^-1_SS)^-1 H^-1_S: (Hassibi and Stork 1993; for
    columns: Frantar et al. 2022, Optimal Brain Compression).
    """
    if not sizes:
        return []
    states = [
        _State(item.rows, item.second, [item.columns(group) for group in coupled])
        for item in consumers
    ]
    left = list(range(len(coupled)))
    blocks = []
    for size in sizes:
        saliencies = sum(state.saliencies(left) for state in states)
        chosen = [left[i] for i in np.argsort(saliencies, kind="stable")[:size]]
        saliency = sum(state.remove(chosen) for state in states)
        blocks.append(ChannelBlock(tuple(coupled[i] for i in chosen), float(saliency)))
        left = [i for i in left if i not in set(chosen)]
    return blocks


class _State:
    """A state is one consumer, as channels leave."""

    def __init__(
        self, rows: Floats, second: Floats | None, columns: Sequence[NDArray[np.int64]]
    ) -> None:
        self.rows = rows.copy()
        self.total = energy(rows, second) or 1.0
        self.columns = list(columns)
        self.gone = np.zeros(rows.shape[2], bool)
        self.inverse: Floats | None = None
        if second is not None:
            diagonal = np.einsum("gii->gi", second).mean(axis=1)
            ridge = np.maximum(DAMPING * diagonal, 1e-12)[:, None, None]
            damped = second + (ridge * np.eye(second.shape[1])).astype(np.float32)
            self.inverse = np.stack([inverse_of(matrix) for matrix in damped])

    def saliencies(self, left: Sequence[int]) -> NDArray[np.float64]:
        saliencies = np.zeros(len(left))
        sizes = np.array([len(self.columns[i]) for i in left])
        for size in np.unique(sizes[sizes > 0]):
            where = np.flatnonzero(sizes == size)
            columns = np.stack([self.columns[left[int(i)]] for i in where])
            for group, rows in enumerate(self.rows):
                saliencies[where] += self._errors(rows, group, columns) / self.total
        return saliencies

    def _errors(self, rows: Floats, group: int, columns: NDArray[np.int64]) -> Floats:
        """Return the error for each row of columns, [candidates]."""
        weights = rows[:, columns]
        if self.inverse is None:
            return np.asarray(np.square(weights).sum(axis=(0, 2)))
        inverse = self.inverse[group]
        if columns.shape[1] == 1:
            diagonal = inverse[columns[:, 0], columns[:, 0]]
            return np.asarray(np.square(weights).sum(axis=(0, 2)) / diagonal)
        blocks = inverse[columns[:, :, None], columns[:, None, :]]
        found = np.ascontiguousarray(weights.transpose(1, 2, 0))
        solved = np.linalg.solve(blocks, found @ found.transpose(0, 2, 1))
        return np.asarray(np.einsum("nkk->n", solved))

    def remove(self, chosen: Sequence[int]) -> float:
        columns = np.concatenate([self.columns[i] for i in chosen])
        if not len(columns):
            return 0.0
        error = 0.0
        for group, rows in enumerate(self.rows):
            weights = rows[:, columns].copy()
            if self.inverse is None:
                error += float(np.square(weights).sum())
            else:
                inverse = self.inverse[group]
                both = np.concatenate([inverse[columns], weights.T], axis=1)
                both = np.linalg.solve(inverse[np.ix_(columns, columns)], both)
                factor, solved = np.split(both, [len(inverse)], axis=1)
                error += float(np.sum(weights.T * solved))
                rows -= weights @ factor
                inverse -= inverse[:, columns] @ factor
            rows[:, columns] = 0
        self.gone[columns] = True
        if self.gone.mean() > SHRINKING:
            self._shrink()
        return error / self.total

    def _shrink(self) -> None:
        """Leave out inputs that are gone, so that less is computed for the next."""
        kept = np.flatnonzero(~self.gone)
        places = np.full(len(self.gone), -1)
        places[kept] = np.arange(len(kept))
        # Those of channels that are gone are not looked at again.
        self.columns = [places[columns] for columns in self.columns]
        self.rows = np.ascontiguousarray(self.rows[:, :, kept])
        if self.inverse is not None:
            self.inverse = self.inverse[:, kept[:, None], kept]
        self.gone = np.zeros(len(kept), bool)


def inverse_of(matrix: Floats) -> Floats:
    """Return the inverse of a symmetric matrix.

    By Cholesky's factors where they exist: rounding may have made it indefinite.
    """
    try:
        factor = np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return np.asarray(np.linalg.inv(matrix))
    inverse = _inverse_of_lower(factor)
    return np.asarray(inverse.T @ inverse)


def _inverse_of_lower(matrix: Floats) -> Floats:
    """Return the inverse of a lower triangular matrix, by that of its halves."""
    size = len(matrix)
    if size <= SMALL:
        return np.tril(np.linalg.inv(matrix))
    half = size // 2
    inverse = np.zeros_like(matrix)
    first = inverse[:half, :half] = _inverse_of_lower(matrix[:half, :half])
    last = inverse[half:, half:] = _inverse_of_lower(matrix[half:, half:])
    inverse[half:, :half] = -(last @ (matrix[half:, :half] @ first))
    return inverse


def corrected_error(rows: Floats, second: Floats, columns: NDArray[np.int64]) -> float:
    """Return share of the energy of dot products that is lost without some of their inputs.

    The rest corrected.

    Args:
        rows: weights, [groups, outputs, inputs].
        second: second moments of the inputs, [groups, inputs, inputs].
        columns: inputs that go.
    """
    state = _State(rows, second, [columns])
    return state.remove([0])


def centered(moments: Moments, about_mean: bool) -> Floats:
    """Return second moments that can be trusted, [groups, inputs, inputs].

    Of n inputs seen in m patches, correlations are the less real the larger n / m is; they shrink
    by m / (m + n), as the inverse would otherwise find every input to be a combination of others.

    Args:
        moments: as measured.
        about_mean: whether a bias takes up the mean.
    """
    second = moments.second
    if about_mean:
        second = second - moments.mean[:, :, None] * moments.mean[:, None, :]
    length = second.shape[1]
    trust = np.float32(moments.count / (moments.count + length))
    diagonal = np.einsum("gii->gi", second)[:, :, None] * np.eye(length, dtype=np.float32)
    return np.asarray(trust * second + (1 - trust) * diagonal)
