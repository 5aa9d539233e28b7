"""Convert the tokenizer of a GGUF file to the content of a `tokenizer.json`.

Two kinds are known by `tokenizer.ggml.model`: `gpt2`, byte-pair encoding over bytes, whose way to
split text into words is named by `tokenizer.ggml.pre`; and `llama`, SentencePiece's byte-pair
encoding, whose merges follow from the scores of the pieces.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgec.compiler.errors import ModelFileError, UnsupportedModelError
from edgec.compiler.language.settings import Settings

# `tokenizer.ggml.token_type`.
_UNKNOWN, _CONTROL, _USER, _BYTE = 2, 3, 4, 6
# Ends of an answer beside the end of the text, by what they are called in published vocabularies.
_END_NAMES = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eom_id|>",
)
_SPACE = "▁"

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer describes how text becomes tokens.

    Attributes:
        content: of `tokenizer.json`.
        begin: token before a text.
        add_begin: whether the tokenizer puts it there.
        ends: tokens that end an answer.
        unknown: token of what has none.
        padding: token that fills up.
    """

    content: str
    begin: int | None
    add_begin: bool
    ends: tuple[int, ...]
    unknown: int | None
    padding: int | None


def tokenizer_json(settings: Settings, vocabulary: int) -> Tokenizer:
    """Return the tokenizer that the section `tokenizer.ggml` describes.

    Args:
        settings: the section.
        vocabulary: rows of the embeddings.

    Raises:
        ModelFileError: lists are missing, or do not fit each other.
        UnsupportedModelError: the kind of tokenizer or the way to split words is not known.
    """
    tokens = _Vocabulary.read(settings, vocabulary)
    kind = settings.text("model")
    if kind not in ("gpt2", "llama"):
        raise UnsupportedModelError(
            f"{settings.path}: the tokenizer {kind!r} is not known; known are gpt2 and llama"
        )
    pre = _WAYS.get(settings.text("pre", "default")) if kind == "gpt2" else None
    if kind == "gpt2" and pre is None:
        raise UnsupportedModelError(
            f"{settings.path}: tokenizer.ggml.pre {settings.text('pre')!r} is not known; known "
            f"are {', '.join(sorted(_WAYS))}"
        )
    begin = _token(settings, "bos_token_id", vocabulary)
    end = _token(settings, "eos_token_id", vocabulary)
    add_begin = settings.flag("add_bos_token", kind == "llama" or bool(pre and pre.adds_begin))
    add_end = settings.flag("add_eos_token", False)
    if pre is not None:
        parts = _byte_level(settings, tokens, pre)
    else:
        parts = _sentence_piece(settings, tokens)
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": tokens.added(),
        **parts,
        "post_processor": _post_processor(
            tokens, begin if add_begin else None, end if add_end else None
        ),
    }
    named = (_index(tokens.pieces, name) for name in _END_NAMES)
    others = (_token(settings, f"{name}_token_id", vocabulary) for name in ("eot", "eom"))
    ends = dict.fromkeys(token for token in (end, *others, *named) if token is not None)
    return Tokenizer(
        json.dumps(content, ensure_ascii=False, separators=(",", ":")),
        begin,
        add_begin,
        tuple(ends),
        _token(settings, "unknown_token_id", vocabulary),
        _token(settings, "padding_token_id", vocabulary),
    )


def _token(settings: Settings, name: str, vocabulary: int) -> int | None:
    # Some writers say "none" by the largest number.
    if settings.get(name) in (None, 2**32 - 1):
        return None
    token = settings.integer(name, least=0)
    if token >= vocabulary:
        raise settings.wrong(name, token, f"a token below {vocabulary}")
    return token


def _index(pieces: Sequence[str], name: str) -> int | None:
    return pieces.index(name) if name in pieces else None


@dataclass(frozen=True)
class _Vocabulary:
    pieces: list[str]
    types: list[int]
    scores: list[float]

    @classmethod
    def read(cls, settings: Settings, vocabulary: int) -> "_Vocabulary":
        pieces = _texts(settings, "tokens")
        if len(pieces) > vocabulary or not pieces:
            raise settings.wrong("tokens", f"{len(pieces)} tokens", f"1 to {vocabulary}")
        if len(set(pieces)) != len(pieces):
            raise settings.wrong("tokens", "a list with the same token twice", "each once")
        types, scores = (_numbers(settings, name, len(pieces)) for name in ("token_type", "scores"))
        return cls(pieces, [int(kind) for kind in types], scores)

    def added(self) -> list[Json]:
        """Return tokens that are found in text before anything else."""
        return [
            {
                "id": index,
                "content": piece,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": kind != _USER,
            }
            for index, (piece, kind) in enumerate(zip(self.pieces, self.types, strict=True))
            if kind in (_UNKNOWN, _CONTROL, _USER)
        ]

    def indices(self) -> dict[str, int]:
        return {piece: index for index, piece in enumerate(self.pieces)}


def _texts(settings: Settings, name: str) -> list[str]:
    values = settings.get(name)
    if not isinstance(values, list) or not all(isinstance(item, str) for item in values):
        raise ModelFileError(f"{settings.path}: tokenizer.ggml.{name} is no list of texts")
    return values


