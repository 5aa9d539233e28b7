"""Programs of one library: constants once, one state, one arena."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from support.cache_graphs import appended, graph
from support.onnx_graphs import make_model, node, random
from support.programs import BuiltPrograms, build_programs

from edgec.compiler.backend import build, pack, schedule
from edgec.compiler.codegen.states import keep_states
from edgec.compiler.errors import BadInputError, TensorInputError, UsageError
from edgec.compiler.ir.cache_operators import append_rows
from edgec.compiler.ir.program import Program, Value
from edgec.compiler.ir.signature import Signature, State, TensorSpec
from edgec.compiler.lowering.legalize import lower
from edgec.compiler.runtime.session import open_session
from edgec.compiler.runtime.static_session import StaticSession
from edgec.targets import load_target

WEIGHT = random(64, 64, seed=3)
STATES = [State("h", "h_next"), State("count", "count_next"), State("same", "same_next")]


def recurrent(rows: int) -> onnx.ModelProto:
    """h' = tanh(mean(x w) + h), y = h' * count; one state goes on as it is."""
    nodes = [
        node("MatMul", ["x", "w"], ["p"]),
        node("ReduceMean", ["p"], ["m"], axes=[0], keepdims=1),
        node("Add", ["m", "h"], ["s"]),
        node("Tanh", ["s"], ["h_next"]),
        node("Add", ["count", "one"], ["count_next"]),
        node("Mul", ["h_next", "count_next"], ["y0"]),
        node("Add", ["y0", "same"], ["y"]),
        node("Identity", ["same"], ["same_next"]),
    ]
    inputs = {"x": [rows, 64], "h": [1, 64], "count": [1, 1], "same": [1, 64]}
    outputs = ["y", "h_next", "count_next", "same_next"]
    weights = {"w": WEIGHT, "one": np.float32([[1]])}
    return make_model(nodes, inputs, outputs, weights, opset=17)


def expected(xs: list[np.ndarray]) -> list[np.ndarray]:
    h, results = np.zeros((1, 64), np.float32), []
    for number, x in enumerate(xs, 1):
        h = np.tanh((x @ WEIGHT).mean(axis=0, keepdims=True) + h)
        results.append(h * number)
    return results


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> BuiltPrograms:
    models = {"one": recurrent(1), "five": recurrent(5)}
    return build_programs(models, STATES, tmp_path_factory.mktemp("programs"))


XS = [0.1 * random(rows, 64, seed=rows + i) for i, rows in enumerate([1, 5, 5, 1, 1])]


def run(session: Any, xs: list[np.ndarray]) -> list[np.ndarray]:
    return [session.run({"x": x})["y"] for x in xs]


def test_programs_share_the_state(built: BuiltPrograms) -> None:
    """The negative control: a session that forgets between two runs is off."""
    session = built.open()
    found = run(session, XS)
    np.testing.assert_allclose(found, expected(XS), rtol=1e-5, atol=1e-5)
    session.reset()
    np.testing.assert_array_equal(run(session, XS), found)
    session.reset()
    forgetful = []
    for x in XS:
        forgetful += run(session, [x])
        session.reset()
    assert not np.allclose(forgetful[1:], found[1:], rtol=1e-2)


def test_constants_are_there_once(built: BuiltPrograms) -> None:
    assert (built.library.parent / "weights.bin").stat().st_size < 1.1 * WEIGHT.nbytes
    assert [program.swaps for program in built.programs] == [[0, 1], [0, 1]]
    assert built.open().steps(0) != built.open().steps(1)


def test_sessions_are_independent(built: BuiltPrograms) -> None:
    left, right = built.open(), built.open()
    wanted = run(built.open(), XS)
    for number, x in enumerate(XS):
        np.testing.assert_array_equal(left.run({"x": x})["y"], wanted[number])
        if number:
            np.testing.assert_array_equal(right.run({"x": XS[number - 1]})["y"], wanted[number - 1])


def test_a_saved_state(built: BuiltPrograms, tmp_path: Path) -> None:
    session = built.open()
    run(session, XS[:3])
    session.save(tmp_path / "state")
    wanted = run(session, XS[3:])
    other = built.open()
    other.load(tmp_path / "state")
    assert other.state("count") == 3
    np.testing.assert_array_equal(run(other, XS[3:]), wanted)
    saved = (tmp_path / "state").read_bytes()
    for damaged in (saved[:-1], b"", bytes([saved[0] ^ 1]) + saved[1:], saved[:20] + saved[19:-1]):
        (tmp_path / "damaged").write_bytes(damaged)
        with pytest.raises(BadInputError, match="damaged: the saved state is of another model"):
            other.load(tmp_path / "damaged")
    with pytest.raises(BadInputError, match="cannot be read: No such file"):
        other.load(tmp_path / "missing")


def test_a_state_can_be_changed(built: BuiltPrograms) -> None:
    session = built.open()
    run(session, XS[:1])
    session.set_state("count", np.float32([[7]]))
    found = session.run({"x": XS[1]})["y"]
    np.testing.assert_allclose(found, expected(XS)[1] / 2 * 8, rtol=1e-5, atol=1e-5)
    session.set_state("same", np.ones((1, 64), np.float32))
    session.reset()
    assert not session.state("same").any()
    with pytest.raises(UsageError, match="counts is no state"):
        session.state("counts")
    with pytest.raises(TensorInputError, match="count \\[2\\] float32 was given"):
        session.set_state("count", np.float32([1, 2]))


def test_inputs_that_fit_no_program(built: BuiltPrograms) -> None:
    with pytest.raises(TensorInputError) as found:
        built.open().run({"x": random(3, 64)})
    assert str(found.value) == (
        "no program of this bundle takes x [3,64] float32; there are one (x [1,64] float32); "
        "five (x [5,64] float32)"
    )


def cache(emit: Any, past: Any, new: Any, offset: Any) -> Any:
    return emit(append_rows(past, new, offset))


@pytest.mark.parametrize("read_later", [False, True])
def test_a_cache_is_changed_in_place(read_later: bool, tmp_path: Path) -> None:
    """Only where no step reads the old one after the rows are there."""
    rng = np.random.default_rng(0)
    arrays = {
        "past": np.zeros((1, 2, 16, 8), np.float32),
        "new": rng.standard_normal((1, 2, 3, 8), np.float32),
        "offset": np.int64([0]),
    }
    module, signature = graph(arrays, cache, {})
    machine = load_target("native")
    program = schedule(lower(pack(module, machine), machine), module, machine, signature)
    assert isinstance(program, Program)
    if read_later:
        old = Value("output", (1, 2, 16, 8), "float32", number=1, label="old")
        program.outputs.append(old)
        program.copies.append((old, program.inputs[0]))
    keep_states(program, [State("past", "y")], machine)
    library = tmp_path / "model.so"
    build([program], machine, library)
    assert (len(program.swaps), "in_place" in program.steps[0].workload) == (
        (1, False) if read_later else (0, True)
    )
    outputs = (TensorSpec("old", (1, 2, 16, 8), "float32"),) if read_later else ()
    session = open_session(library, machine, Signature(signature.inputs[1:], outputs), "static")
    assert isinstance(session, StaticSession)
    expected = arrays["past"]
    for offset in (0, 3, 5):
        fed = {"new": arrays["new"] + offset, "offset": np.int64([offset])}
        found = session.run(fed)
        if read_later:
            np.testing.assert_array_equal(found["old"], expected)
        expected = appended(expected, fed["new"], fed["offset"])
        np.testing.assert_array_equal(session.state("past"), expected)
