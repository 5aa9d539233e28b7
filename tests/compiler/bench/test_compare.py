"""Benchmarks: figures that agree with each other, runtimes that compute the same."""

import resource
import shutil
import statistics
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from support.onnx_graphs import make_model, node, random, save

from edgec.compiler import Bundle, CompileOptions, compile_model
from edgec.compiler.bench.compare import bench_bundles, take_turns
from edgec.compiler.bench.load import busy_processes
from edgec.compiler.bench.rivals import find_rival
from edgec.compiler.errors import BundleError, TensorInputError, UsageError
from edgec.compiler.frontend.specialize import specialize
from edgec.compiler.parity.compare import Tolerance, compare
from edgec.compiler.runtime.inputs import generate_inputs

SHAPE = {"image": (1, 1, 8, 8)}
WEIGHTS = {"table": random(9, 5)}
INT64 = {"x": onnx.TensorProto.INT64}
NO_PARITY = CompileOptions(parity=False)


@pytest.fixture(scope="module")
def bundle(digits_bundle: Path) -> Bundle:
    return Bundle.load(digits_bundle)


def test_report(bundle: Bundle, digits: Path) -> None:
    report = bench_bundles([bundle], threads=2, seconds=0.3, against=["onnxruntime"], model=digits)
    assert report.threads == 2
    (ours,), (theirs,) = report.bundles, report.rivals
    assert ours.name == str(bundle.path)
    assert theirs.name == f"onnxruntime {find_rival('onnxruntime').version()}"
    for latency in (ours, theirs):
        summary = latency.summary()
        ordered = [summary[key] for key in ("min_ms", "median_ms", "p90_ms", "p99_ms")]
        assert ordered == sorted(ordered)
        assert ordered[0] > 0
        assert summary["min_ms"] <= summary["mean_ms"] <= max(latency.times_ms)
        assert summary["per_second"] == pytest.approx(1000 / summary["median_ms"])
        assert len(latency.times_ms) >= len(latency.rounds_ms) >= 5
        assert len(latency.times_ms) % len(latency.rounds_ms) == 0
    assert len(ours.rounds_ms) == len(theirs.rounds_ms)
    ratios = [b / a for a, b in zip(ours.rounds_ms, theirs.rounds_ms, strict=True)]
    assert report.ratios == {theirs.name: statistics.median(ratios)}
    assert report.load_ms[ours.name] > 0
    assert 0 < report.memory_mib[ours.name] < 100


def test_a_runtime_that_cannot_is_named_and_the_others_are_measured(tmp_path: Path) -> None:
    """MNN fails on an int64 input, with an error that only its cause explains."""
    pytest.importorskip("MNN")
    model = make_model(
        [node("Gather", ["table", "x"], ["y"])], {"x": [4]}, ["y"], WEIGHTS, dtypes=INT64
    )
    path = save(model, tmp_path)
    bundle = compile_model(path, options=NO_PARITY, output=tmp_path / "gather.edgec")
    against = ["mnn", "onnxruntime"]
    report = bench_bundles([bundle], seconds=0.02, against=against, model=path)
    names = {name: f"{name} {find_rival(name).version()}" for name in against}
    assert [latency.name for latency in report.rivals] == [names["onnxruntime"]]
    assert report.ratios.keys() == {names["onnxruntime"]}
    (why,) = report.cannot.values()
    assert report.cannot.keys() == {names["mnn"]}
    assert why == "numpy type does not match"


def children() -> set[int]:
    """Return the processes that this one has started and that have not been waited for."""
    lists = Path("/proc/self/task").glob("*/children")
    return {int(number) for path in lists for number in path.read_text().split()}


def test_busy_processes_take_a_core_and_end() -> None:
    others = children()
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    with busy_processes(2):
        assert len(children() - others) == 2
        time.sleep(0.1)
        with pytest.raises(RuntimeError), busy_processes(1):
            raise RuntimeError
    assert children() <= others
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime > before


