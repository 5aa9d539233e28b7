"""Split models: stages one after the other give the bits of the whole model on one device."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.onnx_graphs import make_model, node, random, save
from support.split_model import save_decoder

from edgec.compiler import Bundle, CompileOptions, QuantizeOptions, load_recipe
from edgec.compiler.calibration.samples import SampleOptions
from edgec.compiler.cli.main import main
from edgec.compiler.errors import BadInputError, ParityError, UnsupportedModelError
from edgec.compiler.ir.signature import Tensors
from edgec.compiler.split import split_model as splitting
from edgec.compiler.split.devices import StageRequest, parse_devices
from edgec.compiler.split.plan import Encoding, Plan
from edgec.compiler.split.split_model import split_model
from edgec.targets import load_target

HERE = load_target("native")
ENCODINGS: dict[Encoding, list[str]] = {
    "float16": ["float16"],
    "int8": ["int8", "float32"],
    "int4": ["uint8", "float32"],
}


class Chain:
    """The stages of a plan, loaded here, and the whole model beside them."""

    def __init__(self, folder: Path) -> None:
        self.plan = Plan.load(folder)
        names = [*self.plan.bundles, "whole.edgec"]
        self.bundles = {name: Bundle.load(folder / name) for name in names}
        self._sessions: dict[str, Any] = {}

    def session(self, name: str) -> Any:
        """Return the session of a bundle, the same each time."""
        if name not in self._sessions:
            self._sessions[name] = self.bundles[name].open(threads=1)
        return self._sessions[name]

    def is_same(self, inputs: Tensors, program: str = "") -> bool:
        """Tell whether the chain gives the bits of the whole model, on the next run of both."""
        planned = self.plan.program(program)
        values: dict[str, Any] = dict(inputs)
        for stage in planned.stages:
            given = {name: values[name] for name in stage.inputs}
            values |= self.session(stage.bundle).run(given)
        whole = self.session("whole.edgec").run(inputs)
        return all(np.array_equal(values[name], array) for name, array in whole.items())


def save_net(folder: Path) -> Path:
    """Write a residual block, and a dense block that concatenates what came before."""
    weights = {"w": 0.3 * random(16, 3, 3, 3), "f": random(32, 10, seed=3)}
    weights |= {name: 0.1 * random(16, 16, 3, 3, seed=n) for n, name in enumerate("vut")}
    nodes = [
        node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
        node("Relu", ["a"], ["b"]),
        node("Conv", ["b", "v"], ["c"], pads=[1] * 4),
        node("Relu", ["c"], ["d"]),
        node("Conv", ["d", "u"], ["e"], pads=[1] * 4),
        node("Add", ["e", "b"], ["g"]),
        node("Relu", ["g"], ["h"]),
        node("Conv", ["h", "t"], ["i"], pads=[1] * 4),
        node("Relu", ["i"], ["j"]),
        node("Concat", ["h", "j"], ["k"], axis=1),
        node("GlobalAveragePool", ["k"], ["m"]),
        node("Flatten", ["m"], ["n"]),
        node("MatMul", ["n", "f"], ["y"]),
    ]
    return save(make_model(nodes, {"x": [1, 3, 8, 8]}, ["y"], weights), folder)


def save_small(folder: Path) -> Path:
    """Write two products with a value between them."""
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("MatMul", ["h", "v"], ["y"])]
    weights = {"w": random(8, 65), "v": random(65, 8, seed=1)}
    return save(make_model(nodes, {"x": [1, 8]}, ["y"], weights), folder)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_net(tmp_path_factory.mktemp("net"))


def split(
    model: Path, output: Path, devices: str, stages: Sequence[StageRequest] = (), **settings: Any
) -> Chain:
    given = parse_devices(devices)
    options = CompileOptions(**settings)
    split_model(model, given, options, output=output, stages=stages, whole=HERE, emulate=False)
    return Chain(output)


def test_four_stages_give_the_bits_of_one_device(net: Path, tmp_path: Path) -> None:
    chain = split(net, tmp_path / "net.plan", "a=native,b=native,c=native,d=native")
    assert chain.plan.devices == ("a", "b", "c", "d")
    for seed in range(3):
        assert chain.is_same({"x": random(1, 3, 8, 8, seed=seed)})
    for bundle in chain.bundles.values():
        assert bundle.manifest.parity.checked_on == "target"


def test_quantized_values_cross_as_such(net: Path, tmp_path: Path) -> None:
    samples = tmp_path / "samples.npy"
    np.save(samples, random(4, 3, 8, 8, seed=7))
    # Arm multiplies int8, this machine may want uint8: one of the two is converted.
    stages = [
        StageRequest(device="a", until=("d",)),
        StageRequest(device="b", until=("h",)),
        StageRequest(device="a"),
    ]
    chain = split(
        net,
        tmp_path / "net.plan",
        "a=native,b=rpi4",
        stages,
        quantize=QuantizeOptions(recipe=load_recipe("int8"), repair=False),
        samples=SampleOptions(source=str(samples)),
    )
    program = chain.plan.program()
    assert [stage.bundle for stage in program.stages] == ["a.edgec", "b.edgec", "a-2.edgec"]
    inner = {v.name: v.dtype for v in program.values if v.source != "host" and v.to != ("host",)}
    assert len(inner) == 3
    assert set(inner.values()) <= {"int8", "uint8"}
    # What the middle computed, by a build for this machine, is in its vectors.
    (before, middle), (last,) = (
        [chain.bundles[name].vectors()[0] for name in names]
        for names in (("a.edgec", "b.edgec"), ("a-2.edgec",))
    )
    for name, array in middle[0].items():
        assert np.array_equal(array, before[1][name])
    (whole,) = chain.bundles["whole.edgec"].vectors()
    assert np.array_equal(last[1]["y"], whole[1]["y"])


def test_states_stay_in_their_stages_in_every_program(tmp_path: Path) -> None:
    model, output = save_decoder(tmp_path), tmp_path / "decoder.plan"
    programs = {"prefill": {"x": (1, 4, 3)}, "decode": {"x": (1, 1, 3)}}
    chain = split(model, output, "a=native,b=native", programs=programs)
    kept = [[r.input for r in chain.bundles[b].manifest.states] for b in chain.plan.bundles]
    # Each counts on its own.
    assert kept == [["past_length", f"past_key_values.{layer}"] for layer in range(2)]
    for program, tokens in (("prefill", 4), ("prefill", 4), ("decode", 1), ("decode", 1)):
        inputs = {"x": random(1, tokens, 3, seed=tokens), "last": np.array([tokens])}
        assert chain.is_same(inputs, program)


def test_what_travels_is_rounded_and_measured(tmp_path: Path) -> None:
    net = save_small(tmp_path)
    devices, stages = (
        parse_devices("a=native,b=native"),
        [
            StageRequest(device="a", until=("h",)),
            StageRequest(device="b"),
        ],
    )
    ratios = []
    for encoding, dtypes in ENCODINGS.items():
        plan = split_model(
            net, devices, output=tmp_path / encoding, stages=stages, encoding=encoding
        )
        inner = [v for v in plan.program().values if v.source == "a"]
        assert [v.dtype for v in inner] == dtypes
        assert {v.encoding for v in inner} == {encoding}
        ratios.append(plan.sqnr_db["y"])
    # A bit is 6 dB: of 11, 8 and 4 bits.
    assert ratios[0] > 60 > ratios[1] > 38 > ratios[2] > 20
    with pytest.raises(ParityError, match="y"):
        split_model(
            net, devices, output=tmp_path / "bar", stages=stages, encoding="int4", min_sqnr_db=60
        )


def test_a_chain_that_computes_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = save_small(tmp_path)
    original = splitting.run_chain

    def damaged(stages: Any, inputs: Any) -> Any:
        runs = original(stages, inputs)
        for steps in runs:
            steps[-1].outputs["y"][:] += 0.1
        return runs

    monkeypatch.setattr(splitting, "run_chain", damaged)
    with pytest.raises(ParityError, match="the stages together do not compute the model: y"):
        split_model(net, parse_devices("a=native,b=native"), output=tmp_path / "net.plan")
    assert not (tmp_path / "net.plan").exists()


@pytest.mark.parametrize(
    ("until", "message"),
    [
        ("hh", "no value is named 'hh'; did you mean h?"),
        ("y", "nothing or everything would be before it; the nearest"),
    ],
)
def test_where_nothing_can_be_cut_is_said(
    until: str, message: str, net: Path, tmp_path: Path
) -> None:
    stages = [StageRequest(device="a", until=(until,)), StageRequest(device="b")]
    with pytest.raises(BadInputError, match=message):
        split(net, tmp_path / "net.plan", "a=native,b=native", stages)


def test_too_many_stages_are_refused(tmp_path: Path) -> None:
    path = save_small(tmp_path)
    with pytest.raises(UnsupportedModelError, match="has 2 parts that can be computed apart; 3"):
        split(path, tmp_path / "net.plan", "a=native,b=native,c=native")


def test_the_command_line_compiles_a_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(save_small(tmp_path))
    file = tmp_path / "split.toml"
    file.write_text('[[stage]]\ndevice = "b"\nuntil = ["h"]\n[[stage]]\ndevice = "a"\n')
    output = str(tmp_path / "net.plan")
    call = ["compile", path, "--devices", "a=native,b=native", "-q", "-o", output]
    assert main([*call, "--split", str(file)]) == 0
    assert "b (" in capsys.readouterr().out
    assert Plan.load(output).devices == ("b", "a")
    file.write_text('[[stage]]\ndevice = "c"\n')
    assert main([*call, "--split", str(file)]) == 4
    assert "device 'c'" in capsys.readouterr().err
    assert main(["compile", path, "--split", str(file)]) == 2
    assert main(["compile", path, "--devices", "a"]) == 2
    capsys.readouterr()
    for options, message in (
        (["--cut-min-sqnr", "20"], "--cut-min-sqnr belongs to --cut-encoding"),
        (["--cut-encoding", "int8", "--cut-min-sqnr", "nan"], "--cut-min-sqnr nan is no ratio"),
    ):
        assert main([*call, *options]) == 2
        assert message in capsys.readouterr().err
