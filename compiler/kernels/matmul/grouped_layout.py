"""Lay out weights of 4 or 8 bits with a scale for each group, for all kernels that read them.

A weight [N, K] is kept in panels of 16 columns, so that one row of activations reads it as it lies
in memory. A panel holds its groups one behind the other; a group, for each vector of columns, their
units (`GroupedDot`), those of 4 bits two to a byte. Scales and zero points are beside it,
[panels, groups, columns]. The layout depends on the target alone.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from edgec.compiler.kernels.emit.emitter import Emitter
from edgec.compiler.kernels.emit.quantized_values import weight_to_float
from edgec.compiler.kernels.isa import GroupedDot, isa_of
from edgec.compiler.kernels.vectors import vector_dtype
from edgec.compiler.numerics.pair_sums import DOT_WIDTH
from edgec.targets.target import Target

Floats = Literal["float16", "float32"]
ZeroPoints = Literal["", "codes", "float16", "float32"]

PANEL = 16


def dot_of_codes(bits: int, target: Target) -> GroupedDot:
    """Return how the target multiplies codes; it has a way."""
    dot = isa_of(target).grouped_dot(bits)
    assert dot is not None
    return dot


def place_in_unit(dot: GroupedDot, columns: int, column: Any, value: int) -> Any:
    """Return where one of the four values of a column is in a vector of `columns` of them."""
    if dot.in_halves:
        return value // 2 * (2 * columns) + column * 2 + value % 2
    return column * DOT_WIDTH + value


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


def load_number(e: Emitter, buffer: Any, at: Any, kind: str, lanes: int = 1) -> Any:
    """Return scales or zero points of neighbouring columns as float32."""
    stored = e.load(buffer, at, lanes)
    if kind == "codes":
        return tirx.Cast(vector_dtype("float32", lanes), stored)
    return weight_to_float(stored, kind, e.isa.converts_float16)


def pack_weights(
    bits: int, group: int, target: Target, position: int, array: NDArray[Any]
) -> NDArray[Any]:
    """Return codes (position 1), scales (2) or zero points (3) of a weight as kernels read them.

    Args:
        bits: of a code.
        group: values that share a scale.
        target: whose kernels.
        position: which operand.
        array: codes uint8 [N, bytes], whole groups of each column, low bits first; or numbers of
            groups [N, groups].
    """
    if position == 1:
        return _pack_codes(bits, group, target, array)
    if position == 3 and less_middle(bits, target):
        whole = array.dtype == np.uint8
        array = (array ^ 128).view(np.int8) if whole else array - array.dtype.type(128)
    padded = _whole_panels(array)
    return np.ascontiguousarray(padded.reshape(-1, PANEL, padded.shape[1]).transpose(0, 2, 1))


def _whole_panels(array: NDArray[Any]) -> NDArray[Any]:
    """Return rows up to a whole panel; what is behind the last column is not stored."""
    return np.pad(array, ((0, -len(array) % PANEL), (0, 0)))


def _pack_codes(
    bits: int, group: int, target: Target, packed: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    padded, lanes = _whole_panels(packed), target.float_lanes
    if bits == 4:
        # Of eight values of a column the first four share bytes with the last four.
        codes = np.stack([padded & 15, padded >> 4], axis=-1).reshape(-1, 2, DOT_WIDTH)
        padded = (codes[:, 0] | codes[:, 1] << 4).reshape(padded.shape)
    elif less_middle(bits, target):
        padded ^= 128
    units = group * bits // 8 // DOT_WIDTH
    # Panel, vector, column, group, unit, value.
    parts = padded.reshape(-1, PANEL // lanes, lanes, packed.shape[1] // units // 4, units, 4)
    ordered = parts.transpose(0, 3, 1, 4, 2, 5)
    if dot_of_codes(bits, target).in_halves:
        ordered = ordered.reshape(*ordered.shape[:5], 2, 2).swapaxes(4, 5)
    return np.ascontiguousarray(ordered).reshape(len(parts), -1)
