"""Lay out weights of 4 or 8 bits with a scale for each group, for all kernels that read them.

A weight [N, K] is kept in panels of as many columns as a vector of weights has (`GroupedDot`). A
panel holds all units of its columns, one behind the other; those of 4 bits two to a byte. Scales
and zero points are beside it, [panels, groups, columns]. The layout depends on the target alone.
"""

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.kernels.isa import GroupedDot, isa_of
from edgec.targets.target import Target

Floats = Literal["float16", "float32"]
ZeroPoints = Literal["", "codes", "float16", "float32"]


def dot_of_codes(bits: int, target: Target) -> GroupedDot:
    """Return how the target multiplies codes; it has a way."""
    dot = isa_of(target).grouped_dot(bits)
    assert dot is not None
    return dot


def panel_vectors(dot: GroupedDot) -> int:
    """Return vectors of sums that belong to a vector of weights."""
    return 4 // dot.depth


def panel_columns(bits: int, target: Target) -> int:
    """Return columns of a panel."""
    return target.float_lanes * panel_vectors(dot_of_codes(bits, target))


def less_middle(bits: int, target: Target) -> bool:
    """Return whether codes and zero points are kept less 128."""
    return bits == 8 and dot_of_codes(bits, target).signed


def stored_floats(kind: str) -> str:
    """Return what a kernel reads floats as."""
    return "uint16" if kind == "float16" else kind


def zero_points_dtype(bits: int, kind: ZeroPoints, target: Target) -> str:
    """Return what a kernel reads zero points as."""
    if kind != "codes":
        return stored_floats(kind)
    return "int8" if less_middle(bits, target) else "uint8"


def pack_weights(bits: int, target: Target, position: int, array: NDArray[Any]) -> NDArray[Any]:
    """Return codes (position 1), scales (2) or zero points (3) of a weight as kernels read them.

    Args:
        bits: of a code.
        target: whose kernels.
        position: which operand.
        array: codes uint8 [N, bytes], whole groups of each column, low bits first; or numbers of
            groups [N, groups].
    """
    if position == 1:
        return _pack_codes(bits, target, array)
    if position == 3 and less_middle(bits, target):
        whole = array.dtype == np.uint8
        array = (array ^ 128).view(np.int8) if whole else array - array.dtype.type(128)
    columns = panel_columns(bits, target)
    panels = math.ceil(len(array) / columns)
    padded = np.zeros((panels * columns, array.shape[1]), array.dtype)
    padded[: len(array)] = array
    return np.ascontiguousarray(padded.reshape(panels, columns, -1).transpose(0, 2, 1))


def _pack_codes(bits: int, target: Target, packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    depth, columns = dot_of_codes(bits, target).depth, panel_columns(bits, target)
    panels = math.ceil(len(packed) / columns)
    # Behind the end of a column activations are 0, behind the last column nothing is stored.
    padded = np.zeros((panels * columns, packed.shape[1]), np.uint8)
    padded[: len(packed)] = packed
    if bits == 8:
        if less_middle(bits, target):
            padded ^= 128
        units = padded.reshape(panels, columns, -1, depth)
        return np.ascontiguousarray(units.transpose(0, 2, 1, 3)).reshape(panels, -1)
    codes = np.stack([padded & 15, padded >> 4], axis=-1).reshape(panels, columns, -1, 2, depth)
    low, high = codes[:, :, :, 0], codes[:, :, :, 1]
    return np.ascontiguousarray((low | high << 4).transpose(0, 2, 1, 3)).reshape(panels, -1)
