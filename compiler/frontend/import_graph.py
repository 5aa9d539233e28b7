"""Walk an ONNX graph and build the Relax module.

The walk does not stop at the first node that it cannot convert. It puts a placeholder of the
type that ONNX infers in its place and goes on, so that one error names everything.
"""

import logging
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from tvm import IRModule, relax
from tvm.ir import GenericConst

from edgec.compiler.errors import UnsupportedModelError
from edgec.compiler.frontend.converter_table import find_converter
from edgec.compiler.frontend.node import Converter, Node, Refusal, dtype_of, known_extent, last_line
from edgec.compiler.frontend.te_operators import constant_tensor
from edgec.compiler.ir.signature import Signature, TensorSpec, dtype_name, tensor_spec
from edgec.compiler.ir.storage import STORAGE, as_held, held_as
from edgec.compiler.support.onnx_proto import tensor_values

log = logging.getLogger("edgec.importer")

# What may take storage types: operators that move elements, and those that decode them.
STORAGE_OPERATORS = frozenset(
    {
        "BitCast",
        "Cast",
        "CastLike",
        "Concat",
        "DepthToSpace",
        "DequantizeLinear",
        "Expand",
        "Flatten",
        "Gather",
        "GatherBlockQuantized",
        "GatherElements",
        "GatherND",
        "Identity",
        "QuantizeLinear",
        "Reshape",
        "Shape",
        "Size",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)

# Relax gives such names to new variables of its own.
GENERATED_NAME = re.compile(r"[lg]v\d*")


@dataclass(frozen=True)
class ImportedModel:
    """An imported model describes a model as Relax.

    Attributes:
        module: one function `main`, from the model's inputs to its output or tuple of outputs.
        signature: inputs and outputs. Relax infers shapes that ONNX does not.
        value_names: ONNX name by the name of the Relax variable that holds the same value.
            Passes keep the names of what they do not change, so any later variable of such a
            name can be compared with the original graph.
    """

    module: IRModule
    signature: Signature
    value_names: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Refused:
    """A refusal names a node that cannot be compiled, and why.

    Attributes:
        label: its name, or its first output where it has none.
        op_type: operator, with its domain.
        reason: what is not supported.
        freeze: inputs of the model that would have to be constant.
    """

    label: str
    op_type: str
    reason: str
    freeze: tuple[str, ...] = ()


def import_model(model: onnx.ModelProto) -> ImportedModel:
    """Convert a simplified model to Relax.

    Args:
        model: result of `edgec.compiler.frontend.simplify.simplify`: static inputs, constants as
            initializers, inferred types in `value_info`.

    Raises:
        UnsupportedModelError: names every node that cannot be converted, with the reason.
    """
    walk = _Walk(model)
    imported = walk.run()
    if walk.refused:
        raise UnsupportedModelError(refusal_message(walk.refused))
    return imported


def find_refusals(model: onnx.ModelProto) -> list[Refused]:
    """Return every node of a simplified model that cannot be converted."""
    walk = _Walk(model)
    walk.run()
    return walk.refused


def refusal_message(refused: list[Refused]) -> str:
    """Return one line for all refusals, nodes of the same operator and reason together."""
    labels: dict[tuple[str, str], list[str]] = {}
    for item in refused:
        labels.setdefault((item.op_type, item.reason), []).append(item.label)
    parts = []
    for (op_type, reason), nodes in sorted(labels.items()):
        shown = ", ".join(nodes[:3]) + (f" and {len(nodes) - 3} more" if len(nodes) > 3 else "")
        parts.append(f"{op_type} ({shown}): {reason}")
    noun = "node" if len(refused) == 1 else "nodes"
    return f"{len(refused)} {noun} cannot be compiled: " + "; ".join(parts)


class _Walk:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.builder = relax.BlockBuilder()
        self.values: dict[str, relax.Expr] = {}
        # Initializers become constants when they are first read, and are let go with the last.
        self.tensors: dict[str, onnx.TensorProto] = {}
        self.reads = Counter(name for node in model.graph.node for name in node.input)
        self.reads.update(value.name for value in model.graph.output)
        self.dtypes: dict[str, str] = {}
        self.value_names: dict[str, str] = {}
        self.refused: list[Refused] = []
        # Outputs of refused nodes whose type is unknown: what reads them is not looked at.
        self.unknown: set[str] = set()
        # By value of open shape: inputs of the model that would settle it if they were frozen.
        self.deciders: dict[str, tuple[str, ...]] = {}
        self.opsets = {item.domain: item.version for item in model.opset_import}
        self.opsets[""] = self.opsets.get("", self.opsets.get("ai.onnx", 0))
        self.types = _inferred_types(model.graph)

    def run(self) -> ImportedModel:
        graph = self.model.graph
        for tensor in graph.initializer:
            if tensor.data_type != onnx.TensorProto.STRING:
                self.tensors[tensor.name] = tensor
                self.dtypes[tensor.name] = dtype_name(tensor.data_type)
        parameters = []
        inputs = tuple(map(tensor_spec, graph.input))
        for spec in inputs:
            kind = relax.TensorType(spec.shape, held_as(spec.dtype))
            self.dtypes[spec.name] = spec.dtype
            parameter = relax.Var(_identifier(spec.name), kind)
            self.value_names[parameter.name] = spec.name
            self.values[spec.name] = parameter
            parameters.append(parameter)
        with self.builder.function("main", parameters):
            with self.builder.dataflow():
                for node in graph.node:
                    self._convert(node)
                results = [self._output(value) for value in graph.output]
                result = results[0] if len(results) == 1 else relax.Tuple(results)
                bound = self.builder.emit_output(result)
            self.builder.emit_func_output(bound)
        outputs = tuple(
            _output_spec(value, result) for value, result in zip(graph.output, results, strict=True)
        )
        return ImportedModel(self.builder.get(), Signature(inputs, outputs), self.value_names)

    def _output(self, value: onnx.ValueInfoProto) -> relax.Expr:
        result = self._value(value.name)
        if result is None or not isinstance(result.ty, relax.TensorType):
            self.refused.append(Refused(value.name, "output", "it is no tensor of numbers"))
            return relax.const(np.zeros((), "float32"))
        return result

    def _convert(self, proto: onnx.NodeProto) -> None:
        label = proto.name or proto.output[0]
        domain = "" if proto.domain == "ai.onnx" else proto.domain
        try:
            convert = find_converter(domain, proto.op_type)
            if not self.unknown.isdisjoint(proto.input):
                self._skip(proto)
                return
            node = Node(
                label=label,
                op_type=proto.op_type,
                domain=domain,
                opset=self.opsets.get(domain, 1),
                inputs=tuple(self._input(name) for name in proto.input),
                proto=proto,
                outputs=tuple(self.types.get(name) for name in proto.output),
                dtypes=tuple(self.dtypes.get(name) for name in proto.input),
                builder=self.builder,
            )
            _check_storage(node)
            results = self._results(convert, node)
        except Refusal as refusal:
            name = f"{domain}::{proto.op_type}" if domain else proto.op_type
            freeze = self._inputs_behind(proto, refusal.operand)
            reason = str(refusal)
            if not freeze:
                freeze = self._deciding(proto)
                reason += "; fix what decides it with --freeze" if freeze else ""
            reason += f" ({', '.join(freeze)})" if freeze else ""
            self.refused.append(Refused(label, name, reason, freeze))
            self._skip(proto)
            return
        for name, result in zip(proto.output, results, strict=False):
            # Text has no value; its readers are told so.
            if name and result is not None:
                self._bind(name, result)
                if name in self.types:
                    self.dtypes[name] = self.types[name].dtype
                if _is_open(self.values[name]):
                    self.deciders[name] = self._deciding(proto) or self._bounds_behind(proto)

    def _deciding(self, proto: onnx.NodeProto) -> tuple[str, ...]:
        """Return the model's inputs that decide shapes of a node which only a run knows."""
        found = [name for value in proto.input for name in self.deciders.get(value, ())]
        return tuple(dict.fromkeys(found))

    def _bounds_behind(self, proto: onnx.NodeProto) -> tuple[str, ...]:
        """Return the model's inputs from which a node that opens a shape gets its bounds."""
        places = [place for place in _BOUNDS.get(proto.op_type, ()) if place < len(proto.input)]
        found = [name for place in places for name in self._inputs_behind(proto, place)]
        return tuple(dict.fromkeys(found))

    def _inputs_behind(self, proto: onnx.NodeProto, operand: int | None) -> tuple[str, ...]:
        """Return the model's inputs from which an operand of a node is computed."""
        if operand is None:
            return ()
        producers = {name: node for node in self.model.graph.node for name in node.output}
        pending, seen = [proto.input[operand]], set[str]()
        while pending:
            name = pending.pop()
            if name and name not in seen:
                seen.add(name)
                pending += producers[name].input if name in producers else []
        return tuple(value.name for value in self.model.graph.input if value.name in seen)

    def _input(self, name: str) -> relax.Expr | None:
        if not name:
            return None
        value = self._value(name)
        if value is None:
            raise Refusal(f"input {name!r} holds text; edgec compiles numbers")
        return value

    def _value(self, name: str) -> relax.Expr | None:
        """Return a value for one of its readers."""
        if name not in self.tensors:
            return self.values.get(name)
        value = self.values.get(name)
        if value is None:
            value = self.values[name] = _constant(self.tensors[name])
        self.reads[name] -= 1
        if self.reads[name] <= 0:
            del self.values[name]
        return value

    def _results(self, convert: Converter, node: Node) -> list[relax.Expr | None]:
        if node.outputs and all(_is_empty(spec) for spec in node.outputs):
            # Nothing to compute, and kernels need not know of empty loops.
            return [
                constant_tensor(np.zeros([extent or 0 for extent in spec.shape], spec.dtype))
                for spec in node.outputs
                if spec is not None
            ]
        try:
            converted = convert(node)
            results = [converted] if isinstance(converted, relax.Expr) else list(converted)
            results = [r if r is None else self.builder.normalize(r) for r in results]
        except Refusal:
            raise
        except Exception as error:
            # Relax checks types when an operator is built and says no in many ways.
            log.debug("%s", node.label, exc_info=True)
            raise Refusal(f"Relax says: {last_line(error)}") from error
        wanted = [index for index, name in enumerate(node.proto.output) if name]
        if wanted and wanted[-1] >= len(results):
            raise Refusal(f"output {wanted[-1]} is not supported")
        for result, spec in zip(results, node.outputs, strict=False):
            _check_type(result, spec)
        return results

    def _bind(self, name: str, result: relax.Expr) -> None:
        if not isinstance(result, relax.Var | GenericConst):
            result = self.builder.emit(result, _identifier(name))
            if not GENERATED_NAME.fullmatch(result.name):
                self.value_names[result.name] = name
        self.values[name] = result

    def _skip(self, proto: onnx.NodeProto) -> None:
        """Put placeholders for a node's outputs; the module is thrown away."""
        for name in filter(None, proto.output):
            spec = self.types.get(name)
            if spec is None or None in spec.shape:
                self.unknown.add(name)
                self.values[name] = relax.const(np.zeros((), "float32"))
            else:
                self._bind(name, relax.op.zeros(spec.shape, held_as(spec.dtype)))
                self.dtypes[name] = spec.dtype


# Operands by which an operator opens a shape.
_BOUNDS = {"Pad": (1,), "Slice": (1, 2)}


def _is_open(value: relax.Expr) -> bool:
    """Return whether only a run tells the shape of a value."""
    shape = getattr(value.ty, "shape", None)
    return not isinstance(shape, relax.ShapeExpr) or any(
        known_extent(extent) is None for extent in shape.values
    )


def _output_spec(value: onnx.ValueInfoProto, result: relax.Expr) -> TensorSpec:
    """Name, shape and dtype of an output, as Relax has it and ONNX may not."""
    shape: tuple[int | None, ...] = ()
    if isinstance(result.ty.shape, relax.ShapeExpr):
        shape = tuple(map(known_extent, result.ty.shape.values))
    elif result.ty.ndim >= 0:
        shape = (None,) * result.ty.ndim
    dtype, declared = dtype_of(result), value.type.tensor_type.elem_type
    if declared and held_as(dtype_name(declared)) == dtype:
        dtype = dtype_name(declared)
    return TensorSpec(value.name, shape, dtype)


def _is_empty(spec: TensorSpec | None) -> bool:
    return spec is not None and 0 in spec.shape


def _identifier(name: str) -> str:
    """Return an ONNX name as a Relax variable name.

    >>> _identifier("/model.22/Concat_10")
    '_model_22_Concat_10'
    """
    text = re.sub(r"\W", "_", name, flags=re.ASCII)
    # The functions of a module share its names with all values.
    return text if re.match(r"[A-Za-z_]", text) and text != "main" else f"v_{text}"


def _constant(tensor: onnx.TensorProto) -> relax.Expr:
    array = as_held(tensor_values(tensor))
    return relax.const(np.ascontiguousarray(array).reshape(array.shape), str(array.dtype))


def _inferred_types(graph: onnx.GraphProto) -> dict[str, TensorSpec]:
    types = {}
    for value in [*graph.value_info, *graph.output]:
        tensor = value.type.tensor_type
        numbers = tensor.elem_type not in (0, onnx.TensorProto.STRING)
        if numbers and tensor.HasField("shape"):
            shape = tuple(
                dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim
            )
            types[value.name] = TensorSpec(value.name, shape, dtype_name(tensor.elem_type))
    return types


def _check_storage(node: Node) -> None:
    """Nothing may compute with quantized values as if they were values."""
    if node.op_type in STORAGE_OPERATORS:
        return
    for dtype in node.dtypes:
        if dtype in STORAGE:
            raise Refusal(f"{dtype} is not supported here, only where it is moved or converted")


def _check_type(result: relax.Expr | None, spec: TensorSpec | None) -> None:
    """A converter that disagrees with ONNX about shape or dtype is wrong about the values too."""
    kind: Any = None if result is None else result.ty
    if spec is None or not isinstance(kind, relax.TensorType):
        return
    dtype = str(kind.dtype.dtype)
    if dtype != held_as(spec.dtype):
        raise Refusal(f"it gives {dtype} where ONNX infers {spec.dtype}")
    if not isinstance(kind.shape, relax.ShapeExpr):
        return
    extents = list(kind.shape.values)
    known = [known_extent(extent) for extent in extents]
    if len(known) != len(spec.shape) or any(
        found is not None and expected is not None and found != expected
        for found, expected in zip(known, spec.shape, strict=False)
    ):
        raise Refusal(f"it gives shape {extents} where ONNX infers {list(spec.shape)}")
