"""Follow values of an ONNX graph to the nodes that make and read them, and change nodes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

# Weights of at most so many values are numbers that shapes and factors are computed from.
_FEW_VALUES = 1024
# A number that rules out what it is added to.
_LOWEST = -1e4


class Links:
    """Links say which nodes of a graph make and read each value.

    Attributes:
        graph: the graph, which the links change.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self._weights = {item.name: item for item in graph.initializer}
        self._makers: dict[str, onnx.NodeProto] = {}
        self._users: dict[str, list[onnx.NodeProto]] = {}
        self._link()

    def _link(self) -> None:
        self._makers = {name: node for node in self.graph.node for name in node.output if name}
        self._users = {}
        for node in self.graph.node:
            for name in dict.fromkeys(node.input):
                self._users.setdefault(name, []).append(node)

    def maker(self, name: str) -> onnx.NodeProto | None:
        """Return the node that makes a value; None of inputs and weights."""
        return self._makers.get(name)

    def users(self, name: str) -> list[onnx.NodeProto]:
        """Return the nodes that read a value."""
        return self._users.get(name, [])

    def constant(self, name: str) -> NDArray[Any] | None:
        """Return a value that is known and small."""
        tensor = self._weights.get(name)
        node = self._makers.get(name)
        if tensor is None and node is not None and node.op_type == "Constant":
            tensor = next((item.t for item in node.attribute if item.name == "value"), None)
        if tensor is None or np.prod(tensor.dims, dtype=np.int64) > _FEW_VALUES:
            return None
        values: NDArray[Any] = numpy_helper.to_array(tensor)
        return values

    def factor_of(self, node: onnx.NodeProto, name: str) -> float | None:
        """Return the number that a node multiplies a value by; None if it does something else."""
        if node.op_type not in ("Mul", "Div") or len(node.input) != 2:
            return None
        other = node.input[1] if node.input[0] == name else node.input[0]
        if node.op_type == "Div" and node.input[0] != name:
            return None
        number = self._number(other)
        if number is None:
            return None
        if node.op_type == "Mul":
            return number
        return 1 / number if number else float("inf")

    def lowest(self, name: str) -> bool:
        """Return whether a value is a number that rules out what it stands for."""
        number = self._number(name)
        return number is not None and number <= _LOWEST

    def _number(self, name: str) -> float | None:
        value = self.constant(name)
        if value is not None:
            return float(value.reshape(())) if value.size == 1 else None
        # As exporters write `head_size ** 0.5`.
        node = self.maker(name)
        if node is not None and node.op_type in ("Sqrt", "Cast", "Identity"):
            number = self._number(node.input[0])
            if number is not None:
                return number**0.5 if node.op_type == "Sqrt" else number
        return None

    def place(self, name: str) -> int:
        """Return the place of the node that makes a value."""
        return next(i for i, node in enumerate(self.graph.node) if name in node.output)

    def replace(self, name: str, new: str) -> None:
        """Give the value that a node makes another name, so that another may make it."""
        node = self._makers[name]
        for place, output in enumerate(node.output):
            if output == name:
                node.output[place] = new
        self._link()

    def insert(self, place: int, nodes: Sequence[onnx.NodeProto]) -> None:
        """Put nodes before the one at a place."""
        for node in reversed(nodes):
            self.graph.node.insert(place, node)
        self._link()

    def drop_unused(self) -> None:
        """Remove nodes and weights that nothing needs."""
        needed = {value.name for value in self.graph.output}
        kept = []
        for node in reversed(self.graph.node):
            if needed.intersection(node.output):
                kept.append(node)
                needed.update(node.input)
                needed.update(_names_within(node))
        weights = [item for item in self.graph.initializer if item.name in needed]
        if len(weights) < len(self.graph.initializer):
            for item in [i for i in self.graph.initializer if i.name not in needed]:
                self.graph.initializer.remove(item)
        del self.graph.node[:]
        self.graph.node.extend(reversed(kept))
        self._weights = {item.name: item for item in self.graph.initializer}
        self._link()

    def before(self, name: str) -> list[onnx.NodeProto]:
        """Return the nodes that a value depends on, in the order of the graph."""
        needed = {name}
        kept = []
        for node in reversed(self.graph.node):
            if needed.intersection(node.output):
                kept.append(node)
                needed.update(node.input)
                needed.update(_names_within(node))
        return kept[::-1]

    @staticmethod
    def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
        """Return a model whose large weights are inputs."""
        bare = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
        graph = bare.graph
        graph.name = model.graph.name
        for field in ("node", "input", "output", "value_info"):
            getattr(graph, field).extend(getattr(model.graph, field))
        for item in model.graph.initializer:
            if np.prod(item.dims, dtype=np.int64) <= _FEW_VALUES:
                graph.initializer.append(item)
            else:
                shape = helper.make_tensor_value_info(item.name, item.data_type, list(item.dims))
                graph.input.append(shape)
        return bare


def _names_within(node: onnx.NodeProto) -> set[str]:
    """Return the names that graphs within a node read."""
    return {
        name
        for attribute in node.attribute
        for graph in (attribute.g, *attribute.graphs)
        for inner in graph.node
        for name in (*inner.input, *_names_within(inner))
    }
