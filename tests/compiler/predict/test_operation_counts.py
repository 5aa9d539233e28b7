"""What a kernel executes, counted from its code."""

import numpy as np
import pytest
from support.onnx_graphs import make_model, node, random
from tvm.script import tirx as T  # noqa: N812 - TVM's way

from edgec.compiler.backend import pack, schedule
from edgec.compiler.frontend.canonical import canonical_model
from edgec.compiler.ir.program import Program
from edgec.compiler.lowering.legalize import lower
from edgec.compiler.predict.operation_counts import INDEX, NotCountable, count_operations
from edgec.targets import load_target


def program_of(kernel: int, pads: int) -> Program:
    nodes = [node("Conv", ["x", "w"], ["y"], pads=[pads] * 4)]
    weights = {"w": random(8, 8, kernel, kernel)}
    model = make_model(nodes, {"x": [1, 8, 12, 12]}, ["y"], weights)
    canonical, target = canonical_model(model), load_target("rpi4")
    packed = lower(pack(canonical.module, target), target)
    program = schedule(packed, canonical.module, target, canonical.signature)
    assert isinstance(program, Program)
    return program


@pytest.mark.parametrize(("kernel", "pads"), [(1, 0), (3, 1)])
def test_multiplications_of_a_convolution(kernel: int, pads: int) -> None:
    """Four lanes multiply at once; at the rim what lies outside is not multiplied."""
    program = program_of(kernel, pads)
    (step,) = (step for step in program.steps if step.template == "conv")
    counts = count_operations(program.functions[step.kernel], step.tasks, 128)
    inside = 12 - 2 * pads * (2 / 3 if kernel == 3 else 0) / 2
    expected = 8 * 8 * (kernel * inside) ** 2 / 4 if pads else step.flops / 2 / 4
    # Winograd multiplies less; the direct kernel as many, a tile's padding aside.
    assert counts[INDEX["multiply_add"]] == pytest.approx(expected, rel=0.6)
    assert counts[INDEX["task"]] == step.tasks
    assert counts[INDEX["store"]] > 0


@T.prim_func
def triangle(x: T.handle("float32", "global"), begin: T.int32, end: T.int32) -> None:
    data = T.decl_buffer((64,), data=x)
    for i in range(end - begin):
        for j in range(i):
            data[j] = data[j] + T.float32(1)


@T.prim_func
def by_data(x: T.handle("int32", "global"), begin: T.int32, end: T.int32) -> None:
    data = T.decl_buffer((64,), data=x)
    for i in range(end - begin):
        for j in range(data[i]):
            data[j] = i


def test_loops_whose_extent_varies() -> None:
    counts = count_operations(triangle, 10, 128)
    assert counts[INDEX["store"]] == 45
    assert counts[INDEX["float"]] == 45
    assert counts[INDEX["loop"]] == 10 + 45
    # Of many turns some stand for all.
    assert count_operations(triangle, 1000, 128)[INDEX["store"]] == pytest.approx(499_500, rel=0.01)


def test_loops_that_depend_on_data_are_not_counted() -> None:
    with pytest.raises(NotCountable):
        count_operations(by_data, 4, 128)


def test_nothing_runs_without_tasks() -> None:
    assert not np.any(count_operations(triangle, 0, 128))
