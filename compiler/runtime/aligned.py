"""Provide arrays in memory that a library uses in place."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

ALIGNMENT_BYTES = 64


def aligned(shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """Return an array whose first byte is aligned."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + ALIGNMENT_BYTES, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT_BYTES
    return memory[start : start + size].view(np.dtype(dtype)).reshape(shape)


def aligned_copy(array: NDArray[Any]) -> NDArray[Any]:
    """Return a copy whose first byte is aligned."""
    copy = aligned(array.shape, str(array.dtype))
    copy[...] = array
    return copy
