"""What the model should give: ONNX Runtime on the original graph.

With its graph optimizations off, ONNX Runtime computes operator by operator what the file
says. Where it lacks an operator, the reference evaluator of the onnx package answers.
"""

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgec.compiler.errors import ModelFileError
from edgec.compiler.ir.signature import Tensors
from edgec.compiler.support.silent_onnxruntime import onnxruntime


def run_original(model: Path | onnx.ModelProto, inputs: Tensors) -> dict[str, NDArray[Any]]:
    """Outputs of an ONNX model by name.

    Args:
        model: file, or a model in memory.
        inputs: every input of the graph that has no initializer, by name.

    Raises:
        ModelFileError: neither runtime can run the model on these inputs.
    """
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    try:
        session = onnxruntime.InferenceSession(
            source, _session_options(), providers=["CPUExecutionProvider"]
        )
        return _run_session(session, inputs)
    except Exception as error:
        # ONNX Runtime's exceptions have no common base but this one.
        return _run_reference(model, inputs, str(error))


def _run_session(session: onnxruntime.InferenceSession, inputs: Tensors) -> dict[str, NDArray[Any]]:
    """Run with types that NumPy lacks too: those in the memory layout of a TensorProto."""
    binding = session.io_binding()
    kept = []
    for value in session.get_inputs():
        array = np.ascontiguousarray(inputs[value.name]).reshape(inputs[value.name].shape)
        proto = numpy_helper.from_array(array)
        buffer = np.frombuffer(proto.raw_data or b"\0", np.uint8)
        kept.append(buffer)
        binding.bind_input(value.name, "cpu", 0, proto.data_type, array.shape, buffer.ctypes.data)
    for value in session.get_outputs():
        binding.bind_output(value.name)
    session.run_with_iobinding(binding)
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, map(_array, binding.get_outputs()), strict=True))


def _array(value: onnxruntime.OrtValue) -> NDArray[Any]:
    proto = onnx.TensorProto(data_type=value.element_type(), dims=value.shape())
    proto.raw_data = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    array: NDArray[Any] = numpy_helper.to_array(proto)
    return array


def _session_options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return options


def _run_reference(
    model: Path | onnx.ModelProto, inputs: Tensors, why: str
) -> dict[str, NDArray[Any]]:
    try:
        evaluator = onnx.reference.ReferenceEvaluator(
            str(model) if isinstance(model, Path) else model
        )
        results = evaluator.run(None, dict(inputs))
    except Exception as error:
        raise ModelFileError(
            "the original graph cannot be run on the test inputs: ONNX Runtime says "
            f"{_one_line(why)}; the reference evaluator says {_one_line(str(error))}"
        ) from error
    values = (np.asarray(value) for value in results)
    return dict(zip(evaluator.output_names, values, strict=True))


def _one_line(message: str) -> str:
    return " ".join(message.split())[:300]
