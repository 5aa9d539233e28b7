"""Measure kernels of real models, and fit the correction that predictions use.

    python tests/benchmarks/benchmark_prediction.py measure native -o FOLDER
    python tests/benchmarks/benchmark_prediction.py measure qemu-rpi4 -o FOLDER
    python tests/benchmarks/benchmark_prediction.py fit FOLDER/native.jsonl -o compiler/predict

`measure` compiles models and writes a line for each kernel call: its features, and its time in
nanoseconds here (all models in turn, medians), or its instructions under QEMU. `fit` fits on the
models of TRAINED and writes the file of factors with its error on HELD_OUT, which it never sees.
`refresh` computes the features of
measured lines anew, after a change of how they are counted.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from operator_cases import CASES, NETWORKS
from scipy.optimize import nnls

from edgec.compiler import CompileOptions
from edgec.compiler.backend import build, pack, schedule
from edgec.compiler.boards.instructions import count_instructions
from edgec.compiler.calibration.samples import samples_from_tensors
from edgec.compiler.frontend.canonical import canonical_model
from edgec.compiler.ir.program import Program
from edgec.compiler.lowering.legalize import lower
from edgec.compiler.lowering.schedule import default_decide
from edgec.compiler.predict.correction import UNCOUNTED, Fit, TemplateFit
from edgec.compiler.predict.features import FEATURES, Row, step_features, traffic_of
from edgec.compiler.runtime.inputs import generate_inputs
from edgec.compiler.runtime.session import StaticSession, open_session
from edgec.compiler.support.progress import Silent
from edgec.compiler.transform import transform_model
from edgec.models import load_model_recipe
from edgec.targets import Target, load_target
from edgec.targets.native import cpu_name

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
# Operators by themselves, so that kernels that these models hardly use are known, too.
OPERATORS = tuple(f"operator:{case.name}" for case in (*CASES[::3], *NETWORKS[::2]))
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
    if name.startswith("operator:"):
        return operator_program(name, target)
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
    for step, moved in zip(program.steps, traffic_of(program, target), strict=True):
        code = program.functions[step.kernel]
        one = step_features(step, code, moved, target, default_decide)
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


def refreshed(
    old: Sequence[dict[str, Any]], target: Target, chosen: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yield lines of an earlier run with their features of today, model by model."""
    for name in dict.fromkeys(line["model"] for line in old):
        if chosen and name not in chosen:
            continue
        mine = [line for line in old if line["model"] == name]
        program, _ = programs(name, target)
        rows = features_of(name, program, target)
        if [row["kernel"] for row in rows] != [line["kernel"] for line in mine]:
            print(f"{name}: its kernels have changed; measure it again", flush=True)
            continue
        for row, line in zip(rows, mine, strict=True):
            yield row | {key: line[key] for key in ("value", "halves") if key in line}
        print(f"{name}: {len(rows)} calls", flush=True)


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


# Calls of one kind pull towards the factors of all kinds as this many calls would.
PRIOR_CALLS = 3.0
# A call that is further off than this counts less and less (iteratively reweighted least squares).
ROBUST = 0.05
FOLDS = 5
ITERATIONS = 15
FEWEST_CALLS = 3
CALLS_FOR_A_BAR = 10


def fit_factors(rows: Row, values: Row, scale: Row, prior: Row | None = None) -> Row:
    """Return the factors, none below zero, of the least error by ratio.

    Half and twice are equally wrong: each error is divided by the mean, of products, of what was
    measured and what the factors of the turn before say.

    Args:
        rows: features [calls, features].
        values: what was measured [calls].
        scale: of each feature, relative to what was measured.
        prior: factors that few calls do not change much.
    """
    weights, middle = np.ones(len(values)), values
    factors = np.zeros(rows.shape[1])
    for _ in range(ITERATIONS):
        left = rows / scale / middle[:, None] * weights[:, None]
        right = values / middle * weights
        if prior is not None:
            left = np.vstack([left, np.sqrt(PRIOR_CALLS) * np.eye(len(scale))])
            right = np.concatenate([right, np.sqrt(PRIOR_CALLS) * prior * scale])
        factors = nnls(left, right)[0] / scale
        says = np.maximum(rows @ factors, 1e-3 * values)
        middle = np.sqrt(values * says)
        error = np.abs(says - values) / middle
        weights = 1 / np.sqrt(np.maximum(error, ROBUST))
    return np.asarray(factors)


