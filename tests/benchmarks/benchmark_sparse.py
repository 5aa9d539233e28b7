"""Time models pruned in blocks beside the same models.

    python tests/benchmarks/benchmark_sparse.py

All run in one process and take turns; what counts is the shortest time of each.
With `--model minilm-l6.onnx` (`edgec models minilm-l6`) also the first layer of that network, its
matrix products pruned, and with `--whole` all of it.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx.utils
from benchmark_layers import convolution
from support.onnx_graphs import make_model, node, random, save

from edgec.compiler import Bundle, CompileOptions, compile_model
from edgec.compiler.bench.compare import bench_bundles
from edgec.compiler.compress.compression_recipe import load_compression
from edgec.compiler.compress.options import CompressOptions

TOKENS = 128
LAYER = ("embeddings.norm", "layer0.mlp.norm")


def cases(scratch: Path) -> Iterator[tuple[str, Path]]:
    """Yield models of one operator."""
    rows, inputs, outputs = 128, 1024, 1024
    weights = {"w": random(inputs, outputs)}
    for m in (rows, 1):
        model = make_model([node("MatMul", ["x", "w"], ["y"])], {"x": (m, inputs)}, ["y"], weights)
        yield f"[{m},{inputs}] x [{inputs},{outputs}]", _saved(model, scratch / f"product{m}")
    for channels, out, window, extent in ((64, 64, 3, 56), (64, 256, 1, 56), (256, 256, 3, 14)):
        model = convolution(channels, out, window, extent)
        name = f"conv {channels} -> {out} {window}x{window} at {extent}"
        yield name, _saved(model, scratch / f"conv{channels}-{out}-{window}")


def layer(model: Path, scratch: Path) -> Path:
    """Return the first layer of the network, from its embeddings on."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(model))
    needed = {*LAYER[:1]}
    produced = {output: item for item in graph.graph.node for output in item.output}
    frontier, seen = [LAYER[1]], set()
    while frontier:
        name = frontier.pop()
        if name in seen or name in needed or name not in produced:
            continue
        seen.add(name)
        frontier += produced[name].input
    inputs = [i.name for i in graph.graph.input if i.name in _read_by(graph, seen)]
    path = scratch / "layer.onnx"
    extracted = onnx.utils.Extractor(graph).extract_model([LAYER[0], *inputs], [LAYER[1]])
    onnx.save(extracted, path)
    return path


def _read_by(model: onnx.ModelProto, values: set[str]) -> set[str]:
    nodes = [item for item in model.graph.node if values & set(item.output)]
    return {name for item in nodes for name in item.input}


def _saved(model: onnx.ModelProto, folder: Path) -> Path:
    folder.mkdir()
    return save(model, folder)


def compiled(
    path: Path, target: str, recipe: str, scratch: Path, shapes: dict[str, tuple[int, ...]]
) -> Bundle:
    """Return a bundle; an empty recipe leaves the weights as they are."""
    compress = CompressOptions(recipe=load_compression(recipe)) if recipe else None
    options = CompileOptions(shapes=shapes, compress=compress)
    output = scratch / f"{path.parent.name}-{path.stem}-{target}-{recipe or 'dense'}.edgec"
    return compile_model(path, target, options, output=output)


def compare(
    name: str,
    path: Path,
    target: str,
    scratch: Path,
    seconds: float,
    shapes: dict[str, tuple[int, ...]] | None = None,
) -> None:
    """Print a line."""
    recipes = ("", "block-80", "block-90")
    bundles = [compiled(path, target, recipe, scratch, shapes or {}) for recipe in recipes]
    report = bench_bundles(bundles, seconds=seconds)
    shortest = [min(latency.times_ms) * 1e3 for latency in report.bundles]
    ratios = [shortest[0] / other for other in shortest[1:]]
    sizes = [(bundle.path / "model.so").stat().st_size / 1e3 for bundle in bundles]
    times = [f"{microseconds:10.0f}" for microseconds in shortest]
    print(
        f"{name:30}{target:12}{''.join(times)}{ratios[0]:9.2f}x{ratios[1]:8.2f}x"
        f"{sizes[0]:11.0f}{sizes[1]:9.0f}{sizes[2]:9.0f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", nargs="+", default=["native", "x86-64-v3"])
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--only", default="", help="Cases whose name holds this.")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--whole", action="store_true")
    arguments = parser.parse_args()
    head = f"{'':30}{'':12}{'dense us':>10}{'80 % us':>10}{'90 % us':>10}{'80 %':>10}{'90 %':>9}"
    print(head + f"{'kB':>11}{'80 %':>9}{'90 %':>9}")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        models = [] if arguments.model and arguments.whole else list(cases(scratch))
        for target in arguments.targets:
            for name, path in models:
                if arguments.only not in name:
                    continue
                compare(name, path, target, scratch, arguments.seconds)
            if arguments.model and arguments.whole:
                shape = (1, TOKENS)
                names = ("input_ids", "attention_mask", "token_type_ids")
                shapes = dict.fromkeys(names, shape)
                compare("minilm-l6", arguments.model, target, scratch, arguments.seconds, shapes)
            elif arguments.model:
                path = layer(arguments.model, scratch)
                shapes = {LAYER[0]: (1, TOKENS, 384), "attention_mask": (1, TOKENS)}
                compare("layer of minilm-l6", path, target, scratch, arguments.seconds, shapes)


if __name__ == "__main__":
    main()
