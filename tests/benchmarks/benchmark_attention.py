"""Time attention over a cache: `python tests/benchmarks/benchmark_attention.py`.

A row is GroupQueryAttention, rotary embedding and appending to the cache among it, of SmolLM2-135M
(9 heads, 3 of keys) or of a Llama of 1.1 billion parameters (32 heads, 4 of keys), of 64 values
each, behind so many tokens: one token (decode) or 64 (prefill). A run has several layers, so that
threads are awake; times are of one. Both runtimes keep their caches in place. They run in turns in
one process; the ratio is the median over the turns,
above 1 where edgec is faster. On one thread the times are of the processor, which other programs
on a busy machine do not lengthen. `read` is how fast edgec reads keys and values.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgec.compiler.backend import build, lower, pack
from edgec.compiler.frontend.canonical import canonical_model
from edgec.compiler.ir.program import KernelCall, Program, Value
from edgec.compiler.ir.signature import Signature
from edgec.compiler.kernels.template import from_text
from edgec.compiler.kernels.templates import TEMPLATES
from edgec.compiler.lowering.schedule import schedule_program
from edgec.compiler.runtime.session import Session, open_session
from edgec.compiler.support.silent_onnxruntime import onnxruntime
from edgec.targets import Target, load_target

SIZE, ROWS, DEEP = 64, 2176, 8
FLOAT, INT32 = TensorProto.FLOAT, TensorProto.INT32
CACHES = ("keys", "values")
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Layer:
    """A layer describes one attention.

    Attributes:
        name: for people.
        heads: heads of the queries.
        groups: heads of the keys.
        count: tokens of a run.
    """

    name: str
    heads: int
    groups: int
    count: int

    def model(self) -> onnx.ModelProto:
        """Return `DEEP` nodes behind `past` tokens, each with caches of its own."""
        widths = {"q": self.heads * SIZE, "k": self.groups * SIZE, "v": self.groups * SIZE}
        cache, numbers = [1, self.groups, ROWS, SIZE], range(DEEP)
        angles = np.arange(ROWS)[:, np.newaxis] / 1e4 ** np.linspace(0, 1, SIZE // 2)
        weights = {
            "more": np.array([self.count - 1], np.int32),
            "total": np.array(ROWS, np.int32),
            "cos": np.cos(angles).astype(np.float32),
            "sin": np.sin(angles).astype(np.float32),
        }

        def floats(shape: list[int], *names: str) -> list[onnx.ValueInfoProto]:
            return [helper.make_tensor_value_info(name, FLOAT, shape) for name in names]

        inputs = [helper.make_tensor_value_info("past", INT32, [1])]
        for name, width in widths.items():
            inputs += floats([1, self.count, width], name)
        inputs += floats(cache, *(f"{kind}{n}" for n in numbers for kind in CACHES))
        outputs = [
            *floats([1, self.count, widths["q"]], *(f"y{n}" for n in numbers)),
            *floats(cache, *(f"new_{kind}{n}" for n in numbers for kind in CACHES)),
        ]
        nodes = [helper.make_node("Add", ["past", "more"], ["last"])]
        for number in numbers:
            names = [f"{kind}{number}" for kind in CACHES]
            nodes.append(
                helper.make_node(
                    "GroupQueryAttention",
                    ["q", "k", "v", *names, "last", "total", "cos", "sin"],
                    [f"y{number}", *(f"new_{name}" for name in names)],
                    domain="com.microsoft",
                    num_heads=self.heads,
                    kv_num_heads=self.groups,
                    do_rotary=1,
                )
            )
        tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
        graph = helper.make_graph(nodes, "layers", inputs, outputs, tensors)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)

    def values(self, depth: int) -> Arrays:
        """Return inputs behind so many tokens."""
        random = np.random.default_rng(depth)
        caches = [f"{kind}{n}" for n in range(DEEP) for kind in CACHES]
        shapes = {
            "q": (1, self.count, self.heads * SIZE),
            **dict.fromkeys(("k", "v"), (1, self.count, self.groups * SIZE)),
            **dict.fromkeys(caches, (1, self.groups, ROWS, SIZE)),
        }
        made = {n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
        return {**made, "past": np.array([depth], np.int32)}


LAYERS = [
    Layer(name, heads, groups, count)
    for name, heads, groups in (("SmolLM2-135M", 9, 3), ("Llama-1.1B", 32, 4))
    for count in (1, 64)
]


def compiled(layer: Layer, target: Target, library: Path, threads: int) -> Session:
    """Return a session whose caches are updated where they are; only the results are outputs."""
    canonical = canonical_model(layer.model())
    lowered = lower(pack(canonical.module, target), target)
    program = schedule_program(lowered, target, canonical.signature)
    caches: dict[int, Value] = {}
    steps = [_in_place(step, program, target, caches) for step in program.steps]
    used = {step.kernel for step in steps}
    functions = {name: code for name, code in program.functions.items() if name in used}
    kept = Program(program.inputs, program.outputs[:DEEP], steps, functions)
    signature = Signature(canonical.signature.inputs, canonical.signature.outputs[:DEEP])
    executor, _ = build([kept], target, library)
    return open_session(library, target, signature, executor, threads)


def _in_place(
    step: KernelCall, program: Program, target: Target, caches: dict[int, Value]
) -> KernelCall:
    """Return a step that writes a cache into the memory of the old one, or reads it there."""
    arguments = tuple(caches.get(id(value), value) for value in step.arguments)
    template = TEMPLATES.get(f"edgec.{step.template}")
    if template is None or not template.in_place:
        return replace(step, arguments=arguments)
    workload = from_text(template.workload, step.workload)
    decision = template.default(workload, target)
    workload = replace(workload, **{template.in_place: True})
    name = f"{step.kernel}_in_place"
    kernel = template.emit(workload, decision, target, name)
    program.functions[name] = kernel.function
    caches[id(step.arguments[-1])] = arguments[0]
    moved = (*arguments[:-1], arguments[0])
    return replace(step, kernel=name, tasks=kernel.tasks, arguments=moved)


def rival(layer: Layer, values: Arrays, threads: int) -> tuple[Callable[[], None], Any]:
    """Return what runs ONNX Runtime with its caches in place, and its output."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        layer.model().SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    kept = {n: onnxruntime.OrtValue.ortvalue_from_numpy(a.copy()) for n, a in values.items()}
    result = np.zeros_like(values["q"])
    kept |= {f"y{n}": onnxruntime.OrtValue.ortvalue_from_numpy(result) for n in range(DEEP)}
    for name in values:
        binding.bind_ortvalue_input(name, kept[name])
    for number in range(DEEP):
        binding.bind_ortvalue_output(f"y{number}", kept[f"y{number}"])
        for kind in CACHES:
            name = f"{kind}{number}"
            binding.bind_ortvalue_output(f"new_{name}", kept[name])
    return lambda: session.run_with_iobinding(binding), kept["y0"]


