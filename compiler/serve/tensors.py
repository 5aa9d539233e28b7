"""Read and write tensors of the Open Inference Protocol, version 2.

A tensor is `{"name", "datatype", "shape", "data"}`, its values a flat or nested list; or, by the
binary extension, raw little-endian bytes behind the JSON, whose length the tensor states as
parameter `binary_data_size` and whose beginning the header `Inference-Header-Content-Length`.

Sources: the protocol, github.com/open-inference/open-inference-protocol, and the extension
"binary data" of Triton Inference Server, docs/protocol/extension_binary_data.md.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from edgec.compiler.serve.request_error import RequestError

DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float32": "FP32",
    "float64": "FP64",
}
_DTYPES = {datatype: dtype for dtype, datatype in DATATYPES.items()}
MOST_DIMENSIONS = 32


class _Part(BaseModel):
    # Clients may send fields of extensions that are not ours.
    model_config = ConfigDict(frozen=True, extra="ignore")
    parameters: dict[str, bool | int | float | str] = {}


class _Input(_Part):
    name: str
    datatype: str
    shape: list[NonNegativeInt] = Field(max_length=MOST_DIMENSIONS)
    data: list[Any] | None = None


class _Output(_Part):
    name: str


class _Request(_Part):
    id: str = ""
    inputs: list[_Input]
    outputs: list[_Output] | None = None


@dataclass(frozen=True)
class InferenceRequest:
    """An inference request asks for outputs of a model.

    Attributes:
        id: what the client calls it; comes back with the answer.
        inputs: arrays by name.
        outputs: the names that are wanted, and whether each is to be binary; None: all.
        binary: whether outputs that are not named are to be binary.
        parameters: parameters of the whole request.
    """

    id: str
    inputs: Mapping[str, NDArray[Any]]
    outputs: Mapping[str, bool] | None
    binary: bool
    parameters: Mapping[str, bool | int | float | str] = field(default_factory=dict)


def read_request(body: bytes, header_bytes: str | None) -> InferenceRequest:
    """Read a request.

    Args:
        body: the JSON, and behind it the binary tensors.
        header_bytes: `Inference-Header-Content-Length`: how long the JSON is; None: all.

    Raises:
        RequestError: 400, it is not of the protocol's form.
    """
    length = _header_length(header_bytes, len(body))
    try:
        request = _Request.model_validate_json(body[:length])
    except ValidationError as error:
        raise RequestError(400, f"the request is not of the protocol: {_first(error)}") from None
    names = [tensor.name for tensor in request.inputs]
    if len(set(names)) < len(names):
        raise RequestError(400, "an input is given twice")
    at = length
    inputs = {}
    for tensor in request.inputs:
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            inputs[tensor.name] = _from_list(tensor)
            continue
        inputs[tensor.name] = _from_bytes(tensor, body, at, size)
        at += int(size)
    if at != len(body):
        raise RequestError(
            400, f"{len(body) - at} bytes follow the tensors; their sizes do not add up"
        )
    binary = bool(request.parameters.get("binary_data_output", False))
    outputs = None
    if request.outputs:
        outputs = {o.name: bool(o.parameters.get("binary_data", binary)) for o in request.outputs}
        if any("classification" in o.parameters for o in request.outputs):
            raise RequestError(400, "the parameter classification is not supported")
    return InferenceRequest(request.id, inputs, outputs, binary, request.parameters)


def write_response(
    model: str, request: InferenceRequest, outputs: Mapping[str, NDArray[Any]]
) -> tuple[bytes, int | None]:
    """Return the body of an answer, and how long its JSON is if binary tensors follow it.

    Raises:
        RequestError: 400, an output was asked for that the model does not have.
    """
    wanted = request.outputs or dict.fromkeys(outputs, request.binary)
    unknown = sorted(set(wanted) - set(outputs))
    if unknown:
        raise RequestError(400, f"the model has no output {unknown[0]!r}; it has {list(outputs)}")
    tensors, blobs = [], []
    for name, binary in wanted.items():
        array = outputs[name]
        tensor: dict[str, Any] = {
            "name": name,
            "datatype": DATATYPES[str(array.dtype)],
            "shape": list(array.shape),
        }
        if binary:
            blobs.append(np.ascontiguousarray(array).tobytes())
            tensor["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            tensor["data"] = _as_list(array)
        tensors.append(tensor)
    answer: dict[str, Any] = {"model_name": model, "model_version": "1", "outputs": tensors}
    if request.id:
        answer["id"] = request.id
    head = json.dumps(answer).encode()
    return b"".join([head, *blobs]), len(head) if blobs else None


def _header_length(text: str | None, whole: int) -> int:
    if text is None:
        return whole
    if not text.isascii() or not text.isdecimal() or int(text) > whole:
        raise RequestError(
            400,
            f"Inference-Header-Content-Length is {text[:32]!r}; 0 to {whole}, the bytes of the "
            "body, are expected",
        )
    return int(text)


def _dtype(tensor: _Input) -> np.dtype[Any]:
    if tensor.datatype not in _DTYPES:
        raise RequestError(
            400,
            f"input {tensor.name!r} has datatype {tensor.datatype[:32]!r}; "
            f"known are {', '.join(_DTYPES)}",
        )
    name = _DTYPES[tensor.datatype]
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def _from_bytes(tensor: _Input, body: bytes, at: int, size: object) -> NDArray[Any]:
    dtype = _dtype(tensor)
    wanted = math.prod(tensor.shape) * dtype.itemsize
    if isinstance(size, bool) or not isinstance(size, int) or size != wanted:
        raise RequestError(
            400,
            f"input {tensor.name!r} has binary_data_size {size}; {tensor.datatype} "
            f"{tensor.shape} takes {wanted} bytes",
        )
    if at + size > len(body):
        raise RequestError(
            400, f"input {tensor.name!r} ends behind the body: {len(body) - at} of {size} bytes"
        )
    return np.frombuffer(body[at : at + size], dtype).reshape(tensor.shape)


def _from_list(tensor: _Input) -> NDArray[Any]:
    if tensor.data is None:
        raise RequestError(400, f"input {tensor.name!r} has neither data nor binary_data_size")
    dtype = _dtype(tensor)
    try:
        values = np.asarray(tensor.data)
        if values.dtype == object or values.dtype.kind in "USV":
            raise ValueError("it holds what is no number")
        if dtype.kind in "iu" and values.size:
            _check_integers(values, dtype)
        return values.astype(dtype).reshape(tensor.shape)
    except (ValueError, OverflowError, TypeError) as error:
        raise RequestError(
            400,
            f"data of input {tensor.name!r} is not {tensor.datatype} {tensor.shape}: {error}",
        ) from None


def _check_integers(values: NDArray[Any], dtype: np.dtype[Any]) -> None:
    if values.dtype.kind not in "iub":
        raise ValueError("it holds fractions")
    limits = np.iinfo(dtype)
    if int(values.min()) < limits.min or int(values.max()) > limits.max:
        raise ValueError(f"it holds values beyond {limits.min} to {limits.max}")


def _as_list(array: NDArray[Any]) -> Sequence[Any]:
    if str(array.dtype) in ("bfloat16", "float16"):
        array = array.astype(np.float32)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise RequestError(
            400, "an output holds NaN or infinity, which JSON cannot say; ask for binary outputs"
        )
    values: Sequence[Any] = array.ravel().tolist()
    return values


def _first(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    return f"{place}: {problem['msg']}" if place else str(problem["msg"])
