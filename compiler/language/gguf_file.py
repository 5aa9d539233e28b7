"""Read GGUF files: metadata, and tensors as views of the mapped file.

The format (docs/gguf.md of ggml): the magic, version, numbers of tensors and of metadata entries;
the entries, each a key, a type and a value; the tensors' names, extents, types and offsets; then
their data, aligned. Every count, length and offset is compared with the bytes that are there
before anything is made of it.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.errors import ModelFileError, UnsupportedModelError
from edgec.compiler.language.gguf_types import OTHER_NAMES, TYPES, TensorType, decode
from edgec.compiler.language.grouped_weight import Matrix
from edgec.compiler.language.mapped_file import map_file

MAGIC = b"GGUF"
VERSIONS = (2, 3)

_STRING, _ARRAY = 8, 9
_NUMBERS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_MAX_DEPTH = 4
_MAX_DIMENSIONS = 4
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of a GGUF file describes where its data is.

    Attributes:
        name: as in the file.
        shape: extents, outermost first.
        type: how rows are stored.
        data: a read-only view of the file, uint8.
    """

    name: str
    shape: tuple[int, ...]
    type: TensorType
    data: NDArray[np.uint8]

    def matrix(self) -> Matrix:
        """Decode it as [outputs, inputs]; a vector is one row."""
        outputs = math.prod(self.shape[:-1])
        return decode(self.type, self.data.reshape(outputs, -1))


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file describes what is in one.

    Attributes:
        path: where it is.
        version: 2 or 3.
        metadata: numbers, text, truth values, lists of them, and NumPy arrays of numbers, by key.
        tensors: by name.
    """

    path: Path
    version: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def is_gguf(path: Path) -> bool:
    """Return whether a file begins as GGUF files do, or is called so."""
    try:
        with path.open("rb") as stream:
            return stream.read(4) == MAGIC or path.suffix == ".gguf"
    except OSError:
        return path.suffix == ".gguf"


def read_gguf(path: Path) -> GgufFile:
    """Read a file's metadata and find its tensors; their data stays in the file.

    Raises:
        ModelFileError: missing, unreadable, no GGUF, cut short, or contradicting itself.
        UnsupportedModelError: another version, or tensor types that are not known.
    """
    cursor = _Cursor(path, map_file(path))
    if bytes(cursor.take(4, "the magic")) != MAGIC:
        raise ModelFileError(f"{path} is no GGUF file: it does not begin with {MAGIC.decode()}")
    version = cursor.number("<I", "the version")
    if version not in VERSIONS:
        raise UnsupportedModelError(
            f"{path} is GGUF of version {version}; read are versions 2 and 3, little-endian"
        )
    tensors = cursor.number("<Q", "the number of tensors")
    entries = cursor.number("<Q", "the number of metadata entries")
    # A key has its length, a type and a value; a tensor four numbers at least.
    cursor.check_count(entries, 13, "metadata entries")
    cursor.check_count(tensors, 24, "tensors")
    metadata = {}
    for _ in range(entries):
        key = cursor.text("a metadata key")
        kind = cursor.number("<I", f"the type of {key}")
        metadata[key] = cursor.value(kind, key)
    infos = [_TensorInfo.read(cursor) for _ in range(tensors)]
    _refuse_unknown_types(path, infos)
    return GgufFile(path, version, metadata, _place(cursor, infos, metadata))


class _Cursor:
    def __init__(self, path: Path, data: NDArray[np.uint8]) -> None:
        self.path = path
        self.data = data
        self.view = data.data
        self.position = 0

    def wrong(self, what: str) -> ModelFileError:
        return ModelFileError(f"{self.path} is no GGUF file, or is cut short: {what}")

    def take(self, count: int, what: str) -> memoryview:
        """Return the next bytes, and step behind them."""
        left = len(self.view) - self.position
        if count > left:
            raise self.wrong(f"{what} takes {count} bytes, {left} are left")
        self.position += count
        return self.view[self.position - count : self.position]

    def number(self, form: str, what: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form), what))[0]

    def check_count(self, count: int, size: int, what: str) -> None:
        left = len(self.view) - self.position
        if count * size > left:
            raise self.wrong(f"it claims {count} {what}, {left} bytes are left")

    def text(self, what: str) -> str:
        length = self.number("<Q", f"the length of {what}")
        data = bytes(self.take(length, what))
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise self.wrong(f"{what} is not UTF-8") from None

    def value(self, kind: int, key: str, depth: int = 0) -> Any:
        """Return the value of a type: a number, text, a list, or an array of numbers."""
        if kind in _NUMBERS:
            dtype = np.dtype(_NUMBERS[kind])
            return np.frombuffer(self.take(dtype.itemsize, key), dtype)[0].item()
        if kind == _STRING:
            return self.text(key)
        if kind != _ARRAY or depth == _MAX_DEPTH:
            raise self.wrong(f"{key} has the unknown type {kind}")
        inner = self.number("<I", f"the type of {key}")
        count = self.number("<Q", f"the length of {key}")
        if inner in _NUMBERS:
            dtype = np.dtype(_NUMBERS[inner])
            return np.frombuffer(self.take(count * dtype.itemsize, key), dtype)
        self.check_count(count, 8, f"elements of {key}")
        return [self.value(inner, key, depth + 1) for _ in range(count)]


@dataclass(frozen=True)
class _TensorInfo:
    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int

    @classmethod
    def read(cls, cursor: _Cursor) -> "_TensorInfo":
        name = cursor.text("the name of a tensor")
        rank = cursor.number("<I", f"the rank of {name}")
        if not 1 <= rank <= _MAX_DIMENSIONS:
            raise cursor.wrong(f"tensor {name} has {rank} dimensions")
        extents = struct.unpack(f"<{rank}Q", cursor.take(8 * rank, f"the shape of {name}"))
        kind = cursor.number("<I", f"the type of {name}")
        offset = cursor.number("<Q", f"the offset of {name}")
        return cls(name, tuple(reversed(extents)), kind, offset)


def _refuse_unknown_types(path: Path, infos: list[_TensorInfo]) -> None:
    unknown: dict[str, int] = {}
    for info in infos:
        if info.kind not in TYPES:
            name = OTHER_NAMES.get(info.kind, f"number {info.kind}")
            unknown[name] = unknown.get(name, 0) + 1
    if unknown:
        found = ", ".join(f"{name} ({count} tensors)" for name, count in unknown.items())
        known = ", ".join(kind.name for kind in TYPES.values())
        raise UnsupportedModelError(f"{path} has tensors of types {found}; read are {known}")


def _place(
    cursor: _Cursor, infos: list[_TensorInfo], metadata: Mapping[str, Any]
) -> dict[str, GgufTensor]:
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & alignment - 1:
        raise cursor.wrong(f"general.alignment is {alignment}, no power of two")
    begin = -(-cursor.position // alignment) * alignment
    tensors = {}
    for info in infos:
        kind, inputs = TYPES[info.kind], info.shape[-1]
        if inputs % kind.values or 0 in info.shape:
            raise cursor.wrong(
                f"tensor {info.name} {list(info.shape)} is not made of blocks of {kind.values} "
                f"values of {kind.name}"
            )
        size = math.prod(info.shape) // kind.values * kind.size
        start = begin + info.offset
        if start + size > len(cursor.data):
            raise cursor.wrong(
                f"tensor {info.name} ends at byte {start + size} of {len(cursor.data)}"
            )
        if info.offset % alignment:
            raise cursor.wrong(f"tensor {info.name} is not aligned to {alignment} bytes")
        if info.name in tensors:
            raise cursor.wrong(f"two tensors are called {info.name}")
        data = cursor.data[start : start + size]
        tensors[info.name] = GgufTensor(info.name, info.shape, kind, data)
    return tensors
