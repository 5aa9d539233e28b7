"""Check what a parsed model file says of itself, before anything else looks at it.

The packages that read models later trust the numbers in a file: they allocate what dims say, read
as many bytes of whatever external data names, and copy functions as often as they are called. Here
every tensor, type and function is compared with the bytes that are there and with the limits.
"""

import math
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import onnx
from google.protobuf.message import Message
from onnx import TensorProto

from edgec.compiler.errors import LimitError, ModelFileError, UnsupportedModelError
from edgec.compiler.frontend.limits import (
    MAX_NESTING,
    MAX_RANK,
    Limits,
    element_bits,
    in_mb,
    tensor_bytes,
)

# Beyond it, products of extents leave the integers that kernels and NumPy count with.
MAX_EXTENT = 2**31

_KNOWN = frozenset(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}
_COMPLEX = frozenset({TensorProto.COMPLEX64, TensorProto.COMPLEX128})

# Attributes whose value is an element type.
_TYPE_ATTRIBUTES = frozenset({"dtype", "to"})


def check_file(path: Path, model: onnx.ModelProto, limits: Limits) -> None:
    """Compare what a model says of its tensors, types, text and functions with what is there.

    Args:
        path: the path of the file; external data lies beside it.
        model: parsed; external data is not loaded yet.
        limits: the limits of what it may ask for.

    Raises:
        ModelFileError: it contradicts itself.
        LimitError: it asks for more than is allowed.
        UnsupportedModelError: it has complex numbers.
    """
    try:
        _check_text(model, 0)
        sizes = dict[Path, int]()
        for tensor in all_tensors(model):
            _check_tensor(path, tensor, sizes)
        if sum(sizes.values()) > limits.file_bytes:
            raise LimitError(
                f"the external data takes {in_mb(sum(sizes.values()))}; at most "
                f"{in_mb(limits.file_bytes)} are allowed (--limit file=SIZE)"
            )
        for name, kind in _types(model):
            _check_type(name, kind)
        limits.check_nodes(_unfolded_nodes(model))
    except (ModelFileError, LimitError, UnsupportedModelError) as error:
        raise type(error)(f"{path}: {error}") from None


def regular_file_size(file: Path) -> int | None:
    """Return the size of a file [bytes], None if it is a device, a pipe or not there."""
    try:
        found = file.stat()
    except (OSError, ValueError):
        # A name with a null byte is a ValueError.
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _check_text(message: Message, depth: int) -> None:
    """Every string is UTF-8 (protobuf gives the bytes of others), nothing nests without end."""
    if depth > 2 * MAX_NESTING:
        raise ModelFileError(f"graphs or types are nested more than {MAX_NESTING} deep")
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for item in value if field.is_repeated else [value]:
                _check_text(item, depth + 1)
        elif field.type == field.TYPE_STRING:
            for item in value if field.is_repeated else [value]:
                if isinstance(item, bytes):
                    shown = item[:40].decode("utf-8", "backslashreplace")
                    raise ModelFileError(f"{field.full_name} is {shown!r}, which is not UTF-8")


def _graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    """Yield the graph, the functions, and all subgraphs."""
    pending: list[onnx.GraphProto | onnx.FunctionProto] = [model.graph, *model.functions]
    while pending:
        graph = pending.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                pending += [attribute.g] if attribute.HasField("g") else []
                pending += attribute.graphs


