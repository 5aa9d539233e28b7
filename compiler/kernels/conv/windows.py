"""Provide sliding windows over a padded image: which taps of a window read inside it.

Columns are fixed when the code is written: `tile_spans` cuts a line into register tiles and
says for each pixel and tap whether it is inside. Rows are found at run time, once per line, by
`valid_rows`.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tvm import tirx

from edgec.compiler.kernels.emit.emitter import Emitter


@dataclass(frozen=True)
class Window:
    """A window describes a window that slides along one dimension of a padded image.

    Attributes:
        extent: pixels of the input.
        out: positions of the window.
        taps: values of the input that a window reads.
        stride: distance of neighbouring windows.
        padding: pixels before the input; may be negative.
        dilation: distance of the window's taps.
    """

    extent: int
    out: int
    taps: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1

    def inside(self, position: int, tap: int) -> bool:
        """Return whether a tap of the window at a position reads inside the input."""
        return 0 <= position * self.stride + tap * self.dilation - self.padding < self.extent

    @property
    def interior(self) -> range:
        """Return the positions at which all taps read inside the input."""
        first = max(0, math.ceil(self.padding / self.stride))
        room = self.extent - 1 + self.padding - (self.taps - 1) * self.dilation
        return range(first, max(first, min(self.out, room // self.stride + 1)))


def window_of(workload: Any, axis: int) -> Window:
    """Return the window of a convolution or pooling along its rows (0) or columns (1)."""
    return Window(
        extent=(workload.in_h, workload.in_w)[axis],
        out=(workload.out_h, workload.out_w)[axis],
        taps=workload.kernel[axis],
        stride=workload.stride[axis],
        padding=workload.padding[axis],
        dilation=workload.dilation[axis],
    )


@dataclass(frozen=True)
class Span:
    """A span describes tiles along one dimension that are written alike.

    Attributes:
        starts: first position of each; equally spaced.
        valid: for each position of the tile and each tap, whether it reads inside the input.
    """

    starts: range
    valid: tuple[tuple[bool, ...], ...]


def each_span(
    emit: Emitter, tile: Any, spans: Sequence[Span], size: int
) -> Iterator[tuple[Span, Any]]:
    """Yield each span in a branch for the tiles that are of it, with the position they begin at.

    Args:
        emit: writes the branches.
        tile: the number of a tile, over all spans.
        spans: of one dimension.
        size: positions in a tile.
    """
    past = 0
    for span in spans:
        first, past = past, past + len(span.starts)
        with ExitStack() as stack:
            if len(spans) > 1:
                stack.enter_context(emit.branch(tirx.all(tile >= first, tile < past)))
            yield span, emit.let("line", (tile - first) * size + span.starts[0])


@lru_cache(maxsize=1024)
def tile_spans(window: Window, tile: int) -> tuple[Span, ...]:
    """Cut the positions of a window into tiles; the last tile may overlap the one before.

    Tiles in the interior are one span that is not enumerated, so that a line of a million pixels
    costs as much as a short one; every decision about a convolution asks for its spans.

    Args:
        window: along one dimension.
        tile: positions in a tile, at most `window.out`.

    >>> [list(span.starts) for span in tile_spans(Window(10, 10, 3, padding=1), 4)]
    [[0], [4], [6]]
    >>> [list(span.starts) for span in tile_spans(Window(20, 20, 3, padding=1), 4)]
    [[0], [4, 8, 12], [16]]
    """
    interior = window.interior
    last = (window.out - tile) // tile * tile
    # The grid's tiles that lie in the interior: from the first of them to past the last.
    first = math.ceil(interior.start / tile) * tile
    past = max(first, min(last, (interior.stop - tile) // tile * tile) + tile)
    spans = [_span(window, tile, start) for start in range(0, min(first, last + tile), tile)]
    if past > first:
        spans.append(Span(range(first, past, tile), ((True,) * window.taps,) * tile))
    spans += [_span(window, tile, start) for start in range(past, last + tile, tile)]
    merged: list[Span] = []
    for span in spans:
        if merged and merged[-1].valid == span.valid:
            span = Span(range(merged.pop().starts.start, span.starts.stop, tile), span.valid)
        merged.append(span)
    if last + tile < window.out:
        merged.append(_span(window, tile, window.out - tile))
    return tuple(merged)


def _span(window: Window, tile: int, start: int) -> Span:
    """Return the span of one tile."""
    valid = tuple(
        tuple(window.inside(start + position, tap) for tap in range(window.taps))
        for position in range(tile)
    )
    return Span(range(start, start + tile, tile), valid)


def valid_tap_runs(valid: Sequence[Sequence[bool]], outside: bool = False) -> list[tuple[int, int]]:
    """Return runs of taps that are inside for the same pixels, as first tap and count.

    Args:
        valid: for each pixel and tap whether it is inside.
        outside: whether taps that are inside for no pixel count as well.

    >>> valid_tap_runs([(False, True, True), (True, True, True)])
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


def valid_rows(emit: Emitter, top: Any, window: Window) -> tuple[Any, Any]:
    """Return the first row of the window that is inside the image, and how many are.

    Args:
        emit: where to compute them.
        top: image row of the window's first row, possibly outside.
        window: along the rows.
    """
    w, taps, dilation = window, window.taps, window.dilation
    lowest = (w.out - 1) * w.stride + (taps - 1) * dilation - w.padding
    if w.padding <= 0 and lowest < w.extent:
        return 0, taps
    zero = tirx.IntImm("int32", 0)
    above = tirx.floordiv(zero - top + (dilation - 1), tirx.IntImm("int32", dilation))
    first = emit.let("first", tirx.max(zero, above))
    below = tirx.IntImm("int32", w.extent + dilation - 1) - top
    past = tirx.min(
        tirx.IntImm("int32", taps), tirx.floordiv(below, tirx.IntImm("int32", dilation))
    )
    return first, emit.let("count", past - first)


def padding_rows(emit: Emitter, first: Any, count: Any, taps: int) -> list[tuple[Any, Any]]:
    """Return the rows of the window that `valid_rows` leaves out: above and below, from and to.

    All may be, in padding that is larger than the window.
    """
    last = tirx.IntImm("int32", taps)
    above = emit.let("above", tirx.min(first, last))
    below = emit.let("below", tirx.max(above, first + count))
    return [(tirx.IntImm("int32", 0), above), (below, last)]
