"""Describe what direct convolution and Winograd's algorithm have in common.

The task and the parameters.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from edgec.compiler.kernels.conv.windows import Window, window_of
from edgec.compiler.kernels.emit.emitter import Emitter
from edgec.compiler.kernels.emit.epilogue import EpilogueStep, declare_operands, output_dtype
from edgec.compiler.kernels.emit.quantized_values import LOAD_DTYPES


@dataclass(frozen=True)
class ConvWorkload:
    """A conv workload describes a convolution as a kernel sees it.

    The output may be a grid inside a larger one (a phase of a transposed convolution): pixel
    (y, x) of `out_h` x `out_w` goes to row `y * out_step + out_y` of `full_h` rows, and so on.

    Attributes:
        batch: N.
        in_channels: the input channels of all groups together.
        in_h: input rows.
        in_w: input columns.
        out_channels: the output channels of all groups together.
        out_h: rows computed.
        out_w: columns computed.
        kernel: window height and width.
        stride: vertical and horizontal.
        padding: rows above and columns left of the input; may be negative.
        dilation: vertical and horizontal.
        groups: independent channel groups.
        plain_input: the input is [N, C, H, W].
        epilogue: what happens to each value before it is stored.
        out_step: distance of computed pixels in the output, vertical and horizontal.
        out_origin: position of the first one.
        full_out: extent of the output.
        weight: in which the weights are stored, without a scale: a key of `quantized.STORED`.
        scale_groups: scales of each output channel, by which the rows of its packed weights are
            multiplied; 0: none.
    """

    batch: int
    in_channels: int
    in_h: int
    in_w: int
    out_channels: int
    out_h: int
    out_w: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    plain_input: bool = False
    epilogue: tuple[EpilogueStep, ...] = ()
    out_step: tuple[int, int] = (1, 1)
    out_origin: tuple[int, int] = (0, 0)
    full_out: tuple[int, int] = (0, 0)
    weight: str = field(default="float32", metadata={"omit_if_default": True})
    scale_groups: int = field(default=0, metadata={"omit_if_default": True})

    @property
    def macs(self) -> int:
        """Return multiply-accumulates, without those of padding channels."""
        window = self.kernel[0] * self.kernel[1] * self.in_channels // self.groups
        return self.batch * self.out_channels * self.out_h * self.out_w * window

    @property
    def out_extent(self) -> tuple[int, int]:
        """Return rows and columns of the whole output."""
        return self.full_out if self.full_out != (0, 0) else (self.out_h, self.out_w)

    def window(self, axis: int) -> Window:
        """Return the sliding window along the rows (0) or the columns (1)."""
        return window_of(self, axis)


@dataclass(frozen=True)
class QuantizedConvWorkload:
    """A quantized conv workload describes what the convolutions of quantized values have in common.

    Attributes:
        conv: extents and epilogue.
        border: quantized value of the padding, 0 where there is none.
    """

    conv: Any
    border: int = 0

    @property
    def macs(self) -> int:
        """Return multiply-accumulates."""
        return int(self.conv.macs)

    @property
    def epilogue(self) -> tuple[EpilogueStep, ...]:
        """Return steps after the accumulation."""
        return tuple(self.conv.epilogue)

    @property
    def has_rows(self) -> bool:
        """Return whether rows of the window can be outside, and count."""
        return self.border != 0


@dataclass(frozen=True)
class ConvBuffers:
    """Conv buffers describe parameters of a kernel, in their order.

    Attributes:
        data: the input.
        weight: packed.
        operands: one for each binary step of the epilogue.
        output: the result.
        scales: [tiles, groups, tile_o * c], if weights have them.
        groups: the group of each row of a tile's weights.
        others: what else belongs to the weight.
    """

    data: Any
    weight: Any
    operands: list[Any]
    output: Any
    scales: Any = None
    groups: Any = None
    others: Sequence[Any] = ()

    @classmethod
    def declare(
        cls,
        e: Emitter,
        work: ConvWorkload,
        weights: int,
        c: int,
        rows: int = 0,
        scales: int = 0,
        others: Sequence[tuple[str, int]] = (),
    ) -> "ConvBuffers":
        """Declare them.

        Args:
            e: the kernel's emitter.
            work: the convolution.
            weights: values in the packed weight.
            c: lanes.
            rows: the rows of the packed weights of a tile, if weights have scales.
            scales: how many.
            others: name and size of what else belongs to the weight, int32.
        """
        block = 1 if work.plain_input else c
        in_size = math.ceil(work.in_channels / block) * block * work.in_h * work.in_w
        out_blocks = math.ceil(work.out_channels / c)
        out_size = work.batch * out_blocks * c * math.prod(work.out_extent)
        data = e.buffer("data", work.batch * in_size, "float32")
        weight = e.buffer("weight", weights, LOAD_DTYPES[work.weight])
        group_buffers = []
        if work.scale_groups:
            group_buffers = [
                e.buffer("scales", scales, "float32"),
                e.buffer("groups", rows, "int32"),
            ]
        more = [e.buffer(name, size, "int32") for name, size in others]
        operands = declare_operands(
            e,
            work.epilogue,
            {
                "channel": out_blocks * c,
                "image_channel": work.batch * out_blocks * c,
                "element": out_size,
            },
        )
        output = e.buffer("output", out_size, output_dtype(work.epilogue))
        scales_buffer, groups = group_buffers or (None, None)
        return cls(data, weight, operands, output, scales_buffer, groups, more)


@dataclass(frozen=True)
class ChannelRun:
    """A channel run describes consecutive channels of a block of input channels.

    Attributes:
        rows: the first row of their weights.
        source: the first line of the block in the input.
        used: how many channels.
        skipped: channels of the block before the first of them.
    """

    rows: Any
    source: Any
    used: Any
    skipped: Any = 0
