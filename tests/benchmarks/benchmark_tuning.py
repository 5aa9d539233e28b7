"""Measure what tuning gains.

    python tests/benchmarks/benchmark_tuning.py --db tuned.jsonl --tune 5m --threads 1

Tunes each model for a while (without `--tune` it takes the database as it is), then times the tuned
and the untuned build in turn with the other runtimes. Prints one line per model and the geometric
means of the ratios; above 1 the tuned build is faster.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.bench.compare import bench_bundles
from edgec.models import load_model_recipe

MODELS = (
    "light_resnet50",
    "pp-ocr-det",
    "pp-ocr-rec",
    "pp-ocr-cls",
    "yolov8n-320",
    "efficientnet-lite0",
)
TUNE = "import sys; from edgec.compiler.cli.main import main; sys.exit(main(sys.argv[1:]))"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--db", type=Path, required=True)
    parser.add_argument("--tune", metavar="TIME", help="for each model, as edgec tune takes it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--target", default="native")
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--against", default="onnxruntime,openvino")
    arguments = parser.parse_args()
    rivals = arguments.against.split(",")
    gains, leads = [], []
    columns = "".join(f"{rival:>14} ms" for rival in rivals)
    head = f"{'model':20}{'untuned ms':>11}{'tuned ms':>10}{'gain':>6}{columns}"
    print(f"{head}  to the faster   {arguments.threads} threads", flush=True)
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            recipe = load_model_recipe(name)
            model = recipe.write(Path(folder) / f"{name}.onnx")
            if arguments.tune:
                shapes = [
                    part
                    for key, shape in recipe.shapes.items()
                    for part in ("--shape", f"{key}={','.join(map(str, shape))}")
                ]
                command = [sys.executable, "-c", TUNE, "tune", str(model), *shapes, "-q"]
                command += ["--db", str(arguments.db), "--time", arguments.tune]
                command += ["--target", arguments.target, "--threads", str(arguments.threads)]
                subprocess.run(command, check=True, stdout=sys.stderr)
            bundles = [
                compile_model(
                    model,
                    arguments.target,
                    CompileOptions(
                        shapes=dict(recipe.shapes),
                        records=records,
                        ready_records=False,
                        records_threads=arguments.threads if records else None,
                    ),
                    output=Path(folder) / f"{number}.edgec",
                )
                for number, records in enumerate((arguments.db, None))
            ]
            report = bench_bundles(
                bundles,
                threads=arguments.threads,
                seconds=arguments.seconds,
                against=rivals,
                model=model,
            )
        tuned, untuned = report.bundles
        pairs = zip(untuned.rounds_ms, tuned.rounds_ms, strict=True)
        gains.append(statistics.median(before / after for before, after in pairs))
        for rival, why in report.cannot.items():
            print(f"    {rival} cannot: {why}", flush=True)
        leads.append(min(report.ratios.values(), default=float("nan")))
        times = "".join(f"{latency.median_ms:17.3f}" for latency in report.rivals)
        print(
            f"{name:20}{untuned.median_ms:11.3f}{tuned.median_ms:10.3f}{gains[-1]:6.2f}{times}"
            f"{leads[-1]:15.2f}",
            flush=True,
        )
    known = [lead for lead in leads if lead == lead]
    means = [statistics.geometric_mean(values) for values in (gains, known or [float("nan")])]
    print(f"{'geometric mean':41}{means[0]:6.2f}{'':{17 * len(rivals)}}{means[1]:15.2f}")


if __name__ == "__main__":
    main()
