"""Run a model with ONNX Runtime: as the file says, in one thread's order, telling nobody.

The oracle of parity and the folding of constants both ask it.
"""

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgec.compiler.support.silent_onnxruntime import onnxruntime

# Two or four elements to a byte.
_PACKED = frozenset({"int2", "int4", "uint2", "uint4", "float4_e2m1fn"})


_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


def open_onnx_session(
    model: str | bytes, threads: int | None = None, weights: Path | None = None
) -> onnxruntime.InferenceSession:
    """Open a model without graph optimizations, silently.

    Args:
        model: path of the file, or its bytes.
        threads: at most; by default as many as there are cores.
        weights: folder of the external data of a model given as bytes.

    Raises:
        Exception: it cannot be loaded; ONNX Runtime's exceptions have no other common base.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    if weights is not None:
        options.add_session_config_entry(_WEIGHTS_FOLDER, str(weights))
    if threads is not None:
        options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run_onnx_session(
    session: onnxruntime.InferenceSession, inputs: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Return the outputs by name, also of types that only `ml_dtypes` has.

    Raises:
        Exception: ONNX Runtime cannot run the model on these inputs.
    """
    binding = session.io_binding()
    kept = []
    for value in session.get_inputs():
        array = inputs[value.name]
        buffer = _as_bytes(array)
        kept.append(buffer)
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        binding.bind_input(value.name, "cpu", 0, kind, array.shape, buffer.ctypes.data)
    # A graph may list an output twice.
    names = list(dict.fromkeys(value.name for value in session.get_outputs()))
    for name in names:
        binding.bind_output(name)
    session.run_with_iobinding(binding)
    return dict(zip(names, map(_array, binding.get_outputs()), strict=True))


def _as_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the memory layout of a TensorProto: elements of less than a byte are packed."""
    if array.size == 0:
        return np.zeros(1, np.uint8)
    if str(array.dtype) in _PACKED:
        return np.frombuffer(numpy_helper.from_array(array).raw_data, np.uint8)
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _array(value: onnxruntime.OrtValue) -> NDArray[Any]:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(value.element_type())
    # Those of `ml_dtypes` are registered with NumPy, not built in.
    if dtype.isbuiltin == 1 and dtype.kind != "O":
        # A copy of its own: the value's memory goes with the session.
        result: NDArray[Any] = np.empty(value.shape(), dtype)
        ctypes.memmove(result.ctypes.data, value.data_ptr(), result.nbytes)
        return result
    proto = onnx.TensorProto(data_type=value.element_type(), dims=value.shape())
    proto.raw_data = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    array: NDArray[Any] = numpy_helper.to_array(proto)
    return array
