"""Provide the changes of basis of Winograd's algorithm on quantized values, in whole numbers.

`integer_winograd.py` has the algorithm.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edgec.compiler.kernels.vectors import Let, constant, lanes_of, wrapping


@dataclass(frozen=True)
class ChangeOfBasis:
    """A change of basis describes Winograd's algorithm along one dimension.

    Attributes:
        patch: gives B' d of the values of a column or row of a patch, int16.
        window: gives G g of three weights, int16.
        total: gives A' m, int32 modulo 2**32.
        halvings: by output pixel, how often 2 divides what `total` gives too much.
        groups: rows of positions whose weights are made together.
        one: what at the point 1 is changed to k.
        inverse: what the rest of it times is 1 modulo 2**32.
    """

    patch: Callable[[Let, Sequence[Any]], list[Any]]
    window: Callable[[Let, Sequence[Any]], list[Any]]
    total: Callable[[Let, Sequence[Any]], list[Any]]
    halvings: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]
    one: int
    inverse: int = 1


def _patch_2(let: Let, d: Sequence[Any]) -> list[Any]:
    rows = (d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3])
    return [let("t", row) for row in rows]


def _window_2(let: Let, g: Sequence[Any]) -> list[Any]:
    ends = let("ends", g[0] + g[2])
    return [g[0], let("u", ends + g[1]), let("u", ends - g[1]), g[2]]


def _total_2(let: Let, m: Sequence[Any]) -> list[Any]:
    """Return twice A' m."""
    first, last = (wrapping("add", each, each) for each in (m[0], m[3]))
    return [
        let("s", wrapping("add", first, wrapping("add", m[1], m[2]))),
        let("s", wrapping("sub", wrapping("sub", m[1], m[2]), last)),
    ]


def _patch_4(let: Let, d: Sequence[Any]) -> list[Any]:
    even, odd = let("even", d[4] - _times(4, d[2])), let("odd", d[3] - _times(4, d[1]))
    near, far = let("near", d[4] - d[2]), let("far", d[3] - d[1])
    twice = let("twice", far + far)
    rows = (
        _times(4, d[0] - d[2]) + near,
        even + odd,
        even - odd,
        near + twice,
        near - twice,
        d[5] - d[3] - (twice + twice),
    )
    return [let("t", row) for row in rows]


def _window_4(let: Let, g: Sequence[Any]) -> list[Any]:
    ends, far = let("ends", g[0] + g[2]), let("far", g[0] + _times(4, g[2]))
    twice = let("twice", _times(2, g[1]))
    rows = (ends + g[1], ends - g[1], far + twice, far - twice)
    return [g[0], *(let("u", row) for row in rows), g[2]]


def _total_4(let: Let, m: Sequence[Any]) -> list[Any]:
    """Return 24, 12, 6 and 6 times A' m."""

    def plus(left: Any, right: Any) -> Any:
        return let("sum", wrapping("add", left, right))

    def minus(left: Any, right: Any) -> Any:
        return let("difference", wrapping("sub", left, right))

    def twice(value: Any) -> Any:
        return plus(value, value)

    sums = plus(m[1], m[2]), plus(m[3], m[4])
    differences = minus(m[1], m[2]), minus(m[3], m[4])
    third, first = minus(sums[1], sums[0]), minus(twice(m[0]), sums[0])
    last = plus(differences[1], plus(m[5], twice(m[5])))
    return [
        plus(third, plus(first, twice(first))),
        minus(differences[1], twice(differences[0])),
        third,
        minus(twice(last), differences[0]),
    ]


def _times(number: int, value: Any) -> Any:
    return value * constant(number, "int16", lanes_of(value))


CHANGES = {
    2: ChangeOfBasis(_patch_2, _window_2, _total_2, (1, 1), ((1, 2), (0, 3)), 4),
    # 9 * 954437177 = 2 * 2**32 + 1
    4: ChangeOfBasis(
        _patch_4, _window_4, _total_4, (3, 2, 1, 1), ((1, 2), (3, 4), (0, 5)), 36, 954437177
    ),
}
"""By rows of output pixels in a tile."""
