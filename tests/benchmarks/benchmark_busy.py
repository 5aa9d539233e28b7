"""Compare latencies on a quiet machine with those beside a process that keeps a core busy.

    python tests/benchmarks/benchmark_busy.py

Everything computes on two cores, to which this process keeps: edgec with one and with two threads,
the other runtimes with two. All are in one process and take turns; quiet and busy rounds alternate.
Prints a line for each, then what the bars say of edgec. The machine must do nothing else.
"""

import argparse
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx

from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.bench.compare import LOADED_BURST_SECONDS, take_turns
from edgec.compiler.bench.load import busy_processes
from edgec.compiler.bench.rivals import find_rival, load_rival
from edgec.compiler.errors import ToolchainError
from edgec.compiler.frontend.specialize import specialize
from edgec.compiler.runtime.inputs import generate_inputs
from edgec.models import load_model_recipe

MODELS = ("light_squeezenet", "yolov8n-320", "light_resnet50", "efficientnet-lite0")
CORES = 2
EDGEC = "edgec, 2 threads"
ALONE = "edgec, 1 thread"
# Times the median of the quiet machine.
SLOWER = 1.7
# p99 beside the median, both under load.
TAIL = 2.0
# Two threads beside one, both under load.
SECOND_THREAD = 1.1

Times = dict[str, list[float]]


def runners(name: str, rivals: list[str], folder: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield a model on every runtime, by name."""
    recipe = load_model_recipe(name)
    model = recipe.write(folder / "model.onnx")
    freeze = {key: np.array(value) for key, value in recipe.freeze.items()}
    options = CompileOptions(shapes=dict(recipe.shapes), freeze=freeze)
    bundle = compile_model(model, options=options, output=folder / "model.edgec")
    signature = bundle.manifest.signature
    inputs = generate_inputs(signature.inputs, 0, bundle.manifest.settings.index_bounds)
    for label, threads in ((ALONE, 1), (EDGEC, CORES)):
        session = bundle.open(threads)
        prepared = session.prepare(inputs)
        yield label, lambda session=session, prepared=prepared: session.run_prepared(prepared)
    static = folder / "static.onnx"
    onnx.save(specialize(onnx.load(model), recipe.shapes, freeze).proto, static)
    for rival in rivals:
        scratch = folder / rival
        scratch.mkdir()
        try:
            yield rival, load_rival(find_rival(rival), static, inputs, signature, CORES, scratch)
        except ToolchainError as error:
            print(f"{rival} cannot: {error}", flush=True)


def measure(loaded: Mapping[str, Callable[[], None]], rounds: int, seconds: float) -> list[Times]:
    """Return the times [ms] of each runtime: on the quiet machine, and beside a busy process."""
    found: list[Times] = [defaultdict(list), defaultdict(list)]
    for _ in range(rounds):
        for busy, times in enumerate(found):
            with busy_processes(busy):
                for latency in take_turns(
                    list(loaded), list(loaded.values()), seconds, LOADED_BURST_SECONDS
                ):
                    times[latency.name] += latency.times_ms
    return found


def report(name: str, quiet: Times, busy: Times) -> list[tuple[str, float, float]]:
    """Print the figures of a model; return what is compared with bars: what, ratio, at most."""
    print(f"{name:22}{'quiet ms':>10}{'p99':>9}{'busy ms':>10}{'p99':>9}{'slower':>8}", flush=True)
    medians = {}
    for runtime in quiet:
        calm, loaded = np.median(quiet[runtime]), np.median(busy[runtime])
        medians[runtime] = float(loaded)
        tails = [np.percentile(times[runtime], 99) for times in (quiet, busy)]
        figures = f"{calm:10.2f}{tails[0]:9.2f}{loaded:10.2f}{tails[1]:9.2f}{loaded / calm:8.2f}"
        print(f"  {runtime:20}{figures}", flush=True)
    ours = medians[EDGEC]
    bars = [
        ("busy to quiet", ours / float(np.median(quiet[EDGEC])), SLOWER),
        ("p99 to median", float(np.percentile(busy[EDGEC], 99)) / ours, TAIL),
        ("two threads to one", ours / medians[ALONE], SECOND_THREAD),
    ]
    others = [runtime for runtime in medians if runtime not in (EDGEC, ALONE)]
    return [*bars, *((f"edgec to {rival}", ours / medians[rival], 1.0) for rival in others)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3, help="of each runtime and round")
    parser.add_argument("--against", default="onnxruntime,openvino")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    missed = 0
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            loaded = dict(runners(name, arguments.against.split(","), Path(folder)))
            bars = report(name, *measure(loaded, arguments.rounds, arguments.seconds))
        for what, ratio, most in bars:
            missed += ratio > most
            verdict = "ok" if ratio <= most else "MISSED"
            print(f"  {what:26}{ratio:6.2f}, at most {most:.1f}: {verdict}", flush=True)
    print(f"{missed} bars missed beside one busy process on {CORES} cores")


if __name__ == "__main__":
    main()
