"""Run models in a runtime's package, on one thread, between marks that QEMU's plugin sees.

`python arm_worker.py RUNTIME JOBS.json`: edgec is not imported, as this runs in a Python for arm64
that has the runtime and NumPy. A job is `{"model": FILE, "inputs": FILE.npz, "halves": false}`;
`halves` lets a runtime compute floats in 16 bits where it likes to. Of each job a line says why it
cannot be done, or nothing; then it has set three marks, around nothing and around a run.
`rival_instructions.py` reads them.
"""

import gc
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Inputs = dict[str, NDArray[np.float32]]


def onnxruntime(model: Path, inputs: Inputs, _halves: bool) -> Callable[[], object]:
    """Return what runs the model once, from inputs and to outputs that are bound to it."""
    import onnxruntime as runtime  # noqa: TID251

    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = runtime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_cpu_input(name, array)
    for output in session.get_outputs():
        binding.bind_output(output.name)
    return lambda: session.run_with_iobinding(binding)


def ncnn(model: Path, inputs: Inputs, halves: bool) -> Callable[[], object]:
    """Return what runs the model once; beside it lies a file with its weights."""
    import ncnn as runtime

    net = runtime.Net()
    net.opt.num_threads = 1
    if not halves:
        for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"):
            setattr(net.opt, option, False)
    if net.load_param(str(model)) or net.load_model(str(model.with_suffix(".bin"))):
        raise RuntimeError("ncnn cannot load the model")
    # pnnx numbers inputs and outputs, and drops the batch dimension. Copied, as ncnn does not count
    # the owners of NumPy's memory, without which a first layer that works in place crashes.
    mats = [runtime.Mat(np.ascontiguousarray(array[0])).clone() for array in inputs.values()]
    outputs = net.output_names()

    def run() -> None:
        extractor = net.create_extractor()
        for number, mat in enumerate(mats):
            extractor.input(f"in{number}", mat)
        for name in outputs:
            status, _ = extractor.extract(name)
            if status:
                raise RuntimeError("ncnn cannot run the model")

    return run


RUNTIMES = {"onnxruntime": onnxruntime, "ncnn": ncnn}


def do(runtime: str, job: dict[str, Any]) -> None:
    with np.load(job["inputs"]) as arrays:
        run = RUNTIMES[runtime](Path(job["model"]), dict(arrays), job["halves"])
    run()
    gc.disable()
    # What a mark costs, and then what the model costs.
    os.getppid()
    os.getppid()
    run()
    os.getppid()
    gc.enable()


def main() -> None:
    runtime, jobs = sys.argv[1:]
    for job in json.loads(Path(jobs).read_text()):
        try:
            do(runtime, job)
        except Exception as error:
            lines = str(error).strip().splitlines()
            print(lines[-1] if lines else type(error).__name__, flush=True)
        else:
            print(flush=True)


if __name__ == "__main__":
    main()
