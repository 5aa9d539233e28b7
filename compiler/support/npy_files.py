"""Provide NumPy files, read with a bound and never unpickled.

What a header claims is compared with the file before memory is taken for it.
"""

import io
import math
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

# Of all arrays of an archive together; beyond that it is a mistake, or a bomb.
MAX_BYTES = 1 << 36
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class NpyError(Exception):
    """A file holds no arrays of numbers; the text says why, without the file's name."""


def read_arrays(path: Path) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """Read the array of an .npy file, or the arrays of an .npz archive by name.

    Raises:
        NpyError: it is missing, no regular file, cut short, or holds something else.
    """
    try:
        if path.is_dir():
            raise NpyError("cannot be read: Is a directory")
        if path.exists() and not path.is_file():
            raise NpyError("cannot be read: it is no regular file")
        with path.open("rb") as stream:
            if stream.read(4) in (b"PK\x03\x04", b"PK\x05\x06"):
                return _read_archive(stream)
            stream.seek(0)
            return _read_array(stream, path.stat().st_size)
    except OSError as error:
        raise NpyError(f"cannot be read: {error.strerror or error}") from None
    except MemoryError:
        raise NpyError("cannot be read: there is not enough memory for it") from None


def read_array(data: bytes) -> NDArray[Any]:
    """Read the array that the bytes of an .npy file hold.

    Raises:
        NpyError: they hold something else.
    """
    return _read_array(io.BytesIO(data), len(data))


def _read_archive(stream: IO[bytes]) -> dict[str, NDArray[Any]]:
    arrays = {}
    try:
        with zipfile.ZipFile(stream) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > MAX_BYTES:
                raise NpyError(f"is no NumPy file: it unpacks to more than {MAX_BYTES} bytes")
            for member in members:
                name = member.filename.removesuffix(".npy")
                try:
                    with archive.open(member) as file:
                        arrays[name] = _read_array(file, member.file_size)
                except NpyError as error:
                    raise NpyError(f"{error} (array {name!r})") from None
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise NpyError(f"is no NumPy file: {error}") from None
    if not arrays:
        raise NpyError("is an archive without arrays")
    return arrays


def _read_array(stream: IO[bytes], size: int) -> NDArray[Any]:
    """Read one array.

    Args:
        stream: at its beginning.
        size: the size of the whole file [bytes].
    """
    try:
        version = np.lib.format.read_magic(stream)
        if version not in _HEADERS:
            raise NpyError(f"is no NumPy file that can be read: format {version}")
        shape, fortran, dtype = _HEADERS[version](stream)
    except (
        ValueError,
        EOFError,
        SyntaxError,
        TypeError,
        RecursionError,
        # Before a SyntaxError, where NumPy looks for numbers of Python 2.
        tokenize.TokenError,
    ) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise NpyError(f"is no NumPy file: {line}") from None
    if dtype.hasobject:
        raise NpyError("holds Python objects, not numbers")
    if dtype.names is not None or dtype.kind not in "biufcVSU":
        raise NpyError(f"holds {dtype}, not numbers")
    wanted = math.prod(shape) * dtype.itemsize
    found = size - stream.tell()
    if min(shape, default=0) < 0 or wanted > found:
        raise NpyError(
            f"is no NumPy file: its header says {dtype} {list(shape)}, {wanted} bytes, and only "
            f"{found} are there"
        )
    data = stream.read(wanted)
    if len(data) < wanted:
        raise NpyError("is no NumPy file: it is cut short")
    return np.ndarray(shape, dtype, bytearray(data), order="F" if fortran else "C")


def npz_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return arrays by name as an .npz archive; any name will do.

    `numpy.savez` takes names as its own arguments: `file` and `allow_pickle` are none there.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile(suffix=".npz") as file:
    ...     _ = file.write(npz_bytes({"file": np.zeros(2)}))
    ...     file.flush()
    ...     list(read_arrays(Path(file.name)))
    ['file']
    """
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)
    return stream.getvalue()
