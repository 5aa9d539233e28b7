"""The generated C: tables that say what the program says."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.kernel_runs import compile_graph
from support.onnx_graphs import make_model, node, random, save

from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.codegen.emit_c import Weights, grain, program_source
from edgec.compiler.ir.program import KernelCall, Value
from edgec.compiler.runtime.library import load_model


def test_the_library_describes_itself(tmp_path: Path) -> None:
    """Also names that need escapes in C."""
    taken, given = 'in "1"\\n', "out%d??/"
    nodes = [
        node("Conv", [taken, "w"], ["c"]),
        node("Relu", ["c"], ["r"]),
        node("Conv", ["r", "v"], [given]),
    ]
    weights = {"w": random(20, 3, 3, 3), "v": random(6, 20, 1, 1)}
    graph = make_model(nodes, {taken: [1, 3, 9, 8]}, [given], weights)
    built = compile_graph(graph, "native", tmp_path)
    model = load_model(str(built.library))
    described = [
        (t.name.decode(), t.dtype.decode(), t.shape[: t.rank], t.bytes)
        for t in (model.inputs[0], model.outputs[0])
    ]
    assert described == [
        (taken, "float32", [1, 3, 9, 8], 4 * 3 * 9 * 8),
        (given, "float32", [1, 6, 7, 6], 4 * 6 * 7 * 6),
    ]
    assert (model.input_count, model.output_count) == (1, 1)
    assert model.arena_bytes == built.plan.arena_bytes > 0
    steps = built.open().steps()
    assert [step.template for step in steps] == built.templates() == ["conv", "conv", "pack"]
    assert [step.flops for step in steps] == [step.flops for step in built.program.steps]
    assert steps[0].flops == 2 * 20 * 3 * 3 * 3 * 7 * 6


def test_the_same_program_gives_the_same_source(tmp_path: Path) -> None:
    model = make_model(
        [node("Conv", ["x", "w"], ["c"]), node("GlobalAveragePool", ["c"], ["y"])],
        {"x": [1, 3, 9, 8]},
        ["y"],
        {"w": random(20, 3, 3, 3)},
    )
    sources = []
    for _ in range(2):
        built = compile_graph(model, "native", tmp_path)
        program = built.program
        weights = Weights({id(value): 64 * i for i, value in enumerate(program.constants())})
        sources.append(program_source([program], [built.plan], weights, "m"))
    assert sources[0] == sources[1]
    assert sources[0].count("EDGEC_INPUT, 0)") == 1
    assert sources[0].count("EDGEC_OUTPUT, 0)") == 1


@pytest.mark.parametrize(
    ("flops", "tasks", "expected"),
    [
        (10, 50, 50),
        (150_000, 50, 50),
        (1_000_000, 50, 5),
        (1_000_000, 4, 1),
        (10**12, 50, 1),
    ],
)
def test_small_steps_are_not_shared(flops: int, tasks: int, expected: int) -> None:
    buffer = Value("temporary", (16,), "float32")
    assert grain(KernelCall("k", (buffer,), tasks, "", "conv", flops=flops)) == expected


def test_moving_bytes_is_work_too() -> None:
    buffer = Value("temporary", (1_000_000,), "float32")
    assert grain(KernelCall("k", (buffer,), 40, "", "pack")) == 1


def test_a_returned_input_is_copied(tmp_path: Path) -> None:
    nodes = [node("Identity", ["x"], ["same"]), node("Relu", ["x"], ["y"])]
    built = compile_graph(make_model(nodes, {"x": [3, 5]}, ["same", "y"]), "native", tmp_path)
    assert [target.number for target, _ in built.program.copies] == [0]
    inputs = built.inputs()
    results = built.open().run(inputs)
    np.testing.assert_array_equal(results["same"], inputs["x"])
    np.testing.assert_array_equal(results["y"], np.maximum(inputs["x"], 0))


@pytest.mark.parametrize("count", [63, 100])
def test_a_kernel_of_many_buffers(count: int, tmp_path: Path) -> None:
    """In a process of its own: too many would overwrite the executor's stack."""
    nodes = [node("Exp", ["x"], ["e"])]
    nodes += [node("Mul", ["e", f"w{i}"], [f"m{i}"]) for i in range(count)]
    nodes += [node("Concat", [f"m{i}" for i in range(count)], ["y"], axis=1)]
    weights = {f"w{i}": np.float32(i + 1).reshape(()) for i in range(count)}
    path = save(make_model(nodes, {"x": [1, 2, 3, 3]}, ["y"], weights), tmp_path)
    options = CompileOptions(parity=False)
    bundle = compile_model(path, "native", options, output=tmp_path / "many.edgec")
    command = [sys.executable, "-m", "edgec.compiler", "verify", str(bundle.path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
