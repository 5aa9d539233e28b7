"""Count what other runtimes' packages for Arm execute, as `benchmark_instructions.py` asks.

The same versions as are installed here, fetched for arm64, run the same model under the same
counter (`emulated.py`, `arm_worker.py`). ONNX Runtime gets each of the files that its quantizer
makes, ncnn what its tools ncnn2table and ncnn2int8 make of pnnx's file.
"""

import itertools
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
from benchmark_quantize import quantized_files
from emulated import arm_python

from edgec.compiler.bench.rivals import convert_for_ncnn
from edgec.compiler.calibration.samples import Samples
from edgec.compiler.errors import ToolchainError
from edgec.compiler.ir.signature import Signature, Tensors
from edgec.compiler.support.processes import run_program
from edgec.targets.target import Target

WORKER = Path(__file__).parent / "arm_worker.py"
TOOL_SECONDS = 1800


@dataclass(frozen=True)
class Form:
    """A form describes one way in which a runtime computes a model.

    Attributes:
        kind: `int8`, `floats`, or `halves` for floats of 16 bits.
        name: tells it from others of its kind.
        model: the file.
    """

    kind: str
    name: str
    model: Path


@dataclass(frozen=True)
class Asked:
    """What a rival is to compute.

    Attributes:
        model: a static ONNX file.
        signature: its inputs and outputs.
        samples: what a quantizer looks at; the first one is the input.
        tools: folder of ncnn2table and ncnn2int8, None if there are none.
    """

    model: Path
    signature: Signature
    samples: Samples
    tools: Path | None


def onnxruntime_forms(asked: Asked, folder: Path) -> Iterator[Form]:
    """Yield the model, and what ONNX Runtime's quantizer makes of it."""
    yield Form("floats", "", asked.model)
    for name, path in quantized_files(asked.model, asked.samples, folder).items():
        # To Arm's instructions such weights are as any others.
        if name != "uint8 7-bit weights":
            yield Form("int8", name, path)


def ncnn_forms(asked: Asked, folder: Path) -> Iterator[Form]:
    """Yield the model with floats of 32 and 16 bits, and what ncnn's tools make of it.

    Raises:
        ToolchainError: a tool cannot.
    """
    model = convert_for_ncnn(asked.model, asked.signature, folder)
    yield Form("floats", "", model)
    yield Form("halves", "", model)
    if asked.tools is None:
        raise ToolchainError("int8 needs --ncnn-tools")
    lists = []
    for number, spec in enumerate(asked.signature.inputs):
        paths = []
        for sample_number, sample in enumerate(asked.samples):
            paths.append(folder / f"{number}-{sample_number}.npy")
            np.save(paths[-1], sample[spec.name][0].astype(np.float32))
        lists.append(folder / f"{number}.txt")
        lists[-1].write_text("".join(f"{path}\n" for path in paths))
    shapes = ",".join(
        str(list(reversed(spec.shape[1:]))).replace(" ", "") for spec in asked.signature.inputs
    )
    weights, table, int8 = model.with_suffix(".bin"), folder / "table", folder / "int8.param"
    for command in (
        [
            *("ncnn2table", str(model), str(weights), ",".join(map(str, lists)), str(table)),
            *(f"shape={shapes}", "method=kl", "type=1", "thread=1"),
        ],
        [
            *("ncnn2int8", str(model), str(weights), str(int8), str(int8.with_suffix(".bin"))),
            str(table),
        ],
    ):
        program = asked.tools.resolve() / command[0]
        if not program.is_file():
            raise ToolchainError(f"int8: {asked.tools} holds no {command[0]}")
        run_program([str(program), *command[1:]], f"{command[0]} cannot", TOOL_SECONDS, folder)
        if not (table if command[0] == "ncnn2table" else int8).is_file():
            raise ToolchainError(f"{command[0]} wrote nothing")
    yield Form("int8", "", int8)


FORMS: Mapping[str, Callable[[Asked, Path], Iterator[Form]]] = {
    "onnxruntime": onnxruntime_forms,
    "ncnn": ncnn_forms,
}


@dataclass(frozen=True)
class Found:
    """What a rival executes: least instructions by kind, and why it cannot do the others."""

    instructions: dict[str, int] = field(default_factory=dict)
    cannot: list[str] = field(default_factory=list)


def count_rival(
    name: str, asked: Mapping[str, Asked], targets: Mapping[str, Target]
) -> dict[tuple[str, str], Found]:
    """Return what a runtime executes, by the names of models and targets.

    Args:
        name: in `FORMS`.
        asked: by the name of a model.
        targets: by their names; a process each does all models, as it takes long to begin.
    """
    python = arm_python([f"{package}=={version(package)}" for package in (name, "numpy")])
    found = {(model, board): Found() for model in asked for board in targets}
    with tempfile.TemporaryDirectory(prefix="edgec-rival-") as text:
        forms, jobs = [], []
        for model, wanted in asked.items():
            folder = Path(text) / model
            folder.mkdir()
            given: Tensors = next(iter(wanted.samples))
            inputs = folder / "inputs.npz"
            np.savez(inputs, **{spec.name: given[spec.name] for spec in wanted.signature.inputs})
            try:
                for form in FORMS[name](wanted, folder):
                    halves = form.kind != "floats"
                    forms.append((model, form))
                    jobs.append({"model": str(form.model), "inputs": str(inputs), "halves": halves})
            except ToolchainError as error:
                for board in targets:
                    found[model, board].cannot.append(str(error))
        (Path(text) / "jobs.json").write_text(json.dumps(jobs))
        for board, target in targets.items():
            try:
                counted = python.count(target, WORKER, [name, f"{text}/jobs.json"])
            except ToolchainError as error:
                for model in asked:
                    found[model, board].cannot.append(str(error))
                continue
            marks = iter(counted.marks)
            for (model, form), why in zip(forms, counted.output.split("\n"), strict=False):
                said = found[model, board]
                if why:
                    said.cannot.append(f"{form.kind} {form.name}: {why}")
                    continue
                before, between, after = itertools.islice(marks, 3)
                total = after - between - (between - before)
                said.instructions[form.kind] = min(total, said.instructions.get(form.kind, total))
    return found
