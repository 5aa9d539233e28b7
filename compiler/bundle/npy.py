"""Provide tensors as .npy files."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.errors import BundleError
from edgec.compiler.ir.storage import as_exchanged
from edgec.compiler.support.npy_files import NpyError, read_array


def save_npy(array: NDArray[Any]) -> bytes:
    """Return the array as an .npy file; ml_dtypes as the integers of the same bits."""
    stream = io.BytesIO()
    plain = np.ascontiguousarray(array).reshape(array.shape)
    np.save(stream, as_exchanged(plain), allow_pickle=False)
    return stream.getvalue()


def save_vector(array: NDArray[Any]) -> bytes:
    """Return the bytes that `save_npy` would write.

    Values of float32 that float16 holds exactly take half the bytes.
    """
    if array.dtype != np.float32:
        return save_npy(array)
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    exact = half.astype(np.float32).tobytes() == array.tobytes()
    return save_npy(half if exact else array)


def load_npy(data: bytes, dtype: str) -> NDArray[Any]:
    """Return inverse of `save_npy` and of `save_vector`.

    >>> load_npy(save_npy(np.float32([1, 2])), "float32").tolist()
    [1.0, 2.0]

    Raises:
        BundleError: it is no array of that dtype.
    """
    try:
        array = read_array(data)
    except NpyError as error:
        raise BundleError(f"a test vector {error}") from None
    if dtype == "float32" and array.dtype == np.float16:
        return array.astype(np.float32)
    if array.dtype.itemsize != np.dtype(dtype).itemsize:
        raise BundleError(f"a test vector holds {array.dtype}, {dtype} is expected")
    return array if str(array.dtype) == dtype else array.view(np.dtype(dtype))
