"""Stages that devices share: the values of the whole model, and a part of the weights for each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.onnx_graphs import make_model, node, random, save

from edgec.compiler import Bundle, CompileOptions, QuantizeOptions, load_recipe
from edgec.compiler.calibration.samples import SampleOptions
from edgec.compiler.cli.main import main
from edgec.compiler.distribute.plan_session import PlanSession
from edgec.compiler.errors import BadInputError, ParityError, UnsupportedModelError
from edgec.compiler.split import part_graph
from edgec.compiler.split.devices import (
    StageRequest,
    parse_devices,
    read_split_file,
    split_file_text,
)
from edgec.compiler.split.plan import Plan
from edgec.compiler.split.split_model import split_model
from edgec.targets import load_target

HERE = load_target("native")


def save_net(folder: Path) -> Path:
    """Write a residual block on 9 rows, a convolution of many channels, and two products."""
    weights = {
        "w": 0.3 * random(32, 3, 3, 3),
        "v": 0.1 * random(32, 32, 3, 3, seed=1),
        "u": 0.1 * random(64, 32, 1, 1, seed=2),
        "t": 0.2 * random(64, 96, seed=3),
        "s": 0.2 * random(96, 10, seed=4),
    }
    nodes = [
        node("Conv", ["x", "w"], ["a0"], pads=[1] * 4, strides=[2, 2]),
        node("Relu", ["a0"], ["a"]),
        node("Conv", ["a", "v"], ["b0"], pads=[1] * 4),
        node("Add", ["b0", "a"], ["b1"]),
        node("Relu", ["b1"], ["b"]),
        node("Conv", ["b", "u"], ["c0"]),
        node("Relu", ["c0"], ["c"]),
        node("GlobalAveragePool", ["c"], ["d0"]),
        node("Flatten", ["d0"], ["d"]),
        node("MatMul", ["d", "t"], ["e0"]),
        node("Relu", ["e0"], ["e"]),
        node("MatMul", ["e", "s"], ["y"]),
    ]
    return save(make_model(nodes, {"x": [1, 3, 17, 12]}, ["y"], weights), folder)


def together(along: str, *until: str, devices: str = "ab") -> StageRequest:
    return StageRequest(devices=tuple(devices), along=along, until=until)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_net(tmp_path_factory.mktemp("net"))


def split(
    model: Path, output: Path, devices: str, stages: Sequence[StageRequest], **settings: Any
) -> Plan:
    return split_model(
        model,
        parse_devices(devices),
        CompileOptions(**settings),
        output=output,
        stages=stages,
        whole=HERE,
        emulate=False,
    )


def chain(folder: Path, x: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return every value that the stages give, and the result of the whole model."""
    values = {"x": x}
    for stage in Plan.load(folder).program().stages:
        session = Bundle.load(folder / stage.bundle).open(threads=1)
        values |= session.run({name: values[name] for name in stage.inputs})
    return values, Bundle.load(folder / "whole.edgec").open(threads=1).run({"x": x})["y"]


