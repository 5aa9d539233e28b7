"""Provide element types that models store values in, and that nothing computes in.

Floats of 8 bits and fewer and integers of 2 and 4 bits are bit patterns. Everywhere in edgec a
tensor of such a type is an array of its bit patterns, one to a byte, as `ml_dtypes` has it in
memory. Outside a compiled model (inputs, outputs, test vectors, constants of the ONNX file) that
array has the dtype of ml_dtypes; inside (Relax, kernels, the C interface) the same bytes are uint8.
Nothing is converted at the boundary.

Operators that only move elements work on the bit patterns. Everything else decodes them first, by a
table of 256 entries, and encodes its result, by integer arithmetic
(`importer/converters/types.py`); what would compute with the bit patterns themselves is refused
(`importer/walk.py`).

bfloat16 and float16 are no such types: code is generated for them as for float32.
"""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class FloatFormat:
    """A float format describes a small float: sign, exponent and mantissa, as bit patterns.

    Attributes:
        mantissa_bits: width of the mantissa.
        bias: the bias of the exponent.
        largest: code of the largest finite value.
        sign: bit of the sign.
        overflow: code for what is too large, without its sign, if it is not saturated.
        nan: code for positive NaN; a negative one has the other sign.
        unsigned: zero, NaN and overflow have no sign (the `fnuz` formats).
    """

    mantissa_bits: int
    bias: int
    largest: int
    sign: int
    overflow: int
    nan: int
    unsigned: bool = False


FLOATS = {
    "float8_e4m3fn": FloatFormat(3, 7, 0x7E, 0x80, overflow=0x7F, nan=0x7F),
    "float8_e4m3fnuz": FloatFormat(3, 8, 0x7F, 0x80, overflow=0x80, nan=0x80, unsigned=True),
    "float8_e5m2": FloatFormat(2, 15, 0x7B, 0x80, overflow=0x7C, nan=0x7E),
    "float8_e5m2fnuz": FloatFormat(2, 16, 0x7F, 0x80, overflow=0x80, nan=0x80, unsigned=True),
    # These have neither infinity nor NaN: what is too large becomes the largest, NaN becomes
    # zero of the other sign.
    "float4_e2m1fn": FloatFormat(1, 1, 0x07, 0x08, overflow=0x07, nan=0x08),
    "float6_e2m3fn": FloatFormat(3, 1, 0x1F, 0x20, overflow=0x1F, nan=0x20),
    "float6_e3m2fn": FloatFormat(2, 3, 0x1F, 0x20, overflow=0x1F, nan=0x20),
}
"""Formats with a sign and a mantissa, by the name of their ml_dtypes type."""

E8M0 = "float8_e8m0fnu"
"""Powers of two: the code is the exponent with a bias of 127, 255 is NaN."""

INTEGER_BITS = {"int2": 2, "int4": 4, "uint2": 2, "uint4": 4}
"""Bits of a code, which is the value modulo a power of two."""

STORAGE = frozenset({*FLOATS, E8M0, *INTEGER_BITS})
"""Types of this module, by the name of their ml_dtypes type."""


def held_as(dtype: str) -> str:
    """Return dtype that holds a tensor inside a compiled model.

    >>> held_as("float8_e5m2"), held_as("float32")
    ('uint8', 'float32')
    """
    return "uint8" if dtype in STORAGE else dtype


def decode_table(dtype: str, result: str) -> NDArray[Any]:
    """Return the value of each byte as bits of a storage type, in another dtype.

    >>> decode_table("int4", "int8")[[7, 8, 15]].tolist()
    [7, -8, -1]
    """
    values = np.arange(256, dtype=np.uint8).view(np.dtype(dtype))
    with np.errstate(invalid="ignore", over="ignore"):
        # Directly from ml_dtypes: all of it is exact in float32.
        return values.astype(np.float32).astype(np.dtype(result))


def as_held(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array that stands for one inside a compiled model, of the same bytes."""
    held = held_as(str(array.dtype))
    return array if held == str(array.dtype) else array.view(np.dtype(held))


def as_exchanged(array: NDArray[Any]) -> NDArray[Any]:
    """Return the same bytes in a dtype of NumPy's own, the only ones that travel by DLPack.

    >>> as_exchanged(np.ones(1, ml_dtypes.bfloat16)).dtype
    dtype('uint16')
    """
    return array if is_numpy_dtype(array.dtype) else array.view(f"u{array.dtype.itemsize}")


def is_numpy_dtype(dtype: np.dtype[Any]) -> bool:
    """Return whether a dtype is NumPy's own, not one that ml_dtypes registered."""
    return dtype.isbuiltin == 1


def is_float(dtype: np.dtype[Any]) -> bool:
    """Return whether a dtype is a float, NumPy's or ml_dtypes'; those have kind V or f."""
    return str(dtype) not in INTEGER_BITS and dtype.kind in "fcV"


def integer_range(dtype: str) -> tuple[int, int]:
    """Return smallest and largest value of an integer type.

    >>> integer_range("int4")
    (-8, 7)
    """
    info = ml_dtypes.iinfo(dtype)
    return int(info.min), int(info.max)
