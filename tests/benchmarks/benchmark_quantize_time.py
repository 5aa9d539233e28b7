"""How long int8 takes, and how much memory: edgec beside NNCF and ONNX Runtime.

The same models and the same samples, each tool in a process of its own, from the ONNX file to the
file that is run: a verified bundle (edgec), an OpenVINO model (NNCF), a QDQ graph (ONNX Runtime).
Seconds are those of CPUs, of the process and those that it started: other work of the machine does
not count. Caches of kernels are empty; the C library's stubs, which the first link on a machine
makes once, are there.

    python tests/benchmarks/benchmark_quantize_time.py [MODEL ...] [--samples 64] [--no-parity]

NNCF needs `nncf` and `openvino`; a tool that is not installed is left out.
"""

import argparse
import datetime
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_path

from edgec.targets.native import cpu_name

Samples = dict[str, NDArray[Any]]

IMAGES: dict[str, dict[str, tuple[int, ...]]] = {
    "efficientnet-lite0": {"image": (1, 3, 224, 224)},
    "pp-ocr-rec": {"x": (1, 3, 48, 320)},
    "yolov8n-320": {"images": (1, 3, 320, 320)},
}
TOKENS = {"minilm-l6": ("input_ids", "attention_mask", "token_type_ids")}
LENGTH, WORDS = 128, 30000
MODELS = (*IMAGES, *TOKENS)
TOOLS = {"edgec": "edgec", "nncf": "nncf", "onnxruntime": "onnxruntime"}


