"""Preparation of images inside the model, against NumPy and Pillow outside of it."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from PIL import Image
from support.onnx_graphs import make_model, node, random, save
from support.tampered import Tampered

from edgec.compiler import Bundle, CompileOptions, bench_bundles, compile_model
from edgec.compiler.bundle.manifest import PreprocessRecord
from edgec.compiler.calibration.samples import SampleOptions
from edgec.compiler.cli.main import main
from edgec.compiler.errors import UsageError
from edgec.compiler.frontend.embed_preprocessing import embed_preprocessing
from edgec.compiler.frontend.preprocessing import ImageInput, Preprocess, fit
from edgec.compiler.frontend.specialize import specialize
from edgec.compiler.parity.oracle import run_original
from edgec.compiler.parity.prepared_images import prepared
from edgec.compiler.parity.verify_bundle import verify_bundle
from edgec.compiler.quantize.options import QuantizeOptions
from edgec.compiler.quantize.quantization_recipe import load_recipe

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def network(shape: list[int], opset: int = 17, dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """A model that shows its input to a convolution, and a mean for each place."""
    first = shape[1] in (1, 3)
    nodes = [node("Cast", ["x"], ["f"], to=TensorProto.FLOAT)]
    if not first:
        nodes.append(node("Transpose", ["f"], ["t"], perm=[0, 3, 1, 2]))
    nodes.append(node("Conv", ["f" if first else "t", "w"], ["y"], pads=[1, 1, 1, 1]))
    channels = shape[1] if first else shape[3]
    weights = {"w": random(4, channels, 3, 3, seed=1) / 4}
    return make_model(nodes, {"x": shape}, ["y"], weights, opset=opset, dtypes={"x": dtype})


def pictures(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Smooth images with edges, uint8."""
    noise = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    noise[:, : shape[1] // 2] //= 3
    return noise


def embedded_run(
    model: onnx.ModelProto, images: ImageInput, pixels: np.ndarray[Any, Any]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """What the changed graph gives, and the original graph of images prepared by NumPy."""
    special = specialize(model, {}, {}).proto
    changed, embedded = embed_preprocessing(special, images)
    onnx.checker.check_model(changed)
    (value,) = changed.graph.input
    assert value.type.tensor_type.elem_type == TensorProto.UINT8
    found = run_original(changed, {"x": pixels})["y"]
    return found, run_original(model, prepared({"x": pixels}, embedded))["y"]


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("size", [(12, 16), (37, 50), (50, 37), (7, 5)])
def test_the_graph_prepares_as_numpy_does(resize: Any, size: tuple[int, int]) -> None:
    images = ImageInput(preprocess=Preprocess(resize=resize, color="bgr", **IMAGENET), size=size)
    found, expected = embedded_run(network([2, 3, 12, 16]), images, pictures(2, *size, 3))
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize(
    ("shape", "dtype", "how"),
    [
        ([1, 3, 12, 16], TensorProto.FLOAT, {}),
        ([1, 12, 16, 3], TensorProto.FLOAT, {"color": "bgr"}),
        ([1, 1, 12, 16], TensorProto.FLOAT, {"mean": (0.5,), "std": (0.25,)}),
        ([1, 3, 12, 16], TensorProto.UINT8, {"scale": 1}),
        ([1, 12, 16, 3], TensorProto.UINT8, {"scale": 0.5, "mean": (-3,)}),
        ([1, 3, 12, 16], TensorProto.FLOAT16, IMAGENET),
    ],
)
def test_layouts_and_dtypes(shape: list[int], dtype: int, how: dict[str, Any]) -> None:
    channels = 1 if 1 in shape[1:] else 3
    images = ImageInput(preprocess=Preprocess(**how))
    found, expected = embedded_run(
        network(shape, dtype=dtype), images, pictures(1, 12, 16, channels)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_it_resizes_as_pillow_does() -> None:
    """Pillow rounds to bytes after each axis: half a grey value, twice."""
    pixels = pictures(1, 50, 37, 3)
    record = PreprocessRecord(
        name="x",
        preprocess=Preprocess(scale=1, layout="nhwc"),
        shape=(1, 12, 16, 3),
        dtype="float32",
        size=(50, 37),
    )
    found = prepared({"x": pixels}, record.embedded)["x"]
    image = Image.fromarray(pixels[0]).resize((16, 12), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(found[0], np.asarray(image), atol=1.01)


def test_fit_keeps_the_middle() -> None:
    assert fit((100, 50), (10, 10), "crop").crop == (25, 0, 50, 50)
    assert fit((100, 50), (10, 10), "pad").place == (0, 2)
    assert fit((3, 900), (10, 10), "pad").resized == (1, 10)


def test_a_bundle_takes_bytes_and_verifies(tmp_path: Path) -> None:
    path = save(network([1, 3, 12, 16]), tmp_path)
    out = tmp_path / "m.edgec"
    text = "mean=0.485/0.456/0.406,std=0.229/0.224/0.225,resize=crop"
    arguments = ["compile", str(path), "-q", "-o", str(out), "--preprocess", text]
    assert main([*arguments, "--embed-preprocess", "--image-size", "40x30"]) == 0
    bundle = Bundle.load(out)
    (spec,) = bundle.manifest.signature.inputs
    assert (spec.dtype, spec.shape) == ("uint8", (1, 40, 30, 3))
    pixels = pictures(1, 40, 30, 3, seed=3)
    record = bundle.manifest.settings.preprocess
    assert record is not None
    fed = prepared({"x": pixels}, record.embedded)
    expected = run_original(path, fed)["y"]
    np.testing.assert_allclose(bundle.run({"x": pixels})["y"], expected, atol=1e-4)
    ((inputs, _),) = bundle.vectors()
    assert inputs["x"].max() > 200
    assert verify_bundle(bundle, model=path).passed
    # Rivals take the images as well: what they run prepares them, too.
    report = bench_bundles([bundle], seconds=0.02, against=["onnxruntime"], model=path)
    assert not report.cannot
    assert len(report.rivals) == 1
    # Another order of the channels is another model: the comparison must see it.
    turned = Tampered(lambda given: bundle.run({"x": given["x"][..., ::-1].copy()}))
    report = verify_bundle(bundle, model=path, session=turned)
    assert not report.passed


def test_quantized_with_a_folder_of_images(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(8):
        Image.fromarray(pictures(1, 40, 30, 3, seed=number)[0]).save(folder / f"{number}.png")
    options = CompileOptions(
        images=ImageInput(preprocess=Preprocess(**IMAGENET), size=(40, 30)),
        quantize=QuantizeOptions(recipe=load_recipe("int8")),
        samples=SampleOptions(source=str(folder)),
    )
    path = save(network([1, 3, 12, 16]), tmp_path)
    bundle = compile_model(path, options=options, output=tmp_path / "m.edgec")
    assert bundle.manifest.quantization is not None
    assert bundle.manifest.quantization.sqnr_db["y"] > 25
    assert verify_bundle(bundle, model=path).passed


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        ({"x": [1, 5, 8, 8]}, ImageInput(preprocess=Preprocess()), "no input takes images"),
        (
            {"x": [1, 3, 8, 8], "z": [1, 3, 8, 8]},
            ImageInput(preprocess=Preprocess()),
            "more than one input takes",
        ),
        (
            {"x": [1, 3, 8, 8]},
            ImageInput(preprocess=Preprocess(mean=(0.1, 0.2))),
            "mean has 2 values, x has 3 channels",
        ),
    ],
)
def test_refusals(shapes: dict[str, Any], options: ImageInput, message: str) -> None:
    model = make_model([node("Sum", list(shapes), ["y"])], shapes, ["y"])
    with pytest.raises(UsageError, match=message):
        embed_preprocessing(model, options)


def test_an_input_that_is_returned_is_refused() -> None:
    model = network([1, 3, 8, 8])
    model.graph.output.add().CopyFrom(model.graph.input[0])
    with pytest.raises(UsageError, match="returns its input x"):
        embed_preprocessing(model, ImageInput(preprocess=Preprocess()))


def test_options_that_need_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(save(network([1, 3, 8, 8]), tmp_path))
    assert main(["compile", path, "--image-size", "8x8"]) == 2
    assert "--embed-preprocess, which is not given" in capsys.readouterr().err
    assert main(["compile", path, "--embed-preprocess", "--image-size", "8"]) == 2
    assert "write HEIGHTxWIDTH" in capsys.readouterr().err
