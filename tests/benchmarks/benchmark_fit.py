"""How good `edgec fit` is beside an exhaustive grid, and what kills and clusters do to it.

    python tests/benchmarks/benchmark_fit.py grid digits28 --calibration images.npy
    python tests/benchmarks/benchmark_fit.py kill digits28 --calibration images.npy --kills 10
    python tests/benchmarks/benchmark_fit.py cluster digits28 --calibration images.npy

`grid` searches a space of 60 points with a quarter of its compiles, then compiles all of them; with
`--quantizations` one of 5.
`kill` kills a search by SIGKILL at moments of chance and lets it go on, and compares the facts at
the end with those of a search that nobody disturbed. `cluster` does the same search on a local
cluster of Dask of 4 workers, one of which is killed every 20 s.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from edgec.compiler.calibration.samples import SampleOptions
from edgec.compiler.fit.api import facts_of
from edgec.compiler.fit.limits import Costs, Limits, parse_quantity
from edgec.compiler.fit.options import FitOptions
from edgec.compiler.fit.search import Search, Trial
from edgec.compiler.fit.space import Space
from edgec.compiler.jobs.pool import JobOptions, open_pool
from edgec.compiler.options import CompileOptions
from edgec.models.catalog import load_model_recipe
from edgec.targets import load_target

GRID = Space(
    quantize=("none", "int8-weight-only", "int8-dynamic", "int8"),
    steps={"channels": (0, 10, 20, 30, 40), "low-rank": (0, 25, 50)},
)
# Of models whose channels take minutes.
QUANTIZATIONS = Space(("none", "fp16", "int8-weight-only", "int8-dynamic", "int8"), {})
KILL_SECONDS = 20.0


class Printer:
    """Prints each trial as a line."""

    def tried(self, trial: Trial, search: Search) -> None:
        costs = trial.costs
        found = "" if costs is None else f"{costs.latency:.3f} ms, drop {costs.drop:.2%}"
        print(f"  {search.attempts} {trial.point.label}: {found}{trial.failure}", flush=True)


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("grid", "kill", "cluster"))
    parser.add_argument("model", help="of `edgec models`")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--data")
    parser.add_argument("--limit", type=int, default=300, help="batches of calibration")
    parser.add_argument("--drop", default="1%")
    parser.add_argument("--recipes", default="", help="of kill and cluster")
    parser.add_argument("--target", default="native")
    parser.add_argument("--trials", type=int, default=15)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--quantizations", action="store_true", help="a grid of those alone")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--folder", type=Path, help="keep the facts there")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        folder.mkdir(exist_ok=True)
        {"grid": grid, "kill": kill, "cluster": cluster}[given.what](given, folder)


def _options(given: argparse.Namespace, folder: Path, cluster: str = "") -> FitOptions:
    return FitOptions(
        limits=Limits(drop=parse_quantity("drop", given.drop)),
        trials=given.trials,
        data=given.data,
        measure=False,
        folder=folder / "facts",
        jobs=JobOptions(cluster=cluster, workers=given.workers),
        space=QUANTIZATIONS if given.quantizations else GRID,
    )


def _model(given: argparse.Namespace, folder: Path) -> tuple[Path, CompileOptions]:
    recipe = load_model_recipe(given.model)
    path = folder / f"{given.model}.onnx"
    if not path.exists():
        recipe.write(path)
    samples = SampleOptions(source=given.calibration, limit=given.limit)
    return path, CompileOptions(shapes=recipe.shapes, freeze=recipe.freeze, samples=samples)


def grid(given: argparse.Namespace, folder: Path) -> None:
    """Compare the search with all points."""
    model, base = _model(given, folder)
    target, options = load_target(given.target), _options(given, folder)
    with open_pool(options.jobs) as pool:
        facts = facts_of(model, target, options, base, pool)
        assert options.space is not None
        search = Search(options.space, options.limits, "latency", given.trials, 0, True)
        begin = time.perf_counter()
        search.run(facts, Printer())
        seconds = time.perf_counter() - begin
        points = options.space.points()
        best: list[tuple[float, str]] = []
        for start in range(0, len(points), 4):
            group = points[start : start + 4]
            for point, found in zip(group, facts.evaluate(group), strict=True):
                if isinstance(found, Costs) and options.limits.keeps(found):
                    best.append((found.latency, point.label))
    chosen = search.ranked[0]
    assert chosen.costs is not None
    print(f"{given.model} for {target.name}: grid of {len(points)}, best {min(best)}")
    print(
        f"search: {search.attempts} compiles ({search.attempts / len(points):.0%} of the grid's) "
        f"and {len(search.trials)} predictions in {seconds:.0f} s: {chosen.point.label}, "
        f"{chosen.costs.latency:.4f} ms, {chosen.costs.latency / min(best)[0] - 1:+.1%}"
    )


def _command(given: argparse.Namespace, folder: Path, name: str, cluster: str = "") -> list[str]:
    recipe = load_model_recipe(given.model)
    model, _ = _model(given, folder)
    words = [sys.executable, "-m", "edgec.compiler", "fit", str(model), "-t", given.target]
    for tensor, shape in recipe.shapes.items():
        words += ["--shape", f"{tensor}={','.join(map(str, shape))}"]
    words += ["--calibration", given.calibration, "--calibration-limit", str(given.limit)]
    words += ["--data", given.data] if given.data else []
    words += ["--recipes", given.recipes] if given.recipes else []
    words += ["--drop", given.drop, "--trials", str(given.trials), "--no-measure"]
    words += ["-o", str(folder / f"{name}.edgec"), "--report", str(folder / f"{name}.json")]
    if cluster:
        return [*words, "--cluster", cluster]
    return words + (["--workers", str(given.workers)] if given.workers else [])


def _facts(folder: Path, name: str) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted((folder / f"{name}.fit").glob("*.json"))}


def kill(given: argparse.Namespace, folder: Path) -> None:
    """Kill a search again and again."""
    command = _command(given, folder, "calm")
    begin = time.perf_counter()
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - begin
    chance = random.Random(0)
    lost = 0
    for number in range(given.kills):
        before = _facts(folder, "killed")
        run = subprocess.Popen(_command(given, folder, "killed"), start_new_session=True)
        time.sleep(seconds * chance.uniform(0.1, 0.6))
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        after = _facts(folder, "killed")
        lost += sum(after.get(name) != text for name, text in before.items())
        print(f"kill {number + 1}: {len(after)} facts, {lost} lost", flush=True)
    subprocess.run(_command(given, folder, "killed"), check=True)
    _same(folder, "calm", "killed", lost)


def _same(folder: Path, first: str, second: str, lost: int = 0) -> None:
    """Print whether two searches found the same."""
    facts = [_facts(folder, name) for name in (first, second)]
    reports = [json.loads((folder / f"{name}.json").read_text()) for name in (first, second)]
    trials = [report["trials"] for report in reports]
    chosen = [report["chosen"] for report in reports]
    print(
        f"{first} {len(facts[0])} facts, {second} {len(facts[1])}, {lost} lost; equal facts: "
        f"{facts[0] == facts[1]}, equal trials: {trials[0] == trials[1]}, chosen: {chosen}"
    )


def cluster(given: argparse.Namespace, folder: Path) -> None:
    """Search on a cluster whose workers die."""
    from distributed import LocalCluster

    subprocess.run(_command(given, folder, "here"), check=True)
    with LocalCluster(n_workers=4, threads_per_worker=1, dashboard_address=None) as local:
        run = subprocess.Popen(_command(given, folder, "cluster", local.scheduler_address))
        chance, deaths = random.Random(0), 0
        while run.poll() is None:
            time.sleep(KILL_SECONDS)
            alive = [n.process.pid for n in local.workers.values() if n.process.pid]
            if run.poll() is None and alive:
                os.kill(chance.choice(sorted(alive)), signal.SIGKILL)
                deaths += 1
        print(f"{deaths} workers killed, exit code {run.returncode}")
    _same(folder, "here", "cluster")


if __name__ == "__main__":
    main()
