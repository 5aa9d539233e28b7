"""Quantize a language model to 4 bits by text, as it is read.

The other quantization works on graphs of floats; a language model never becomes one.
"""

import hashlib
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.bundle.generation_files import GENERATION, build_generation
from edgec.compiler.calibration.samples import SampleOptions
from edgec.compiler.errors import CalibrationError, UsageError
from edgec.compiler.generation.native import Tokenizer, load_generation
from edgec.compiler.language.calibrated_weights import MOST_TOKENS, PIECE, CalibratedWeights
from edgec.compiler.language.language_model import ModelSource
from edgec.compiler.quantize.options import QuantizeOptions
from edgec.compiler.support.files import scratch_folder
from edgec.compiler.tokenizer.tokenizer_file import tokenizer_file
from edgec.targets import load_target

# A text of fewer tokens says little.
LEAST_TOKENS = 32
# Of a long file this much is read, and pieces are taken from all of it.
MOST_BYTES = 4 << 20


@dataclass(frozen=True)
class TextQuantization:
    """A text quantization describes how a language model becomes one of 4 bits.

    Attributes:
        group: weights that share a scale.
        text: file of text that weights are rounded for; None rounds to the nearest.
    """

    group: int
    text: Path | None

    @classmethod
    def of(cls, options: QuantizeOptions, samples: SampleOptions) -> "TextQuantization":
        """Return what the options of a compile mean for a language model.

        Raises:
            UsageError: they ask for what is not done with language models.
            CalibrationError: samples that are no file of text.
        """
        recipe = options.recipe
        if recipe.weights != "int4" or recipe.override or recipe.activations != "float":
            raise UsageError(
                f"recipe {recipe.name} is not for GGUF files and Hugging Face folders; they take "
                "--quantize int4, with --calibration FILE.txt"
            )
        if options != QuantizeOptions(recipe=recipe):
            raise UsageError(
                "--quantize int4 of a language model takes --calibration FILE.txt, and no other "
                "option of quantization"
            )
        if samples.source is None:
            return cls(recipe.weight_group, None)
        if not isinstance(samples.source, str) or not Path(samples.source).is_file():
            raise CalibrationError(
                f"--calibration {samples.source}: language models take a file of text, and there "
                "is none of this name"
            )
        return cls(recipe.weight_group, Path(samples.source))

    def describe(self) -> str:
        """Return it in a few words, for manifests."""
        how = "rounded to the nearest"
        if self.text is not None:
            how = f"rounded for {self.text.name}, SHA-256 {_digest(self.text.read_bytes())}"
        return f"int4 in groups of {self.group}, {how}"

    def apply(self, model: ModelSource) -> ModelSource:
        """Return a model whose weights are quantized when they are asked for.

        Raises:
            CalibrationError: the text cannot be read, or is too short.
            UnsupportedModelError: the tokenizer or the weights cannot be used.
        """
        tokens = None if self.text is None else self._tokens(self.text, model)
        weights = CalibratedWeights(model.decoder, model.weights, tokens, self.group)
        # Another model than that of the file: caches of prompts are bound to the digest.
        digest = _digest(f"{model.language.digest} {self.describe()}".encode())
        language = model.language.model_copy(update={"digest": digest})
        return replace(model, weights=weights, language=language)

    def _tokens(self, path: Path, model: ModelSource) -> NDArray[np.int64]:
        """Return pieces of text [pieces, length]."""
        try:
            with path.open("rb") as stream:
                content = stream.read(MOST_BYTES + 1)
            # A cut may lie within a character.
            cut = content[:MOST_BYTES] if len(content) > MOST_BYTES else content
            text = cut.decode(errors="strict" if len(content) <= MOST_BYTES else "ignore")
        except OSError as error:
            raise CalibrationError(f"{path} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise CalibrationError(
                f"{path} is no UTF-8 text: byte {error.start} belongs to no character"
            ) from None
        file = tokenizer_file(model.tokenizer, stop_tokens=model.language.end_tokens)
        found = Tokenizer(_functions(), file).encode(text, template_tokens=False)
        length = min(PIECE, model.language.trained_context, len(found))
        if length < LEAST_TOKENS:
            raise CalibrationError(
                f"{path} has {len(found)} tokens; at least {LEAST_TOKENS} are needed, and "
                f"{MOST_TOKENS} are read if they are there"
            )
        whole = len(found) // length
        pieces = np.array(found[: whole * length], np.int64).reshape(whole, length)
        count = min(whole, max(1, MOST_TOKENS // length))
        chosen: NDArray[np.int64] = pieces[np.linspace(0, whole - 1, count).round().astype(int)]
        return chosen


@cache
def _functions() -> Any:
    """Return the C that makes tokens, for this machine."""
    with scratch_folder() as scratch:
        build_generation(scratch / GENERATION, load_target("native"))
        return load_generation(scratch / GENERATION)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
