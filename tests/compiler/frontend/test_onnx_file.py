from pathlib import Path

import numpy as np
import onnx
import pytest
from support.onnx_graphs import make_model, node, random, save

from edgec.compiler.errors import ModelFileError, UnsupportedModelError
from edgec.compiler.frontend.convert_opset import CONVERTED_OPSET
from edgec.compiler.frontend.onnx_file import NEWEST_OPSET, read_onnx
from edgec.compiler.parity.oracle import run_original


def relu_model(**kwargs: object) -> onnx.ModelProto:
    return make_model([node("Relu", ["x"], ["y"])], {"x": [1, 4]}, ["y"], **kwargs)  # type: ignore[arg-type]


def test_reads_name_opset_and_digest(tmp_path: Path) -> None:
    path = save(relu_model(opset=13), tmp_path, "net.onnx")
    source = read_onnx(path)
    assert (source.name, source.opset) == ("net", 13)
    assert len(source.sha256) == 64


@pytest.mark.parametrize("opset", [1, CONVERTED_OPSET, NEWEST_OPSET])
def test_reads_every_opset_in_range(tmp_path: Path, opset: int) -> None:
    source = read_onnx(save(relu_model(opset=opset), tmp_path))
    assert source.opset == opset
    assert source.proto.opset_import[0].version == max(opset, CONVERTED_OPSET)


def test_an_old_slope_goes_along_the_channels(tmp_path: Path) -> None:
    """Channels and columns are as many: the specification of version 7 would take columns."""
    nodes = [node("PRelu", ["x", "s"], ["y"])]
    slope = np.array([0.1, 0.2, 0.3], np.float32)
    model = make_model(nodes, {"x": [1, 3, 2, 3]}, ["y"], {"s": slope}, opset=6)
    x = random(1, 3, 2, 3)
    (y,) = run_original(read_onnx(save(model, tmp_path)).original, {"x": x}).values()
    np.testing.assert_allclose(y, np.where(x < 0, x * slope[:, None, None], x))


def test_refuses_what_the_converter_cannot_convert(tmp_path: Path) -> None:
    nodes = [node("Dropout", ["x"], ["y"], is_test=0)]
    path = save(make_model(nodes, {"x": [1, 4]}, ["y"], opset=1), tmp_path)
    with pytest.raises(UnsupportedModelError, match="operator set 1, which must be converted"):
        read_onnx(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="does not exist"):
        read_onnx(tmp_path / "no.onnx")


@pytest.mark.parametrize(
    "content",
    [b"", b"\x89PNG\r\n\x1a\n" * 40, b"hello world\n" * 100],
    ids=["empty", "png", "text"],
)
def test_not_onnx(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match="is no ONNX model"):
        read_onnx(path)


def test_truncated(tmp_path: Path) -> None:
    weights = {"w": random(64, 64)}
    model = make_model([node("MatMul", ["x", "w"], ["y"])], {"x": [1, 64]}, ["y"], weights)
    path = save(model, tmp_path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ModelFileError, match=r"is no ONNX model|cut short"):
        read_onnx(path)


def test_checker_refusal_is_one_line(tmp_path: Path) -> None:
    path = save(make_model([node("Relu", ["nothing"], ["y"])], {"x": [1]}, ["y"]), tmp_path)
    with pytest.raises(ModelFileError, match="the ONNX checker refuses it") as caught:
        read_onnx(path)
    assert "\n" not in str(caught.value)


@pytest.fixture
def external(tmp_path: Path) -> Path:
    weights = {"w": random(32, 32)}
    model = make_model([node("MatMul", ["x", "w"], ["y"])], {"x": [1, 32]}, ["y"], weights)
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def test_loads_external_data(external: Path) -> None:
    proto = read_onnx(external).proto
    array = onnx.numpy_helper.to_array(proto.graph.initializer[0])
    np.testing.assert_array_equal(array, random(32, 32))


def test_digest_covers_external_data(external: Path) -> None:
    before = read_onnx(external).sha256
    data = external.with_name("weights.bin")
    data.write_bytes(bytes(data.stat().st_size))
    assert read_onnx(external).sha256 != before


def test_missing_external_data_is_named(external: Path) -> None:
    external.with_name("weights.bin").unlink()
    with pytest.raises(ModelFileError, match=r"weights\.bin, which does not exist"):
        read_onnx(external)


def test_short_external_data(external: Path) -> None:
    data = external.with_name("weights.bin")
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(ModelFileError):
        read_onnx(external)
