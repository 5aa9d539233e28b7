"""Describe what an instruction adds up in int16 that pairs products of quantized values.

Only NumPy.
"""

from dataclasses import dataclass
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


def half_sums(weight: NDArray[Any], axis: int, products: int) -> NDArray[Any]:
    """Return the magnitudes of weights that are summed in one int16, every second value in one.

    Args:
        weight: the weight of any shape.
        axis: the axis of what is summed, in groups of quantized values.
        products: that are added before they are widened.

    Returns:
        [other axes, sums, even and odd values].

    >>> half_sums(np.array([1, 2, 3, 4, 5, -6, 7]), 0, 3).tolist()
    [[9, 12], [7, 0]]
    """
    # The magnitude of -128 is no int8.
    last = np.abs(np.moveaxis(weight, axis, -1).astype(np.promote_types(weight.dtype, np.int16)))
    padding = [(0, 0)] * (last.ndim - 1) + [(0, -last.shape[-1] % (2 * products))]
    return np.pad(last, padding).reshape(*last.shape[:-1], -1, products, 2).sum(-2)


@dataclass(frozen=True)
class SumLimit:
    """A sum limit describes what weights keep to whose products are added in one int16.

    Attributes:
        largest: their sum.
        products: that are added before they are widened.
        in_halves: whether they are those of every second value, for data of both signs
            (`half_sums`); else those of neighbours in neighbouring groups (`pair_sums`).
    """

    largest: int
    products: int
    in_halves: bool = False

    def sums(self, weight: NDArray[Any], axis: int) -> NDArray[Any]:
        """Return the sums that are limited, [other axes, sums, 2]."""
        if self.in_halves:
            return half_sums(weight, axis, self.products)
        return pair_sums(weight, axis, self.products // 2)

    def by_value(self, numbers: NDArray[Any], length: int) -> NDArray[Any]:
        """Return for each of so many values the number of its sum, of those of `sums`.

        >>> SumLimit(255, 3, in_halves=True).by_value(np.array([[1, 2], [3, 4]]), 7).tolist()
        [1, 2, 1, 2, 1, 2, 3]
        >>> SumLimit(128, 4).by_value(np.array([[1, 2]]), 7).tolist()
        [1, 1, 2, 2, 1, 1, 2]
        """
        others, count = numbers.shape[:-2], numbers.shape[-2]
        if self.in_halves:
            each = np.broadcast_to(numbers[..., None, :], (*others, count, self.products, 2))
        else:
            shape = (*others, count, self.products // 2, 2, 2)
            each = np.broadcast_to(numbers[..., None, :, None], shape)
        return each.reshape(*others, -1)[..., :length]


# Of weights whose products with any uint8 values, or with any int8 values, fit one int16.
UINT8_LIMIT = SumLimit(LARGEST_PAIR_SUM, 4)
INT8_LIMIT = SumLimit(np.iinfo(np.int16).max // 128, 4, in_halves=True)


def pair_products(weight: NDArray[Any]) -> NDArray[np.int8]:
    """Return weights [channels, 1, kh, kw] as [channels, kh * ceil(kw / 2), 2]: pairs in a row."""
    channels, kw = len(weight), weight.shape[3]
    padded = np.pad(weight[:, 0], ((0, 0), (0, 0), (0, kw % 2)))
    return np.ascontiguousarray(padded.reshape(channels, -1, 2), np.int8)


def wrapped_sums(weight: NDArray[Any]) -> tuple[tuple[int, ...], ...]:
    """Return few sums of products of pairs, each of which one int16 holds if it may wrap.

    A sum ranges over 255 times the magnitudes of its weights. Each product, the largest first, goes
    to the sum that is then smallest in the channel where it is largest.

    Args:
        weight: int8 [channels, 1, kh, kw], pairs of which int16 holds.

    Returns:
        the places of the products of `pair_products`, by sum; sums in the order of their last.

    >>> wrapped_sums(np.int8([[[[60, -60, 9], [100, 5, 40]]]]))
    ((0, 1), (2, 3))
    """
    sizes = np.abs(pair_products(weight).astype(np.int64)).sum(axis=2).T
    order = np.argsort(-sizes.max(axis=1, initial=0), kind="stable").tolist()
    count = 1
    while (found := _spread_over(sizes, order, count)) is None:
        count += 1
    return tuple(sorted((tuple(sorted(places)) for places in found if places), key=max))


def _spread_over(sizes: NDArray[Any], order: list[int], count: int) -> list[list[int]] | None:
    """Return products by sum, of sizes [products, channels]; None if so few sums do not do."""
    sums = np.zeros((count, sizes.shape[1]), np.int64)
    places: list[list[int]] = [[] for _ in range(count)]
    for place in order:
        most = (sums + sizes[place]).max(axis=1, initial=0)
        taken = int(most.argmin())
        if most[taken] > LARGEST_WRAPPED and places[taken]:
            return None
        sums[taken] += sizes[place]
        places[taken].append(place)
    return places
