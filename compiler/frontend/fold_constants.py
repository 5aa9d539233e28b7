"""Compute what is already known, with code that computes what the operators mean.

onnxscript's optimizer walks the graph, follows shapes and takes `If` branches whose condition is
constant. It would evaluate nodes with the reference evaluator of the onnx package, whose values
are wrong for some (Softmax before version 13, AveragePool with ceil_mode, Resize with
align_corners, Unique unsorted, …). Here ONNX Runtime evaluates them, as it does for parity; the
reference evaluator serves the operators of `EXACT`, which a test compares with ONNX Runtime. A node
that neither can evaluate stays in the graph.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnxscript import optimizer

from edgec.compiler.errors import LimitError
from edgec.compiler.frontend.limits import MAX_RANK, Limits, in_mb, tensor_bytes
from edgec.compiler.support.onnx_runtime import open_onnx_session, run_onnx_session

log = logging.getLogger("edgec.fold")

# Most of the folded nodes, and a session of ONNX Runtime costs a millisecond.
EXACT = frozenset(
    {
        "Add",
        "Concat",
        "Equal",
        "Expand",
        "Gather",
        "Identity",
        "Mul",
        "Reshape",
        "Slice",
        "Squeeze",
        "Sub",
        "Transpose",
        "Unsqueeze",
        "Where",
    }
)

# Folding may make so many times the bytes of the constants in the file before `Limits` counts:
# four-bit weights become floats.
GROWTH = 8

# Results whose size depends on values, and is at most that of the inputs, times their rank.
_BOUNDED = frozenset({"Compress", "NonMaxSuppression", "NonZero", "Unique"})

# The weights of the compiled model stand in full anyway.
_NO_LIMIT = 2**62


class ConstantFolding:
    """Folds one model, in as many rounds as it takes.

    Args:
        model: changed in place by `run`.
        limits: the limits of what is made.
        wanted: whether a node whose inputs are all constant should be folded.
    """

    def __init__(self, model: ir.Model, limits: Limits, wanted: Callable[[ir.Node], bool]) -> None:
        self.model = model
        self.limits = limits
        self.wanted = wanted
        self.room = limits.value_bytes + GROWTH * _stored_bytes(model)
        self.known: set[ir.Node] = set()

    def run(self) -> bool:
        """Fold once and say whether something changed.

        Raises:
            LimitError: the constants would take more memory than is allowed.
        """
        folded = optimizer.fold_constants(
            self.model,
            onnx_shape_inference=True,
            input_size_limit=_NO_LIMIT,
            output_size_limit=_NO_LIMIT,
            should_fold=self._evaluate,
        )
        return self._replace() or bool(folded.modified)

    def _evaluate(self, node: ir.Node) -> bool:
        """Note the values of a node of constant inputs; nodes behind it are asked with them.

        The optimizer calls this for each of them in order, and is told not to fold itself.
        """
        if node in self.known or not self.wanted(node) or not self._fits(node):
            return False
        inputs = {v.name: _array_of(v) for v in node.inputs if v is not None and v.name}
        results = _results(node, inputs, self.model.opset_imports)
        if results is None:
            return False
        self.known.add(node)
        outputs = [value for value in node.outputs if value.name]
        for value, array in zip(outputs, results, strict=True):
            self._take(node, array.nbytes)
            tensor = ir.tensor(array, name=value.name)
            value.const_value, value.shape, value.dtype = (
                tensor,
                ir.Shape(array.shape),
                tensor.dtype,
            )
        return False

    def _fits(self, node: ir.Node) -> bool:
        """Return whether the results are known not to be too large, before they are computed."""
        total = 0
        for value in node.outputs:
            if not value.name:
                continue
            shape = None if value.shape is None else list(value.shape)
            extents = [extent for extent in shape or () if isinstance(extent, int)]
            if shape is not None and len(extents) == len(shape) and value.dtype is not None:
                total += tensor_bytes(extents, value.dtype.value)
            elif node.op_type in _BOUNDED:
                total += MAX_RANK * sum(
                    v.const_value.nbytes
                    for v in node.inputs
                    if v is not None and v.const_value is not None
                )
            else:
                return False
        self._check(node, total)
        return True

    def _check(self, node: ir.Node, size: int) -> None:
        if size > self.room:
            raise LimitError(
                f"{node.name or node.outputs[0].name} ({node.op_type}) is constant and takes "
                f"{in_mb(size)}; {in_mb(max(0, self.room))} are left for constants that the file "
                "does not hold (--limit value=SIZE)"
            )

    def _take(self, node: ir.Node, size: int) -> None:
        self._check(node, size)
        self.room -= size

    def _replace(self) -> bool:
        """Put constants in the place of nodes whose values are known."""
        changed = False
        for node in list(self.model.graph.all_nodes()):
            if node not in self.known:
                continue
            for old in node.outputs:
                if not old.name:
                    continue
                constant = ir.node("Constant", [], {"value": old.const_value})
                new = constant.outputs[0]
                new.type, new.shape, new.const_value = old.type, old.shape, old.const_value
                assert node.graph is not None
                node.graph.insert_before(node, constant)
                name, old.name = old.name, None
                ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
                new.name = name
            assert node.graph is not None
            node.graph.remove(node, safe=True)
            changed = True
        return changed


def _stored_bytes(model: ir.Model) -> int:
    """Return the size of the constants that the file holds [bytes]."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    for node in model.graph.all_nodes():
        attribute = node.attributes.get("value")
        if node.op_type == "Constant" and attribute is not None:
            tensors.append(attribute.as_tensor())
    numbers = [t for t in tensors if t is not None and t.dtype != ir.DataType.STRING]
    return sum(tensor.nbytes for tensor in numbers)


def _array_of(value: ir.Value) -> NDArray[Any]:
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy())


def _results(
    node: ir.Node, inputs: Mapping[str, NDArray[Any]], opsets: Mapping[str, int]
) -> Sequence[NDArray[Any]] | None:
    """Return the outputs of one node; None if nobody can compute it."""
    exact = node.op_type in EXACT and not node.domain
    for evaluate in (by_reference, by_onnx_runtime) if exact else (by_onnx_runtime,):
        try:
            return evaluate(_model_of(node, inputs, opsets), inputs)
        except Exception as error:
            # Of any kind: no kernel for these types, or a node that contradicts itself.
            log.debug("%s is not folded: %s", node.name, error)
    return None


def _model_of(
    node: ir.Node, inputs: Mapping[str, NDArray[Any]], opsets: Mapping[str, int]
) -> onnx.ModelProto:
    """Return a model of one node."""
    proto = ir.to_proto(node)
    values = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in inputs.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in proto.output if name]
    graph = onnx.helper.make_graph([proto], "node", values, outputs)
    versions = [onnx.helper.make_opsetid(domain, v) for domain, v in opsets.items()]
    return onnx.helper.make_model(graph, opset_imports=versions, ir_version=10)


def by_onnx_runtime(
    model: onnx.ModelProto, inputs: Mapping[str, NDArray[Any]]
) -> list[NDArray[Any]]:
    """Return the outputs of a model of one node."""
    session = open_onnx_session(model.SerializeToString(), threads=1)
    return list(run_onnx_session(session, inputs).values())


def by_reference(model: onnx.ModelProto, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """Return the outputs of a model of one node, by the reference evaluator."""
    results = ReferenceEvaluator(model).run(None, dict(inputs))
    return [np.asarray(result) for result in results]
