"""The same bits on any number of threads."""

from pathlib import Path

import numpy as np
import pytest
from support.kernel_runs import Built, compile_graph
from support.onnx_graphs import make_model, node, random

from edgec.compiler.codegen.emit_c import grain

# Enough work in every kind of kernel to be shared; 42 channels are whole blocks nowhere, so that a
# kernel joins them.
NODES = [
    node("Conv", ["x", "first"], ["a"], strides=[2, 2], pads=[1] * 4),
    node("Conv", ["a", "dense"], ["b"], pads=[1] * 4),
    node("Add", ["a", "b"], ["c"]),
    node("Conv", ["c", "depthwise"], ["d"], pads=[1] * 4, group=42),
    node("MaxPool", ["d"], ["e"], kernel_shape=[3, 3], pads=[1] * 4),
    node("Concat", ["c", "e"], ["f"], axis=1),
    node("Reshape", ["f", "matrix"], ["g"]),
    node("MatMul", ["g", "wide"], ["h"]),
    node("Softmax", ["h"], ["i"]),
    node("Sin", ["i"], ["j"]),
    node("ReduceSum", ["j", "columns"], ["y"], keepdims=0),
]
WEIGHTS = {
    "first": random(42, 3, 3, 3),
    "dense": 0.1 * random(42, 42, 3, 3),
    "depthwise": random(42, 1, 3, 3),
    "matrix": np.array([84, 2500]),
    "wide": 0.05 * random(2500, 64),
    "columns": np.array([1]),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    model = make_model(NODES, {"x": [1, 3, 100, 100]}, ["y", "h"], WEIGHTS)
    return compile_graph(model, "native", tmp_path_factory.mktemp("threads"))


def test_most_kinds_of_kernels_are_shared(built: Built) -> None:
    shared = {step.template for step in built.program.steps if grain(step) < step.tasks}
    assert shared >= {"conv", "pool", "matmul", "channel_map"}


def test_results_are_the_same_bits(built: Built) -> None:
    inputs = built.inputs()
    alone = built.open(1).run(inputs)
    for threads in (2, 3, 7):
        session = built.open(threads)
        assert session.threads == threads
        for _ in range(20):
            results = session.run(inputs)
            for name, expected in alone.items():
                np.testing.assert_array_equal(results[name], expected)


def test_another_input_gives_other_bits(built: Built) -> None:
    inputs = built.inputs()
    session = built.open(3)
    alone = session.run(inputs)
    inputs["x"][0, 0, 50, 50] += 1e-3
    changed = session.run(inputs)
    assert all(not np.array_equal(changed[name], alone[name]) for name in alone)


def test_sessions_side_by_side(built: Built) -> None:
    """Each has its own memory."""
    first, second = built.open(2), built.open(3)
    inputs = built.inputs()
    other = {"x": inputs["x"] + 1}
    expected = first.run(inputs), second.run(other)
    again = first.run(inputs), second.run(other)
    for one, two in zip(expected, again, strict=True):
        np.testing.assert_array_equal(one["y"], two["y"])
    assert not np.array_equal(expected[0]["y"], expected[1]["y"])


def test_more_threads_than_rows(tmp_path: Path) -> None:
    model = make_model([node("Softmax", ["x"], ["y"])], {"x": [2, 100_000]}, ["y"])
    built = compile_graph(model, "native", tmp_path)
    (step,) = built.program.steps
    assert (step.tasks, grain(step)) == (2, 1)
    inputs = built.inputs()
    session = built.open(8)
    assert session.threads == 8
    result = session.run(inputs)["y"]
    np.testing.assert_array_equal(result, built.open(1).run(inputs)["y"])
    np.testing.assert_allclose(result.sum(axis=1), 1, rtol=1e-4)


def test_fewer_threads_compute_the_same_bits(built: Built) -> None:
    inputs = built.inputs()
    alone = built.open(1).run(inputs)
    session = built.open(3)
    assert built.open(1).use_threads(5) == 1
    for threads in (1, 3, 2, 1, 0, 1, 2):
        assert session.use_threads(threads) == (threads or 3)
        for _ in range(5):
            results = session.run(inputs)
            for name, expected in alone.items():
                np.testing.assert_array_equal(results[name], expected)
    assert session.threads == 3
    # Closed while two of them sleep.
    session.use_threads(1)
    del session
