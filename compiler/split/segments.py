"""Provide segments: what one device computes, or several at the same time.

Along `rows` each device has some rows of the images, with those that it needs beside them computed
again; along `channels` some output channels, and of the weights those that belong to them; along
`sums` some of the channels that the last product sums over, whose results are added. Where the next
segment needs more of a value than its device has, the others send it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal, get_args

Along = Literal["rows", "channels", "sums"]
ALONG: tuple[str, ...] = get_args(Along)


@dataclass(frozen=True)
class Segment:
    """A segment is what lies between two cuts.

    Attributes:
        devices: who computes it, by number.
        along: how it is shared; None: one device computes it.
        shares: of the work, by device; they are in proportion to each other.
    """

    devices: tuple[int, ...]
    along: Along | None = None
    shares: tuple[float, ...] = (1.0,)


def shared_axis(along: Along, rank: int) -> int | None:
    """Return the axis of a value that is shared: of images [N, C, H, W], of others [..., C].

    >>> [shared_axis("rows", 4), shared_axis("channels", 4), shared_axis("channels", 3)]
    [2, 1, 2]
    """
    if along == "rows":
        return rank - 2 if rank >= 3 else None
    return 1 if rank >= 4 else rank - 1 if rank >= 2 else None


def intervals(extent: int, shares: Sequence[float], block: int) -> list[tuple[int, int]]:
    """Return the parts of an axis, in whole blocks where there are enough.

    >>> intervals(64, (1, 1, 1), 16)
    [(0, 16), (16, 48), (48, 64)]
    >>> intervals(7, (1, 1), 1)
    [(0, 4), (4, 7)]
    """
    if extent < block * len(shares):
        block = 1
    edges = [0]
    for done in accumulate(shares):
        exact = extent * done / sum(shares)
        edges.append(max(edges[-1], min(extent, round(exact / block + 1e-9) * block)))
    edges[-1] = extent
    return list(pairwise(edges))
