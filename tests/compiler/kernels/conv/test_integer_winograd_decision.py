"""Tiles of a task by Winograd's algorithm on quantized values."""

from dataclasses import replace

import pytest

from edgec.compiler.kernels.conv.integer_winograd_decision import (
    copied_lines,
    products_of,
    range_of,
    tile_groups,
)
from edgec.compiler.kernels.conv.winograd_decision import WinogradDecision
from edgec.compiler.kernels.conv.workload import ConvWorkload

SQUARE = ConvWorkload(1, 64, 14, 14, 64, 14, 14, (3, 3), padding=(1, 1))


def square(extent: int) -> ConvWorkload:
    return replace(SQUARE, in_h=extent, in_w=extent, out_h=extent, out_w=extent)


@pytest.mark.parametrize(
    ("extent", "tiles", "products"), [(14, 16, 22**2), (13, 16, 21**2), (7, 4, 11**2), (8, 4, 144)]
)
def test_products_of_a_whole_image(extent: int, tiles: int, products: int) -> None:
    """4 rows take 6 points, 3 take 5, 2 take 4 and 1 takes 3."""
    decision = WinogradDecision(1, 1, tiles, 4)
    assert products_of(square(extent), decision) == products
    assert copied_lines(square(extent), decision) == extent + 2


def test_tiles_of_a_part_overlap() -> None:
    decision = WinogradDecision(3, 1, 2, 4)
    assert products_of(SQUARE, decision) == 36 * 2
    (group,) = tile_groups(SQUARE, decision)
    assert (group.count, group.outs) == (6, (4, 4))


def test_tiles_with_a_product_at_a_position_follow_each_other() -> None:
    groups = tile_groups(SQUARE, WinogradDecision(4, 1, 4, 4))
    assert [(g.first, g.count, g.outs) for g in groups] == [
        (0, 3, (4, 2)),
        (3, 9, (4, 4)),
        (12, 3, (2, 4)),
        (15, 1, (2, 2)),
    ]
    found = [range_of(groups, points) for points in (("1", "1"), ("2", "1"), ("1", "2"))]
    assert found == [(0, 16), (0, 12), (3, 15)]
    assert range_of(groups, ("-2", "2")) == (3, 12)
