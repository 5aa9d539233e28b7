"""Smaller images: offered where the model takes any, and the samples come in any size."""

from pathlib import Path

from support.onnx_graphs import make_model, node, save

from edgec.compiler.calibration.samples import SampleOptions
from edgec.compiler.fit.input_sizes import with_smaller_images
from edgec.compiler.options import CompileOptions

SHAPE = (1, 3, 224, 160)


def options(source: Path | None) -> CompileOptions:
    samples = SampleOptions(source=None if source is None else str(source))
    return CompileOptions(shapes={"x": SHAPE}, samples=samples)


def test_sizes_are_offered_where_model_and_samples_have_any(tmp_path: Path) -> None:
    def model(*shape: int | str) -> Path:
        graph = make_model([node("Relu", ["x"], ["y"])], {"x": list(shape)}, ["y"])
        return save(graph, tmp_path)

    found = with_smaller_images(model(1, 3, "h", "w"), options(tmp_path))
    assert found.programs == {
        "224x160": {"x": SHAPE},
        "160x96": {"x": (1, 3, 160, 96)},
        "96x64": {"x": (1, 3, 96, 64)},
    }
    array = tmp_path / "images.npy"
    for path, source in (((1, 3, 224, 160), tmp_path), ((1, 3, "h", "w"), array)):
        base = options(source)
        assert with_smaller_images(model(*path), base) is base
    assert with_smaller_images(model(1, 3, "h", "w"), options(None)).programs == {}
