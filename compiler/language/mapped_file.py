"""Provide the bytes of large files as arrays that the system reads when they are looked at."""

import mmap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.errors import ModelFileError


def map_file(path: Path) -> NDArray[np.uint8]:
    """Return the bytes of a file without reading them.

    Raises:
        ModelFileError: it is missing, empty or unreadable.
    """
    try:
        with path.open("rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise ModelFileError(f"model file {path} does not exist") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelFileError(f"model file {path} cannot be read: {reason}") from None
    return np.frombuffer(mapped, np.uint8)
