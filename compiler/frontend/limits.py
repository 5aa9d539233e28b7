"""Describe what a model file may ask for.

A file of a hundred bytes can describe a tensor of a terabyte, or functions within functions that
unfold to a billion nodes. Everything that a file asks for is compared with a limit before it is
allocated.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from edgec.compiler.errors import LimitError, UsageError

# NumPy's arrays have at most 64 dimensions; no operator of ONNX needs half of this.
MAX_RANK = 16

# Functions that call functions, and subgraphs in subgraphs.
MAX_NESTING = 64


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits describe bounds of what is read and made while compiling one model.

    Attributes:
        file_bytes: the file of the model file and its external data together. Offsets in a library
            reach 2 GiB.
        value_bytes: the value of one value that is not stored in the file, such as an input, and of
            all constants together that folding makes, beyond `GROWTH` times the stored ones.
        nodes: after functions are inlined and loops unrolled.
    """

    file_bytes: int = 2**31
    value_bytes: int = 5 * 2**27
    nodes: int = 200_000

    def check_value(self, what: str, shape: Sequence[int], data_type: int) -> None:
        """Compare a tensor that is to be allocated with the limit.

        Args:
            what: it is called in the message.
            shape: its extents.
            data_type: the data type of `onnx.TensorProto`.

        Raises:
            LimitError: it is larger.
        """
        size = tensor_bytes(shape, data_type)
        if size > self.value_bytes:
            extents = ",".join(map(str, shape))
            raise LimitError(
                f"{what} [{extents}] takes {in_mb(size)}; at most {in_mb(self.value_bytes)} are "
                "allowed for one value (--limit value=SIZE)"
            )

    def check_nodes(self, count: int) -> None:
        """Compare a number of nodes with the limit.

        Raises:
            LimitError: there are more.
        """
        if count > self.nodes:
            raise LimitError(
                f"the graph unfolds to {count:.3g} nodes; at most {self.nodes} are allowed "
                "(--limit nodes=N)"
            )


DEFAULT_LIMITS = Limits()


def tensor_bytes(shape: Sequence[int], data_type: int) -> int:
    """Return the size of a tensor [bytes].

    >>> tensor_bytes((2, 3), onnx.TensorProto.FLOAT), tensor_bytes((3,), onnx.TensorProto.INT4)
    (24, 2)
    """
    return -(-math.prod(shape) * element_bits(data_type) // 8)


def element_bits(data_type: int) -> int:
    """Return the bits of one element in a file: two or four for those that are packed."""
    bits = _PACKED_BITS.get(data_type)
    return bits or int(onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize) * 8


_PACKED_BITS = {
    getattr(onnx.TensorProto, name): bits
    for name, bits in (("INT2", 2), ("UINT2", 2), ("INT4", 4), ("UINT4", 4), ("FLOAT4E2M1", 4))
    if hasattr(onnx.TensorProto, name)
}


def in_mb(size: int) -> str:
    """Write a size for people.

    >>> in_mb(2**28), in_mb(2**60)
    ('268 MB', '1.15e+12 MB')
    """
    return f"{size / 1e6:.0f} MB" if size < 10**12 else f"{size / 1e6:.3g} MB"


def parse_limits(texts: Sequence[str]) -> Limits:
    """Read `value=1G`, `file=4G` and `nodes=500000`.

    Raises:
        UsageError: one is not of that form.

    >>> parse_limits(["value=1G", "nodes=500000"])
    Limits(file_bytes=2147483648, value_bytes=1073741824, nodes=500000)
    """
    given: dict[str, int] = {}
    for text in texts:
        match = re.fullmatch(r"(value|file|nodes)=(\d{1,12})([kMGT]?)", text)
        if not match:
            raise UsageError(f"{text!r} is no limit; write value=1G, file=4G or nodes=500000")
        name, digits, unit = match.groups()
        field_name = name if name == "nodes" else f"{name}_bytes"
        given[field_name] = int(digits) * 1024 ** " kMGT".index(unit or " ")
    return Limits(**given)