def scale_of(calls: "Calls") -> Row:
    """Return how large each feature is, relative to what was measured."""
    relative = np.sqrt(((calls.rows / calls.values[:, None]) ** 2).mean(axis=0))
    return np.asarray(np.where(relative > 0, relative, 1.0))


@dataclass
class Calls:
    """Calls are what was measured: kind, features, value and model of each."""

    kinds: Any
    rows: Row
    values: Row
    models: Any

    @classmethod
    def read(cls, paths: Sequence[Path], unit: str) -> "Calls":
        """Read lines of `measure`; instructions do not depend on where bytes come from."""
        lines = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
        rows = np.array([line["row"] for line in lines])
        if unit == "instructions":
            for name in ("near_bytes", "middle_bytes", "far_bytes", "cycles"):
                rows[:, FEATURES.index(name)] = 0
        kinds = [line["kind"] if line["counted"] else UNCOUNTED for line in lines]
        values = np.array([max(1.0, line["value"]) for line in lines])
        return cls(np.array(kinds), rows, values, np.array([line["model"] for line in lines]))

    def where(self, mask: Any) -> "Calls":
        """Return some of the calls."""
        return Calls(self.kinds[mask], self.rows[mask], self.values[mask], self.models[mask])


def fit_kinds(calls: Calls) -> dict[str, Row]:
    """Return factors by kind, and `any` for all together."""
    scale = scale_of(calls)
    common = fit_factors(calls.rows, calls.values, scale)
    found = {"any": common}
    for kind in np.unique(calls.kinds):
        mine = calls.kinds == kind
        if mine.sum() >= FEWEST_CALLS:
            found[str(kind)] = fit_factors(calls.rows[mine], calls.values[mine], scale, common)
    return found


def predicted(factors: dict[str, Row], calls: Calls) -> Row:
    """Return what the factors say of calls."""
    chosen = np.stack([factors.get(str(kind), factors["any"]) for kind in calls.kinds])
    return np.asarray((chosen * calls.rows).sum(axis=1))


def left_out_ratios(calls: Calls) -> Row:
    """Return measured over predicted of each call, by a fit that has not seen its model."""
    names = np.array(sorted(set(calls.models)))
    fold = {name: number % FOLDS for number, name in enumerate(names)}
    folds = np.array([fold[name] for name in calls.models])
    ratios = np.ones(len(calls.values))
    for number in range(FOLDS):
        out = folds == number
        ratios[out] = calls.values[out] / predicted(fit_kinds(calls.where(~out)), calls.where(out))
    return ratios


