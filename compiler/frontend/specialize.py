"""Fix every shape: the model with static inputs that the compiler works on.

A compiled bundle has one shape. Dimensions that the file leaves open come from the user, and
inputs that only steer the graph (a sample rate, a target shape) can be frozen to a value, so
that the branches and shapes behind them become constant.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgec.compiler.errors import (
    ModelFileError,
    ShapeError,
    TensorInputError,
    UnsupportedModelError,
    did_you_mean,
)
from edgec.compiler.ir.signature import dtype_name

Shape = tuple[int, ...]

# Some exporters write this for "open", not as a name that ties dimensions together.
UNNAMED = "?"


@dataclass(frozen=True)
class SpecializedModel:
    """A specialized model describes a model of static shapes.

    Attributes:
        proto: the model.
        frozen: what the frozen inputs became, in the dtype and shape of the original input.
    """

    proto: onnx.ModelProto
    frozen: dict[str, NDArray[Any]]


def specialize(
    model: onnx.ModelProto,
    shapes: Mapping[str, Shape],
    frozen: Mapping[str, NDArray[Any]],
) -> SpecializedModel:
    """Copy the model with static input shapes and with some inputs made constants.

    Initializers that are listed as inputs too (as IR version 3 demands) stop being inputs.
    A dimension name that one given shape decides holds for the other inputs as well. An output
    that is listed twice is kept once.

    Args:
        model: checked model; stays as it is.
        shapes: full shape by input name. What is behind the batch may be 0, as a decoder's first
            past is, the batch only where the model says so.
        frozen: value by input name; scalars may have any numeric dtype.

    Raises:
        ShapeError: names every dimension that is open, contradictory or not positive.
        TensorInputError: a frozen value does not fit its input.
        UnsupportedModelError: an input or output is no tensor of numbers.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    # Version 3 knows no initializer that is not an input.
    result.ir_version = max(result.ir_version, 4)
    graph = result.graph
    initialized = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in initialized]
    _drop_repeated_outputs(graph)
    problems = [_why_no_numbers(value) for value in (*inputs, *graph.output)]
    if any(problems):
        raise UnsupportedModelError("; ".join(filter(None, problems)))
    for value in inputs:
        if not value.type.tensor_type.elem_type:
            raise ModelFileError(f"input {value.name} has no element type")
    _check_names("--shape", shapes, inputs)
    _check_names("--freeze", frozen, inputs)

    constants = {
        value.name: _frozen_array(value, frozen[value.name])
        for value in inputs
        if value.name in frozen
    }
    graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in constants.items())
    inputs = [value for value in inputs if value.name not in frozen]
    _fix_shapes(inputs, shapes)

    del graph.input[:]
    graph.input.extend(inputs)
    # Stated shapes of values inside may still speak of open dimensions: infer them anew.
    del graph.value_info[:]
    static = {value.name: value for value in inputs}
    for value in graph.output:
        if value.name in static:
            # An input that is returned as it is.
            value.CopyFrom(static[value.name])
        elif value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    return SpecializedModel(result, constants)


def _drop_repeated_outputs(graph: onnx.GraphProto) -> None:
    """Keep the first of outputs of one name: a bundle gives its outputs by name."""
    seen = {value.name: value for value in reversed(graph.output)}
    outputs = [value for value in graph.output if seen[value.name] is value]
    del graph.output[:]
    graph.output.extend(outputs)


def _why_no_numbers(value: onnx.ValueInfoProto) -> str:
    """Return why an input or output is no tensor of numbers, and what to do; empty if it is one."""
    kind = value.type.WhichOneof("value") or "tensor_type"
    if kind == "sequence_type" and value.type.sequence_type.elem_type.HasField("map_type"):
        return (
            f"{value.name} is a list of dictionaries, edgec compiles tensors: export without "
            "ZipMap (skl2onnx and onnxmltools: options={'zipmap': False}), or make the input of "
            "the ZipMap node, a tensor of scores, the output"
        )
    if kind != "tensor_type":
        what = kind.removesuffix("_type").replace("_", " ")
        return f"{value.name} is of type {what}; edgec compiles tensors"
    if value.type.tensor_type.elem_type == onnx.TensorProto.STRING:
        return (
            f"{value.name} holds text, edgec compiles numbers: train or export with numbers "
            "in place of text, or leave it out"
        )
    return ""


