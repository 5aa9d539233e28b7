"""Variants of one model in a bundle: compiled, verified, measured here, and chosen among."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.cli_calls import Call
from support.onnx_graphs import make_model, node, random

from edgec.compiler import (
    Bundle,
    CompileOptions,
    GovernorSettings,
    Variant,
    compile_model,
    govern_bundle,
    install_bundle,
    verify_bundle,
)
from edgec.compiler.bundle.npy import save_vector
from edgec.compiler.errors import CheckFailed, OutputError, TensorInputError, UsageError
from edgec.compiler.governor.session import state_file

NODES = [
    node("Conv", ["x", "first"], ["a"], pads=[1] * 4),
    node("Relu", ["a"], ["b"]),
    node("Conv", ["b", "second"], ["c"], pads=[1] * 4),
    node("GlobalAveragePool", ["c"], ["d"]),
    node("Flatten", ["d"], ["e"]),
    node("MatMul", ["e", "matrix"], ["y"]),
]
WEIGHTS = {
    "first": random(64, 3, 3, 3),
    "second": 0.1 * random(64, 64, 3, 3),
    "matrix": random(64, 10),
}
VARIANTS = {
    "full": Variant(),
    "small": Variant(shapes={"x": (1, 3, 16, 16)}, accuracy=0.9),
    "half": Variant(quantize="fp16", accuracy=0.95),
}
OPTIONS = CompileOptions(shapes={"x": (1, 3, 32, 32)}, variants=VARIANTS, runner=True)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    model = make_model(NODES, {"x": [1, 3, "h", "w"]}, ["y"], WEIGHTS)
    output = tmp_path_factory.mktemp("variants") / "model.edgec"
    return compile_model(model, "native", OPTIONS, output=output)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def image(size: int) -> np.ndarray:
    return random(1, 3, size, size)


def run(bundle: Bundle, *arguments: object) -> Any:
    command = [str(bundle.path / "run"), *map(str, arguments)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(found.stdout)


def copied(bundle: Bundle, folder: Path, damaged: tuple[str, ...]) -> Bundle:
    """A copy whose vectors of some variants expect other outputs."""
    from edgec.compiler.bundle.bundle import write_bundle

    files: dict[str, bytes | Path] = {n: bundle.file(n) for n in bundle.manifest.files}
    for vector in bundle.manifest.vectors:
        if vector.program in damaged:
            files[vector.outputs[0]] = save_vector(np.full((1, 10), 99, np.float32))
    return write_bundle(folder / "copy.edgec", bundle.manifest, files)


def test_the_manifest_says_what_each_is(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert [p.name for p in manifest.programs] == ["full", "small", "half"]
    full, small, half = manifest.variants
    assert (full.accuracy, full.accuracy_of, full.quantization) == (1.0, "unchanged", None)
    assert (small.accuracy, small.accuracy_of) == (0.9, "given")
    assert half.quantization is not None
    assert full.estimated_ms > small.estimated_ms > 0
    assert (full.tolerance.sqnr_db, manifest.quantization) == (None, None)


def test_all_compute_what_they_should(bundle: Bundle, tmp_path: Path) -> None:
    assert verify_bundle(bundle).passed
    assert not verify_bundle(copied(bundle, tmp_path, ("half",))).passed


def test_weights_that_are_equal_are_kept_once(bundle: Bundle) -> None:
    weights = sum(array.nbytes for array in WEIGHTS.values())
    library = bundle.manifest.files["model.so"].size_bytes
    # Winograd's algorithm reads 36 values for 9; two of the variants read the same.
    assert library < 4 * weights + 200_000 < 2 * 4 * weights


def test_the_variant_of_the_deadline_runs(bundle: Bundle) -> None:
    images = {"full": image(32), "small": image(16), "half": image(32)}
    switches = []
    settings = GovernorSettings(
        deadline_ms=1e4, on_switch=lambda before, now: switches.append((before, now))
    )
    with pytest.raises(TensorInputError, match="variant full: "):
        govern_bundle(bundle, settings).run(images["small"])
    governed = govern_bundle(bundle, settings, threads=2)
    results = governed.run(lambda name: images[name])
    expected = bundle.open(threads=1).run(images["full"], "full")
    np.testing.assert_array_equal(results["y"], expected["y"])
    assert governed.report().inferences == 1
    assert [(before, now.accuracy) for before, now in switches][-1] == (None, 1.0)
    # No variant is so fast: the fastest runs.
    hurried = govern_bundle(bundle, 1e-6, threads=1)
    assert hurried.name(hurried.choose()) == "small"
    hurried.run(lambda name: images[name])
    assert hurried.report().misses == 1


def test_what_was_measured_is_kept(bundle: Bundle, state: Path) -> None:
    installed = install_bundle(bundle, threads=1)
    assert installed.names == ("full", "small", "half")
    assert (installed.path, installed.refused) == (state_file(bundle.manifest.digest), {})
    kept = govern_bundle(bundle, 20, threads=1).governor.options
    assert [option.latency_ms for option in kept] == pytest.approx(
        [option.latency_ms for option in installed.options]
    )
    # The program of the bundle reads the same file, and writes it.
    report = run(bundle, "--deadline", 1e4, "--repeat", 3, "--threads", 1)
    assert (report["measured"], report["variants"]["full"]) == ("at installation", 3)
    installed.path.unlink()
    report = run(bundle, "--deadline", 1e4, "--repeat", 3, "--threads", 1)
    assert report["measured"] == "now"
    report = run(bundle, "--install", "--threads", 1)
    assert [option["variant"] for option in report["installed"]] == ["full", "small", "half"]
    assert len(govern_bundle(bundle, 20, threads=1).governor.options) == 3
    assert installed.path.is_file()


def test_a_variant_that_is_wrong_here_is_not_used(bundle: Bundle, tmp_path: Path) -> None:
    damaged = copied(bundle, tmp_path, ("full",))
    installed = install_bundle(damaged, threads=1)
    assert installed.names == ("small", "half")
    assert "full" in installed.refused
    report = run(damaged, "--install", "--threads", 1)
    assert [option["variant"] for option in report["installed"]] == ["small", "half"]
    with pytest.raises(CheckFailed, match="no variant computes what it should: full"):
        install_bundle(copied(bundle, tmp_path, tuple(VARIANTS)), threads=1)


def test_the_runner_takes_inputs_of_all_variants(bundle: Bundle, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", image(32))
    command = ["--deadline", "100", "--input", str(tmp_path / "x.npy")]
    found = subprocess.run([bundle.path / "run", *command], capture_output=True, text=True)
    assert found.returncode == 4
    assert "x.npy" in found.stderr


def test_other_bundles_have_nothing_to_choose(
    digits_bundle: Path, call: Call, bundle: Bundle, state: Path
) -> None:
    with pytest.raises(UsageError, match="has no variants to choose among"):
        govern_bundle(digits_bundle, 20)
    code, _, stderr = call("install", digits_bundle)
    assert code == 2
    assert "--variant fast=int8" in stderr
    code, stdout, _ = call("install", bundle.path, "--threads", 1)
    assert code == 0
    assert stdout.split()[:4] == ["variant", "threads", "accuracy", "latency"]
    for file in state.rglob("*.options"):
        file.unlink()
    state.joinpath("edgec").rmdir()
    state.joinpath("edgec").write_text("in the way")
    with pytest.raises(OutputError, match="set XDG_STATE_HOME"):
        install_bundle(bundle, threads=1)


def test_accuracy_is_measured_on_the_samples(digits: Path, tmp_path: Path, call: Call) -> None:
    np.save(tmp_path / "images.npy", np.abs(random(8, 1, 8, 8)))
    words = ("--variant", "fast=int8,low-rank-60", "--variant", "full=float")
    given = ("--shape", "image=1,1,8,8", "--calibration", "images.npy", "--no-repair")
    code, _, stderr = call("compile", digits, *given, *words, "-q", "-o", "m.edgec")
    assert (code, "belongs to --quantize" in stderr) == (2, True)
    code, stdout, _ = call("compile", digits, *given[:-1], *words, "-q", "-o", "m.edgec")
    assert code == 0
    fast, full = Bundle.load("m.edgec").manifest.variants
    assert (fast.accuracy_of, full.accuracy_of, full.accuracy) == ("calibration", "unchanged", 1.0)
    # Eight answers were compared with those of the model in floats.
    images = np.load(tmp_path / "images.npy")
    session = Bundle.load("m.edgec").open(threads=1)
    same = [
        session.run(image[None], "fast")["logits"].argmax()
        == session.run(image[None], "full")["logits"].argmax()
        for image in images
    ]
    assert fast.accuracy == pytest.approx(np.mean(same))
    assert fast.accuracy < 1
    assert [line.split()[0] for line in stdout.splitlines()[1:4]] == ["variant", "fast", "full"]
