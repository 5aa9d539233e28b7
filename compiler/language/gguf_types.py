"""Decode the tensor types of GGUF files into codes, scales and minima.

The layouts are those of `ggml-common.h` of llama.cpp: a row is a sequence of blocks of 32 or 256
values; scales are float16, and in the K types multiplied by integers of 4 or 6 bits for groups of
16 or 32. Codes of five and six bits are kept in bytes, those of two and three in four bits. The
codes of the IQ4 types are indices into a table of 16 int8 values: kept are the values.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.language.grouped_weight import GroupedWeight, Matrix

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

# Rows are decoded in parts of about so many values, which bounds what is made on the way.
_VALUES_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class TensorType:
    """A tensor type describes how a row of values is stored.

    Attributes:
        name: as in llama.cpp.
        values: in a block.
        size: of a block [bytes].
    """

    name: str
    values: int
    size: int


# By the number that stands in files. What has no size is known by name alone.
TYPES = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    10: TensorType("Q2_K", 256, 84),
    11: TensorType("Q3_K", 256, 110),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    15: TensorType("Q8_K", 256, 292),
    20: TensorType("IQ4_NL", 32, 18),
    23: TensorType("IQ4_XS", 256, 136),
    30: TensorType("BF16", 1, 2),
}
OTHER_NAMES = {
    4: "Q4_2",
    5: "Q4_3",
    9: "Q8_1",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    21: "IQ3_S",
    22: "IQ2_S",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
}


@dataclass
class _Decoded:
    """What a block type is decoded to: codes [blocks, values], and [blocks, groups] of each."""

    codes: Bytes
    scales: Floats
    minima: Floats | None = None


def decode(kind: TensorType, rows: Bytes) -> Matrix:
    """Return the matrix that rows [outputs, bytes] hold.

    Float types become float32; BF16 and F16 are exact in it.
    """
    if kind.name == "F32":
        return rows.view("<f4")
    if kind.name == "F16":
        return rows.view("<f2").astype(np.float32)
    if kind.name == "BF16":
        return (rows.view("<u2").astype(np.uint32) << 16).view(np.float32)
    count, width = rows.shape
    blocks = width // kind.size
    decoder, bits, group, has_minima = _DECODERS[kind.name]
    groups = blocks * kind.values // group
    codes = np.empty((count, blocks * kind.values), np.uint8)
    scales = np.empty((count, groups), np.float32)
    minima = np.empty((count, groups), np.float32) if has_minima else None
    step = max(1, _VALUES_AT_ONCE // max(1, codes.shape[1]))
    for start in range(0, count, step):
        part = slice(start, min(start + step, count))
        # Files may hold any bytes: float16 infinities times zero are no concern of ours.
        with np.errstate(all="ignore"):
            found = decoder(np.ascontiguousarray(rows[part]).reshape(-1, kind.size))
        codes[part] = found.codes.reshape(-1, codes.shape[1])
        scales[part] = found.scales.reshape(-1, groups)
        if minima is not None and found.minima is not None:
            minima[part] = found.minima.reshape(-1, groups)
    return GroupedWeight(codes=codes, bits=bits, group=group, scales=scales, minima=minima)


def _halves(blocks: Bytes) -> Floats:
    """Return float16 numbers [blocks, 1] of two bytes each."""
    return np.ascontiguousarray(blocks).view("<f2").astype(np.float32)


def _nibbles(data: Bytes, run: int) -> Bytes:
    """Return the low halves of `run` bytes, their high halves, those of the next, and so on."""
    parts = data.reshape(len(data), -1, 1, run) >> np.array([[0], [4]], np.uint8)
    return (parts & np.uint8(15)).reshape(len(data), -1)


def _pairs_of_bits(data: Bytes, run: int) -> Bytes:
    """Return bits 0 and 1 of `run` bytes, then their bits 2 and 3, and so on."""
    parts = data.reshape(len(data), -1, 1, run) >> np.array([[0], [2], [4], [6]], np.uint8)
    return (parts & np.uint8(3)).reshape(len(data), -1)


def _single_bits(data: Bytes, run: int) -> Bytes:
    """Return bit 0 of `run` bytes, then their bit 1, and so on."""
    shifts = np.arange(8, dtype=np.uint8)[:, np.newaxis]
    return (data.reshape(len(data), -1, 1, run) >> shifts & np.uint8(1)).reshape(len(data), -1)


def _q4_0(blocks: Bytes) -> _Decoded:
    return _Decoded(_nibbles(blocks[:, 2:], 16), _halves(blocks[:, :2]))


def _q4_1(blocks: Bytes) -> _Decoded:
    return _Decoded(_nibbles(blocks[:, 4:], 16), _halves(blocks[:, :2]), _halves(blocks[:, 2:4]))


def _fifth_bits(data: Bytes) -> Bytes:
    """Return the 32 bits of four bytes, times 16."""
    return np.unpackbits(data, axis=1, bitorder="little") << np.uint8(4)


def _q5_0(blocks: Bytes) -> _Decoded:
    codes = _nibbles(blocks[:, 6:], 16) | _fifth_bits(blocks[:, 2:6])
    return _Decoded(codes + np.uint8(128 - 16), _halves(blocks[:, :2]))


def _q5_1(blocks: Bytes) -> _Decoded:
    codes = _nibbles(blocks[:, 8:], 16) | _fifth_bits(blocks[:, 4:8])
    return _Decoded(codes, _halves(blocks[:, :2]), _halves(blocks[:, 2:4]))


def _q8_0(blocks: Bytes) -> _Decoded:
    return _Decoded(blocks[:, 2:] ^ np.uint8(128), _halves(blocks[:, :2]))


def _q2_k(blocks: Bytes) -> _Decoded:
    parts = blocks[:, :16]
    scale, minimum = _halves(blocks[:, 80:82]), _halves(blocks[:, 82:84])
    return _Decoded(
        _pairs_of_bits(blocks[:, 16:80], 32),
        scale * (parts & np.uint8(15)).astype(np.float32),
        -(minimum * (parts >> 4).astype(np.float32)),
    )


def _q3_k(blocks: Bytes) -> _Decoded:
    low = _nibbles(blocks[:, 96:104], 8)
    high = _pairs_of_bits(blocks[:, 104:108], 4)
    factors = (low | high << np.uint8(4)).astype(np.float32) - np.float32(32)
    third = _single_bits(blocks[:, :32], 32) << np.uint8(2)
    # The value is that of the three bits, less four; the middle of four bits is eight.
    codes = (_pairs_of_bits(blocks[:, 32:96], 32) | third) + np.uint8(4)
    return _Decoded(codes, _halves(blocks[:, 108:110]) * factors)


def _six_bits(data: Bytes) -> tuple[Floats, Floats]:
    """Return eight scales and eight minima of six bits each, of twelve bytes."""
    first, second, third = data[:, :4], data[:, 4:8], data[:, 8:]
    low, high = np.uint8(0x0F), np.uint8(0x30)
    scales = [first & np.uint8(63), third & low | first >> 2 & high]
    minima = [second & np.uint8(63), third >> 4 | second >> 2 & high]
    return (
        np.concatenate(scales, axis=1).astype(np.float32),
        np.concatenate(minima, axis=1).astype(np.float32),
    )


def _q4_k(blocks: Bytes) -> _Decoded:
    scales, minima = _six_bits(blocks[:, 4:16])
    return _Decoded(
        _nibbles(blocks[:, 16:], 32),
        _halves(blocks[:, :2]) * scales,
        -(_halves(blocks[:, 2:4]) * minima),
    )


def _q5_k(blocks: Bytes) -> _Decoded:
    scales, minima = _six_bits(blocks[:, 4:16])
    fifth = _single_bits(blocks[:, 16:48], 32) << np.uint8(4)
    return _Decoded(
        _nibbles(blocks[:, 48:], 32) | fifth,
        _halves(blocks[:, :2]) * scales,
        -(_halves(blocks[:, 2:4]) * minima),
    )


def _q6_k(blocks: Bytes) -> _Decoded:
    codes = _nibbles(blocks[:, :128], 64)
    codes |= _pairs_of_bits(blocks[:, 128:192], 32) << np.uint8(4)
    factors = blocks[:, 192:208].view(np.int8).astype(np.float32)
    return _Decoded(codes + np.uint8(128 - 32), _halves(blocks[:, 208:210]) * factors)


def _q8_k(blocks: Bytes) -> _Decoded:
    scale = np.ascontiguousarray(blocks[:, :4]).view("<f4")
    return _Decoded(blocks[:, 4:260] ^ np.uint8(128), np.repeat(scale, 2, axis=1))


# Of `kvalues_iq4nl`, plus 128.
_NONLINEAR = np.array(
    [1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241], np.uint8
)


def _iq4_nl(blocks: Bytes) -> _Decoded:
    return _Decoded(_NONLINEAR[_nibbles(blocks[:, 2:], 16)], _halves(blocks[:, :2]))


def _iq4_xs(blocks: Bytes) -> _Decoded:
    high = np.ascontiguousarray(blocks[:, 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16)
    low = _nibbles(blocks[:, 4:8], 1)
    factors = (low | (high & 3).astype(np.uint8) << np.uint8(4)).astype(np.float32)
    return _Decoded(
        _NONLINEAR[_nibbles(blocks[:, 8:], 16)],
        _halves(blocks[:, :2]) * (factors - np.float32(32)),
    )


# Decoder, bits that the codes are kept in, group, and whether there are minima.
_DECODERS: dict[str, tuple[Callable[[Bytes], _Decoded], int, int, bool]] = {
    "Q4_0": (_q4_0, 4, 32, False),
    "Q4_1": (_q4_1, 4, 32, True),
    "Q5_0": (_q5_0, 8, 32, False),
    "Q5_1": (_q5_1, 8, 32, True),
    "Q8_0": (_q8_0, 8, 32, False),
    "Q2_K": (_q2_k, 4, 16, True),
    "Q3_K": (_q3_k, 4, 16, False),
    "Q4_K": (_q4_k, 4, 32, True),
    "Q5_K": (_q5_k, 8, 32, True),
    "Q6_K": (_q6_k, 8, 16, False),
    "Q8_K": (_q8_k, 8, 128, False),
    "IQ4_NL": (_iq4_nl, 8, 32, False),
    "IQ4_XS": (_iq4_xs, 8, 32, False),
}
