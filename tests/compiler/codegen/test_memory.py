"""The memory plan: what lives at the same time lies apart, what is dead makes room."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.kernel_runs import Built, compile_graph
from support.onnx_graphs import make_model, node, random

from edgec.compiler.codegen.memory import ALIGNMENT_BYTES, MemoryPlan, plan_memory
from edgec.compiler.ir.program import KernelCall, Program, Value


def live_ranges(program: Program) -> dict[int, tuple[Value, set[int]]]:
    """Root temporaries by id with the steps during which their bytes must stay."""
    touched: dict[int, tuple[Value, list[int]]] = {}
    for number, step in enumerate(program.steps):
        for value in step.arguments:
            if value.root.role == "temporary":
                touched.setdefault(id(value.root), (value.root, []))[1].append(number)
    return {
        key: (value, set(range(min(steps), max(steps) + 1)))
        for key, (value, steps) in touched.items()
    }


def collisions(program: Program, plan: MemoryPlan) -> list[tuple[str, str]]:
    """Pairs of temporaries that share bytes while both are alive."""
    ranges = list(live_ranges(program).values())
    found = []
    for index, (one, steps) in enumerate(ranges):
        for other, others in ranges[:index]:
            a, b = plan.offsets[id(one)], plan.offsets[id(other)]
            apart = a + one.size_bytes <= b or b + other.size_bytes <= a
            if steps & others and not apart:
                found.append((one.label, other.label))
    return found


def peak_bytes(program: Program) -> int:
    """Largest sum of what lives during one step: no plan can do with less."""
    ranges = live_ranges(program).values()
    return max(
        (
            sum(value.size_bytes for value, steps in ranges if number in steps)
            for number in range(len(program.steps))
        ),
        default=0,
    )


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Residual blocks, a reshape that is a view, and a value that lives to the end."""
    nodes = [node("Conv", ["x", "first"], ["c0"], pads=[1] * 4)]
    for index in range(4):
        before, after = f"c{index}", f"c{index + 1}"
        nodes += [
            node("Conv", [before, "dense"], [f"h{index}"], pads=[1] * 4),
            node("Relu", [f"h{index}"], [f"r{index}"]),
            node("Conv", [f"r{index}", "dense"], [f"s{index}"], pads=[1] * 4),
            node("Add", [before, f"s{index}"], [after]),
        ]
    nodes += [
        node("Reshape", ["c4", "matrix"], ["flat"]),
        node("MatMul", ["flat", "wide"], ["m"]),
        node("Softmax", ["m"], ["p"]),
        node("Reshape", ["c0", "matrix"], ["early"]),
        node("MatMul", ["early", "wide"], ["n"]),
        node("Add", ["n", "p"], ["y"]),
    ]
    weights = {
        "first": random(20, 3, 3, 3),
        "dense": 0.1 * random(20, 20, 3, 3),
        "matrix": np.array([20, 144]),
        "wide": random(144, 30),
    }
    model = make_model(nodes, {"x": [1, 3, 12, 12]}, ["y"], weights)
    return compile_graph(model, "native", tmp_path_factory.mktemp("memory"))


def test_nothing_that_lives_is_overwritten(network: Built) -> None:
    assert set(live_ranges(network.program)) == set(network.plan.offsets)
    assert collisions(network.program, network.plan) == []


def test_the_check_notices_a_collision(network: Built) -> None:
    together = MemoryPlan(dict.fromkeys(network.plan.offsets, 0), network.plan.arena_bytes)
    assert collisions(network.program, together) != []


def test_memory_is_used_again(network: Built) -> None:
    total = sum(value.size_bytes for value, _ in live_ranges(network.program).values())
    peak = peak_bytes(network.program)
    assert peak <= network.plan.arena_bytes < 1.3 * peak
    assert network.plan.arena_bytes < total / 2


def test_a_run_stays_in_the_arena(network: Built) -> None:
    """Twice the same: nothing that the first run left behind matters."""
    inputs = network.inputs()
    session = network.open(1)
    first = session.run(inputs)["y"]
    other = session.run({"x": 100 * inputs["x"]})["y"]
    np.testing.assert_array_equal(session.run(inputs)["y"], first)
    assert not np.array_equal(other, first)


def test_a_model_without_temporaries(tmp_path: Path) -> None:
    model = make_model([node("Relu", ["x"], ["y"])], {"x": [4]}, ["y"])
    assert compile_graph(model, "native", tmp_path).plan == MemoryPlan({}, 0)


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Steps that write one value each and read some earlier ones, some through views."""
    sizes = draw(st.lists(st.integers(1, 5000), min_size=1, max_size=25))
    values = [Value("temporary", (size,), "float32", label=str(i)) for i, size in enumerate(sizes)]
    steps = []
    for number, value in enumerate(values):
        read = draw(st.sets(st.integers(0, number - 1), max_size=3)) if number else set()
        views = [Value("temporary", (1, sizes[i]), "float32", base=values[i]) for i in sorted(read)]
        steps.append(KernelCall(f"k{number}", (*views, value), 1, "", "generic"))
    return Program([], [], steps)


@settings(deadline=None, max_examples=200)
@given(programs())
def test_any_program(program: Program) -> None:
    plan = plan_memory(program)
    ranges = live_ranges(program).values()
    assert collisions(program, plan) == []
    assert plan.arena_bytes >= peak_bytes(program)
    assert all(offset % ALIGNMENT_BYTES == 0 for offset in plan.offsets.values())
    assert all(plan.offsets[id(v)] + v.size_bytes <= plan.arena_bytes for v, _ in ranges)
