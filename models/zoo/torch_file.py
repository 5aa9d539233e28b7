"""Provide tensors of a PyTorch weight file, read without PyTorch and without running what it names.

The format is that of PyTorch before 1.6: one pickle after another (magic number, protocol
version, the writer's integer sizes, the state dictionary, the storages' keys), then the storages
in the order of the keys, each as its int64 number of elements and its elements. The dictionary
holds calls of `torch._utils._rebuild_tensor_v2`, whose arguments say which part of which storage
a tensor is.
"""

import io
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgec.compiler.errors import BadInputError

# Magic number and protocol version.
_START = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + pickle.dumps(1001, protocol=2)
_STORAGES = {"FloatStorage": "<f4", "HalfStorage": "<f2", "LongStorage": "<i8"}


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: str


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def values(self, storages: Mapping[str, bytes]) -> np.ndarray:
        """Return the tensor, after NumPy's check that it lies inside its storage."""
        dtype = np.dtype(self.storage.dtype)
        try:
            return np.ndarray(
                self.shape,
                dtype,
                storages[self.storage.key],
                self.offset * dtype.itemsize,
                tuple(stride * dtype.itemsize for stride in self.strides),
            )
        except (TypeError, ValueError):
            raise BadInputError(
                f"a tensor of shape {self.shape} reaches beyond its storage; "
                f"the weight file is incomplete"
            ) from None


def _describe_tensor(
    storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: object
) -> _Tensor:
    return _Tensor(storage, offset, shape, strides)


class _Reader(pickle.Unpickler):
    """Knows ordered dictionaries, tensors and storages, and no other name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _describe_tensor
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise BadInputError(
            f"the weight file names {module}.{name}; only tensors of "
            f"{', '.join(_STORAGES)} are read"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, key, *_ = pid
        return _Storage(key, dtype)


def read_torch(data: bytes) -> dict[str, np.ndarray]:
    """Return tensor by name of a state dictionary; the arrays are read-only.

    Raises:
        BadInputError: this is no such file, or it names other things than tensors.
    """
    if not data.startswith(_START):
        raise BadInputError("the weight file is none that PyTorch before 1.6 wrote")
    stream = io.BytesIO(data)
    stream.seek(len(_START))

    def load() -> Any:
        return _Reader(stream).load()

    if not load()["little_endian"]:
        raise BadInputError("the weight file was written on a big-endian machine")
    state: OrderedDict[str, _Tensor] = load()
    keys: list[str] = load()
    item_size = {
        tensor.storage.key: np.dtype(tensor.storage.dtype).itemsize for tensor in state.values()
    }
    storages = {}
    for key in keys:
        elements = int.from_bytes(stream.read(8), "little")
        storages[key] = stream.read(elements * item_size[key])
    return {name: tensor.values(storages) for name, tensor in state.items()}
