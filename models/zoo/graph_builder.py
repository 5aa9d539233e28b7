"""Provide nodes and initializers of an ONNX graph, collected in order."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

OPSET = 17
IR_VERSION = 8


class GraphBuilder:
    """Collects an ONNX graph operator by operator.

    Every value bears the name of the node that makes it, so that reports which name a node and
    reports which name a tensor agree. The same calls give the same bytes.
    """

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}

    def weight(self, name: str, values: np.ndarray) -> str:
        """Add a trained tensor; its name."""
        assert name not in self._initializers, f"two weights are called {name}"
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
        self._nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

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
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="edgec",
        )
