"""Provide nodes and initializers of an ONNX graph, collected in order."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8

# Smaller tensors stay in the model file, where shape inference sees them.
_SMALL_BYTES = 1024
# Of external data, so that it can be mapped.
_ALIGNMENT = 4096


class ExternalWeights:
    """Writes large tensors to a file beside the model as they come; equal bytes are stored once."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self._stream = stream
        self._location = path.name
        self._offsets: dict[bytes, int] = {}
        self._end = 0

    def store(self, name: str, values: np.ndarray) -> TensorProto:
        """Return a tensor whose data is in the file."""
        values = np.ascontiguousarray(values)
        view = values.reshape(-1).view(np.uint8).data
        digest = hashlib.blake2b(view, digest_size=32).digest()
        if digest not in self._offsets:
            start = -(-self._end // _ALIGNMENT) * _ALIGNMENT
            self._stream.write(bytes(start - self._end))
            self._stream.write(view)
            self._end = start + len(view)
            self._offsets[digest] = start
        data_type = helper.np_dtype_to_tensor_dtype(values.dtype)
        tensor = TensorProto(name=name, data_type=data_type, dims=values.shape)
        tensor.data_location = TensorProto.EXTERNAL
        entries = {"location": self._location, "offset": self._offsets[digest], "length": len(view)}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        return tensor


class GraphBuilder:
    """Collects an ONNX graph operator by operator.

    Every value bears the name of the node that makes it, so that reports which name a node and
    reports which name a tensor agree. The same calls give the same bytes.
    """

    def __init__(
        self,
        opset: int = OPSET,
        ir_version: int = IR_VERSION,
        domains: Sequence[str] = (),
        external: ExternalWeights | None = None,
    ) -> None:
        self._opset = opset
        self._ir_version = ir_version
        self._domains = domains
        self._external = external
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}

    def weight(self, name: str, values: np.ndarray) -> str:
        """Add a trained tensor; its name."""
        assert name not in self._initializers, f"two weights are called {name}"
        if self._external is not None and values.nbytes > _SMALL_BYTES:
            self._initializers[name] = self._external.store(name, values)
        else:
            self._initializers[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
        return name

    def integers(self, *values: int) -> str:
        """Return an int64 vector such as a shape or a list of axes; equal ones are shared."""
        return self._constant("_".join(map(str, values)), np.array(values, np.int64))

    def integer(self, value: int) -> str:
        """Return an int64 scalar; equal ones are shared."""
        return self._constant(f"scalar_{value}", np.array(value, np.int64))

    def number(self, value: float) -> str:
        """Return a float32 scalar; equal ones are shared."""
        return self._constant(f"float_{value!r}", np.array(value, np.float32))

    def _constant(self, label: str, values: np.ndarray) -> str:
        name = f"constant.{label}"
        return name if name in self._initializers else self.weight(name, values)

    def node(self, operator: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Add one operator of one output; the name of both."""
        self.nodes(operator, inputs, [name], name, **attributes)
        return name

    def nodes(
        self,
        operator: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        name: str,
        **attributes: Any,
    ) -> None:
        """Add one operator with outputs of other names than its own."""
        self._nodes.append(helper.make_node(operator, inputs, outputs, name=name, **attributes))

    def model(
        self,
        name: str,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
    ) -> onnx.ModelProto:
        """Return the graph of all that was added."""
        graph = helper.make_graph(
            self._nodes, name, inputs, outputs, list(self._initializers.values())
        )
        opsets = [helper.make_opsetid("", self._opset)]
        opsets += [helper.make_opsetid(domain, 1) for domain in self._domains]
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=self._ir_version, producer_name="edgec"
        )
