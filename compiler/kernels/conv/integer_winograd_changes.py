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
        points: at which products are computed.
        patch: gives B' d of the values of a column or row of a patch, int16.
        total: gives A' m, int32 modulo 2**32.
        halvings: by output pixel, how often 2 divides what `total` gives too much.
        threes: how often 3 does.
        one: what at the point 1 is changed to 1 times that, for all output pixels.
    """

    points: tuple[str, ...]
    patch: Callable[[Let, Sequence[Any]], list[Any]]
    total: Callable[[Let, Sequence[Any]], list[Any]]
    halvings: tuple[int, ...]
    threes: int
    one: int


def inverse_of_threes(count: int) -> int:
    """Return what 3**count times is 1 modulo 2**32, int32.

    >>> 9 * inverse_of_threes(2) % 2**32
    1
    """
    found = pow(3**count, -1, 2**32)
    return found - 2**32 if found >= 2**31 else found


def _patch_1(let: Let, d: Sequence[Any]) -> list[Any]:
    return [let("t", d[0] - d[1]), d[1], let("t", d[2] - d[1])]


def _total_1(let: Let, m: Sequence[Any]) -> list[Any]:
    """Return A' m."""
    return [let("s", wrapping("add", wrapping("add", m[0], m[1]), m[2]))]


def _patch_3(let: Let, d: Sequence[Any]) -> list[Any]:
    far, near = let("far", d[3] - d[1]), let("near", d[3] - d[2])
    middle = let("middle", _times(2, d[2] - d[1]))
    rows = (
        _times(2, d[0]) - d[1] - _times(2, d[2]) + d[3],
        near - _times(2, d[1]),
        near - middle,
        far,
        d[4] - d[2] - _times(2, far),
    )
    return [let("t", row) for row in rows]


def _total_3(let: Let, m: Sequence[Any]) -> list[Any]:
    """Return 6 times A' m."""

    def three(value: Any) -> Any:
        return wrapping("add", value, wrapping("add", value, value))

    def twice(value: Any) -> Any:
        return wrapping("add", value, value)

    minus = let("minus", three(m[1]))
    even = let("even", wrapping("sub", m[3], m[2]))
    first = wrapping("add", wrapping("sub", three(m[0]), minus), even)
    second = wrapping("sub", wrapping("add", twice(m[3]), m[2]), minus)
    last = wrapping("add", even, three(wrapping("add", m[3], twice(m[4]))))
    return [let("s", first), let("s", second), let("s", wrapping("sub", last, minus))]


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
    1: ChangeOfBasis(("0", "1", "inf"), _patch_1, _total_1, (0,), 0, 1),
    2: ChangeOfBasis(("0", "1", "-1", "inf"), _patch_2, _total_2, (1, 1), 0, 2),
    3: ChangeOfBasis(("0", "1", "-1", "2", "inf"), _patch_3, _total_3, (1, 1, 1), 1, -2),
    4: ChangeOfBasis(("0", "1", "-1", "2", "-2", "inf"), _patch_4, _total_4, (3, 2, 1, 1), 1, -6),
}
"""By output pixels of a tile in a row or column."""

WINDOWS = {2: _window_2, 4: _window_4}
"""What gives G g of three weights, int16, at the points of a change; 1 and 3 need some of them."""

GROUPS = {2: ((1, 2), (0, 3)), 4: ((1, 2), (3, 4), (0, 5))}
"""Rows of positions whose weights are made together."""