def fit(paths: Sequence[Path], target: Target, unit: Any, output: Path) -> None:
    """Fit on all models but HELD_OUT, and write the factors with their error on those."""
    calls = Calls.read(paths, unit)
    held = np.isin(calls.models, HELD_OUT)
    trained, unseen = calls.where(~held), calls.where(held)
    factors, ratios = fit_kinds(trained), left_out_ratios(trained)
    strangers = trained.values / (trained.rows @ factors["any"])
    templates = {}
    for kind, row in factors.items():
        mine = trained.kinds == kind
        # Of a kind that is hardly known the factors are those of all kinds.
        spread = ratios[mine] if mine.sum() >= CALLS_FOR_A_BAR else strangers
        low, high = np.percentile(spread, [10, 90])
        templates[kind] = TemplateFit(
            factors={n: float(f"{v:.4g}") for n, v in zip(FEATURES, row, strict=True) if v > 0},
            low=float(f"{min(1.0, low):.3g}"),
            high=float(f"{max(1.0, high):.3g}"),
            calls=int(mine.sum()) if kind != "any" else len(trained.values),
        )
    share = predicted(factors, unseen) / unseen.values
    models = {
        str(name): round(
            float(
                predicted(factors, unseen)[unseen.models == name].sum()
                / unseen.values[unseen.models == name].sum()
            ),
            3,
        )
        for name in dict.fromkeys(unseen.models)
    }
    names = dict.fromkeys(str(name).partition(":")[0] for name in trained.models)
    found = Fit(
        unit=unit,
        architecture=target.architecture,
        vector_bits=target.vector_bits,
        target=target.name,
        clock_ghz=target.clock_ghz,
        machine=cpu_name() if unit == "ns" else f"QEMU {target.emulator and target.emulator.cpu}",
        date=time.strftime("%Y-%m-%d"),
        trained=tuple(names),
        held_out=tuple(models),
        templates=templates,
        within=round(float((np.abs(share - 1) <= 0.2).mean()), 3),
        models=models,
    )
    output.mkdir(parents=True, exist_ok=True)
    kind = "times" if unit == "ns" else "instructions"
    path = output / f"{target.architecture}-{target.vector_bits}-{kind}.json"
    path.write_text(found.model_dump_json(indent=1) + "\n")
    print(found.describe())
    for kind in sorted(set(unseen.kinds)):
        mine = unseen.kinds == kind
        within = (np.abs(share[mine] - 1) <= 0.2).mean()
        print(f"  {kind:22}{mine.sum():5} calls, {within:.0%} within 20 %")
    for name, ratio in models.items():
        mine = unseen.models == name
        within = (np.abs(share[mine] - 1) <= 0.2).mean()
        print(f"  {name:28} {ratio:.3f} as a whole, {within:.0%} of the calls within 20 %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("measure", "refresh", "fit"))
    parser.add_argument("what", help="a target, qemu-TARGET, or a file of measurements")
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="more of them, for fit")
    parser.add_argument("--models", default="")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--together", type=int, default=24, help="models that take turns")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.action == "measure":
        measure(arguments)
    elif arguments.action == "fit":
        source = Path(arguments.what)
        name = source.stem.rpartition("_")[2]
        unit = "instructions" if name.startswith("qemu-") else "ns"
        target = load_target(name.removeprefix("qemu-"))
        fit([source, *arguments.also], target, unit, arguments.output)
    else:
        source = Path(arguments.what)
        old = [json.loads(line) for line in source.read_text().splitlines()]
        target = load_target(source.stem.rpartition("_")[2].removeprefix("qemu-"))
        chosen = [name for name in arguments.models.split(",") if name]
        write(refreshed(old, target, chosen), arguments.output / source.name.removeprefix("old_"))


def measure(arguments: argparse.Namespace) -> None:
    """Measure models in groups, and write each group as soon as it is done."""
    chosen = [*TRAINED, *HELD_OUT, *OPERATORS]
    if arguments.models:
        chosen = OPERATORS if arguments.models == "operators" else arguments.models.split(",")
    target = load_target(arguments.what.removeprefix("qemu-"))
    for start in range(0, len(chosen), arguments.together):
        group = chosen[start : start + arguments.together]
        with tempfile.TemporaryDirectory() as name:
            if arguments.what.startswith("qemu-"):
                lines = count_there(group, target, Path(name))
            else:
                lines = measure_here(group, target, arguments.rounds, Path(name))
        write(lines, arguments.output / f"{arguments.what}.jsonl")


def write(lines: Iterable[dict[str, Any]], path: Path) -> None:
    """Append lines to a file as they come."""
    with path.open("a") as stream:
        for line in lines:
            stream.write(json.dumps(line) + "\n")
            stream.flush()


if __name__ == "__main__":
    main()
