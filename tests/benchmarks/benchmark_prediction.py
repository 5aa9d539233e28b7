"""Measure kernels of real models, and fit the correction that predictions use.

    python tests/benchmarks/benchmark_prediction.py measure native --rows rows -o FOLDER
    python tests/benchmarks/benchmark_prediction.py measure qemu-rpi4 -o FOLDER
    python tests/benchmarks/benchmark_prediction.py fit FOLDER/native.jsonl -o compiler/predict/fits
    python tests/benchmarks/benchmark_prediction.py check FOLDER/native.jsonl

`measure` compiles models and writes a line for each kernel call: its features, and its time in
nanoseconds here (all models in turn, medians), or its instructions under QEMU. `fit` fits on the
models of TRAINED and writes the file of factors with its error on HELD_OUT, which it never sees.
`check` prints how far predictions are off, per operator and per model.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgec.compiler import CompileOptions
from edgec.compiler.backend import build, pack, schedule
from edgec.compiler.boards.instructions import count_instructions
from edgec.compiler.calibration.samples import samples_from_tensors
from edgec.compiler.frontend.canonical import canonical_model
from edgec.compiler.ir.program import Program
from edgec.compiler.lowering.legalize import lower
from edgec.compiler.lowering.schedule import default_decide
from edgec.compiler.predict.features import step_features
from edgec.compiler.runtime.inputs import generate_inputs
from edgec.compiler.runtime.session import StaticSession, open_session
from edgec.compiler.support.progress import Silent
from edgec.compiler.transform import transform_model
from edgec.models import load_model_recipe
from edgec.targets import Target, load_target

TRAINED = (
    "digits",
    "digits28",
    "digits28+int8",
    "pp-ocr-cls",
    "pp-ocr-cls+int8",
    "pp-ocr-det",
    "efficientnet-lite0",
    "efficientnet-lite0+int8",
    "light_squeezenet",
    "light_squeezenet+int8",
    "light_inception_v1",
    "light_densenet121",
    "light_zfnet512",
    "minilm-l6",
    "minilm-l6+int8-weight-only",
    "silero-vad-ifless",
)
HELD_OUT = (
    "pp-ocr-rec",
    "pp-ocr-rec+int8",
    "yolov8n-320",
    "yolov8n-320+int8",
    "light_shufflenet",
    "light_inception_v2",
    "light_resnet50",
    "light_resnet50+int8",
)


def programs(name: str, target: Target) -> tuple[Program, Any]:
    """Return a scheduled program and inputs of a model of the catalogue, `NAME+RECIPE`."""
    model, _, recipe = name.partition("+")
    entry = load_model_recipe(model)
    freeze = {key: np.array(value) for key, value in entry.freeze.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = entry.write(Path(folder) / entry.file_name)
        canonical = canonical_model(path, entry.shapes, freeze)
    signature = canonical.signature
    inputs = generate_inputs(signature.inputs, 0, {})
    module = canonical.module
    if recipe:
        drawn = [generate_inputs(signature.inputs, seed, {}) for seed in range(2)]
        tensors = {key: np.concatenate([item[key] for item in drawn]) for key in drawn[0]}
        opened = samples_from_tensors(tensors, signature.inputs)
        options = CompileOptions(quantize=recipe, parity=False)
        changed = transform_model(
            canonical, target, options, opened, inputs, "0" * 64, Silent(), decide=default_decide
        )
        module = changed.module
    packed = pack(module, target, canonical.value_names)
    scheduled = schedule(lower(packed, target), module, target, signature)
    assert isinstance(scheduled, Program), name
    return scheduled, (signature, inputs)


def features_of(name: str, program: Program, target: Target) -> list[dict[str, Any]]:
    """Return a line for each kernel call, without what is measured."""
    found = []
    for step in program.steps:
        one = step_features(step, program.functions[step.kernel], target, default_decide)
        found.append(
            {
                "model": name,
                "label": step.label,
                "template": step.template,
                "kernel": step.kernel,
                "tasks": step.tasks,
                "flops": step.flops,
                "counted": one.counted,
                "row": [round(float(x), 3) for x in one.row],
                "workload": step.workload,
            }
        )
    return found


def measure_here(names: Sequence[str], target: Target, rounds: int, folder: Path) -> list[Any]:
    """Return lines with the time of each kernel call here [ns], models in turn."""
    sessions, lines = [], []
    for name in names:
        start = time.perf_counter()
        try:
            program, (signature, inputs) = programs(name, target)
            rows = features_of(name, program, target)
            library = folder / f"{len(sessions)}" / "model.so"
            library.parent.mkdir()
            executor, _ = build([program], target, library)
            session = open_session(library, target, signature, executor)
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
            continue
        assert isinstance(session, StaticSession)
        sessions.append((session, session.prepare(inputs)))
        lines.append(rows)
        print(f"{name}: {len(rows)} calls, {time.perf_counter() - start:.0f} s", flush=True)
        del program
    times: list[list[Any]] = [[] for _ in sessions]
    for _ in range(rounds):
        for (session, prepared), mine in zip(sessions, times, strict=True):
            session.run_prepared(prepared)
            deadline = time.perf_counter() + 0.05
            turn = [session.run_timed(prepared)]
            while time.perf_counter() < deadline and len(turn) < 20:
                turn.append(session.run_timed(prepared))
            mine.append(np.median(np.stack(turn), axis=0))
    for rows, mine in zip(lines, times, strict=True):
        stacked = np.stack(mine)
        median, half = np.median(stacked, axis=0), len(stacked) // 2
        first, second = np.median(stacked[:half], axis=0), np.median(stacked[half:], axis=0)
        for row, value, one, other in zip(rows, median, first, second, strict=True):
            row |= {"value": float(value), "halves": [float(one), float(other)]}
    return [row for rows in lines for row in rows]


def count_there(names: Sequence[str], target: Target, folder: Path) -> list[Any]:
    """Return lines with the instructions of each kernel call under QEMU."""
    lines = []
    for name in names:
        start = time.perf_counter()
        try:
            program, (signature, inputs) = programs(name, target)
            rows = features_of(name, program, target)
            library = folder / "model.so"
            build([program], target, library)
            arrays = [inputs[spec.name] for spec in signature.inputs]
            counted = count_instructions(library, target, arrays)
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
            continue
        for row, step in zip(rows, counted.steps, strict=True):
            row["value"] = step.instructions
        lines += rows
        print(f"{name}: {len(rows)} calls, {time.perf_counter() - start:.0f} s", flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("measure",))
    parser.add_argument("what")
    parser.add_argument("--models", default="")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    chosen = arguments.models.split(",") if arguments.models else [*TRAINED, *HELD_OUT]
    target = load_target(arguments.what.removeprefix("qemu-"))
    with tempfile.TemporaryDirectory() as name:
        if arguments.what.startswith("qemu-"):
            lines = count_there(chosen, target, Path(name))
        else:
            lines = measure_here(chosen, target, arguments.rounds, Path(name))
    arguments.output.mkdir(parents=True, exist_ok=True)
    with (arguments.output / f"{arguments.what}.jsonl").open("a") as stream:
        for line in lines:
            stream.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
