"""Describe what a model takes and gives.

Names, shapes and dtypes, without any framework's types.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from numpy.typing import NDArray


@dataclass(frozen=True)
class TensorSpec:
    """A tensor spec describes one input or output.

    Attributes:
        name: the name in the ONNX file.
        shape: extent of each dimension; None where only running the model can tell
            (an output of NonZero, for example).
        dtype: NumPy name, or an `ml_dtypes` name such as `bfloat16`.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str

    def __str__(self) -> str:
        """Write it as people do.

        >>> str(TensorSpec("x", (1, None), "float32"))
        'x [1,?] float32'
        """
        extents = ",".join("?" if extent is None else str(extent) for extent in self.shape)
        return f"{self.name} [{extents}] {self.dtype}"


@dataclass(frozen=True)
class Signature:
    """A signature describes inputs and outputs in the order of the graph."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class State:
    """A state is an input whose next value is an output: a recurrent state, or a cache.

    Attributes:
        input: the name of the input.
        output: the name of the output.
    """

    input: str
    output: str

    def __str__(self) -> str:
        """Write it as `--state` takes it."""
        return f"{self.input}={self.output}"


def without_states(signature: Signature, states: Sequence[State]) -> Signature:
    """Return the signature that callers see: what a session keeps is neither input nor output."""
    kept, updated = {s.input for s in states}, {s.output for s in states}
    return Signature(
        tuple(spec for spec in signature.inputs if spec.name not in kept),
        tuple(spec for spec in signature.outputs if spec.name not in updated),
    )


def dtype_name(elem_type: int) -> str:
    """Return NumPy name of an ONNX element type.

    >>> dtype_name(onnx.TensorProto.FLOAT), dtype_name(onnx.TensorProto.BFLOAT16)
    ('float32', 'bfloat16')
    """
    return str(onnx.helper.tensor_dtype_to_np_dtype(elem_type))


def graph_signature(graph: onnx.GraphProto) -> Signature:
    """Return signature of a graph whose inputs are static and whose initializers are no inputs."""
    return Signature(
        inputs=tuple(map(tensor_spec, graph.input)),
        outputs=tuple(map(tensor_spec, graph.output)),
    )


def tensor_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    """Return what ONNX states about an input or output."""
    tensor = value.type.tensor_type
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
    return TensorSpec(value.name, shape, dtype_name(tensor.elem_type))


Tensors = Mapping[str, NDArray[Any]]