def test_profile(bundle: Bundle) -> None:
    report = bench_bundles([bundle], threads=1, seconds=0.2)
    assert (report.rivals, report.ratios) == ((), {})
    infos = bundle.open(1).steps()
    assert [step.template for step in report.steps] == [info.template for info in infos]
    assert [step.label for step in report.steps] == [info.label for info in infos]
    peak = bundle.manifest.target.peak_gflops
    for step, info in zip(report.steps, infos, strict=True):
        assert step.median_us > 0
        assert step.gflops == pytest.approx(info.flops / (1e3 * step.median_us), rel=1e-6)
        assert step.peak_share == pytest.approx(step.gflops / peak)
    total_ms = sum(step.median_us for step in report.steps) / 1e3
    # The steps are what a run does, but for the clock that is read between them.
    assert total_ms == pytest.approx(report.bundles[0].median_ms, rel=1)


def test_both_compute_the_same(bundle: Bundle, digits: Path, tmp_path: Path) -> None:
    manifest = bundle.manifest
    inputs = generate_inputs(manifest.signature.inputs, 0, {})
    static = tmp_path / "static.onnx"
    onnx.save(specialize(onnx.load(digits), SHAPE, {}).proto, static)
    rival = find_rival("onnxruntime").load(static, inputs, manifest.signature, 1, tmp_path)
    tolerance = Tolerance(manifest.tolerance.relative, manifest.tolerance.absolute)
    compare(rival.outputs(), bundle.run(inputs), tolerance).check("beside onnxruntime")
    other = {"image": inputs["image"] + np.float32(0.01)}
    assert not compare(rival.outputs(), bundle.run(other), tolerance).passed


def test_two_bundles_of_a_model(bundle: Bundle, tmp_path: Path) -> None:
    copy = tmp_path / "copy.edgec"
    shutil.copytree(bundle.path, copy)
    report = bench_bundles([bundle, Bundle.load(copy)], threads=2, seconds=0.1, busy=1)
    assert (report.threads, report.busy) == (2, 1)
    names = [str(bundle.path), str(copy)]
    assert [latency.name for latency in report.bundles] == names
    assert list(report.load_ms) == list(report.memory_mib) == names


def test_given_inputs_are_checked(bundle: Bundle) -> None:
    inputs = {"image": np.zeros((1, 1, 8, 8), np.float32)}
    assert bench_bundles([bundle], threads=1, seconds=0.05, inputs=inputs).bundles
    with pytest.raises(TensorInputError, match="imge is no input"):
        bench_bundles([bundle], seconds=0.05, inputs={"imge": inputs["image"]})


def test_errors(bundle: Bundle, digits: Path, tmp_path: Path) -> None:
    path = save(make_model([node("Relu", ["x"], ["y"])], {"x": [4]}, ["y"]), tmp_path)
    other = compile_model(path, output=tmp_path / "other.edgec")
    with pytest.raises(UsageError, match="--against needs --model"):
        bench_bundles([bundle], against=["onnxruntime"])
    with pytest.raises(UsageError, match="unknown runtime 'onnx-runtime'; did you mean onnxrun"):
        bench_bundles([bundle], against=["onnx-runtime"], model=digits)
    with pytest.raises(UsageError, match="different models"):
        bench_bundles([bundle, other])
    with pytest.raises(BundleError, match=r"compiled from another file than .*model\.onnx"):
        bench_bundles([bundle], against=["onnxruntime"], model=path)


def test_turns_measure_what_takes_time() -> None:
    slow, fast = take_turns(
        ["slow", "fast"], [lambda: time.sleep(0.004), lambda: time.sleep(0.001)], 0.2
    )
    assert 4 <= slow.median_ms < 8
    assert 1 <= fast.median_ms < 4
    assert len(slow.rounds_ms) == len(fast.rounds_ms)
