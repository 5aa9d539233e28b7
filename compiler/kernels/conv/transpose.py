"""Provide transposed convolution: one ordinary convolution for each phase of the output."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from edgec.compiler.kernels.conv.cost import default_direct_decision, estimate_cycles
from edgec.compiler.kernels.conv.decision import ConvDecision, direct_space, fitted
from edgec.compiler.kernels.conv.direct import DirectConv
from edgec.compiler.kernels.conv.weights import pack_weight, packed_size
from edgec.compiler.kernels.conv.workload import ConvBuffers, ConvWorkload
from edgec.compiler.kernels.emit.emitter import Emitter
from edgec.compiler.kernels.emit.epilogue import EpilogueStep
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.targets.target import Target


@dataclass(frozen=True)
class ConvTransposeWorkload:
    """A conv transpose workload describes a transposed convolution of one group, without dilation.

    Attributes:
        batch: N.
        in_channels: C.
        in_h: input rows.
        in_w: input columns.
        out_channels: O.
        out_h: output rows.
        out_w: output columns.
        kernel: window height and width, at least the stride.
        stride: vertical and horizontal.
        padding: rows and columns cut off at the top and left.
        epilogue: what happens to each value before it is stored.
    """

    batch: int
    in_channels: int
    in_h: int
    in_w: int
    out_channels: int
    out_h: int
    out_w: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    epilogue: tuple[EpilogueStep, ...] = ()

    @property
    def macs(self) -> int:
        """Return multiply-accumulates."""
        return sum(phase.macs for phase, _ in self.phases())

    def phases(self) -> list[tuple[ConvWorkload, tuple[slice, slice]]]:
        """Return ordinary convolutions, one for each residue of output positions modulo the stride.

        Output row o + s y takes from input row y + q - j the weight row r + s j, with
        r = (o + padding) mod s and q = (o + padding) div s. Read with j falling, those are the
        taps of a convolution of stride 1; the slices pick and reverse them.
        """
        rows = [self._phase(0, o, self.out_h) for o in range(self.stride[0])]
        columns = [self._phase(1, o, self.out_w) for o in range(self.stride[1])]
        phases = []
        for oy, (count_h, taps_h, pad_h, slice_h) in enumerate(rows):
            for ox, (count_w, taps_w, pad_w, slice_w) in enumerate(columns):
                if count_h == 0 or count_w == 0:
                    continue
                work = ConvWorkload(
                    self.batch,
                    self.in_channels,
                    self.in_h,
                    self.in_w,
                    self.out_channels,
                    count_h,
                    count_w,
                    (taps_h, taps_w),
                    padding=(pad_h, pad_w),
                    epilogue=self.epilogue,
                    out_step=self.stride,
                    out_origin=(oy, ox),
                    full_out=(self.out_h, self.out_w),
                )
                phases.append((work, (slice_h, slice_w)))
        return phases

    def _phase(self, axis: int, origin: int, out: int) -> tuple[int, int, int, slice]:
        """Return positions, taps, padding and weight rows of one residue."""
        stride, kernel = self.stride[axis], self.kernel[axis]
        quotient, first = divmod(origin + self.padding[axis], stride)
        taps = math.ceil((kernel - first) / stride)
        last = first + (taps - 1) * stride
        rows = slice(last, first - 1 if first else None, -stride)
        return math.ceil((out - origin) / stride), taps, taps - 1 - quotient, rows


def conv_transpose_space(workload: ConvTransposeWorkload, target: Target) -> list[ConvDecision]:
    """Return decisions that fit the largest phase."""
    return direct_space(_largest_phase(workload), target)


def default_conv_transpose_decision(
    workload: ConvTransposeWorkload, target: Target
) -> ConvDecision:
    """Return the decision that suits the largest phase."""
    return default_direct_decision(_largest_phase(workload), target)


def _largest_phase(workload: ConvTransposeWorkload) -> ConvWorkload:
    return max((phase for phase, _ in workload.phases()), key=lambda phase: phase.macs)


def pack_transposed_weight(
    workload: ConvTransposeWorkload, decision: ConvDecision, weight: NDArray[Any], c: int
) -> NDArray[Any]:
    """Return weights [in_channels, out_channels, kh, kw] of all phases, one after the other."""
    parts = []
    for phase, (rows, columns) in workload.phases():
        window = weight[:, :, rows, columns].transpose(1, 0, 2, 3)
        parts.append(pack_weight(phase, fitted(decision, phase), window, c, c).reshape(-1))
    return np.concatenate(parts)


def conv_transpose_weight_size(
    workload: ConvTransposeWorkload, decision: ConvDecision, target: Target
) -> int:
    """Return values in the packed weights of all phases."""
    phases = (phase for phase, _ in workload.phases())
    return sum(packed_size(phase, fitted(decision, phase), target) for phase in phases)


def estimate_conv_transpose_cycles(
    workload: ConvTransposeWorkload, decision: ConvDecision, target: Target
) -> float:
    """Return the sum over all phases."""
    phases = (phase for phase, _ in workload.phases())
    return sum(estimate_cycles(phase, fitted(decision, phase), target) for phase in phases)


def emit_conv_transpose(
    workload: ConvTransposeWorkload, decision: ConvDecision, target: Target, name: str
) -> Kernel:
    """Write the kernel; its buffers are those of `emit_conv`."""
    e = Emitter(target)
    c = target.float_lanes
    phases = [(phase, fitted(decision, phase)) for phase, _ in workload.phases()]
    sizes = [packed_size(phase, plan, target) for phase, plan in phases]
    buffers = ConvBuffers.declare(e, phases[0][0], sum(sizes), c)
    with e.tasks() as task:
        first = position = 0
        for (phase, plan), size in zip(phases, sizes, strict=True):
            conv = DirectConv(phase, plan, c, e, buffers, position)
            with e.branch(tirx.all(task >= first, task < first + conv.tasks)):
                conv.body(e.let("phase_task", task - first))
            first += conv.tasks
            position += size
    return Kernel(e.function(name), first)