def _numbers(settings: Settings, name: str, count: int) -> list[float]:
    values = settings.get(name)
    if values is None:
        return [1.0 if name == "token_type" else 0.0] * count
    if not isinstance(values, np.ndarray) or len(values) != count:
        raise ModelFileError(f"{settings.path}: tokenizer.ggml.{name} has not {count} numbers")
    numbers: list[float] = values.tolist()
    return numbers


# Byte-pair encoding over bytes

# OpenAI's GPT-2; the end of the pattern splits what is left, as a splitter does by itself.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_EDGE = r"[^\r\n\p{L}\p{N}]?"
_PUNCTUATED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class _Way:
    """A way to split text into words: patterns one after the other, as published for a model."""

    patterns: tuple[str, ...]
    normal_form: bool = False
    whole_words: bool = False
    adds_begin: bool = False


def _ways() -> dict[str, _Way]:
    gpt2 = _Way((_GPT2,))
    digits = _Way((r"\p{N}", _GPT2))
    llama3 = _Way(
        (f"{_CONTRACTIONS}|{_WORDS}|\\p{{N}}{{1,3}}|{_REST}",), whole_words=True, adds_begin=True
    )
    qwen2 = _Way((f"{_CONTRACTIONS}|{_WORDS}|\\p{{N}}|{_REST}",), normal_form=True)
    tekken = _Way(
        (f"{_EDGE}{_UPPER}*{_LOWER}+|{_EDGE}{_UPPER}+{_LOWER}*|\\p{{N}}|{_PUNCTUATED}",),
        whole_words=True,
        adds_begin=True,
    )
    gpt4o = _Way(
        (
            f"{_EDGE}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_EDGE}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
            f"|\\p{{N}}{{1,3}}|{_PUNCTUATED}",
        ),
    )
    coder = _Way((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"))
    default = _Way((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))
    names = {
        "default": default,
        "deepseek-coder": coder,
        "gpt-4o": gpt4o,
        "tekken": tekken,
        **dict.fromkeys(("gpt-2", "mpt", "olmo", "phi-2"), gpt2),
        **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), digits),
        **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3"), llama3),
        **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2"), qwen2),
    }
    return names


_WAYS = _ways()


def _byte_level(settings: Settings, tokens: _Vocabulary, way: _Way) -> Json:
    merges = _texts(settings, "merges")
    vocabulary = tokens.indices()
    for merge in merges:
        left, _, right = merge.partition(" ")
        if not right or left not in vocabulary or left + right not in vocabulary:
            raise settings.wrong("merges", merge, "two tokens that are one together")
    splits = [
        {
            "type": "Split",
            "pattern": {"Regex": pattern},
            "behavior": "Isolated",
            "invert": False,
        }
        for pattern in way.patterns
    ]
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    return {
        "normalizer": {"type": "NFC"} if way.normal_form else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level]},
        "decoder": {**byte_level, "use_regex": True},
        "model": _bpe(vocabulary, [merge.split(" ") for merge in merges], way.whole_words),
    }


def _bpe(vocabulary: Json, merges: list[list[str]], whole_words: bool, **others: Any) -> Json:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": whole_words,
        **others,
        "vocab": vocabulary,
        "merges": merges,
    }


# SentencePiece


def _sentence_piece(settings: Settings, tokens: _Vocabulary) -> Json:
    prefix = settings.flag("add_space_prefix", True)
    unknown = _token(settings, "unknown_token_id", len(tokens.pieces))
    if unknown is None:
        unknown = next((i for i, kind in enumerate(tokens.types) if kind == _UNKNOWN), None)
    has_bytes = _BYTE in tokens.types
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    before = [{"type": "Prepend", "prepend": _SPACE}] if prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    back = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    merges = _merges_by_score(tokens)
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*before, spaces]},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip],
        },
        "model": _bpe(
            tokens.indices(),
            merges,
            whole_words=False,
            unk_token=None if unknown is None else tokens.pieces[unknown],
            fuse_unk=True,
            byte_fallback=has_bytes,
        ),
    }


def _merges_by_score(tokens: _Vocabulary) -> list[list[str]]:
    """Return every way to put a piece together from two, the best pieces first."""
    indices = tokens.indices()
    special = (_UNKNOWN, _CONTROL, _BYTE)
    found: list[tuple[float, int, int, int, str, str]] = []
    for index, piece in enumerate(tokens.pieces):
        if tokens.types[index] in special:
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in indices and right in indices:
                score = -tokens.scores[index]
                found.append((score, index, indices[left], indices[right], left, right))
    return [[left, right] for *_, left, right in sorted(found)]


def _post_processor(tokens: _Vocabulary, begin: int | None, end: int | None) -> Json | None:
    """Return what puts tokens before and behind a text, None if nothing does."""
    if begin is None and end is None:
        return None

    def one(text: str, kind: int) -> list[Json]:
        parts: list[Json] = [{"Sequence": {"id": text, "type_id": kind}}]
        for token, place in ((begin, 0), (end, len(parts) + (begin is not None))):
            if token is not None:
                special = {"SpecialToken": {"id": tokens.pieces[token], "type_id": kind}}
                parts.insert(place, special)
        return parts

    return {
        "type": "TemplateProcessing",
        "single": one("A", 0),
        "pair": [*one("A", 0), *one("B", 1)],
        "special_tokens": {
            tokens.pieces[token]: {
                "id": tokens.pieces[token],
                "ids": [token],
                "tokens": [tokens.pieces[token]],
            }
            for token in (begin, end)
            if token is not None
        },
    }
