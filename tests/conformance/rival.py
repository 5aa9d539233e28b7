"""One case through ONNX Runtime."""

from typing import Any

import numpy as np
import onnx
from conformance.cases import Array, Case, Failed, Outcome
from conformance.comparison import compare, last_line, unknown_to_numpy
from numpy.typing import NDArray
from onnx import numpy_helper


def run_onnxruntime(case: Case) -> Outcome:
    """Return the same case through ONNX Runtime as it comes."""
    from edgec.compiler.support.silent_onnxruntime import onnxruntime

    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(
            case.model, options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        return Outcome("refused", last_line(error))
    try:
        if any(map(unknown_to_numpy, [*case.inputs, *case.expected])):
            actual = _run_bound(session, case)
        else:
            names = [value.name for value in session.get_inputs()]
            actual = session.run(None, dict(zip(names, case.inputs, strict=True)))
    except Exception as error:
        return Outcome("crash", last_line(error))
    try:
        compare(case, actual)
    except Failed as failure:
        return Outcome(failure.status, str(failure))
    return Outcome("pass")


def _run_bound(session: Any, case: Case) -> list[Array]:
    """Run with types that NumPy lacks: from and to memory in the layout of a TensorProto."""
    binding = session.io_binding()
    buffers = []
    for value, array in zip(session.get_inputs(), case.inputs, strict=True):
        proto, buffer = _buffer(array)
        buffers.append(buffer)
        binding.bind_input(value.name, "cpu", 0, proto.data_type, array.shape, buffer.ctypes.data)
    results = []
    for value, array in zip(session.get_outputs(), case.expected, strict=True):
        proto, buffer = _buffer(array)
        buffer[:] = 0
        results.append((proto, buffer))
        binding.bind_output(value.name, "cpu", 0, proto.data_type, array.shape, buffer.ctypes.data)
    session.run_with_iobinding(binding)
    for proto, buffer in results:
        proto.raw_data = buffer.tobytes()[: len(proto.raw_data)]
    return [numpy_helper.to_array(proto) for proto, _ in results]


def _buffer(array: Array) -> tuple[onnx.TensorProto, NDArray[np.uint8]]:
    proto = numpy_helper.from_array(array)
    buffer = np.zeros(max(1, len(proto.raw_data)), np.uint8)
    buffer[: len(proto.raw_data)] = np.frombuffer(proto.raw_data, np.uint8)
    return proto, buffer
