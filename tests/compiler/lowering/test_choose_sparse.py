"""Where sparse kernels are chosen, where not and why, and what becomes of the weights."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from support.onnx_graphs import make_model, node, random, save

from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.backend import pack_dense
from edgec.compiler.cli.main import main
from edgec.compiler.frontend.canonical import canonical_model
from edgec.compiler.lowering.choose_sparse import sparse_choices
from edgec.compiler.lowering.sparse_report import describe_kernels, kernel_rows
from edgec.targets import load_target

TARGET = load_target("x86-64-v3")


def blocks(*shape: int, density: float = 0.2) -> np.ndarray:
    """Weights [outputs, …] in which 16 neighbouring outputs are zero at once."""
    kept = np.random.default_rng(0).random((shape[0] // 16, *shape[1:])) < density
    return random(*shape) * np.repeat(kept, 16, axis=0)


def singles(*shape: int, density: float = 0.2) -> np.ndarray:
    return random(*shape) * (np.random.default_rng(0).random(shape) < density)


def network() -> onnx.ModelProto:
    """Convolutions with many zeros of every kind, and a product."""
    weights = {
        "first": blocks(32, 3, 3, 3),
        "blocks": blocks(64, 32, 3, 3),
        "singles": singles(64, 64, 3, 3),
        "half": blocks(64, 64, 3, 3, density=0.6),
        "depthwise": singles(64, 1, 3, 3),
        "grouped": blocks(64, 32, 1, 1),
        "full": random(64, 64, 1, 1),
        "matrix": np.ascontiguousarray(blocks(160, 64).T),
    }
    groups = {"depthwise": 64, "grouped": 2}
    nodes, last = [], "x"
    for name, weight in list(weights.items())[:-1]:
        pads = [weight.shape[2] // 2] * 4
        nodes.append(
            node("Conv", [last, name], [f"{name}_out"], pads=pads, group=groups.get(name, 1))
        )
        last = f"{name}_out"
    nodes += [
        node("GlobalAveragePool", [last], ["pooled"]),
        node("Flatten", ["pooled"], ["flat"]),
        node("MatMul", ["flat", "matrix"], ["y"]),
    ]
    arrays = {name: weight.astype(np.float32) for name, weight in weights.items()}
    return make_model(nodes, {"x": (1, 3, 14, 14)}, ["y"], arrays)


def rows_of(model: onnx.ModelProto) -> dict[str, Any]:
    canonical = canonical_model(model)
    packed = pack_dense(canonical.module, TARGET, canonical.value_names)
    return {row.name: row for row in kernel_rows(sparse_choices(packed, TARGET).values())}


def test_each_operator_has_a_reason() -> None:
    rows = rows_of(network())
    reasons = {
        "first_out": "few channels of a model's input",
        "singles_out": "few inputs are zero for 8 neighbouring outputs",
        "half_out": "of the estimated time",
        "depthwise_out": "depthwise",
        "grouped_out": "groups",
    }
    assert list(rows) == [*list(reasons)[:1], "blocks_out", *list(reasons)[1:], "y"]
    for name, reason in reasons.items():
        assert not rows[name].sparse
        assert reason in rows[name].reason
    for name in ("blocks_out", "y"):
        assert rows[name].sparse
        assert rows[name].density == pytest.approx(0.2, abs=0.03)
    text = describe_kernels(list(rows.values()))
    assert text.startswith("sparse kernels for 2 of 7 operators")


def test_a_model_without_zeros_has_no_rows() -> None:
    weights = {"w": random(64, 64)}
    model = make_model([node("MatMul", ["x", "w"], ["y"])], {"x": (8, 64)}, ["y"], weights)
    assert rows_of(model) == {}


def test_zeros_are_not_stored_and_verbose_tells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = []
    for name, weight in (("dense", random(512, 512)), ("sparse", blocks(512, 512))):
        weights = {"w": np.ascontiguousarray(weight.T).astype(np.float32)}
        model = make_model([node("MatMul", ["x", "w"], ["y"])], {"x": (4, 512)}, ["y"], weights)
        folder = tmp_path / name
        folder.mkdir()
        path, bundle = save(model, folder), folder / "model.edgec"
        assert main(["compile", str(path), "-t", TARGET.name, "-o", str(bundle), "-v"]) == 0
        assert ("sparse kernels for 1 of 1" in capsys.readouterr().err) == (name == "sparse")
        sizes.append((bundle / "model.so").stat().st_size)
    assert sizes[1] < 0.35 * sizes[0]


def test_a_batch_of_matrices_is_dense_and_right(tmp_path: Path) -> None:
    weights = {"w": blocks(32, 3, 48).transpose(1, 2, 0).astype(np.float32)}
    model = make_model([node("MatMul", ["x", "w"], ["y"])], {"x": (3, 8, 48)}, ["y"], weights)
    assert "each product in a batch" in rows_of(model)["y"].reason
    compile_model(save(model, tmp_path), TARGET, output=tmp_path / "model.edgec")


def test_pruned_then_quantized_is_dense_and_right(tmp_path: Path) -> None:
    weights = {"w": blocks(64, 32, 3, 3).astype(np.float32)}
    nodes = [node("Conv", ["x", "w"], ["c"], pads=[1] * 4), node("Relu", ["c"], ["y"])]
    model = make_model(nodes, {"x": (1, 32, 12, 12)}, ["y"], weights)
    np.save(tmp_path / "data.npy", random(4, 32, 12, 12))
    path, bundle = save(model, tmp_path), tmp_path / "model.edgec"
    arguments = ["compile", str(path), "-t", TARGET.name, "-o", str(bundle), "--quantize", "int8"]
    assert main([*arguments, "--calibration", str(tmp_path / "data.npy")]) == 0
    assert main(["verify", str(bundle)]) == 0
    dump = tmp_path / "dump"
    options = CompileOptions(dump=dump)
    compile_model(path, TARGET, options, output=tmp_path / "float.edgec")
    assert "sparse_conv" in next(dump.glob("*-pack.py")).read_text()
