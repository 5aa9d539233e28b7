"""Sliding windows: how a line is cut into tiles, and that a long line costs no more."""

import itertools

import pytest

from edgec.compiler.kernels.conv.windows import Span, Window, tile_spans


def enumerated(window: Window, tile: int) -> list[Span]:
    """Cut a line tile by tile, by the definition."""
    starts = [*range(0, window.out - tile + 1, tile)]
    if starts[-1] + tile < window.out:
        starts.append(window.out - tile)
    spans: list[Span] = []
    for start in starts:
        valid = tuple(
            tuple(window.inside(start + position, tap) for tap in range(window.taps))
            for position in range(tile)
        )
        last = spans[-1] if spans else None
        if last and last.starts[-1] + tile == start and last.valid == valid:
            spans[-1] = Span(range(last.starts[0], start + tile, tile), valid)
        else:
            spans.append(Span(range(start, start + tile, tile), valid))
    return spans


@pytest.mark.parametrize("taps", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_spans_are_those_of_enumerated_tiles(taps: int, stride: int) -> None:
    for out, extent, padding, dilation in itertools.product(
        (1, 2, 7, 16), (1, 5, 16, 40), (-2, 0, 1, 3, 20), (1, 3)
    ):
        window = Window(extent, out, taps, stride, padding, dilation)
        for tile in range(1, out + 1):
            assert list(tile_spans(window, tile)) == enumerated(window, tile)


def test_a_long_line_is_not_enumerated() -> None:
    # Enumerated, it would not end: only the tiles at the ends are looked at.
    length = 10**12
    spans = tile_spans(Window(length, length, 3, padding=1), 8)
    assert [len(span.starts) for span in spans] == [1, length // 8 - 2, 1]
    assert sum(len(span.starts) for span in tile_spans(Window(length, length, 1), 7)) == (
        -(-length // 7)
    )