def all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of a model.

    Initializers and attributes, also of functions and subgraphs.
    """
    for graph in _graphs(model):
        if isinstance(graph, onnx.GraphProto):
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        for node in graph.node:
            for attribute in node.attribute:
                yield from _tensors_of(attribute)
        if isinstance(graph, onnx.FunctionProto):
            for attribute in graph.attribute_proto:
                yield from _tensors_of(attribute)


def _tensors_of(attribute: onnx.AttributeProto) -> Iterator[onnx.TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    sparse = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
    for item in (*sparse, *attribute.sparse_tensors):
        yield from (item.values, item.indices)


def _check_tensor(path: Path, tensor: onnx.TensorProto, sizes: dict[Path, int]) -> None:
    """Compare dims with data; note the size of an external file [bytes]."""
    what = f"tensor {tensor.name!r}" if tensor.name else "a tensor without a name"
    check_element_type(what, tensor.data_type)
    _check_dims(what, tensor.dims)
    if tensor.HasField("segment"):
        raise UnsupportedModelError(f"{what} is stored in segments, which nothing reads")
    elements = math.prod(tensor.dims)
    if tensor.data_type == TensorProto.STRING:
        if len(tensor.string_data) != elements:
            raise ModelFileError(_contradiction(what, tensor, len(tensor.string_data), "texts"))
        return
    size = tensor_bytes(tensor.dims, tensor.data_type)
    if tensor.data_location == TensorProto.EXTERNAL:
        _check_external(path, what, tensor, size, sizes)
    elif tensor.HasField("raw_data"):
        if len(tensor.raw_data) != size:
            raise ModelFileError(_contradiction(what, tensor, len(tensor.raw_data), "bytes"))
    else:
        field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
        bits = element_bits(tensor.data_type)
        expected = -(-elements * bits // 8) if bits < 8 else elements
        found = len(getattr(tensor, field))
        if found != expected:
            raise ModelFileError(_contradiction(what, tensor, found, "values"))


def _contradiction(what: str, tensor: onnx.TensorProto, found: int, noun: str) -> str:
    dims, kind = list(tensor.dims), TensorProto.DataType.Name(tensor.data_type).lower()
    return f"{what} says {kind} {dims}, but holds {found} {noun}"


def _check_external(
    path: Path, what: str, tensor: onnx.TensorProto, size: int, sizes: dict[Path, int]
) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    pure = PurePosixPath(location)
    if not location or pure.is_absolute() or ".." in pure.parts:
        raise ModelFileError(
            f"{what} keeps its data in {location!r}; it must be a file in the model's folder"
        )
    file = path.parent / location
    available = regular_file_size(file)
    if available is None:
        state = "is no regular file" if os.path.lexists(file) else "does not exist"
        raise ModelFileError(
            f"{what} keeps weights in {file}, which {state}; put the file beside the model"
        )
    offset = _number(what, "offset", entries.get("offset", "0"))
    length = _number(what, "length", entries.get("length", str(size)))
    if length != size:
        raise ModelFileError(_contradiction(what, tensor, length, "bytes of external data"))
    if offset + length > available:
        raise ModelFileError(
            f"{what} needs bytes {offset} to {offset + length} of {file}, which has {available}"
        )
    sizes[file] = available


def _number(what: str, key: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise ModelFileError(f"{what}: the {key} of its external data is {text[:40]!r}, no number")
    return int(text)


def check_element_type(what: str, data_type: int) -> None:
    """Refuse element types that do not exist, and complex numbers.

    Raises:
        ModelFileError: there is no such type.
        UnsupportedModelError: it is complex.
    """
    if data_type not in _KNOWN:
        raise ModelFileError(f"{what} has element type {data_type}, which ONNX does not define")
    if data_type in _COMPLEX:
        raise UnsupportedModelError(f"{what} holds complex numbers; edgec compiles real ones")


def _check_dims(what: str, dims: Iterable[int]) -> None:
    dims = list(dims)
    if len(dims) > MAX_RANK:
        raise ModelFileError(f"{what} has {len(dims)} dimensions; edgec takes up to {MAX_RANK}")
    if any(extent < 0 for extent in dims):
        raise ModelFileError(f"{what} has a negative dimension: {dims}")
    if any(extent >= MAX_EXTENT for extent in dims):
        raise LimitError(f"{what} has dimensions {dims}; edgec takes less than {MAX_EXTENT}")


def _types(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.TypeProto]]:
    for graph in _graphs(model):
        values = [*graph.value_info]
        if isinstance(graph, onnx.GraphProto):
            values += [*graph.input, *graph.output]
        for value in values:
            yield f"value {value.name!r}", value.type
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.name in _TYPE_ATTRIBUTES and attribute.type == attribute.INT:
                    name = f"{attribute.name} of {node.op_type} {node.name or node.output[:1]}"
                    kind = onnx.TypeProto()
                    kind.tensor_type.elem_type = _int32(name, attribute.i)
                    yield name, kind
                if attribute.HasField("tp"):
                    yield f"attribute {attribute.name!r}", attribute.tp


def _int32(what: str, number: int) -> int:
    if not -(2**31) <= number < 2**31:
        raise ModelFileError(f"{what} is {number}, which is no element type")
    return number


def _check_type(what: str, kind: onnx.TypeProto) -> None:
    which = kind.WhichOneof("value")
    if which == "sequence_type":
        _check_type(what, kind.sequence_type.elem_type)
    elif which == "optional_type":
        _check_type(what, kind.optional_type.elem_type)
    elif which in ("tensor_type", "sparse_tensor_type"):
        tensor = getattr(kind, which)
        # Zero: not stated. `dtype = 0` of an operator is its default, too.
        if tensor.elem_type:
            check_element_type(what, tensor.elem_type)
        if tensor.HasField("shape"):
            _check_dims(what, (max(0, dim.dim_value) for dim in tensor.shape.dim))


def _unfolded_nodes(model: onnx.ModelProto) -> int:
    """Return the number of nodes after each call of a function is replaced by its body."""
    functions = {(f.domain, f.name, f.overload): f for f in model.functions}
    counts: dict[tuple[str, str, str], int] = {}

    def count_all(nodes: Iterable[onnx.NodeProto], depth: int) -> int:
        return sum(count(node, depth) for node in nodes)

    def count(node: onnx.NodeProto, depth: int) -> int:
        if depth > MAX_NESTING:
            raise ModelFileError(
                f"functions or graphs are nested more than {MAX_NESTING} deep, or call themselves"
            )
        key = (node.domain, node.op_type, node.overload)
        total = 1
        if key in functions:
            if key not in counts:
                counts[key] = count_all(functions[key].node, depth + 1)
            total = counts[key]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                total += count_all(attribute.g.node, depth + 1)
            total += sum(count_all(graph.node, depth + 1) for graph in attribute.graphs)
        return total

    return count_all(model.graph.node, 0)