def _check_names(
    option: str, given: Mapping[str, object], inputs: list[onnx.ValueInfoProto]
) -> None:
    known = [value.name for value in inputs]
    for name in given:
        if name not in known:
            raise ShapeError(
                f"{option} names {name!r}, which is no input of the model"
                f"{did_you_mean(name, known)} (inputs: {', '.join(known)})"
            )


def _frozen_array(value: onnx.ValueInfoProto, array: NDArray[Any]) -> NDArray[Any]:
    declared = value.type.tensor_type
    dtype = np.dtype(dtype_name(declared.elem_type))
    cast = np.asarray(array).astype(dtype)
    if not np.array_equal(cast.astype(np.float64), np.asarray(array, np.float64), equal_nan=True):
        raise TensorInputError(f"--freeze {value.name}: the value does not fit {dtype}")
    if declared.HasField("shape"):
        dims = [dim.dim_value for dim in declared.shape.dim]
        fits = len(dims) == cast.ndim and all(
            dim <= 0 or dim == extent for dim, extent in zip(dims, cast.shape, strict=True)
        )
        if cast.size == 1 and all(dim <= 1 for dim in dims):
            cast = cast.reshape((1,) * len(dims))
        elif not fits:
            raise TensorInputError(
                f"--freeze {value.name}: shape {list(cast.shape)} does not fit {dims}"
            )
    return cast


def _fix_shapes(inputs: list[onnx.ValueInfoProto], shapes: Mapping[str, Shape]) -> None:
    by_name: dict[str, int] = {}
    for value in inputs:
        if value.name in shapes:
            _apply_shape(value, shapes[value.name], by_name)
    problems = []
    for value in inputs:
        tensor = value.type.tensor_type
        if not tensor.HasField("shape"):
            problems.append(f"input {value.name} has no shape; pass --shape {value.name}=…")
            continue
        if value.name in shapes:
            continue
        for dim in tensor.shape.dim:
            if dim.dim_param in by_name:
                dim.dim_value = by_name[dim.dim_param]
        open_dims = [
            f"{index} ({_what_stands(dim)})"
            for index, dim in enumerate(tensor.shape.dim)
            if dim.dim_value <= 0
        ]
        if open_dims:
            example = ",".join(
                str(dim.dim_value) if dim.dim_value > 0 else "?" for dim in tensor.shape.dim
            )
            noun = "dimension" if len(open_dims) == 1 else "dimensions"
            problems.append(
                f"input {value.name}: {noun} {', '.join(open_dims)} not fixed; "
                f"pass --shape {value.name}={example} with a number for each ?"
            )
    if problems:
        raise ShapeError("; ".join(problems))


def _what_stands(dim: onnx.TensorShapeProto.Dimension) -> str:
    """Return what the file says of a dimension that is open."""
    number = f"{dim.dim_value} in the file" if dim.HasField("dim_value") else "unnamed"
    return dim.dim_param or number


def _apply_shape(value: onnx.ValueInfoProto, shape: Shape, by_name: dict[str, int]) -> None:
    tensor = value.type.tensor_type
    text = ",".join(str(extent) for extent in shape)
    option = f"--shape {value.name}={text}"
    if not tensor.HasField("shape"):
        for _ in shape:
            tensor.shape.dim.add()
    if len(shape) != len(tensor.shape.dim):
        raise ShapeError(
            f"{option} has {len(shape)} dimensions, the input has {len(tensor.shape.dim)}"
        )
    for index, (dim, extent) in enumerate(zip(tensor.shape.dim, shape, strict=True)):
        least = 0 if index or (dim.HasField("dim_value") and dim.dim_value == 0) else 1
        if extent < least:
            raise ShapeError(
                f"{option}: dimension {index} is {extent}; it must be at least {least}"
            )
        if dim.dim_value > 0 and dim.dim_value != extent:
            raise ShapeError(
                f"{option}: dimension {index} is {extent}, the model fixes it to {dim.dim_value}"
            )
        name = "" if dim.dim_param == UNNAMED else dim.dim_param
        if name and by_name.setdefault(name, extent) != extent:
            raise ShapeError(
                f"{option}: dimension {index} ({name}) is {extent}, "
                f"another input makes it {by_name[name]}"
            )
        dim.dim_value = extent
