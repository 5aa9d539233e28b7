"""Provide tensors of a safetensors file.

The format (https://huggingface.co/docs/safetensors): the header's length as a little-endian
uint64, the header in JSON, then the tensors, each at the offsets that the header gives.
"""

import json
import math

import numpy as np

from edgec.compiler.errors import BadInputError

_DTYPES = {"F32": "<f4", "F16": "<f2", "I64": "<i8"}


def read_safetensors(data: bytes) -> dict[str, np.ndarray]:
    """Return tensor by name; the arrays are read-only views of `data`.

    Raises:
        BadInputError: a tensor has a data type that no recipe needs.
    """
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _DTYPES:
            raise BadInputError(
                f"tensor {name} has data type {entry['dtype']}; read are {', '.join(_DTYPES)}"
            )
        tensors[name] = np.frombuffer(
            data,
            _DTYPES[entry["dtype"]],
            count=math.prod(entry["shape"]),
            offset=start + entry["data_offsets"][0],
        ).reshape(entry["shape"])
    return tensors
