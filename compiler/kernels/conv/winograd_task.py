"""Provide what tasks of kernels by Winograd's algorithm begin with, and where patches lie."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from edgec.compiler.kernels.conv.workload import ConvWorkload
from edgec.compiler.kernels.emit.emitter import CACHE_LINE_BYTES, Emitter


@dataclass(frozen=True)
class WinogradTask:
    """A winograd task is some tiles of an image, and a share of the output channels.

    Attributes:
        image: its number in the batch.
        first_out_tile: the first tile of output channels.
        out_tiles: how many of these.
        first_tile: the first tile of the image.
    """

    image: Any
    first_out_tile: Any
    out_tiles: Any
    first_tile: Any


@dataclass(frozen=True)
class WinogradTasks:
    """Winograd tasks say how the work of a convolution is divided.

    Attributes:
        tiles: of an image.
        block: tiles in a task.
        out_tiles: tiles of output channels.
        splits: tasks that share the output channels.
    """

    tiles: int
    block: int
    out_tiles: int
    splits: int

    @property
    def blocks(self) -> int:
        """Return tasks for an image, not counting those that share its output channels."""
        return math.ceil(self.tiles / self.block)

    @property
    def share(self) -> int:
        """Return tiles of output channels in a task, at most."""
        return math.ceil(self.out_tiles / self.splits)

    def begin(self, e: Emitter, task: Any) -> WinogradTask:
        """Return what a task computes; the last tiles of an image overlap their neighbours."""
        number = tirx.floormod(task, self.blocks)
        rest = e.let("rest", tirx.floordiv(task, self.blocks))
        split = tirx.floormod(rest, self.splits)
        image = e.let("image", tirx.floordiv(rest, self.splits))
        first = e.let("first_out_tile", split * self.share)
        count: Any = self.share
        if self.out_tiles % self.splits:
            left = tirx.max(self.out_tiles - first, tirx.IntImm("int32", 0))
            count = e.let("out_tiles", tirx.min(left, tirx.IntImm("int32", self.share)))
        last = tirx.IntImm("int32", self.tiles - self.block)
        return WinogradTask(
            image, first, count, e.let("first_tile", tirx.min(number * self.block, last))
        )


def patch_place(
    e: Emitter, work: ConvWorkload, place: Sequence[Any], patch: int
) -> tuple[Any, Any, Any]:
    """Return the first line and column of a patch, and whether all of it is in the image.

    Args:
        e: writes the kernel.
        work: the convolution.
        place: first output row and column of the tile.
        patch: lines and columns of the patch.
    """
    row, column = place
    top = e.let("top", row - work.padding[0])
    left = e.let("left", column - work.padding[1])
    inside = tirx.all(top >= 0, left >= 0, top + patch <= work.in_h, left + patch <= work.in_w)
    return top, left, e.let("inside", inside)


def present_part(e: Emitter, name: str, start: Any, extent: int, patch: int) -> tuple[Any, Any]:
    """Return the first line or column of a patch that is in the image, and how many are."""
    first = e.let(f"first_{name}", tirx.max(-start, tirx.IntImm("int32", 0)))
    past = tirx.min(extent - start, tirx.IntImm("int32", patch))
    return first, e.let(f"{name}s", past - first)


def lines_apart(values: int, value_bytes: int = 4) -> int:
    """Return at least so many values: an odd number of cache lines.

    A transform touches the same place of every position. Multiples of large powers of two would
    put all of them into a few sets of the cache.
    """
    line = CACHE_LINE_BYTES // value_bytes
    return (math.ceil(values / line) // 2 * 2 + 1) * line
