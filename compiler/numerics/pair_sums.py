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
