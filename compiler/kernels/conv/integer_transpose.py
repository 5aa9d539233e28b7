"""Provide transposed convolution of quantized values.

One convolution of quantized values for each phase of the output.

Phases have taps of their own, and so their own bias and rows:

    bias    int32 [phases, blocks * c]
    rows    int32 [window rows of all phases, blocks * c]
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.kernels.conv.decision import ConvDecision, fitted
from edgec.compiler.kernels.conv.integer import (
    IntegerConvWorkload,
    default_integer_decision,
    estimate_integer_cycles,
    integer_space,
    integer_weight_size,
    pack_integer_weight,
)
from edgec.compiler.kernels.conv.integer_writer import emit_phases
from edgec.compiler.kernels.conv.transpose import ConvTransposeWorkload
from edgec.compiler.kernels.conv.workload import QuantizedConvWorkload
from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.template import INT32_BIAS, Template
from edgec.targets.target import Target


@dataclass(frozen=True)
class IntegerConvTransposeWorkload(QuantizedConvWorkload):
    """An integer conv transpose workload describes a transposed convolution of quantized values.

    Attributes:
        together: see `IntegerConvWorkload`.
        wide: whether the weights would saturate the target's int16 accumulators.
    """

    conv: ConvTransposeWorkload
    together: int = 1
    wide: bool = False

    def phases(self) -> list[IntegerConvWorkload]:
        """Return ordinary convolutions, in the order of `ConvTransposeWorkload.phases`."""
        return [
            IntegerConvWorkload(phase, self.border, self.together, self.wide)
            for phase, _ in self.conv.phases()
        ]

    def largest(self) -> IntegerConvWorkload:
        """Return the phase with the most to compute."""
        return max(self.phases(), key=lambda phase: phase.macs)


def integer_conv_transpose_space(
    workload: IntegerConvTransposeWorkload, target: Target
) -> list[ConvDecision]:
    """Return decisions that fit the largest phase."""
    return integer_space(workload.largest(), target)


def default_integer_conv_transpose_decision(
    workload: IntegerConvTransposeWorkload, target: Target
) -> ConvDecision:
    """Return the decision that suits the largest phase."""
    return default_integer_decision(workload.largest(), target)


def estimate_integer_conv_transpose_cycles(
    workload: IntegerConvTransposeWorkload, decision: ConvDecision, target: Target
) -> float:
    """Return the sum over all phases."""
    return sum(
        estimate_integer_cycles(phase, fitted(decision, phase.conv), target)
        for phase in workload.phases()
    )


def integer_conv_transpose_weight_size(
    workload: IntegerConvTransposeWorkload, decision: ConvDecision, target: Target
) -> int:
    """Return values in the packed weights of all phases."""
    return sum(
        integer_weight_size(phase, fitted(decision, phase.conv), target)
        for phase in workload.phases()
    )


def pack_integer_transposed_weight(
    workload: IntegerConvTransposeWorkload,
    decision: ConvDecision,
    target: Target,
    weight: NDArray[Any],
) -> NDArray[Any]:
    """Return weights int8 [in_channels, out_channels, kh, kw] of all phases.

    One after the other.
    """
    parts = []
    for phase, window in zip(workload.phases(), phase_windows(workload.conv, weight), strict=True):
        packed = pack_integer_weight(phase, fitted(decision, phase.conv), target, window)
        parts.append(packed.reshape(-1))
    return np.concatenate(parts)


def phase_windows(conv: ConvTransposeWorkload, weight: NDArray[Any]) -> list[NDArray[Any]]:
    """Return weights [out_channels, in_channels, …] of each phase as an ordinary convolution."""
    return [
        weight[:, :, rows, columns].transpose(1, 0, 2, 3) for _, (rows, columns) in conv.phases()
    ]


def emit_integer_conv_transpose(
    workload: IntegerConvTransposeWorkload, decision: ConvDecision, target: Target, name: str
) -> Kernel:
    """Write the kernel; its buffers are those of `emit_integer_conv`."""
    phases = [(phase, fitted(decision, phase.conv)) for phase in workload.phases()]
    return emit_phases(phases, target, name)


def _pack(
    workload: IntegerConvTransposeWorkload,
    decision: ConvDecision,
    target: Target,
    position: int,
    array: NDArray[Any],
) -> NDArray[Any]:
    if position != 1:
        return array
    return pack_integer_transposed_weight(workload, decision, target, array)


TEMPLATE = Template(
    IntegerConvTransposeWorkload,
    ConvDecision,
    integer_conv_transpose_space,
    default_integer_conv_transpose_decision,
    emit_integer_conv_transpose,
    _pack,
    estimate_integer_conv_transpose_cycles,
    integer_conv_transpose_weight_size,
    epilogue="conv",
    accumulator="int32",
    bias=INT32_BIAS,
    output_channels=1,
    why_dense="there are no sparse kernels for integers",
)
