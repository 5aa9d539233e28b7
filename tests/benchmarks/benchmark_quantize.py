"""What int8 gains: `python tests/benchmarks/benchmark_quantize.py --target x86-64-v3 --threads 1`.

Each model is quantized three times from the same photographs: by recipe int8, and by ONNX Runtime's
`quantize_static` in several ways, of which each of the other runtimes gets the file that it runs
fastest. The int8 build, the float build and the others then take turns. Prints one line per model
and the geometric means of the ratios; above 1 the int8 build is faster.

The other runtimes choose their instructions themselves. `--rivals-isa AVX2` holds OpenVINO to AVX2;
ONNX Runtime has no such switch. `--fastest` compares the fastest runs in place of medians, where
the machine does other work meanwhile. Photographs are those of scikit-learn and, where it is
installed, of scikit-image, and crops of them.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from photographs import phrase, write_text

from edgec.compiler import Bundle, CompileOptions, compile_model
from edgec.compiler.bench.compare import take_turns
from edgec.compiler.bench.rivals import RIVALS, Rival, load_rival
from edgec.compiler.calibration.samples import SampleOptions, Samples, open_samples
from edgec.compiler.errors import ToolchainError
from edgec.compiler.frontend.preprocessing import Preprocess
from edgec.compiler.frontend.specialize import specialize
from edgec.compiler.ir.signature import Tensors
from edgec.compiler.quantize.options import QuantizeOptions
from edgec.compiler.quantize.quantization_recipe import load_recipe as load_quantization
from edgec.models import load_model_recipe

_IMAGENET = Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
PREPARATION = {
    "light_resnet50": _IMAGENET,
    "light_squeezenet": _IMAGENET,
    "efficientnet-lite0": Preprocess(mean=(0.498,), std=(0.502,)),
    "pp-ocr-det": _IMAGENET,
    "pp-ocr-cls": Preprocess(mean=(0.5,), std=(0.5,)),
    "yolov8n-320": Preprocess(),
}
CROPS = 16

# What scales are for: weights have one for each channel.
OPSET_PER_CHANNEL = 13

VARIANTS: dict[str, dict[str, Any]] = {
    "uint8": {"activation": "QUInt8"},
    "int8": {"activation": "QInt8"},
    "uint8 products": {"activation": "QUInt8", "only": ["Conv", "Gemm", "MatMul"]},
    "uint8 7-bit weights": {"activation": "QUInt8", "reduce_range": True},
}

BARS = {"float": 1.5, "onnxruntime": 1.2, "openvino": 1.0}
SIZE_BAR = 0.28


def photographs() -> list[NDArray[np.uint8]]:
    """Return [H, W, 3] each."""
    from sklearn.datasets import load_sample_images

    images = list(load_sample_images().images)
    try:
        from skimage import data
    except ImportError:
        return images
    return [*images, data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]


def write_crops(folder: Path, model: str) -> None:
    """Write parts of the photographs, of a third to all of their height.

    What finds text gets some: it gives nothing but noise for photographs without.
    """
    from PIL import Image

    random, images = np.random.default_rng(0), photographs()
    folder.mkdir()
    for number in range(CROPS):
        image = images[number % len(images)]
        height, width = image.shape[:2]
        side = int(min(height, width) * random.uniform(1 / 3, 1))
        top, left = random.integers(height - side + 1), random.integers(width - side + 1)
        part = image[top : top + side, left : left + side]
        if model == "pp-ocr-det":
            for line in range(3):
                place = (int(random.integers(side // 3)), (4 * line + 1) * side // 12)
                part = write_text(part, phrase(random, 3), place, side // 16, random)
        Image.fromarray(part).save(folder / f"{number:02}.png")


def quantized_files(model: Path, samples: Samples, folder: Path) -> dict[str, Path]:
    """Return what `quantize_static` makes of a static float model, by variant."""
    import edgec.compiler.support.silent_onnxruntime  # noqa: F401, I001  before the next one
    from onnxruntime import quantization  # noqa: TID251
    from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: TID251

    proto = onnx.load(model)
    if max(item.version for item in proto.opset_import if not item.domain) < OPSET_PER_CHANNEL:
        proto = onnx.version_converter.convert_version(proto, OPSET_PER_CHANNEL)
    newer, prepared = folder / "newer.onnx", folder / "prepared.onnx"
    onnx.save(proto, newer)
    quant_pre_process(str(newer), str(prepared), skip_symbolic_shape=True)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            self.left = iter(samples)

        def get_next(self) -> Tensors | None:
            return next(self.left, None)

    files = {}
    for name, variant in VARIANTS.items():
        files[name] = folder / f"{name.replace(' ', '-')}.onnx"
        quantization.quantize_static(
            str(prepared),
            str(files[name]),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType[variant["activation"]],
            weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=variant.get("only"),
            reduce_range=variant.get("reduce_range", False),
        )
    return files


def fastest(
    runtime: str, files: dict[str, Path], bundle: Bundle, inputs: Tensors, threads: int, tmp: Path
) -> tuple[str, Rival]:
    """Return variant that a runtime runs fastest, and its loaded model.

    Raises:
        ToolchainError: it can run none.
    """
    signature, loaded, why = bundle.manifest.signature, {}, None
    for name, path in files.items():
        try:
            loaded[name] = load_rival(RIVALS[runtime], path, inputs, signature, threads, tmp)
        except ToolchainError as error:
            why = error
    if why is not None and not loaded:
        raise why
    times = take_turns(list(loaded), list(loaded.values()), 0.5)
    best = min(times, key=lambda latency: min(latency.times_ms)).name
    return best, loaded[best]


def size(bundle: Bundle) -> int:
    return sum(path.stat().st_size for path in bundle.path.rglob("*") if path.is_file())


def builds(model: Path, shapes: dict[str, Any], target: str, images: Path) -> Iterable[Bundle]:
    """Yield the builds of int8 and of floats."""
    quantize = QuantizeOptions(recipe=load_quantization("int8"))
    samples = SampleOptions(source=str(images), preprocess=PREPARATION[model.stem])
    for name, options in (
        ("int8", CompileOptions(shapes=shapes, quantize=quantize, samples=samples)),
        ("float", CompileOptions(shapes=shapes)),
    ):
        yield compile_model(model, target, options, output=model.with_name(f"{name}.edgec"))


def measure(
    name: str, folder: Path, rivals: Sequence[str], arguments: argparse.Namespace
) -> tuple[dict[str, float], dict[str, float], dict[str, str], float]:
    """Return times [ms], ratios to the int8 build, variants used.

    And its share of the float size.
    """
    threads, recipe = arguments.threads, load_model_recipe(name)
    model = recipe.write(folder / f"{name}.onnx")
    images = folder / "images"
    write_crops(images, name)
    int8, floats = builds(model, dict(recipe.shapes), arguments.target, images)
    signature = int8.manifest.signature
    samples = open_samples(str(images), signature.inputs, PREPARATION[name])
    inputs = next(iter(samples))
    sessions = [bundle.open(threads) for bundle in (int8, floats)]
    prepared = [session.prepare(inputs) for session in sessions]
    runners: dict[str, Any] = {
        "int8": lambda: sessions[0].run_prepared(prepared[0]),
        "float": lambda: sessions[1].run_prepared(prepared[1]),
    }
    static = folder / "static.onnx"
    onnx.save(specialize(onnx.load(model), recipe.shapes, {}).proto, static)
    files = quantized_files(static, samples, folder)
    used = {}
    for rival in rivals:
        try:
            used[rival], runners[rival] = fastest(rival, files, int8, inputs, threads, folder)
        except ToolchainError as error:
            print(f"    {rival} cannot: {error}", flush=True)
    ours, *others = take_turns(list(runners), list(runners.values()), arguments.seconds)
    if arguments.fastest:
        times = {latency.name: min(latency.times_ms) for latency in (ours, *others)}
        ratios = {latency.name: times[latency.name] / times["int8"] for latency in others}
    else:
        times = {latency.name: latency.median_ms for latency in (ours, *others)}
        ratios = {
            latency.name: statistics.median(
                theirs / mine
                for theirs, mine in zip(latency.rounds_ms, ours.rounds_ms, strict=True)
            )
            for latency in others
        }
    return times, ratios, used, size(int8) / size(floats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(PREPARATION), choices=PREPARATION)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--target", default="native")
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--fastest", action="store_true")
    parser.add_argument("--against", default="onnxruntime,openvino")
    parser.add_argument("--rivals-isa", help="the most that OpenVINO may use, AVX2 for example")
    arguments = parser.parse_args()
    if arguments.rivals_isa:
        os.environ["ONEDNN_MAX_CPU_ISA"] = arguments.rivals_isa
    rivals = arguments.against.split(",")
    others = ["float", *rivals]
    columns = "".join(f"{other:>12} ms ratio" for other in others)
    print(f"{'model':20}{'int8 ms':>9}{columns}   size   {arguments.target}", flush=True)
    means: dict[str, list[float]] = {other: [] for other in others}
    sizes = []
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            times, ratios, used, share = measure(name, Path(folder), rivals, arguments)
        cells = "".join(
            f"{times[other]:15.3f}{ratios[other]:6.2f}"
            if other in times
            else f"{'cannot':>15}{'':6}"
            for other in others
        )
        chosen = ", ".join(f"{rival}: {variant}" for rival, variant in used.items())
        print(f"{name:20}{times['int8']:9.3f}{cells}{share:7.2f}   {chosen}", flush=True)
        sizes.append(share)
        for other, ratio in ratios.items():
            means[other].append(ratio)
    cells = "".join(
        f"{statistics.geometric_mean(means[other] or [float('nan')]):21.2f}" for other in others
    )
    print(f"{'geometric mean':29}{cells}{max(sizes):7.2f} at most")
    bars = "".join(f"{BARS.get(other, 0):21.2f}" for other in others)
    print(f"{'bar':29}{bars}{SIZE_BAR:7.2f}")


if __name__ == "__main__":
    main()
