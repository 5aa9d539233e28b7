"""Do quantized models agree with the float ones? `python tests/benchmarks/accuracy_quantize.py`.

Calibrates, compiles, and runs each bundle on crops of other photographs beside ONNX Runtime on the
float model. Prints one line per model: what agrees, the bar, and the signal-to-noise ratio of each
output. Fails if a bar is missed. `--memory --samples 300` measures the peak memory of the compile
instead.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from photographs import (
    CALIBRATION,
    TEST,
    Pixels,
    crop,
    line_of_text,
    photographs,
    phrase,
    write_text,
)

from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.calibration.accuracy import Comparison
from edgec.compiler.calibration.samples import Sample, SampleOptions, Samples
from edgec.compiler.ir.signature import Tensors
from edgec.compiler.quantize.options import ROUNDINGS, QuantizeOptions
from edgec.compiler.quantize.quantization_recipe import load_recipe as load_quantization
from edgec.compiler.support.silent_onnxruntime import onnxruntime
from edgec.models import ModelRecipe, load_model_recipe

Floats = NDArray[np.float32]
Draw = Callable[[list[Pixels], np.random.Generator], Pixels]

MEMORY_BYTES = 1.5e9
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Task:
    """A task describes a model, what it is shown, and when its answers agree.

    Attributes:
        draw: makes one image of photographs.
        mean: of the pixels, scaled to 0..1.
        std: likewise.
        agreement: of the float and the quantized model's output for one image, 0..1; None where
            it says nothing and the image counts for nothing.
        what: agreement means.
        bar: least mean agreement.
    """

    draw: Draw
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    agreement: Callable[[Floats, Floats], float | None] | None = None
    what: str = ""
    bar: float = 0.0

    def inputs(self, photos: list[Pixels], count: int, seed: int) -> list[Floats]:
        """Return images, float32 [1, 3, height, width]."""
        random = np.random.default_rng(seed)
        mean, std = np.array(self.mean), np.array(self.std)
        made = [(self.draw(photos, random) / 255 - mean) / std for _ in range(count)]
        return [image.transpose(2, 0, 1)[None].astype(np.float32) for image in made]


def photo(height: int, width: int) -> Draw:
    """Return crops as they are."""
    return lambda photos, random: crop(photos, height, width, random)


def signs(height: int, width: int) -> Draw:
    """Return crops with up to five lines of text."""

    def draw(photos: list[Pixels], random: np.random.Generator) -> Pixels:
        pixels = crop(photos, height, width, random)
        for band in range(int(random.integers(1, 6))):
            place = int(random.integers(8, width // 3)), 12 + band * height // 5
            text, size = phrase(random, int(random.integers(1, 4))), int(random.integers(18, 48))
            pixels = write_text(pixels, text, place, size, random)
        return pixels

    return draw


def lines(height: int, width: int, words: int, *, turned: bool = False) -> Draw:
    """Return lines of text, every other one upside down if `turned`."""

    def draw(_: list[Pixels], random: np.random.Generator) -> Pixels:
        pixels = line_of_text(height, width, int(random.integers(1, words + 1)), random)
        return pixels[::-1, ::-1] if turned and random.random() < 0.5 else pixels

    return draw


def same_class(expected: Floats, actual: Floats) -> float:
    """Return equal top-1 answers."""
    return float(expected.argmax() == actual.argmax())


def mask_overlap(expected: Floats, actual: Floats) -> float | None:
    """Return intersection over union of the pixels that are text (0.3 or more)."""
    one, two = expected >= 0.3, actual >= 0.3
    union = np.count_nonzero(one | two)
    return float(np.count_nonzero(one & two) / union) if union else None


def same_text(expected: Floats, actual: Floats) -> float:
    """Return equal sequences of symbols, repeats and blanks (symbol 0) removed."""
    return float(symbols(expected) == symbols(actual))


def symbols(scores: Floats) -> list[int]:
    """Return greedy decoding of scores [1, steps, symbols]."""
    best = scores[0].argmax(axis=1)
    kept = best[np.insert(best[1:] != best[:-1], 0, True)]
    return [int(symbol) for symbol in kept if symbol]


def same_boxes(expected: Floats, actual: Floats) -> float | None:
    """Return share of matched boxes (F1): equal class, intersection over union of 0.5 or more."""
    one, two = boxes(expected[0]), boxes(actual[0])
    if not one and not two:
        return None
    left, matched = list(two), 0
    for box in one:
        found = [b for b in left if b[4] == box[4] and overlap(b, box) >= 0.5]
        if found:
            left.remove(max(found, key=lambda b: overlap(b, box)))
            matched += 1
    return 2 * matched / (len(one) + len(two))


def boxes(output: Floats, least: float = 0.2) -> list[tuple[float, ...]]:
    """Return x0, y0, x1, y1 and class of what scores [4 + classes, places] detect.

    One of a heap.
    """
    scores, found = output[4:].max(axis=0), []
    for place in np.argsort(-scores, kind="stable"):
        if scores[place] < least:
            break
        x, y, width, height = output[:4, place]
        kind = float(output[4:, place].argmax())
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2, kind)
        if all(overlap(box, other) < 0.45 for other in found):
            found.append(box)
    return found


def overlap(one: Sequence[float], two: Sequence[float]) -> float:
    """Return intersection over union."""
    width = min(one[2], two[2]) - max(one[0], two[0])
    height = min(one[3], two[3]) - max(one[1], two[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (one, two)]
    return width * height / (sum(areas) - width * height)


TASKS = {
    "efficientnet-lite0": Task(
        photo(224, 224), (127 / 255,), (128 / 255,), same_class, "same top-1", 0.90
    ),
    "pp-ocr-cls": Task(
        lines(48, 192, 3, turned=True), (0.5,), (0.5,), same_class, "same side up", 0.98
    ),
    "pp-ocr-det": Task(signs(480, 480), *IMAGENET, mask_overlap, "overlap of text", 0.90),
    "pp-ocr-rec": Task(lines(48, 320, 3), (0.5,), (0.5,), same_text, "same text", 0.90),
    "yolov8n-320": Task(photo(320, 320), agreement=same_boxes, what="same boxes", bar=0.90),
    "light_resnet50": Task(photo(224, 224), *IMAGENET),
}


def samples(name: str, images: list[Floats]) -> Samples:
    """Return images as batches of the only input."""
    return Samples("photographs", len(images), lambda: iter({name: image} for image in images))


def options(recipe: ModelRecipe, given: Samples, arguments: argparse.Namespace) -> CompileOptions:
    """Return the options of the quantized compile."""
    quantize = QuantizeOptions(
        recipe=load_quantization(arguments.recipe),
        observer=arguments.observer,
        repair=not arguments.no_repair,
        rounding=arguments.rounding,
    )
    return CompileOptions(
        shapes=dict(recipe.shapes), samples=SampleOptions(source=given), quantize=quantize
    )


def measure(name: str, arguments: argparse.Namespace, folder: Path) -> bool:
    """Return whether a model reaches its bar; prints its line."""
    task, recipe = TASKS[name], load_model_recipe(name)
    model = recipe.write(folder / f"{name}.onnx")
    session = onnxruntime.InferenceSession(str(model))
    (given,) = session.get_inputs()
    images = task.inputs(photographs(CALIBRATION), arguments.samples, 1)
    start = time.monotonic()
    bundle = compile_model(
        model,
        arguments.target,
        options(recipe, samples(given.name, images), arguments),
        output=folder / f"{name}.edgec",
    )
    seconds = time.monotonic() - start
    scores: list[float] = []

    def agreed(expected: Tensors, actual: Tensors) -> float:
        first = next(iter(expected))
        score = task.agreement and task.agreement(expected[first], actual[first])
        scores.extend([] if score is None else [score])
        return 0.0

    comparison = Comparison(agreed)
    opened = bundle.open(1)
    for image in task.inputs(photographs(TEST), arguments.test, 2):
        inputs = {given.name: image}
        names = [output.name for output in session.get_outputs()]
        floats = dict(zip(names, session.run(names, inputs), strict=True))
        comparison.add(floats, opened.run(inputs))
    ratios = ", ".join(f"{n} {db:.1f}" for n, db in comparison.result().by_output.items())
    share = float(np.mean(scores)) if scores else 1.0
    passed = share >= task.bar
    told = f"{share:7.1%} {task.what} over {len(scores)}, bar {task.bar:.0%}" if scores else ""
    print(
        f"{name:20}{told:44} {ratios} dB, {seconds:.0f} s{'' if passed else '  MISSED'}", flush=True
    )
    return passed


def peak_bytes(name: str, arguments: argparse.Namespace) -> int:
    """Return memory of a process that compiles a model; its images are drawn one by one."""
    options = [f"--{key}={getattr(arguments, key)}" for key in ("recipe", "observer", "samples")]
    command = [sys.executable, __file__, name, "--streamed", *options, "--target", arguments.target]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed")
    return 1024 * usage.ru_maxrss


def compile_streamed(name: str, arguments: argparse.Namespace, folder: Path) -> None:
    """Quantize and compile, images drawn when they are needed."""
    task, recipe, photos = TASKS[name], load_model_recipe(name), photographs(CALIBRATION)
    (given,) = recipe.shapes

    def read() -> Iterator[Sample]:
        for seed in range(arguments.samples):
            yield {given: task.inputs(photos, 1, seed)[0]}

    chosen = options(recipe, Samples("photographs", arguments.samples, read), arguments)
    model = recipe.write(folder / f"{name}.onnx")
    compile_model(model, arguments.target, chosen, output=folder / f"{name}.edgec")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=[*TASKS])
    parser.add_argument("--target", default="native")
    parser.add_argument("--recipe", default="int8")
    parser.add_argument("--observer", default="mse")
    parser.add_argument("--no-repair", action="store_true")
    parser.add_argument("--rounding", choices=ROUNDINGS, default="second-order")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--streamed", action="store_true", help="Only compile, for --memory.")
    arguments = parser.parse_args()
    if arguments.memory:
        peaks = {name: peak_bytes(name, arguments) for name in arguments.models}
        for name, peak in peaks.items():
            print(f"{name:20}{peak / 1e9:.2f} GB, bar {MEMORY_BYTES / 1e9:.1f}", flush=True)
        sys.exit(0 if max(peaks.values()) < MEMORY_BYTES else 1)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.streamed:
            for name in arguments.models:
                compile_streamed(name, arguments, Path(folder))
            return
        passed = [measure(name, arguments, Path(folder)) for name in arguments.models]
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
