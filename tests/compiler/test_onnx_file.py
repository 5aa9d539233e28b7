from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_graphs import make_model, node, random, save

from edgec.compiler.errors import ModelFileError, UnsupportedModelError
from edgec.compiler.onnx_file import NEWEST_OPSET, OLDEST_OPSET, read_model


def relu_model(**kwargs: object) -> onnx.ModelProto:
    return make_model([node("Relu", ["x"], ["y"])], {"x": [1, 4]}, ["y"], **kwargs)  # type: ignore[arg-type]


def test_reads_name_opset_and_digest(tmp_path: Path) -> None:
    path = save(relu_model(opset=13), tmp_path, "net.onnx")
    source = read_model(path)
    assert (source.name, source.opset) == ("net", 13)
    assert len(source.sha256) == 64


@pytest.mark.parametrize("opset", [OLDEST_OPSET, NEWEST_OPSET])
def test_reads_every_opset_in_range(tmp_path: Path, opset: int) -> None:
    assert read_model(save(relu_model(opset=opset), tmp_path)).opset == opset


def test_refuses_an_old_opset(tmp_path: Path) -> None:
    path = save(relu_model(opset=6), tmp_path)
    with pytest.raises(UnsupportedModelError, match="operator set 6; edgec reads 7 to"):
        read_model(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="does not exist"):
        read_model(tmp_path / "no.onnx")


@pytest.mark.parametrize(
    "content",
    [b"", b"\x89PNG\r\n\x1a\n" * 40, b"hello world\n" * 100],
    ids=["empty", "png", "text"],
)
def test_not_onnx(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match="is no ONNX model"):
        read_model(path)


def test_truncated(tmp_path: Path) -> None:
    weights = {"w": random(64, 64)}
    model = make_model([node("MatMul", ["x", "w"], ["y"])], {"x": [1, 64]}, ["y"], weights)
    path = save(model, tmp_path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ModelFileError, match=r"is no ONNX model|cut short"):
        read_model(path)


def test_checker_refusal_is_one_line(tmp_path: Path) -> None:
    path = save(make_model([node("Relu", ["nothing"], ["y"])], {"x": [1]}, ["y"]), tmp_path)
    with pytest.raises(ModelFileError, match="the ONNX checker refuses it") as caught:
        read_model(path)
    assert "\n" not in str(caught.value)


@pytest.fixture
def external(tmp_path: Path) -> Path:
    weights = {"w": random(32, 32)}
    model = make_model([node("MatMul", ["x", "w"], ["y"])], {"x": [1, 32]}, ["y"], weights)
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def test_loads_external_data(external: Path) -> None:
    proto = read_model(external).proto
    array = onnx.numpy_helper.to_array(proto.graph.initializer[0])
    np.testing.assert_array_equal(array, random(32, 32))


def test_digest_covers_external_data(external: Path) -> None:
    before = read_model(external).sha256
    data = external.with_name("weights.bin")
    data.write_bytes(bytes(data.stat().st_size))
    assert read_model(external).sha256 != before


def test_missing_external_data_is_named(external: Path) -> None:
    external.with_name("weights.bin").unlink()
    with pytest.raises(ModelFileError, match=r"weights\.bin, which does not exist"):
        read_model(external)


def test_short_external_data(external: Path) -> None:
    data = external.with_name("weights.bin")
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(ModelFileError):
        read_model(external)
