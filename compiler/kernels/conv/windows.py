"""Sliding windows over a padded image: which taps of a window read inside it.

Columns are settled when the code is written: `tile_spans` cuts a line into register tiles and
says for each pixel and tap whether it is inside. Rows are settled at run time, once per line, by
`present_rows`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from edgec.compiler.kernels.emit.emitter import Emitter


@dataclass(frozen=True)
class Span:
    """Tiles along one dimension that are written alike.

    Attributes:
        starts: first pixel of each; equally spaced.
        valid: for each pixel of the tile and each tap, whether it reads inside the input.
    """

    starts: tuple[int, ...]
    valid: tuple[tuple[bool, ...], ...]


def tile_spans(
    out: int, tile: int, extent: int, taps: int, stride: int, padding: int, dilation: int
) -> list[Span]:
    """Cut a line of output pixels into tiles; the last may overlap the one before.

    Args:
        out: pixels of the line.
        tile: pixels of a tile.
        extent: pixels of the input line.
        taps: columns of the window.
        stride: distance of windows.
        padding: columns before the input.
        dilation: distance of the window's columns.

    >>> [span.starts for span in tile_spans(10, 4, 10, 3, 1, 1, 1)]
    [(0,), (4,), (6,)]
    """
    starts = list(range(0, out - tile + 1, tile))
    if starts[-1] + tile < out:
        starts.append(out - tile)
    spans: list[Span] = []
    for start in starts:
        valid = tuple(
            tuple(
                0 <= (start + pixel) * stride + tap * dilation - padding < extent
                for tap in range(taps)
            )
            for pixel in range(tile)
        )
        previous = spans[-1] if spans else None
        follows = previous is not None and start - previous.starts[-1] == tile
        if previous is not None and follows and previous.valid == valid:
            spans[-1] = Span((*previous.starts, start), valid)
        else:
            spans.append(Span((start,), valid))
    return spans


def alike_taps(valid: Sequence[Sequence[bool]], outside: bool = False) -> list[tuple[int, int]]:
    """Runs of taps that are inside for the same pixels, as first tap and count.

    Args:
        valid: for each pixel and tap whether it is inside.
        outside: whether taps that are inside for no pixel count as well.

    >>> alike_taps([(False, True, True), (True, True, True)])
    [(0, 1), (1, 2)]
    """
    runs: list[tuple[int, int]] = []
    patterns = list(zip(*valid, strict=True))
    for tap, pattern in enumerate(patterns):
        if not any(pattern) and not outside:
            continue
        if runs and sum(runs[-1]) == tap and patterns[runs[-1][0]] == pattern:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((tap, 1))
    return runs


def present_rows(
    emit: Emitter,
    top: Any,
    extent: int,
    taps: int,
    dilation: int,
    stride: int,
    padding: int,
    out: int,
) -> tuple[Any, Any]:
    """First row of the window that is inside the image, and how many are.

    Args:
        emit: where to compute them.
        top: image row of the window's first row, possibly outside.
        extent: rows of the image.
        taps: rows of the window.
        dilation: distance of its rows.
        stride: distance of windows.
        padding: rows above the image.
        out: number of windows.
    """
    lowest = (out - 1) * stride + (taps - 1) * dilation - padding
    if padding <= 0 and lowest < extent:
        return 0, taps
    zero = tirx.IntImm("int32", 0)
    above = tirx.floordiv(zero - top + (dilation - 1), tirx.IntImm("int32", dilation))
    first = emit.let("first", tirx.max(zero, above))
    below = tirx.IntImm("int32", extent + dilation - 1) - top
    past = tirx.min(
        tirx.IntImm("int32", taps), tirx.floordiv(below, tirx.IntImm("int32", dilation))
    )
    return first, emit.let("count", past - first)


def absent_rows(emit: Emitter, first: Any, count: Any, taps: int) -> list[tuple[Any, Any]]:
    """The rows of the window that `present_rows` leaves out: above and below, from and to.

    All may be, in padding that is larger than the window.
    """
    last = tirx.IntImm("int32", taps)
    above = emit.let("above", tirx.min(first, last))
    below = emit.let("below", tirx.max(above, first + count))
    return [(tirx.IntImm("int32", 0), above), (below, last)]
