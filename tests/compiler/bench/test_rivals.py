"""Each other runtime computes what ONNX Runtime computes, so times are of the same work."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from support.onnx_graphs import make_model, node, random

from edgec.compiler.bench.rivals import RIVALS, RivalRuntime, find_rival
from edgec.compiler.errors import ToolchainError, UsageError
from edgec.compiler.frontend.simplify import simplify
from edgec.compiler.frontend.specialize import specialize
from edgec.compiler.ir.signature import graph_signature
from edgec.compiler.parity.compare import Tolerance, compare
from edgec.compiler.parity.oracle import run_original

# They may use other algorithms than ours (Winograd's), but not half precision.
TOLERANCE = Tolerance(1e-4, 1e-5)
HALF_PRECISION = 2.0**-11


@pytest.fixture(params=RIVALS)
def rival(request: pytest.FixtureRequest) -> RivalRuntime:
    found = find_rival(request.param)
    for package in found.packages:
        # pnnx is a program; the others are modules.
        if package != "pnnx":
            pytest.importorskip(package)
    return found


def image_model() -> onnx.ModelProto:
    """Two inputs and two outputs, one of them an image of odd extents."""
    nodes = [
        node("Conv", ["x", "first", "bias"], ["a"], strides=[2, 2], pads=[1] * 4),
        node("Relu", ["a"], ["b"]),
        node("Conv", ["b", "depthwise"], ["c"], pads=[1] * 4, group=18),
        node("Add", ["b", "c"], ["d"]),
        node("Mul", ["d", "z"], ["image"]),
        node("MaxPool", ["image"], ["e"], kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", ["e"], ["f"]),
        node("Flatten", ["f"], ["g"]),
        node("Gemm", ["g", "wide"], ["scores"]),
    ]
    weights = {
        "first": random(18, 3, 3, 3),
        "bias": random(18),
        "depthwise": random(18, 1, 3, 3),
        "wide": random(18, 7),
    }
    inputs = {"x": [1, 3, 17, 21], "z": [1, 18, 9, 11]}
    return make_model(nodes, inputs, ["scores", "image"], weights)


def check(rival: RivalRuntime, model: onnx.ModelProto, folder: Path) -> None:
    path = folder / "model.onnx"
    onnx.save(model, path)
    # With the shapes of outputs, as a bundle's manifest states them.
    signature = graph_signature(simplify(model).graph)
    shapes = {s.name: [extent or 0 for extent in s.shape] for s in signature.inputs}
    inputs = {name: random(*shapes[name], seed=i) for i, name in enumerate(shapes)}
    scratch = folder / "scratch"
    scratch.mkdir()
    loaded = rival.load(path, inputs, signature, 1, scratch)
    loaded()
    outputs = loaded.outputs()
    compare(run_original(model, inputs), outputs, TOLERANCE).check(f"in {rival.name}")
    # The control: results of half precision, or for other inputs, would not pass.
    other = {name: array * (1 + HALF_PRECISION) for name, array in inputs.items()}
    others = {name: array.astype(np.float32) for name, array in other.items()}
    assert not compare(run_original(model, others), outputs, TOLERANCE).passed


def test_digits(rival: RivalRuntime, digits: Path, tmp_path: Path) -> None:
    check(rival, specialize(onnx.load(digits), {"image": (1, 1, 8, 8)}, {}).proto, tmp_path)


def test_two_inputs_and_an_image(rival: RivalRuntime, tmp_path: Path) -> None:
    check(rival, image_model(), tmp_path)


def test_versions(rival: RivalRuntime) -> None:
    assert rival.version()[0].isdigit()


def test_a_missing_package_is_named() -> None:
    missing = RivalRuntime("imaginary", ("no-such-runtime", "its-helper"), find_rival("mnn").load)
    with pytest.raises(ToolchainError, match="no-such-runtime is not installed; pip install no-"):
        missing.version()


def test_an_unknown_runtime() -> None:
    with pytest.raises(UsageError, match="unknown runtime 'openvin'; did you mean openvino"):
        find_rival("openvin")


def test_a_model_that_cannot_be_converted(tmp_path: Path) -> None:
    pytest.importorskip("MNN")
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    signature = graph_signature(image_model().graph)
    with pytest.raises(ToolchainError, match="mnnconvert cannot convert the model"):
        find_rival("mnn").load(path, {}, signature, 1, tmp_path)


def test_mnn_converts_without_its_reporting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MNN's tool imports `aliyun.log` to report each conversion, and installs it with pip."""
    pytest.importorskip("MNN")
    trap, trace = tmp_path / "trap", tmp_path / "imported"
    (trap / "aliyun").mkdir(parents=True)
    (trap / "aliyun" / "__init__.py").write_text(f"open({str(trace)!r}, 'w').close()\n")
    monkeypatch.setenv("PYTHONPATH", str(trap))
    check(find_rival("mnn"), image_model(), tmp_path)
    assert not trace.exists()
    subprocess.run([sys.executable, "-c", "import aliyun"], check=True)
    assert trace.exists()
