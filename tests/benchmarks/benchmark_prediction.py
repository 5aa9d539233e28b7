"""Measure kernels of models, and fit the correction that predictions use.

    python tests/benchmarks/benchmark_prediction.py prepare native -o FOLDER
    python tests/benchmarks/benchmark_prediction.py measure FOLDER/native --seconds 60
    python tests/benchmarks/benchmark_prediction.py prepare qemu-rpi4 -o FOLDER
    python tests/benchmarks/benchmark_prediction.py fit FOLDER/native -o compiler/predict

`prepare` compiles models and writes the features of each kernel call; for a board of QEMU it counts
the instructions as well. `measure` times the kernels here, in the model that they are part of, one
round over all models after the other, as often as it is called: a kernel's time is the median over
rounds of the shortest in a round. `fit` fits on the models of TRAINED, on single operators and
on random networks, and writes the file of factors with its error on HELD_OUT, which it never sees.
`refresh` computes the features anew, after a change of how they are counted.
"""

import argparse
import json
import pickle
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from operator_cases import CASES, NETWORKS
from prediction_fit import fit
from random_networks import random_network

from edgec.compiler import CompileOptions
from edgec.compiler.backend import build, pack, schedule
from edgec.compiler.boards.instructions import count_instructions
from edgec.compiler.calibration.samples import samples_from_tensors
from edgec.compiler.frontend.canonical import CanonicalModel, canonical_model
from edgec.compiler.ir.program import Program
from edgec.compiler.lowering.legalize import lower
from edgec.compiler.lowering.schedule import default_decide
from edgec.compiler.predict.features import step_features, traffic_of, weight_bytes_of
from edgec.compiler.runtime.inputs import generate_inputs
from edgec.compiler.runtime.session import open_session
from edgec.compiler.runtime.static_session import StaticSession
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
# Operators by themselves, so that kernels that these models hardly use are known, too.
OPERATORS = tuple(f"operator:{case.name}" for case in (*CASES[::3], *NETWORKS[::2]))
# Every third once more in int8.
RANDOM = tuple(
    f"random:{seed}{recipe}"
    for seed in range(80)
    for recipe in (["", "+int8"] if seed % 3 == 0 else [""])
)

# Of each model in a round.
TURN_SECONDS, TURN_RUNS = 0.06, 20


def programs(name: str, target: Target) -> tuple[Program, Any]:
    """Return a scheduled program and inputs of a model, `NAME+RECIPE`."""
    if name.startswith("operator:"):
        return operator_program(name, target)
    model, _, recipe = name.partition("+")
    canonical = canonical_of(model)
    signature = canonical.signature
    inputs = generate_inputs(signature.inputs, 0, {})
    module = canonical.module
    if recipe:
        drawn = [generate_inputs(signature.inputs, seed, {}) for seed in range(2)]
        tensors = {key: np.concatenate([item[key] for item in drawn]) for key in drawn[0]}
        opened = samples_from_tensors(tensors, signature.inputs)
        options = CompileOptions(quantize=recipe, parity=False)
        if options.quantization is not None:
            # Shapes and kernels do not depend on how values are rounded.
            quantize = replace(options.quantization, repair=False)
            options = replace(options, quantize=quantize)
        changed = transform_model(
            canonical, target, options, opened, inputs, "0" * 64, Silent(), decide=default_decide
        )
        module = changed.module
    packed = pack(module, target, canonical.value_names)
    scheduled = schedule(lower(packed, target), module, target, signature)
    assert isinstance(scheduled, Program), name
    return scheduled, (signature, inputs)


