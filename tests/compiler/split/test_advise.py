"""`edgec split`: the cuts of a graph, and the plan that is chosen."""

import json
from itertools import chain, combinations, pairwise
from pathlib import Path

import pytest
from support.onnx_graphs import make_model, node, random, save

from edgec.compiler.cli.main import main
from edgec.compiler.errors import UsageError
from edgec.compiler.frontend.canonical import canonical_model
from edgec.compiler.split.advise import SplitReport, plan_split
from edgec.compiler.split.cut_graph import CutGraph
from edgec.compiler.split.devices import parse_devices, read_split_file, split_file_text
from edgec.compiler.split.link import Network, parse_link
from edgec.compiler.split.minimum_cuts import minimum_cuts
from edgec.compiler.split.model_values import ModelValues
from edgec.compiler.split.plan import Plan
from edgec.targets import load_target


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wide and a narrow branch: the fewest bytes cross where the wide one is done."""
    weights = {"w": random(16, 3, 3, 3), "v": random(4, 16, 3, 3, seed=1), "u": random(4, 4, 1, 1)}
    nodes = [
        node("Conv", ["x", "w"], ["a"], pads=[1] * 4, strides=[2, 2]),
        node("Conv", ["a", "v"], ["b"], pads=[1] * 4, strides=[2, 2]),
        node("Conv", ["a", "v"], ["c"], pads=[1] * 4, strides=[2, 2]),
        node("Conv", ["b", "u"], ["d"]),
        node("Concat", ["c", "d"], ["e"], axis=1),
        node("GlobalAveragePool", ["e"], ["y"]),
    ]
    graph = make_model(nodes, {"x": [1, 3, 32, 32]}, ["y"], weights)
    return save(graph, tmp_path_factory.mktemp("advise"))


def test_no_cut_behind_an_operator_has_fewer_bytes(model: Path) -> None:
    canonical = canonical_model(model)
    values = ModelValues(canonical.module, canonical.value_names, canonical.signature, ())
    graph = CutGraph(values, [load_target("rpi4")])
    found = minimum_cuts(graph)
    assert found
    for smaller, larger in pairwise(found):
        assert smaller < larger
    every = {graph.closed(p) for p in chain(*(combinations(graph.operators, n) for n in (1, 2, 3)))}
    cuts = [cut for cut in every if graph.is_cut(cut)]
    least = {graph.name(p): p for p in graph.operators}["b"]
    behind = [c for c in cuts if least in c and not set(graph.readers[least]) & c]
    assert min(map(graph.cut_bytes, behind)) in map(graph.cut_bytes, found)


def plan(model: Path, link: str, devices: str = "a=rpi3,b=rpi4", **settings: object) -> SplitReport:
    network = Network((parse_link(link),))
    return plan_split(model, parse_devices(devices), network, **settings)  # type: ignore[arg-type]


def test_a_slow_link_leaves_the_other_device_out(model: Path) -> None:
    slow = plan(model, "1mbit,10ms")
    assert [stage.device for stage in slow.stages] == ["a"]
    assert slow.left_out == ("b",)
    assert "with b as well it would be no better" in slow.explain()
    assert slow.cost == slow.alone["a"]
    # Sending is free: the faster device answers sooner, and both give more results.
    fast = plan(model, "100gbit,0ms")
    assert [stage.device for stage in fast.stages] == ["b"]
    many = plan(model, "100gbit,0ms", objective="throughput")
    assert len(many.stages) == 2
    assert many.cost < min(cost for cost in many.alone.values() if cost is not None)


def test_a_model_larger_than_each_memory_is_cut(model: Path) -> None:
    alone = plan(model, "100mbit", objective="memory")
    assert len(alone.stages) == 2
    limit = max(stage.memory_bytes for stage in alone.stages)
    tight = plan(model, "1mbit,10ms", memory={"a": limit, "b": limit})
    assert tight.alone == {"a": None, "b": None}
    assert len(tight.stages) == 2
    assert "a does not fit" in tight.explain()
    with pytest.raises(UsageError, match="no device is named 'c'"):
        plan(model, "100mbit", source="c")


def test_the_command_line_writes_what_compile_takes(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "split.toml"
    devices = "a=rpi3,b=rpi4"
    call = ["split", str(model), "--devices", devices, "--link", "100gbit", "-q"]
    call += ["--objective", "throughput", "-o", str(file)]
    assert main([*call, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["recorded"] == {"a": 0.0, "b": 0.0}
    stages = read_split_file(file, parse_devices(devices))
    assert [s.device for s in stages] == [s["device"] for s in report["stages"]]
    assert split_file_text(stages) == file.read_text()
    assert main(call) == 0
    shown = capsys.readouterr().out
    assert "a result every" in shown
    assert shown.count("*") == len(stages) - 1
    assert main(["split", str(model), "--devices", devices]) == 2
    damaged = tmp_path / "records.jsonl"
    damaged.write_text("{}\n")
    assert main([*call, "--records", str(damaged)]) == 0
    assert "dropped 1 damaged line (1)" in capsys.readouterr().err


def test_a_trace_gives_the_plans_that_matter(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace, devices = tmp_path / "trace.csv", "a=x86-64-v2,b=native"
    rows = "".join(f"{rate},0.001\n" for rate in (0.01, 0.1, 1, 10, 100, 1000, 10000, 100000))
    trace.write_text(f"mbit,ms\n{rows}")
    command = ["split", str(model), "--devices", devices, "--network", str(trace), "-q"]
    assert main([*command, "-o", str(tmp_path / "s.toml")]) == 0
    told = capsys.readouterr().out
    assert "plans that matter over this network" in told
    parsed = parse_devices(devices)
    files = [read_split_file(tmp_path / name, parsed) for name in ("s.toml", "s-2.toml")]
    # Alone where there is hardly a link; with the other one where it is fast.
    assert {len({stage.device for stage in file} - {"a"}) for file in files} == {0, 1}
    compiled = ["compile", str(model), "--devices", devices, "--network", str(trace), "-q"]
    assert main([*compiled, "--no-parity", "-o", str(tmp_path / "m.plan")]) == 0
    assert Plan.load(tmp_path / "m.plan").whole == "whole.edgec"
    (tmp_path / "slow.csv").write_text("mbit\n0.001\n0.002\n")
    compiled[5] = str(tmp_path / "slow.csv")
    assert main([*compiled, "-o", str(tmp_path / "n.plan")]) == 2
    assert "a is fastest on its own" in capsys.readouterr().err
