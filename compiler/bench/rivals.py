"""Provide other runtimes on the same ONNX file, to compare with.

Each is an optional package and is imported only when asked for. All get the same static model,
the same inputs, float32 arithmetic and the same number of threads.
"""

import importlib.metadata
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.errors import ToolchainError, UsageError, did_you_mean
from edgec.compiler.ir.signature import Signature, Tensors

CONVERT_SECONDS = 600
REASON_CHARACTERS = 200

# Not `-m MNN.tools.mnnconvert`: importing that installs a logging package with pip, which replaces
# protobuf by one that onnx does not work with, and reports each conversion to the vendor.
_MNN_CONVERT = "import sys, _tools; _tools.mnnconvert(sys.argv)"


class Rival(Protocol):
    """A rival is a loaded model of another runtime."""

    def __call__(self) -> None:
        """Run once, on the inputs that it was loaded with."""

    def outputs(self) -> dict[str, NDArray[Any]]:
        """Return outputs of a run, by name."""


@dataclass(frozen=True)
class RivalRuntime:
    """A rival runtime describes another runtime.

    Attributes:
        name: what it is asked for by.
        packages: Python packages it needs; the first one's version is reported.
        load: model file, inputs, signature, threads and a scratch folder to a loaded model.
    """

    name: str
    packages: tuple[str, ...]
    load: Callable[[Path, Tensors, Signature, int, Path], Rival]

    def version(self) -> str:
        """Return installed version.

        Raises:
            ToolchainError: a package is missing.
        """
        for package in self.packages:
            try:
                importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                raise ToolchainError(
                    f"package {package} is not installed; pip install {' '.join(self.packages)}"
                ) from None
        return importlib.metadata.version(self.packages[0])


class _OnnxRuntime:
    def __init__(
        self, model: Path, inputs: Tensors, signature: Signature, threads: int, _scratch: Path
    ) -> None:
        from edgec.compiler.support.silent_onnxruntime import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(
            str(model), options, providers=["CPUExecutionProvider"]
        )
        self._inputs = dict(inputs)
        self._names = [spec.name for spec in signature.outputs]

    def __call__(self) -> None:
        self._session.run(self._names, self._inputs)

    def outputs(self) -> dict[str, NDArray[Any]]:
        return dict(zip(self._names, self._session.run(self._names, self._inputs), strict=True))


class _OpenVino:
    def __init__(
        self, model: Path, inputs: Tensors, signature: Signature, threads: int, _scratch: Path
    ) -> None:
        from edgec.compiler.support.silent_openvino import openvino

        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        compiled = openvino.Core().compile_model(str(model), "CPU", settings)
        self._request = compiled.create_infer_request()
        self._names = [spec.name for spec in signature.outputs]
        for spec in signature.inputs:
            self._request.set_tensor(spec.name, openvino.Tensor(np.array(inputs[spec.name])))

    def __call__(self) -> None:
        self._request.infer()

    def outputs(self) -> dict[str, NDArray[Any]]:
        self._request.infer()
        return {name: self._request.get_tensor(name).data.copy() for name in self._names}


class _Mnn:
    def __init__(
        self, model: Path, inputs: Tensors, signature: Signature, threads: int, scratch: Path
    ) -> None:
        converted = scratch / "model.mnn"
        _convert(
            "mnnconvert",
            [
                *(sys.executable, "-c", _MNN_CONVERT, "-f", "ONNX"),
                *("--modelFile", str(model), "--MNNModel", str(converted), "--bizCode", "edgec"),
            ],
            converted,
        )
        import MNN

        names = [spec.name for spec in signature.inputs], [spec.name for spec in signature.outputs]
        manager = MNN.nn.create_runtime_manager(
            ({"backend": "CPU", "precision": "high", "numThread": threads},)
        )
        self._module = MNN.nn.load_module_from_file(str(converted), *names, runtime_manager=manager)
        self._names = names[1]
        self._inputs = [
            MNN.expr.placeholder(list(s.shape), MNN.expr.NCHW) for s in signature.inputs
        ]
        for variable, spec in zip(self._inputs, signature.inputs, strict=True):
            variable.write(np.array(inputs[spec.name]))

    def _run(self) -> list[Any]:
        results = self._module.forward(self._inputs)
        # Reading is what makes MNN compute.
        return [result.read() for result in results]

    def __call__(self) -> None:
        self._run()

    def outputs(self) -> dict[str, NDArray[Any]]:
        return dict(zip(self._names, self._run(), strict=True))