def canonical_of(model: str) -> CanonicalModel:
    """Return a model of the catalogue, or a random network."""
    if model.startswith("random:"):
        return canonical_model(random_network(int(model.partition(":")[2])))
    entry = load_model_recipe(model)
    freeze = {key: np.array(value) for key, value in entry.freeze.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = entry.write(Path(folder) / entry.file_name)
        return canonical_model(path, entry.shapes, freeze)


def operator_program(name: str, target: Target) -> tuple[Program, Any]:
    """Return a program of one operator of `operator_cases.py`."""
    case = next(case for case in (*CASES, *NETWORKS) if case.name == name.partition(":")[2])
    canonical = canonical_model(case.model())
    packed = pack(canonical.module, target, canonical.value_names)
    scheduled = schedule(lower(packed, target), canonical.module, target, canonical.signature)
    if not isinstance(scheduled, Program):
        raise ValueError("needs the virtual machine")
    return scheduled, (canonical.signature, dict(case.inputs))


def features_of(name: str, program: Program, target: Target) -> list[dict[str, Any]]:
    """Return a line for each kernel call, without what is measured."""
    found = []
    moves = traffic_of(program, target, weight_bytes_of(program))
    for step, moved in zip(program.steps, moves, strict=True):
        code = program.functions[step.kernel]
        one = step_features(step, code, moved, target)
        found.append(
            {
                "model": name,
                "label": step.label,
                "kind": one.kind,
                "kernel": step.kernel,
                "tasks": step.tasks,
                "flops": step.flops,
                "counted": one.counted,
                "row": [round(float(x), 3) for x in one.row],
                "context": [float(x) for x in one.context],
                "workload": step.workload,
            }
        )
    return found


def prepare(names: Sequence[str], target: Target, folder: Path, counted: bool) -> None:
    """Compile models that are not in the folder yet, and count their instructions if wanted."""
    for name in names:
        place = folder / name.replace("/", "_").replace(" ", "_")
        if (place / "lines.json").exists():
            continue
        start = time.process_time()
        try:
            place.mkdir(parents=True, exist_ok=True)
            program, (signature, inputs) = programs(name, target)
            lines = features_of(name, program, target)
            library = place / "model.so"
            executor, _ = build([program], target, library)
            if counted:
                arrays = [inputs[spec.name] for spec in signature.inputs]
                steps = count_instructions(library, target, arrays).steps
                for line, step in zip(lines, steps, strict=True):
                    line["value"] = step.instructions
                library.unlink()
            else:
                opened = pickle.dumps((signature, inputs, executor))
                (place / "session.pickle").write_bytes(opened)
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
            continue
        (place / "lines.json").write_text(json.dumps(lines))
        print(f"{name}: {len(lines)} calls, {time.process_time() - start:.0f} s", flush=True)


def refresh(folder: Path, target: Target) -> None:
    """Compute features anew, where kernels are still those that were measured."""
    for path in sorted(folder.glob("*/lines.json")):
        old = json.loads(path.read_text())
        program, _ = programs(old[0]["model"], target)
        lines = features_of(old[0]["model"], program, target)
        if [line["kernel"] for line in lines] != [line["kernel"] for line in old]:
            print(f"{old[0]['model']}: its kernels have changed; prepare it again", flush=True)
            continue
        for line, before in zip(lines, old, strict=True):
            line |= {key: before[key] for key in ("value",) if key in before}
        path.write_text(json.dumps(lines))


def measure(folder: Path, target: Target, seconds: float) -> None:
    """Time the kernels of all models in turn, those first that were measured least."""
    deadline = time.perf_counter() + seconds
    places = [path.parent for path in folder.glob("*/session.pickle")]
    places = [place for place in places if (place / "lines.json").exists()]
    done = {place: _rounds(place) for place in places}
    turns = 0
    for place in sorted(places, key=lambda place: (len(done[place]), place.name)):
        if time.perf_counter() > deadline:
            break
        signature, inputs, executor = pickle.loads((place / "session.pickle").read_bytes())
        session = open_session(place / "model.so", target, signature, executor, 1)
        assert isinstance(session, StaticSession)
        prepared = session.prepare(inputs)
        session.run_prepared(prepared)
        end = time.perf_counter() + TURN_SECONDS
        runs = [session.run_timed(prepared)]
        while (time.perf_counter() < end and len(runs) < TURN_RUNS) or len(runs) < 3:
            runs.append(session.run_timed(prepared))
        least = np.min(np.stack(runs), axis=0)
        with (place / "rounds.jsonl").open("a") as stream:
            stream.write(json.dumps([int(value) for value in least]) + "\n")
        turns += 1
        del session
    fewest = min(len(_rounds(place)) for place in places)
    print(f"{turns} turns; {len(places)} models have {fewest} rounds or more")


def _rounds(place: Path) -> list[list[int]]:
    path = place / "rounds.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def gathered(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of all models that were measured, with `value` and both halves of it."""
    found = []
    for path in sorted(folder.glob("*/lines.json")):
        lines, rounds = json.loads(path.read_text()), _rounds(path.parent)
        if rounds:
            times = np.array(rounds, np.float64)
            halves = [np.median(times[part::2], axis=0) for part in range(min(2, len(times)))]
            for number, line in enumerate(lines):
                line["value"] = float(np.median(times[:, number]))
                line["halves"] = [float(half[number]) for half in halves]
        found += [line for line in lines if "value" in line]
    return found


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("prepare", "measure", "refresh", "fit"))
    parser.add_argument("what", help="a target, qemu-TARGET, or the folder of what was prepared")
    parser.add_argument("--models", default="", help="names; operators, random, trained, held")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    name = Path(arguments.what).name
    target = load_target(name.removeprefix("qemu-"))
    counted = name.startswith("qemu-")
    if arguments.action == "prepare":
        groups = {"operators": OPERATORS, "random": RANDOM, "trained": TRAINED, "held": HELD_OUT}
        chosen: list[str] = []
        for word in (arguments.models or "trained,held,random,operators").split(","):
            chosen += groups.get(word, (word,))
        prepare(chosen, target, arguments.output / arguments.what, counted)
    elif arguments.action == "measure":
        measure(Path(arguments.what), target, arguments.seconds)
    elif arguments.action == "refresh":
        refresh(Path(arguments.what), target)
    else:
        unit = "instructions" if counted else "ns"
        fit(gathered(Path(arguments.what)), target, unit, arguments.output, HELD_OUT)


if __name__ == "__main__":
    main()
