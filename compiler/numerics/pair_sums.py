"""Describe what an instruction adds up in int16 that pairs products of quantized values.

Only NumPy.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Quantized values of one dot product, multiplied at once.
DOT_WIDTH = 4

# Sum of weights of one sign whose products with any uint8 values fit one int16.
LARGEST_PAIR_SUM = np.iinfo(np.int16).max // 255

# Sum of the magnitudes of weights whose products with any uint8 values span less than 2**16 - 1.
LARGEST_WRAPPED = (2**16 - 2) // 255


def pair_sums(weight: NDArray[Any], axis: int, groups_per_sum: int) -> NDArray[Any]:
    """Return the weights of one sign that are summed in one int16, the larger of both signs.

    Args:
        weight: the weight of any shape.
        axis: the axis of what is summed, in groups of quantized values.
        groups_per_sum: neighbouring groups whose products are added before they are widened.

    Returns:
        [other axes, groups / together, pairs of a group].

    >>> pair_sums(np.array([1, 2, 3, 4, 5, -6, 7]), 0, 2).tolist()
    [[8, 14]]
    """
    last = np.moveaxis(weight, axis, -1)
    padding = [(0, 0)] * (last.ndim - 1) + [(0, -last.shape[-1] % (DOT_WIDTH * groups_per_sum))]
    split = np.pad(last, padding).reshape(*last.shape[:-1], -1, groups_per_sum, DOT_WIDTH // 2, 2)
    return np.maximum(split.clip(min=0).sum((-3, -1)), -split.clip(max=0).sum((-3, -1)))


def pair_products(weight: NDArray[Any]) -> NDArray[np.int8]:
    """Return weights [channels, 1, kh, kw] as [channels, kh * ceil(kw / 2), 2]: pairs in a row."""
    channels, _, kh, kw = weight.shape
    padded = np.pad(weight[:, 0], ((0, 0), (0, 0), (0, kw % 2)))
    return np.ascontiguousarray(padded.reshape(channels, -1, 2), np.int8)


def pair_rounds(products: int, rounds: int) -> list[list[int]]:
    """Return which products of pairs are summed in int16: two sums for each round.

    >>> pair_rounds(6, 2)
    [[0, 2], [1], [3, 5], [4]]
    """
    parts = np.array_split(np.arange(products), rounds)
    return [part[half::2].tolist() for part in parts for half in (0, 1)]


def rounds_needed(weight: NDArray[Any]) -> int:
    """Return the fewest rounds by which all sums of `pair_rounds` fit int16 if they may wrap.

    A sum ranges over 255 times the magnitudes of its weights, which one int16 tells apart wherever
    it begins. 0: no number of rounds is enough.

    Args:
        weight: int8 [channels, 1, kh, kw].
    """
    sizes = np.abs(pair_products(weight).astype(np.int64)).sum(axis=2)
    products = sizes.shape[1]
    for rounds in range(1, products + 1):
        groups = pair_rounds(products, rounds)
        if max(sizes[:, group].sum(axis=1).max(initial=0) for group in groups) <= LARGEST_WRAPPED:
            return rounds
    return 0
