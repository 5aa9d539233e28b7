"""Describe a convolution by what a test cares about."""

from typing import Any

from edgec.compiler.kernels.conv.workload import ConvWorkload


def conv_workload(**changes: Any) -> ConvWorkload:
    """Return a 3x3 convolution of 64 channels at 56 x 56, but for some fields."""
    fields: dict[str, Any] = {
        "batch": 1,
        "in_channels": 64,
        "in_h": 56,
        "in_w": 56,
        "out_channels": 64,
        "out_h": 56,
        "out_w": 56,
        "kernel": (3, 3),
        "padding": (1, 1),
    }
    return ConvWorkload(**{**fields, **changes})
