"""Describe a language model beside its graph: what a program that talks with it has to know."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from edgec.compiler.errors import UsageError
from edgec.compiler.ir.signature import Signature
from edgec.compiler.language.architectures import Decoder, WeightSource

DEFAULT_CONTEXT = 4096
CacheDtype = Literal["float32", "float16"]
DEFAULT_CHUNK = 64

# Programs of a bundle: one takes a chunk of a prompt, one a token, one a token and guesses of what
# follows, with logits of each.
PREFILL, DECODE, VERIFY = "prefill", "decode", "verify"
# Tokens of the last.
DEFAULT_VERIFIED, MOST_VERIFIED = 4, 8


def chunk_programs(
    chunk: int, streams: int = 1, verified: int = DEFAULT_VERIFIED
) -> dict[str, dict[str, tuple[int, ...]]]:
    """Return the shapes of a language model's programs by their names.

    Args:
        chunk: tokens of a prompt that are read at once.
        streams: texts that get a token each at once, at most; others programs are of half as many.
        verified: tokens that get logits each in one run; 0 makes no program for that.

    >>> list(chunk_programs(64, 4))
    ['prefill', 'verify', 'decode', 'decode2', 'decode4']
    """
    counts = sorted({streams >> shift for shift in range(streams.bit_length())} - {1})
    shapes = {PREFILL: (1, chunk, 1)}
    if verified:
        shapes[VERIFY] = (1, verified, verified)
    shapes |= {DECODE: (1, 1, 1), **{f"{DECODE}{n}": (n, 1, 1) for n in counts}}
    return {
        name: {"input_ids": (texts, tokens), "last": (texts, rows)}
        for name, (texts, tokens, rows) in shapes.items()
    }


class LanguageModel(BaseModel):
    """A language model describes how text goes into a decoder and comes out of it.

    Attributes:
        name: what the file calls the model.
        architecture: its family.
        context: tokens that the compiled cache holds.
        trained_context: tokens that the model was made for.
        vocabulary: logits.
        digest: SHA-256 of the source; caches of prompts are bound to it.
        begin_token: stands before a text, None if none does.
        add_begin: whether the tokenizer puts it there.
        end_tokens: each ends an answer.
        unknown_token: stands for what the vocabulary cannot say, None if nothing does.
        padding_token: fills up, None if the model has none.
        chat_template: Jinja source that makes a prompt of messages, empty if there is none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    architecture: str
    context: int
    trained_context: int
    vocabulary: int
    digest: str
    begin_token: int | None = None
    add_begin: bool = False
    end_tokens: tuple[int, ...] = ()
    unknown_token: int | None = None
    padding_token: int | None = None
    chat_template: str = ""

    def chunk(self, asked: int | None) -> int:
        """Return tokens of the program `prefill`: what was asked for, or what the cache allows.

        Raises:
            UsageError: the cache does not hold so many and one more.
        """
        most = max(1, self.context - 1)
        if asked is not None and asked > most:
            raise UsageError(
                f"--prefill-chunk {asked}: a context of {self.context} tokens allows {most}"
            )
        return min(asked or DEFAULT_CHUNK, most)

    def test_inputs(self, signature: Signature, seed: int) -> dict[str, NDArray[np.int64]]:
        """Return random tokens without padding for a program of these inputs.

        The first tokens of a text alone say little: their activations are far larger than others.
        """
        shapes = {spec.name: [extent or 1 for extent in spec.shape] for spec in signature.inputs}
        (texts, tokens), (_, rows) = shapes["input_ids"], shapes["last"]
        ids = np.random.default_rng(seed).integers(0, self.vocabulary, (texts, tokens))
        return {"input_ids": ids, "last": np.tile(np.arange(tokens - rows, tokens), (texts, 1))}


@dataclass(frozen=True)
class ModelSource:
    """A model source holds all that a file or folder says of a language model.

    Attributes:
        decoder: its arithmetic.
        weights: gives its tensors.
        language: how text goes in and out.
        tokenizer: the content of `tokenizer.json`.
    """

    decoder: Decoder
    weights: WeightSource
    language: LanguageModel
    tokenizer: str


def chosen_context(asked: int | None, trained: int, path: Path) -> int:
    """Return rows of the cache: what was asked for, at most what the model was made for.

    Raises:
        UsageError: it is more, or not positive.
    """
    if asked is None:
        return min(trained, DEFAULT_CONTEXT)
    if not 2 <= asked <= trained:
        raise UsageError(f"--context {asked}: {path} was made for 2 to {trained} tokens of context")
    return asked
