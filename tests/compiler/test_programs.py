"""Bundles of several programs and of models with state, from their options to their results."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from support.cli_calls import Call
from support.onnx_graphs import make_model, node, random
from support.speech import speech

from edgec.compiler import Bundle, CompileOptions, compile_model
from edgec.compiler.bench.compare import bench_bundles
from edgec.compiler.errors import ParityError, ShapeError, TensorInputError, UsageError
from edgec.compiler.options import parse_shapes
from edgec.compiler.parity.verify_bundle import verify_bundle
from edgec.compiler.runtime.static_session import StaticSession
from edgec.compiler.support.onnx_runtime import open_onnx_session, run_onnx_session
from edgec.models import load_model_recipe

WEIGHTS = {"w": random(40, 3, 3, 3), "v": 0.1 * random(40, 40, 3, 3, seed=1)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convolutions over lines of any width, and a state: the mean of all that went before."""
    nodes = [
        node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
        node("Relu", ["a"], ["b"]),
        node("Conv", ["b", "v"], ["c"], pads=[1] * 4, strides=[2, 2]),
        node("GlobalAveragePool", ["c"], ["m"]),
        node("Add", ["m", "mean"], ["next"]),
        node("Mul", ["c", "next"], ["y"]),
    ]
    inputs = {"x": [1, 3, 8, 16], "mean": [1, 40, 1, 1]}
    proto = make_model(nodes, inputs, ["y", "next"], WEIGHTS)
    proto.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "width"
    path = tmp_path_factory.mktemp("lines") / "lines.onnx"
    onnx.save(proto, path)
    return path


