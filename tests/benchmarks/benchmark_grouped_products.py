"""Time products of int8 activations by 4-bit weights: `benchmark_grouped_products.py`.

Each product [rows, 2048] by [2048, 2048], groups of 32, beside ONNX Runtime's MatMulNBits of
accuracy level 4 on the same codes, in turns: one alone, whose weights stay in the caches, and
chains of so many that they do not, as a language model decodes. Of one row it is the bytes of
weights that count: beside them stands what this machine reads from its memory.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from support.onnx_graphs import make_model, node, save

from edgec.compiler import compile_model
from edgec.compiler.bench.compare import bench_bundles
from edgec.compiler.runtime.session import why_not_here
from edgec.targets import load_target

SIZE, GROUP = 2048, 32
# Rows, and products in a chain.
CASES = ((1, 1), (1, 32), (128, 1))
TARGETS = ("x86-64-v4-vnni", "x86-64-v3")
READ_BYTES = 256 << 20


def chain(rows: int, products: int) -> onnx.ModelProto:
    """Return a model of products one behind the other."""
    numbers = np.random.default_rng(0)
    nodes, weights, value = [], {}, "x"
    for number in range(products):
        codes = numbers.integers(0, 256, (SIZE, SIZE // GROUP, GROUP // 2), np.uint8)
        scales = numbers.uniform(0.5, 1.5, (SIZE, SIZE // GROUP)) / 5 / SIZE**0.5
        weights[f"b{number}"], weights[f"s{number}"] = codes, scales.astype(np.float32)
        result = "y" if number == products - 1 else f"v{number}"
        attributes = {"K": SIZE, "N": SIZE, "bits": 4, "block_size": GROUP, "accuracy_level": 4}
        inputs = [value, f"b{number}", f"s{number}"]
        nodes.append(node("MatMulNBits", inputs, [result], domain="com.microsoft", **attributes))
        value = result
    return make_model(nodes, {"x": [rows, SIZE]}, ["y"], weights)


def read_gigabytes_per_second() -> float:
    """Return what one thread reads from memory, by the best of NumPy's dot products."""
    halves: NDArray[np.float32] = np.ones(READ_BYTES // 4, np.float32)
    best = np.inf
    for _ in range(8):
        start = time.perf_counter()
        np.dot(halves, halves)
        best = min(best, time.perf_counter() - start)
    return READ_BYTES / best / 1e9


def main() -> None:
    """Print a line for each product, target and number of threads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--target", nargs="*", default=TARGETS)
    arguments = parser.parse_args()
    targets = [name for name in arguments.target if not why_not_here(load_target(name))]
    read = read_gigabytes_per_second()
    print(f"memory is read at {read:.1f} GB/s by one thread")
    print(f"{'product':22}{'target':16}{'threads':>8}{'us each':>10}{'GOP/s':>8}", end="")
    print(f"{'GB/s':>7}{'of read':>9}{'ONNX Runtime us':>17}{'times as fast':>15}")
    for rows, products in CASES:
        with tempfile.TemporaryDirectory() as folder:
            path = save(chain(rows, products), Path(folder))
            for name in targets:
                bundle = compile_model(path, name, output=Path(folder) / f"{name}.edgec")
                for threads in arguments.threads:
                    report = bench_bundles(
                        [bundle],
                        threads=threads,
                        seconds=arguments.seconds,
                        against=["onnxruntime"],
                        model=path,
                    )
                    (ratio,) = report.ratios.values()
                    each, theirs = (
                        latency.median_ms * 1e-3 / products
                        for latency in (report.bundles[0], report.rivals[0])
                    )
                    # Codes and scales.
                    speed = SIZE * SIZE * (0.5 + 4 / GROUP) / each / 1e9
                    label = f"[{rows}, {SIZE}] x {products}"
                    print(f"{label:22}{name:16}{threads:8}{each * 1e6:10.1f}", end="")
                    print(f"{2 * rows * SIZE * SIZE / each / 1e9:8.0f}{speed:7.1f}", end="")
                    print(f"{speed / read:9.2f}{theirs * 1e6:17.1f}{ratio:15.2f}", flush=True)


if __name__ == "__main__":
    main()
