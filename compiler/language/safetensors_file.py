"""Read safetensors files as views of the mapped file.

The format (https://huggingface.co/docs/safetensors): the header's length as a little-endian
uint64, the header in JSON, then the tensors, each at the offsets that the header gives.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.errors import ModelFileError, UnsupportedModelError
from edgec.compiler.language.mapped_file import map_file

_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "<i1",
    "U8": "<u1",
    "BOOL": "?",
}
_FLOATS = ("F64", "F32", "F16", "BF16")
_MAX_HEADER = 100_000_000


@dataclass(frozen=True)
class SafeTensor:
    """A safe tensor describes where the data of one tensor is.

    Attributes:
        dtype: as the format calls it.
        shape: extents.
        data: a read-only view of the file; BF16 as uint16.
    """

    dtype: str
    shape: tuple[int, ...]
    data: NDArray[Any]

    @property
    def is_float(self) -> bool:
        """Return whether it holds floating-point numbers."""
        return self.dtype in _FLOATS

    def floats(self) -> NDArray[np.float32]:
        """Return the values as float32, which is exact but for F64; F32 is a view."""
        if self.dtype == "BF16":
            return (self.data.astype(np.uint32) << 16).view(np.float32)
        return self.data.astype(np.float32, copy=False)


def read_safetensors(path: Path) -> dict[str, SafeTensor]:
    """Return tensor by name.

    Raises:
        ModelFileError: the file is missing, cut short, or contradicts itself.
        UnsupportedModelError: a tensor has a data type that is not known.
    """
    return parse_safetensors(map_file(path), path)


def parse_safetensors(data: NDArray[np.uint8], path: object) -> dict[str, SafeTensor]:
    """Return tensor by name of a file's bytes; `path` is named in errors."""

    def wrong(what: str) -> ModelFileError:
        return ModelFileError(f"{path} is no safetensors file, or is cut short: {what}")

    if len(data) < 8:
        raise wrong(f"it has {len(data)} bytes")
    length = int(data[:8].view("<u8")[0])
    if length > min(len(data) - 8, _MAX_HEADER):
        raise wrong(f"its header claims {length} of {len(data)} bytes")
    try:
        header = json.loads(bytes(data[8 : 8 + length]))
    except (ValueError, RecursionError):
        raise wrong("its header is no JSON") from None
    if not isinstance(header, dict):
        raise wrong("its header is no object")
    content = data[8 + length :]
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            tensors[name] = _tensor(name, entry, content, path, wrong)
    return tensors


def _tensor(
    name: str, entry: object, content: NDArray[np.uint8], path: object, wrong: Any
) -> SafeTensor:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)]}:
            pass
        case _:
            raise wrong(f"tensor {name} has no type, shape and offsets")
    if dtype not in _DTYPES:
        raise UnsupportedModelError(
            f"{path}: tensor {name} has the data type {dtype}; read are {', '.join(_DTYPES)}"
        )
    if not all(type(extent) is int and extent >= 0 for extent in shape):
        raise wrong(f"tensor {name} has the shape {shape}")
    size = math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize
    if not 0 <= start <= end <= len(content) or end - start != size:
        raise wrong(f"tensor {name} {shape} of {dtype} lies at bytes {start} to {end}")
    array = content[start:end].view(_DTYPES[dtype]).reshape(shape)
    return SafeTensor(dtype, tuple(shape), array)


Tensors = Mapping[str, SafeTensor]