def options(*widths: int, **settings: object) -> CompileOptions:
    programs = {str(width): {"x": (1, 3, 8, width)} for width in widths}
    return CompileOptions(programs=programs, **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def bundle(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    output = tmp_path_factory.mktemp("bundles") / "lines.edgec"
    given = options(16, 24, 32, states=["mean=next"], runner=True)
    return compile_model(model, options=given, output=output)


def image(width: int, seed: int = 5) -> dict[str, np.ndarray]:
    return {"x": random(1, 3, 8, width, seed=seed)}


def original(model: Path, inputs: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
    session, mean = open_onnx_session(str(model)), np.zeros((1, 40, 1, 1), np.float32)
    results = []
    for fed in inputs:
        found = run_onnx_session(session, {**fed, "mean": mean})
        mean = found["next"]
        results.append(found["y"])
    return results


def test_any_order_of_programs_is_one_stream(model: Path, bundle: Bundle) -> None:
    session = bundle.open(2)
    inputs = [image(width, seed) for seed, width in enumerate([16, 32, 32, 24, 16])]
    for fed, expected in zip(inputs, original(model, inputs), strict=True):
        np.testing.assert_allclose(session.run(fed)["y"], expected, rtol=1e-4, atol=1e-4)
    first = original(model, inputs[:1])[0]
    # A run of the bundle begins anew.
    for _ in range(2):
        np.testing.assert_allclose(bundle.run(inputs[0])["y"], first, rtol=1e-4, atol=1e-4)
    with pytest.raises(UsageError, match="is one stream: open one for each"):
        bundle.open(sessions=2)
    with pytest.raises(UsageError, match="takes no padding"):
        bundle.run(image(20), pad=True)


def test_weights_are_there_once(model: Path, bundle: Bundle, tmp_path: Path) -> None:
    one = compile_model(model, options=options(16), output=tmp_path / "one.edgec")
    more = bundle.library.stat().st_size - one.library.stat().st_size
    assert more < sum(array.nbytes for array in WEIGHTS.values())


def test_the_manifest_says_what_there_is(bundle: Bundle, call: Call) -> None:
    manifest = bundle.manifest
    assert [program.name for program in manifest.programs] == ["16", "24", "32"]
    assert [str(record.spec) for record in manifest.states] == ["mean [1,40,1,1] float32"]
    assert [v.program for v in manifest.vectors] == ["16"] * 3 + ["24"] * 3 + ["32"] * 3
    code, out, _ = call("inspect", bundle.path)
    assert code == 0
    for text in ("program     24", "x [1,3,8,32] float32", "next value next, 160 bytes"):
        assert text in out


def test_verify_runs_all_of_it(model: Path, bundle: Bundle) -> None:
    """The negative control: a session that forgets between two runs is off."""
    assert verify_bundle(bundle, model=model).passed

    class Forgetful:
        def __init__(self) -> None:
            self._session = bundle.open(1)

        def reset(self) -> None:
            pass

        def run(self, inputs: object, program: str | None = None) -> object:
            self._session.reset()
            return self._session.run(inputs, program)  # type: ignore[arg-type]

    report = verify_bundle(bundle, session=Forgetful())  # type: ignore[arg-type]
    assert not report.passed


def test_a_library_that_forgets_fails_parity(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = StaticSession.run

    def forget(
        self: StaticSession, inputs: dict[str, np.ndarray], program: str | None = None
    ) -> dict[str, np.ndarray]:
        self.reset()
        return run(self, inputs, program)

    monkeypatch.setattr(StaticSession, "run", forget)
    given = options(16, states=["mean=next"])
    with pytest.raises(ParityError, match="graph of program 16 failed: y"):
        compile_model(model, options=given, output=tmp_path / "no.edgec")
    assert not (tmp_path / "no.edgec").exists()


def test_run_and_bench_take_a_program(bundle: Bundle, call: Call, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", image(24)["x"])
    for arguments in (["--program", "24"], ["--input", f"x={tmp_path / 'x.npy'}"]):
        code, out, err = call("run", bundle.path, *arguments)
        assert (code, "[1,40,4,12]" in out) == (0, True), err
    code, _, err = call("run", bundle.path, "--program", "25")
    assert (code, "no program is named '25'; the bundle's are: 16, 24, 32" in err) == (2, True)
    report = bench_bundles([bundle], seconds=0.01, program="32")
    widest = bench_bundles([bundle], seconds=0.01, program="16").steps
    assert sum(step.gflops > 0 for step in report.steps) >= 2
    assert len(report.steps) == len(widest)


def test_padding(call: Call, tmp_path: Path) -> None:
    """Zeros on the right are what the convolution itself pads with."""
    proto = make_model(
        [node("Conv", ["x", "w"], ["a"], pads=[1] * 4)], {"x": [1, 3, 8, 16]}, ["a"], WEIGHTS
    )
    proto.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "width"
    onnx.save(proto, tmp_path / "one.onnx")
    given = options(16, 32)
    bundle = compile_model(tmp_path / "one.onnx", options=given, output=tmp_path / "one.edgec")
    fed = image(27)
    expected = run_onnx_session(open_onnx_session(str(tmp_path / "one.onnx")), fed)["a"]
    np.testing.assert_allclose(bundle.run(fed, pad=True)["a"], expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(TensorInputError, match=r"there are 16 \(x \[1,3,8,16\] float32\); 32"):
        bundle.run(fed)
    np.save(tmp_path / "x.npy", fed["x"])
    code, out, _ = call("run", bundle.path, "--input", f"x={tmp_path / 'x.npy'}", "--pad")
    assert (code, "[1,40,8,27]" in out) == (0, True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: parse_shapes(["x={1,2},3", "y={1,2,3}"]), "braces of --shape go together"),
        (lambda: parse_shapes(["x={1,1},3"]), "two programs of --shape are named 1"),
        (lambda: parse_shapes(["x={1,2", "y=3"]), "'x={1,2' is no shape"),
        (lambda: parse_shapes(["x=1", "x=2"]), "given twice for the same input"),
        (lambda: CompileOptions(programs={"a b": {}}), "a program is named 'a b'"),
        (lambda: CompileOptions(programs={"a": {}, "b": {}}), "a and b have the same shapes"),
        (lambda: CompileOptions(states=["h"]), "'h' is no state; write INPUT=OUTPUT"),
        (lambda: CompileOptions(states=["h=a", "h=b"]), "--state names h twice"),
        (lambda: CompileOptions(states="h=a"), "states are a list of INPUT=OUTPUT"),
    ],
)
def test_options_that_cannot_be(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError) as error:
        make()
    assert message in str(error.value)


def test_a_state_has_one_shape(model: Path, tmp_path: Path) -> None:
    nodes = [node("Add", ["x", "h"], ["h2"]), node("Relu", ["h2"], ["y"])]
    proto = make_model(nodes, {"x": [1, 8], "h": [1, 8]}, ["y", "h2"])
    for value in proto.graph.input:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    given = CompileOptions(
        programs={"1": {"x": (1, 8)}, "2": {"x": (2, 8)}}, states=["h=h2"], parity=False
    )
    with pytest.raises(ShapeError, match=r"h is \[1, 8\] float32 in program 1 and \[2, 8\]"):
        compile_model(proto, options=given, output=tmp_path / "no.edgec")
    with pytest.raises(ShapeError, match="'next2' is no output of the model"):
        compile_model(model, options=options(16, states=["mean=next2"]), output=tmp_path / "no")


@pytest.mark.slow
def test_a_speech_detector_over_a_minute(tmp_path: Path) -> None:
    """Recognized by the names of its state; two streams in one process."""
    recipe = load_model_recipe("silero-vad")
    path = recipe.write(tmp_path / "vad.onnx")
    freeze = {name: np.array(value) for name, value in recipe.freeze.items()}
    shapes = {"input": (1, 576), "state": (2, 1, 128)}
    given = CompileOptions(shapes=shapes, freeze=freeze)
    bundle = compile_model(path, options=given, output=tmp_path / "vad.edgec")
    assert [(r.input, r.output) for r in bundle.manifest.states] == [("state", "stateN")]
    ours, session = [bundle.open(1) for _ in range(2)], open_onnx_session(str(path))
    states = [np.zeros((2, 1, 128), np.float32) for _ in ours]
    sounds = [np.pad(speech(60, seed), (64, 0)) for seed in range(2)]
    chances: list[float] = []
    for begin in range(0, 60 * 16000 - 512, 512):
        for number, sound in enumerate(sounds):
            chunk = sound[np.newaxis, begin : begin + 576]
            fed = {"input": chunk, "state": states[number], **freeze}
            expected = run_onnx_session(session, fed)
            states[number] = expected["stateN"]
            found = ours[number].run({"input": chunk})["output"]
            np.testing.assert_allclose(found, expected["output"], atol=1e-4)
            chances.append(float(found[0, 0]))
    # It heard speech, and pauses.
    assert min(chances) < 0.01
    assert max(chances) > 0.99
