"""Time the model recipes beside other runtimes.

    python tests/benchmarks/benchmark_models.py --threads 1

Prints one line per model with its ratio to each runtime and to the fastest of them, and the
geometric means over the models that a runtime can run; above 1 edgec is faster. The lines are those
of the tables in the documentation. `--busy 1` measures all of them beside a process that keeps a
core busy. With `--where` also how a model's time divides over the kernel templates, and what each
reaches.
"""

import argparse
import datetime
import importlib.metadata
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.bench.compare import StepTime, bench_bundles
from edgec.models import load_model_recipe
from edgec.targets import load_target

MODELS = (
    "light_resnet50",
    "light_squeezenet",
    "light_shufflenet",
    "light_densenet121",
    "light_inception_v2",
    "light_vgg19",
    "pp-ocr-det",
    "pp-ocr-rec",
    "pp-ocr-cls",
    "yolov8n-320",
    "efficientnet-lite0",
    "minilm-l6",
)


def where_time_goes(steps: Sequence[StepTime]) -> str:
    """Return share of the time and speed of each template, largest first."""
    times: dict[str, float] = defaultdict(float)
    work: dict[str, float] = defaultdict(float)
    for step in steps:
        times[step.template] += step.median_us
        work[step.template] += step.gflops * step.median_us
    total = sum(times.values())
    parts = []
    for template, time in sorted(times.items(), key=lambda item: -item[1]):
        parts.append(f"{template} {time / total:.0%} at {work[template] / time:.0f} GFLOP/s")
    return ", ".join(parts)


def mean(ratios: Sequence[float]) -> float:
    """Return the geometric mean; of no ratios, no number."""
    return statistics.geometric_mean(ratios) if ratios else float("nan")


def table_row(*cells: str) -> str:
    """Return a row of a table in Markdown."""
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


def machine() -> str:
    """Return what this machine calls its processor."""
    target = load_target("native")
    return (
        f"{target.description.removeprefix('this machine: ')}, {target.cpu}, {target.cores} cores"
    )


def versions(rivals: Sequence[str]) -> str:
    """Return the runtimes with their versions."""
    packages = {"mnn": "MNN"}
    return ", ".join(
        f"{rival} {importlib.metadata.version(packages.get(rival, rival))}" for rival in rivals
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--target", default="native")
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--busy", type=int, default=0)
    parser.add_argument("--where", action="store_true")
    parser.add_argument("--against", default="onnxruntime,openvino")
    arguments = parser.parse_args()
    rivals = arguments.against.split(",")
    columns = [*rivals, "fastest of them"]
    ratios: dict[str, list[float]] = {column: [] for column in columns}
    print(f"| model | edgec | {' | '.join(columns)} |")
    print(f"|{'---|' * (len(columns) + 2)}", flush=True)
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            recipe = load_model_recipe(name)
            model = recipe.write(Path(folder) / f"{name}.onnx")
            options = CompileOptions(
                shapes=dict(recipe.shapes),
                ready_records=False,
                freeze={key: np.array(value) for key, value in recipe.freeze.items()},
            )
            output = Path(folder) / "model.edgec"
            bundle = compile_model(model, arguments.target, options, output=output)
            report = bench_bundles(
                [bundle],
                threads=arguments.threads,
                seconds=arguments.seconds,
                busy=arguments.busy,
                against=rivals,
                model=model,
            )
        measured = {latency.name.split()[0]: latency.name for latency in report.rivals}
        found = {rival: report.ratios[measured[rival]] for rival in rivals if rival in measured}
        if found:
            found["fastest of them"] = min(found.values())
        for column, ratio in found.items():
            ratios[column].append(ratio)
        cells = [f"{found[column]:.2f}" if column in found else "cannot" for column in columns]
        print(table_row(name, f"{report.bundles[0].median_ms:.3g} ms", *cells), flush=True)
        for rival, why in report.cannot.items():
            print(f"    {rival} cannot: {why}", flush=True)
        if arguments.where:
            print(f"    {where_time_goes(report.steps)}", flush=True)
    print(table_row("geometric mean", "", *(f"{mean(ratios[column]):.2f}" for column in columns)))
    print(
        f"\n{machine()}, {arguments.threads} threads, {versions(rivals)}, {datetime.date.today()}"
    )


if __name__ == "__main__":
    main()