def in_turns(
    runs: Sequence[Callable[[], None]], clock: Callable[[], float], turns: int
) -> list[list[float]]:
    """Return the seconds that each run took in each turn."""
    times: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    start = clock()
    runs[-1]()
    # A turn takes some milliseconds.
    count = max(1, int(0.005 / max(1e-6, clock() - start)))
    for _ in range(turns):
        for run, taken in zip(runs, times, strict=True):
            start = clock()
            for _ in range(count):
                run()
            taken.append((clock() - start) / count)
    return times


def measure(layer: Layer, target: Target, depths: Sequence[int], threads: int, turns: int) -> None:
    """Print a line for each depth."""
    clock = time.process_time if threads == 1 else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        session = compiled(layer, target, Path(folder) / "layer.so", threads)
        for depth in depths:
            values = layer.values(depth)
            prepared = session.prepare(values)
            run, expected = rival(layer, values, threads)
            run()
            found = session.run(values)["y0"]
            difference = float(np.abs(found - expected.numpy()).max())
            ours, theirs = in_turns([lambda p=prepared: session.run_prepared(p), run], clock, turns)
            ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
            bytes_read = 2 * 4 * (depth + layer.count) * layer.groups * SIZE
            one, other = (statistics.median(taken) / DEEP for taken in (ours, theirs))
            print(
                f"{layer.name:13s} {layer.count:3d} tokens at {depth:5d}, {threads} threads: "
                f"{1e6 * one:8.1f} us, ONNX Runtime {1e6 * other:8.1f} us, ratio {ratio:5.2f}; "
                f"read {bytes_read / one / 1e9:5.1f} GB/s; difference {difference:.0e}",
                flush=True,
            )


def main() -> None:
    """Print all rows."""
    parser = argparse.ArgumentParser(description="attention over a cache beside ONNX Runtime")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--depths", type=int, nargs="+", default=[0, 512, 2048])
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--target", default="native")
    arguments = parser.parse_args()
    target = load_target(arguments.target)
    for threads in arguments.threads:
        for layer in LAYERS:
            measure(layer, target, arguments.depths, threads, arguments.turns)


if __name__ == "__main__":
    main()
