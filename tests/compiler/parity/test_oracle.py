"""What the original graph gives, where ONNX Runtime alone would say something else."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from support.onnx_graphs import make_model, node, random, save

from edgec.compiler import compile_model
from edgec.compiler.errors import ParityError
from edgec.compiler.frontend.converters.microsoft import unpack
from edgec.compiler.parity.oracle import RoundedModel, run_original
from edgec.compiler.support.silent_onnxruntime import onnxruntime

K, N, SIZE = 64, 24, 32


def network(level: int) -> tuple[onnx.ModelProto, np.ndarray[Any, Any]]:
    """A product with 4-bit weights, zero points and a bias, and its exact weight [K, N]."""
    numbers = np.random.default_rng(0)
    packed = numbers.integers(0, 256, (N, K // SIZE, SIZE // 2), np.uint8)
    scales = np.abs(random(N, K // SIZE)) / 8
    zeros = numbers.integers(0, 256, (N, 1), np.uint8)
    weights = {"b": packed, "s": scales, "z": zeros, "c": random(N, seed=3)}
    operator = node(
        "MatMulNBits",
        ["x", "b", "s", "z", "", "c"],
        ["y"],
        domain="com.microsoft",
        K=K,
        N=N,
        bits=4,
        block_size=SIZE,
        accuracy_level=level,
    )
    values = unpack(packed, 4).astype(np.float32) - unpack(zeros, 4)[:, :, None]
    exact = (values * scales[:, :, None]).reshape(N, K).T
    return make_model([operator], {"x": [2, 3, K]}, ["y"], weights), exact


@pytest.mark.parametrize("in_file", [True, False])
def test_rounding_that_is_only_allowed_is_not_expected(tmp_path: Path, in_file: bool) -> None:
    model, exact = network(4)
    data = random(2, 3, K, seed=1)
    expected = data @ exact + random(N, seed=3)
    path = save(model, tmp_path)
    found = run_original(path if in_file else model, {"x": data})["y"]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    # ONNX Runtime by itself rounds: without the change it would have been off.
    (rounded,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": data})
    assert np.abs(rounded - expected).max() > 1e-3


def test_weights_beside_the_file_are_found(tmp_path: Path) -> None:
    model, exact = network(4)
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    data = random(2, 3, K, seed=1)
    expected = data @ exact + random(N, seed=3)
    np.testing.assert_allclose(run_original(path, {"x": data})["y"], expected, atol=1e-4)


def test_accuracy_level_4_may_round_and_a_damaged_weight_may_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, exact = network(4)
    data = random(2, 3, K, seed=1)
    expected = data @ exact + random(N, seed=3)
    rounded = RoundedModel(model).run({"x": data})
    assert rounded is not None
    assert RoundedModel(network(1)[0]).run({"x": data}) is None
    bundle = compile_model(save(model, tmp_path), output=tmp_path / "m.edgec")
    errors = [np.square(y - expected).sum() for y in (bundle.run({"x": data})["y"], rounded["y"])]
    assert 0 < errors[0] < 2 * errors[1]
    from edgec.compiler.frontend.converters import microsoft

    monkeypatch.setattr(microsoft, "unpack", lambda packed, bits: unpack(packed, bits) ^ 1)
    with pytest.raises(ParityError):
        compile_model(save(model, tmp_path), output=tmp_path / "n.edgec")