@pytest.fixture(scope="module")
def plan(net: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plans") / "net.plan"
    stages = (together("rows", "b"), together("channels", "e"), together("sums"))
    split(net, folder, "a=native,b=native", stages, runner=True)
    return folder


def test_devices_that_share_stages_give_the_values_of_one(plan: Path) -> None:
    stages = Plan.load(plan).program().stages
    assert [stage.bundle.removesuffix(".edgec") for stage in stages] == [
        *("a", "b", "a-2", "b-2", "a-3", "b-3", "a-4")
    ]
    values, expected = chain(plan, random(1, 3, 17, 12, seed=9))
    np.testing.assert_allclose(values["y"], expected, rtol=1e-4, atol=1e-5)
    # Of nine rows one has five, the other four; the residual block is computed without exchange.
    assert [values[f"b@{device}"].shape[2] for device in "ab"] == [5, 4]
    assert [values[f"e@{device}"].shape for device in "ab"] == [(1, 48), (1, 48)]


def test_they_work_at_the_same_time(plan: Path) -> None:
    x = random(1, 3, 17, 12, seed=11)
    with PlanSession(plan, timeout=20) as session:
        found = session.run({"x": x})["y"]
        assert session.linked is not None
        names = list(session.bundles)
        times = {names[t.stage]: t for t in session.linked.records()[0]}
    np.testing.assert_allclose(found, chain(plan, x)[1], rtol=1e-4, atol=1e-5)
    # Neither waits for the other: both had their inputs before one of them was done.
    for pair in (("a.edgec", "b.edgec"), ("a-2.edgec", "b-2.edgec")):
        first, second = (times[name] for name in pair)
        assert {first.stage, second.stage} == {names.index(name) for name in pair}
    assert times["a-4.edgec"].began >= max(times[n].ended for n in ("a-3.edgec", "b-3.edgec"))


def test_integers_are_equal_over_three_devices(net: Path, tmp_path: Path) -> None:
    samples = tmp_path / "samples.npy"
    np.save(samples, random(4, 3, 17, 12, seed=7))
    stages = (
        together("rows", "b", devices="abc"),
        together("channels", "c"),
        StageRequest(device="a"),
    )
    split(
        net,
        tmp_path / "net.plan",
        "a=native,b=native,c=native",
        stages,
        quantize=QuantizeOptions(recipe=load_recipe("int8"), repair=False),
        samples=SampleOptions(source=str(samples)),
    )
    values, expected = chain(tmp_path / "net.plan", random(1, 3, 17, 12, seed=9))
    parts = [values[f"c/quantize@{device}"] for device in "ab"]
    assert [part.shape[1] for part in parts] == [32, 32]
    assert {part.dtype.kind for part in parts} <= set("iu")
    assert np.array_equal(values["y"], expected)


def test_a_part_that_computes_something_else_is_refused(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shifted(*arguments: Any) -> list[tuple[int, int]]:
        (begin, middle), (_, end) = intervals(*arguments)
        return [(begin, middle), (middle - 1, end)]

    intervals = part_graph.intervals
    monkeypatch.setattr(part_graph, "intervals", shifted)
    with pytest.raises(ParityError, match="the stages together"):
        split(
            net,
            tmp_path / "net.plan",
            "a=native,b=native",
            (together("sums", "e0"), StageRequest(device="a")),
        )


def test_the_command_lines_share_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    devices = ["--devices", "a=rpi4,b=rpi4"]
    link = ["--link", "100gbit,0us", "-o", "split.toml"]
    nodes = [node("Conv", ["x", "w"], ["a"], pads=[1] * 4), node("Relu", ["a"], ["y"])]
    wide = make_model(nodes, {"x": [1, 64, 40, 40]}, ["y"], {"w": random(64, 64, 3, 3)})
    file = str(save(wide, tmp_path, "wide.onnx"))
    assert main(["split", file, *devices, *link, "--parallel", "auto"]) == 0
    assert "a and b along" in capsys.readouterr().out
    stages = read_split_file(tmp_path / "split.toml", parse_devices(devices[1]))
    assert any(stage.along for stage in stages)
    assert split_file_text(stages) == (tmp_path / "split.toml").read_text()
    slow = ["--link", "1kbit,1s"]
    assert main(["split", file, *devices, *slow, "--parallel", "auto"]) == 0
    assert " along " not in capsys.readouterr().out
    many = ["--parallel", "rows", "--objective", "throughput"]
    assert main(["split", file, *devices, *slow, *many]) == 2
    compiled = ["compile", file, "--devices", "a=native,b=native", "-q"]
    assert main([*compiled, "--parallel", "rows", "--split", "split.toml"]) == 2
    assert main(["compile", file, "-q", "--parallel", "rows"]) == 2
    assert main([*compiled, "--parallel", "channels", "-o", "wide.plan"]) == 0
    assert Plan.load(tmp_path / "wide.plan").devices == ("a", "b")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('device = "a"\ndevices = ["a", "b"]\nalong = "rows"', "has a `device`, or several"),
        ('devices = ["a", "b"]', "share their stage `along` something"),
        ('devices = ["a", "a"]\nalong = "rows"', "names one twice"),
        ('devices = ["a", "b"]\nalong = "rows"\nshares = [1.0]', "a number for each"),
    ],
)
def test_a_split_file_that_shares_wrongly_is_refused(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "split.toml"
    file.write_text(f"[[stage]]\n{text}\n")
    with pytest.raises(BadInputError, match=said):
        read_split_file(file, parse_devices("a=rpi4,b=rpi4"))


def test_sums_end_with_a_product(net: Path, tmp_path: Path) -> None:
    stages = (together("sums", "d"), StageRequest(device="a"))
    with pytest.raises(UnsupportedModelError, match="ends with d: it must end with"):
        split(net, tmp_path / "net.plan", "a=native,b=native", stages)