class _Ncnn:
    def __init__(
        self, model: Path, inputs: Tensors, signature: Signature, threads: int, scratch: Path
    ) -> None:
        parameters = convert_for_ncnn(model, signature, scratch)
        import ncnn

        self._ncnn = ncnn
        self._net = ncnn.Net()
        self._net.opt.num_threads = threads
        for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"):
            setattr(self._net.opt, option, False)
        weights = parameters.with_suffix(".bin")
        # An operator that ncnn has not is a code here, and a line on standard error.
        if self._net.load_param(str(parameters)) or self._net.load_model(str(weights)):
            raise ToolchainError("ncnn cannot load what pnnx made of the model")
        # pnnx numbers inputs and outputs, and drops the batch dimension.
        self._inputs = {
            f"in{number}": ncnn.Mat(np.ascontiguousarray(inputs[spec.name][0]))
            for number, spec in enumerate(signature.inputs)
        }
        self._names = [spec.name for spec in signature.outputs]
        self._shapes = [tuple(extent or 0 for extent in spec.shape) for spec in signature.outputs]

    def _run(self) -> list[NDArray[Any]]:
        extractor = self._net.create_extractor()
        for name, mat in self._inputs.items():
            extractor.input(name, mat)
        results = []
        for number, shape in enumerate(self._shapes):
            status, mat = extractor.extract(f"out{number}")
            if status != 0:
                raise ToolchainError("ncnn cannot run the model")
            results.append(np.array(mat).reshape(shape))
        return results

    def __call__(self) -> None:
        self._run()

    def outputs(self) -> dict[str, NDArray[Any]]:
        return dict(zip(self._names, self._run(), strict=True))


def convert_for_ncnn(model: Path, signature: Signature, scratch: Path) -> Path:
    """Return ncnn's file of a static ONNX file, beside which lie its weights in float32.

    Raises:
        ToolchainError: pnnx is missing, or cannot convert the model.
    """
    shapes = ",".join(
        "[" + ",".join(str(extent) for extent in spec.shape) + "]" for spec in signature.inputs
    )
    copy, parameters = scratch / "model.onnx", scratch / "model.ncnn.param"
    copy.write_bytes(model.read_bytes())
    _convert("pnnx", ["pnnx", str(copy), f"inputshape={shapes}", "fp16=0"], parameters)
    return parameters


def _convert(tool: str, command: list[str], result: Path) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=result.parent,
            capture_output=True,
            text=True,
            timeout=CONVERT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolchainError(f"{tool} cannot convert the model: {error}") from None
    if done.returncode != 0 or not result.is_file():
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise ToolchainError(f"{tool} cannot convert the model: {lines[-1][:REASON_CHARACTERS]}")


RIVALS: Mapping[str, RivalRuntime] = {
    rival.name: rival
    for rival in (
        RivalRuntime("onnxruntime", ("onnxruntime",), _OnnxRuntime),
        RivalRuntime("openvino", ("openvino",), _OpenVino),
        RivalRuntime("mnn", ("MNN",), _Mnn),
        RivalRuntime("ncnn", ("ncnn", "pnnx"), _Ncnn),
    )
}


def load_rival(
    rival: RivalRuntime,
    model: Path,
    inputs: Tensors,
    signature: Signature,
    threads: int,
    scratch: Path,
) -> Rival:
    """Return a runtime with the model loaded and run once.

    Each of them has models that it does not take, and errors of its own types for them.

    Args:
        rival: the runtime.
        model: a static ONNX file.
        inputs: input tensors.
        signature: inputs and outputs.
        threads: threads to compute on.
        scratch: an empty folder.

    Raises:
        ToolchainError: it cannot; why, in one line.
    """
    try:
        loaded = rival.load(model, inputs, signature, threads, scratch)
        loaded()
    except Exception as error:
        raise ToolchainError(reason_of(error)) from None
    return loaded


def reason_of(error: BaseException) -> str:
    """Return an error as one line: its first cause, and of that the last line, which is closest."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip(" -\t") for line in str(error).splitlines()]
    return next((line for line in reversed(lines) if line), type(error).__name__)[
        :REASON_CHARACTERS
    ]


def find_rival(name: str) -> RivalRuntime:
    """Return the runtime of this name.

    Raises:
        UsageError: there is none.
    """
    if name not in RIVALS:
        raise UsageError(
            f"unknown runtime {name!r}{did_you_mean(name, RIVALS)} Known: {', '.join(RIVALS)}"
        )
    return RIVALS[name]
