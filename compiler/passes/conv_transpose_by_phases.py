"""Turn transposed convolutions that have no kernel into ordinary ones.

Along one axis, with stride s, dilation d, K taps and p cut off in front,

    out[o] = sum over k with s | o + p - k d  of  in[(o + p - k d) / s] * w[k]

The outputs o = s q + r of one phase r use every (s / g)-th tap, g = gcd(s, d), and neighbouring
taps read inputs that are d / g apart: each phase is an ordinary convolution of stride 1, its taps
reversed. Phases that read the same inputs are one convolution with more output channels. Then
phases move from channels to space (Shi et al. 2016).
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tvm import IRModule, relax

from edgec.compiler.ir.relax_helpers import constant, op_name, shape_of, value_of
from edgec.compiler.passes.base import CallRewriter, Pass

_CONVOLUTIONS = {
    "relax.nn.conv1d_transpose": relax.op.nn.conv1d,
    "relax.nn.conv2d_transpose": relax.op.nn.conv2d,
    "relax.nn.conv3d_transpose": relax.op.nn.conv3d,
}


@dataclass(frozen=True)
class Phase:
    """A phase describes the outputs of one remainder along one axis.

    Attributes:
        taps: the taps that it uses, in the order in which a convolution reads inputs.
        dilation: distance of the inputs that neighbouring taps read.
        before: padding in front of the input; below zero: inputs that are left out.
        after: padding behind, likewise.
    """

    taps: tuple[int, ...]
    dilation: int
    before: int
    after: int


def phase_of(
    remainder: int, kernel: int, stride: int, dilation: int, padding: int, extent: int, count: int
) -> Phase:
    """Return a phase of one axis.

    >>> phase_of(0, 4, 2, 1, 1, 8, 8), phase_of(0, 3, 1, 2, 2, 8, 8)
    (Phase(taps=(3, 1), dilation=1, before=1, after=0), \
Phase(taps=(2, 1, 0), dilation=2, before=2, after=2))

    Args:
        remainder: of the outputs, divided by the stride.
        kernel: taps of the transposed convolution.
        stride: of it.
        dilation: of it.
        padding: what it cuts off in front.
        extent: of the input.
        count: outputs of the phase.
    """
    taps = [k for k in range(kernel) if (remainder + padding - k * dilation) % stride == 0]
    if not taps:
        return Phase((), 1, 0, 0)
    apart = dilation // math.gcd(stride, dilation)
    # The first output reads from here, at the last of its taps.
    first = (remainder + padding - taps[-1] * dilation) // stride
    reach = (len(taps) - 1) * apart
    return Phase(tuple(taps[::-1]), apart, -first, count - 1 + first + reach - (extent - 1))


@dataclass(frozen=True)
class ConvTransposeByPhases(Pass):
    """Replace transposed convolutions by ordinary ones and a layout operator.

    1. Channels first, a constant weight.
    2. In three dimensions, in groups, with dilation, or with a stride beyond the kernel: others
       have a kernel of their own.
    """

    def apply(self, module: IRModule) -> IRModule:
        """Rewrite every such convolution of `main`."""
        return _ConvTransposeByPhasesRewriter(module).run()


@relax.expr_functor.mutator
class _ConvTransposeByPhasesRewriter(CallRewriter):
    def rewrite(self, call: relax.Call) -> relax.Expr | None:
        name = op_name(call)
        if name not in _CONVOLUTIONS:
            return None
        data, weight = call.args[0], value_of(call.args[1])
        before, after = shape_of(data), shape_of(call)
        attrs = call.attrs
        layouts = (str(attrs.data_layout), str(attrs.kernel_layout), str(attrs.out_layout))
        known = [(space, f"IO{space[2:]}", space) for space in ("NCW", "NCHW", "NCDHW")]
        # (1)
        if weight is None or before is None or after is None or layouts not in known:
            return None
        groups, rank = int(attrs.groups), len(before) - 2
        strides, dilation = _numbers(attrs.strides), _numbers(attrs.dilation)
        kernel = weight.shape[2:]
        gaps = any(k < s for k, s in zip(kernel, strides, strict=True))
        # (2)
        if rank < 3 and groups == 1 and set(dilation) == {1} and not gaps:
            return None
        counts = [-(-extent // s) for extent, s in zip(after[2:], strides, strict=True)]
        padding = _numbers(attrs.padding)[:rank]
        axes = list(zip(kernel, strides, dilation, padding, before[2:], counts, strict=True))
        phases = [
            tuple(phase_of(r, *axis) for r, axis in zip(remainders, axes, strict=True))
            for remainders in itertools.product(*map(range, strides))
        ]
        weights = _by_output(weight, groups)
        apart = self._phases(_CONVOLUTIONS[name], data, weights, phases, groups, counts)
        return self._together(apart, after, strides, counts)

    def _phases(
        self,
        convolution: object,
        data: relax.Expr,
        weights: np.ndarray,
        phases: Sequence[tuple[Phase, ...]],
        groups: int,
        counts: Sequence[int],
    ) -> relax.Expr:
        """Return [N, phases * O, *counts]."""
        n, channels = (shape_of(data) or ())[0], len(weights)
        parts = []
        # Windows that differ in their weights only are channels of one convolution.
        for alike, together in itertools.groupby(
            phases, key=lambda p: [(len(a.taps), a.dilation, a.before, a.after) for a in p]
        ):
            found = list(together)
            if not all(taps for taps, *_ in alike):
                empty = np.zeros((n, len(found) * channels, *counts), weights.dtype)
                parts.append(constant(empty))
                continue
            for some in [found] if groups == 1 else [[phase] for phase in found]:
                picked = [
                    weights[np.ix_(*map(range, weights.shape[:2]), *(a.taps for a in phase))]
                    for phase in some
                ]
                parts.append(self._convolution(convolution, data, picked, some[0], groups))
        return parts[0] if len(parts) == 1 else self.emit(relax.op.concat(parts, 1))

    def _convolution(
        self,
        convolution: object,
        data: relax.Expr,
        weights: Sequence[np.ndarray],
        phase: Sequence[Phase],
        groups: int,
    ) -> relax.Expr:
        """Return the convolution of a phase, or of several that read the same inputs."""
        shape, axes = shape_of(data) or (), list(range(2, 2 + len(phase)))
        begin = [max(0, -axis.before) for axis in phase]
        end = [extent - max(0, -axis.after) for extent, axis in zip(shape[2:], phase, strict=True)]
        if any(begin) or tuple(end) != shape[2:]:
            data = self.emit(relax.op.strided_slice(data, axes, begin, end))
        pads = [max(0, a.before) for a in phase] + [max(0, a.after) for a in phase]
        kernel = constant(np.concatenate(weights))
        dilation = [axis.dilation for axis in phase]
        assert callable(convolution)
        return self.emit(convolution(data, kernel, padding=pads, dilation=dilation, groups=groups))

    def _together(
        self,
        apart: relax.Expr,
        shape: tuple[int, ...],
        strides: Sequence[int],
        counts: Sequence[int],
    ) -> relax.Expr:
        """Move phases from channels to space, and cut off what is beyond the result."""
        rank = len(strides)
        if math.prod(strides) == 1:
            return apart
        split = self.emit(relax.op.reshape(apart, [shape[0], *strides, shape[1], *counts]))
        spaces = [axis for place in range(rank) for axis in (rank + 2 + place, 1 + place)]
        moved = self.emit(relax.op.permute_dims(split, [0, rank + 1, *spaces]))
        whole = [count * stride for count, stride in zip(counts, strides, strict=True)]
        result = relax.op.reshape(moved, [*shape[:2], *whole])
        if tuple(whole) == shape[2:]:
            return result
        axes = list(range(2, rank + 2))
        return relax.op.strided_slice(self.emit(result), axes, [0] * rank, list(shape[2:]))


def _numbers(values: Sequence[object]) -> list[int]:
    return [int(str(value)) for value in values]


def _by_output(weight: np.ndarray, groups: int) -> np.ndarray:
    """Return [C, O / groups, *kernel] as the weight [O, C / groups, *kernel] of a convolution."""
    channels, outputs, *kernel = weight.shape
    split = weight.reshape(groups, channels // groups, outputs, *kernel)
    return split.swapaxes(1, 2).reshape(groups * outputs, channels // groups, *kernel)
