"""Time single layers beside ONNX Runtime: `python tests/benchmarks/benchmark_layers.py`.

The convolutions get and give [N, C, H, W], so both runtimes convert layouts on the way in and
out. The last column is edgec's kernel alone, as in the middle of a network; for the matrix
product the last line gives NumPy's BLAS. Then products by recipes of `--quantize`, beside their
own floats.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from support.onnx_graphs import make_model, node, random, save

from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.bench.compare import BenchReport, bench_bundles
from edgec.compiler.quantize.options import QuantizeOptions
from edgec.compiler.quantize.quantization_recipe import RECIPES

# Input channels, output channels, window, rows and columns.
CONVOLUTIONS = (
    (64, 64, 3, 56),
    (64, 256, 1, 56),
    (256, 256, 3, 14),
    (256, 1024, 1, 14),
    (512, 512, 3, 7),
)
SIZE = 512
# Rows, depth, columns, and recipes beside the floats.
QUANTIZED = (
    (1, 2048, 2048, ("int4-weight-only", "int8-weight-only")),
    (128, 1024, 1024, ("int8-dynamic", "int4-weight-only")),
)


def convolution(channels: int, out_channels: int, window: int, extent: int) -> onnx.ModelProto:
    """Return a model of one convolution, bias and ReLU."""
    weights = {
        "w": random(out_channels, channels, window, window),
        "b": random(out_channels),
    }
    pads = [window // 2] * 4
    nodes = [node("Conv", ["x", "w", "b"], ["c"], pads=pads), node("Relu", ["c"], ["y"])]
    return make_model(nodes, {"x": (1, channels, extent, extent)}, ["y"], weights)


def compare(model: onnx.ModelProto, threads: int, seconds: float) -> BenchReport:
    """Compile a model and time it beside ONNX Runtime."""
    with tempfile.TemporaryDirectory() as folder:
        path = save(model, Path(folder))
        bundle = compile_model(path, output=Path(folder) / "layer.edgec")
        return bench_bundles(
            [bundle], threads=threads, seconds=seconds, against=["onnxruntime"], model=path
        )


def compare_recipes(
    rows: int, depth: int, columns: int, recipes: Sequence[str], target: str, seconds: float
) -> dict[str, tuple[float, float]]:
    """Return a product by recipe: time [us] and times as fast as floats, on one thread."""
    weights = {"w": random(depth, columns, seed=1)}
    nodes = [node("MatMul", ["x", "w"], ["y"])]
    with tempfile.TemporaryDirectory() as folder:
        path = save(make_model(nodes, {"x": (rows, depth)}, ["y"], weights), Path(folder))
        bundles = [compile_model(path, target, output=Path(folder) / "float32.edgec")]
        for recipe in recipes:
            quantize = QuantizeOptions(recipe=RECIPES[recipe], repair=False)
            output = Path(folder) / f"{recipe}.edgec"
            options = CompileOptions(quantize=quantize)
            bundles.append(compile_model(path, target, options, output=output))
        times = bench_bundles(bundles, threads=1, seconds=seconds * len(bundles)).bundles
    floats, found = times[0], {}
    for name, latency in zip(("float32", *recipes), times, strict=True):
        pairs = zip(floats.rounds_ms, latency.rounds_ms, strict=False)
        found[name] = latency.median_ms * 1e3, statistics.median(f / q for f, q in pairs)
    return found


def blas_gflops(seconds: float) -> float:
    """Return NumPy's matrix product on one thread.

    If OMP_NUM_THREADS=1 (OPENBLAS_NUM_THREADS) says so.
    """
    a, b = random(SIZE, SIZE), random(SIZE, SIZE, seed=1)
    times = []
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        start = time.perf_counter()
        np.dot(a, b)
        times.append(time.perf_counter() - start)
    return 2 * SIZE**3 / statistics.median(times) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--target", default="native", help="of the quantized products")
    parser.add_argument("--quantized", action="store_true", help="only these")
    arguments = parser.parse_args()
    if not arguments.quantized:
        _beside_rivals(arguments)
    print(f"{'product':28}{'recipe':18}{'us':>8}{'times as fast':>15}")
    for *shape, recipes in QUANTIZED:
        found = compare_recipes(*shape, recipes, arguments.target, arguments.seconds)
        for recipe, (microseconds, gain) in found.items():
            label = f"[{shape[0]}, {shape[1]}] by {shape[2]}"
            print(f"{label:28}{recipe:18}{microseconds:8.0f}{gain:15.2f}", flush=True)


def _beside_rivals(arguments: argparse.Namespace) -> None:
    print(f"{'layer':28}{'edgec us':>10}{'rival us':>10}{'ratio':>7}{'kernel GFLOP/s':>16}")
    ratios = []
    cases = {
        f"conv {c} -> {o} {k}x{k} at {e}": convolution(c, o, k, e) for c, o, k, e in CONVOLUTIONS
    }
    weights = {"w": random(SIZE, SIZE, seed=1)}
    product = make_model([node("MatMul", ["x", "w"], ["y"])], {"x": (SIZE, SIZE)}, ["y"], weights)
    for name, model in {**cases, f"matmul {SIZE} cubed": product}.items():
        report = compare(model, arguments.threads, arguments.seconds)
        for rival, why in report.cannot.items():
            print(f"{name}: {rival} cannot: {why}", flush=True)
        if report.cannot:
            continue
        (ratio,) = report.ratios.values()
        kernel = max(report.steps, key=lambda step: step.gflops * step.median_us)
        ours, theirs = report.bundles[0].median_ms * 1e3, report.rivals[0].median_ms * 1e3
        print(f"{name:28}{ours:10.0f}{theirs:10.0f}{ratio:7.2f}{kernel.gflops:16.0f}", flush=True)
        if name in cases:
            ratios.append(ratio)
    print(f"{'convolutions, geometric mean':48}{statistics.geometric_mean(ratios):7.2f}")
    print(f"NumPy's matrix product: {blas_gflops(arguments.seconds):.0f} GFLOP/s")


if __name__ == "__main__":
    main()