@dataclass(frozen=True)
class Cost:
    """A cost describes what one run took.

    Attributes:
        seconds: of CPUs, in the process and its children.
        peak_mb: resident memory of the process, or of one that it started.
        failure: the last line that it said, if it failed.
    """

    seconds: float
    peak_mb: float
    failure: str = ""


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--no-parity", action="store_true", help="edgec checks nothing")
    parser.add_argument("--tool", choices=TOOLS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    models = arguments.models or list(MODELS)
    unknown = [model for model in models if model not in MODELS]
    if unknown:
        parser.error(f"{unknown[0]} is none of {', '.join(MODELS)}")
    if arguments.tool:
        RUNS[arguments.tool](models[0], arguments.folder, not arguments.no_parity)
        return 0
    tools = [tool for tool in TOOLS if importlib.util.find_spec(tool) is not None]
    print(_conditions(tools, arguments.samples))
    print(
        "| model | " + " | ".join(f"{tool} [CPU s] | [MB]" for tool in tools) + " | edgec / nncf |"
    )
    print("|---" * (2 * len(tools) + 2) + "|")
    failed = False
    for model in models:
        with tempfile.TemporaryDirectory() as folder:
            _prepare(model, Path(folder), arguments.samples)
            costs = {t: _measure(t, model, Path(folder), arguments.no_parity) for t in tools}
        failed |= any(cost.failure for cost in costs.values())
        print(_row(model, costs), flush=True)
    return int(failed)


def _conditions(tools: list[str], samples: int) -> str:
    versions = [f"{tool} {importlib.metadata.version(tool)}" for tool in tools]
    today = datetime.datetime.now(datetime.UTC).date()
    return (
        f"{today}, {cpu_name()}, {len(os.sched_getaffinity(0))} CPUs, {', '.join(versions)}, "
        f"{samples} samples\n"
    )


def _row(model: str, costs: dict[str, Cost]) -> str:
    cells = [
        f"{cost.failure[:80]} | " if cost.failure else f"{cost.seconds:.1f} | {cost.peak_mb:.0f}"
        for cost in costs.values()
    ]
    ratio = ""
    if "nncf" in costs and not any(costs[tool].failure for tool in ("edgec", "nncf")):
        ratio = f"{costs['edgec'].seconds / costs['nncf'].seconds:.2f}"
    return f"| {model} | {' | '.join(cells)} | {ratio} |"


def _prepare(model: str, folder: Path, count: int) -> None:
    """Write the model and its samples; values do not matter to the time."""
    subprocess.run(
        [sys.executable, "-m", "edgec.compiler", "models", model, "-o", str(folder / "model.onnx")],
        check=True,
        capture_output=True,
    )
    random = np.random.default_rng(0)
    if model in IMAGES:
        values = {
            name: random.standard_normal((count, *shape[1:])).astype(np.float32)
            for name, shape in IMAGES[model].items()
        }
    else:
        values = {name: np.zeros((count, LENGTH), np.int64) for name in TOKENS[model]}
        values["input_ids"][:] = random.integers(1, WORDS, (count, LENGTH))
        values["attention_mask"][:] = 1
    np.savez(folder / "samples.npz", **values)


def _measure(tool: str, model: str, folder: Path, no_parity: bool) -> Cost:
    command = [sys.executable, __file__, model, "--tool", tool, "--folder", str(folder)]
    stubs = os.environ.get("ZIG_GLOBAL_CACHE_DIR", str(user_cache_path("zig")))
    caches = {"XDG_CACHE_HOME": str(folder / "cache"), "ZIG_GLOBAL_CACHE_DIR": stubs}
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen(
            [*command, *(["--no-parity"] if no_parity else [])],
            stdout=log,
            stderr=log,
            env={**os.environ, **caches},
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = usage.ru_utime + usage.ru_stime
        log.seek(0)
        said = log.read().splitlines() or ["no message"]
    return Cost(seconds, usage.ru_maxrss / 1024, said[-1] if status else "")


def _shapes(model: str) -> dict[str, tuple[int, ...]]:
    return IMAGES.get(model) or dict.fromkeys(TOKENS[model], (1, LENGTH))


def _batches(folder: Path) -> Iterator[Samples]:
    with np.load(folder / "samples.npz") as samples:
        arrays = {name: samples[name] for name in samples.files}
    for position in range(len(next(iter(arrays.values())))):
        yield {name: array[position : position + 1] for name, array in arrays.items()}


def _edgec(model: str, folder: Path, parity: bool) -> None:
    from edgec.compiler import CompileOptions, compile_model
    from edgec.compiler.calibration.samples import SampleOptions
    from edgec.compiler.quantize.options import QuantizeOptions
    from edgec.compiler.quantize.quantization_recipe import load_recipe
    from edgec.compiler.support.progress import Steps

    options = CompileOptions(
        shapes=_shapes(model),
        quantize=QuantizeOptions(recipe=load_recipe("int8")),
        samples=SampleOptions(source=str(folder / "samples.npz")),
        parity=parity,
    )
    compile_model(
        folder / "model.onnx", options=options, output=folder / "model.edgec", progress=Steps()
    )


def _nncf(model: str, folder: Path, _parity: bool) -> None:
    # Before nncf, which imports it too.
    from edgec.compiler.support.silent_openvino import openvino  # noqa: I001
    import nncf

    loaded = openvino.convert_model(folder / "model.onnx")
    loaded.reshape({name: list(shape) for name, shape in _shapes(model).items()})
    batches = list(_batches(folder))
    kind = nncf.ModelType.TRANSFORMER if model in TOKENS else None
    quantized = nncf.quantize(
        loaded, nncf.Dataset(batches), subset_size=len(batches), model_type=kind
    )
    openvino.save_model(quantized, folder / "model.xml")


def _onnxruntime(_model: str, folder: Path, _parity: bool) -> None:
    import edgec.compiler.support.silent_onnxruntime  # noqa: F401, I001  before the next ones
    from onnxruntime.quantization import (  # noqa: TID251
        CalibrationDataReader,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: TID251

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = _batches(folder)

        def get_next(self) -> Samples | None:
            return next(self.batches, None)

    prepared = folder / "prepared.onnx"
    # Its symbolic shapes refuse some of the models.
    quant_pre_process(folder / "model.onnx", prepared, skip_symbolic_shape=True)
    quantize_static(prepared, folder / "int8.onnx", Reader())


RUNS: dict[str, Callable[[str, Path, bool], None]] = {
    "edgec": _edgec,
    "nncf": _nncf,
    "onnxruntime": _onnxruntime,
}


if __name__ == "__main__":
    sys.exit(main())
