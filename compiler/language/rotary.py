"""Compute the angles of rotary embeddings, with the ways of stretching them to longer contexts.

Su et al., 2021, arXiv:2104.09864, equation 15: dimension pair i of n turns by
`position * base ** (-2 i / n)`.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Frequencies = NDArray[np.float64]


@dataclass(frozen=True)
class Rotary:
    """A rotary embedding describes by how much each pair of dimensions turns with the position.

    Attributes:
        frequencies: [pairs], radians per position.
        factor: of cosines and sines.
    """

    frequencies: Frequencies
    factor: float = 1.0

    def tables(self, rows: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return cosines and sines of positions 0, 1, ..., [rows, pairs] each."""
        # As everywhere in float32: the product of position and frequency, too.
        positions = np.arange(rows, dtype=np.float32)
        angles = np.outer(positions, self.frequencies.astype(np.float32)).astype(np.float32)
        factor = np.float32(self.factor)
        return np.cos(angles) * factor, np.sin(angles) * factor


def plain(base: float, size: int) -> Rotary:
    """Return the rotation of `size` dimensions."""
    return Rotary(base ** (-np.arange(0, size, 2) / size))


def linear(rotary: Rotary, factor: float) -> Rotary:
    """Return angles as if positions were nearer together (Chen et al., 2023, arXiv:2306.15595)."""
    return Rotary(rotary.frequencies / factor, rotary.factor)


def llama3(rotary: Rotary, factor: float, low: float, high: float, original: int) -> Rotary:
    """Return Llama 3.1's: long waves are stretched, short ones are not, and a blend between.

    Args:
        rotary: unstretched.
        factor: of the stretched ones.
        low: waves that turn less often than this in the original context are stretched.
        high: those that turn more often are not.
        original: length of context that the model was trained with first.
    """
    turns = original * rotary.frequencies / (2 * math.pi)
    blend = np.clip((turns - low) / (high - low), 0, 1)
    return Rotary(rotary.frequencies * (blend + (1 - blend) / factor), rotary.factor)


def divided(rotary: Rotary, factors: NDArray[np.float32], attention: float = 1.0) -> Rotary:
    """Return frequencies divided by a factor of each pair, as LongRoPE has them.

    Ding et al., 2024, arXiv:2402.13753.
    """
    return Rotary(rotary.frequencies / factors.astype(np.float64), attention)


def longrope_attention(factor: float, original: int) -> float:
    """Return LongRoPE's factor of cosines and sines for a context that grew by a factor.

    >>> longrope_attention(32, 4096)
    1.1902380714238083
    """
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def yarn(
    rotary: Rotary,
    base: float,
    factor: float,
    original: int,
    fast: float = 32.0,
    slow: float = 1.0,
    attention: float | None = None,
) -> Rotary:
    """Return YaRN's angles (Peng et al., 2023, arXiv:2309.00071, section 3).

    Args:
        rotary: unstretched.
        base: of the rotation.
        factor: by which the context grew.
        original: length before.
        fast: turns in the original context from which on nothing is stretched.
        slow: turns up to which everything is.
        attention: factor of cosines and sines; by default 0.1 log(factor) + 1.
    """
    size = 2 * len(rotary.frequencies)

    def pair(turns: float) -> float:
        return size * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    begin, end = max(math.floor(pair(fast)), 0), min(math.ceil(pair(slow)), size - 1)
    ramp = np.clip((np.arange(size // 2) - begin) / max(end - begin, 0.001), 0, 1)
    stretched = rotary.frequencies / factor
    frequencies = stretched * ramp + rotary.frequencies * (1 - ramp)
    return Rotary(frequencies, yarn_attention(factor) if attention is None else attention)


def yarn_attention(factor: float) -> float:
    """Return YaRN's factor of cosines and sines (equation 22).

    >>> yarn_attention(1.0)
    1.0
    """
    return 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
