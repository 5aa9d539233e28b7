# ruff: noqa: RUF001 - odd characters are what it is about
"""Small tokenizers trained with the package `tokenizers`, and text that finds differences."""

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, trainers
from tokenizers import pre_tokenizers as splits

from edgec.compiler.tokenizer.tokenizer_steps import EXPRESSIONS

ROOT = Path(__file__).parents[2]
CORPUS = [
    (ROOT / "README.md").read_text(),
    (ROOT / "compiler" / "errors.py").read_text(),
    *["Ärger über Öl, naïve café — 東京へ行く。 Привет мир! مرحبا 안녕하세요 नमस्ते 1234 I'm they'LL"]
    * 3,
]
_POOL = (
    *("'s", "'S", "'ſ", "'re", "'LL", "'d", " ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000"),
    *("\u0085", "the", "The ", "edge", "compiler", "123", "9", "٣", "Ⅷ", "é", "e\u0301", "가"),
    *(
        "\u1100\u1161\u11a8",
        "中文",
        "😀",
        "👨‍👩‍👧",
        "\u0323\u0307a",
        "\u0301",
        "▁",
        "▁▁",
        "_",
        "-",
        "!!",
    ),
    *("...", "//", "<|im_end|>", "<s>", "</s>", "<b>", "[X]", "ﬁ", "\u212b", "q\u0307\u0323", "\0"),
    *("ſ", "İ", "\u0344", "\u0958", "𝔸", "\U0001d15e", "<0x41>", "Ġ", "f(x):\n    return"),
)
_PLACES = (range(32, 127), range(0x800), range(0xD800), range(0xE000, 0x110000))
_SPECIAL = ["<s>", "</s>", "<|im_end|>", "<unk>"]
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def fuzzed(rng: random.Random) -> str:
    """Return a short text of ordinary words, odd characters and pieces of prose."""
    parts = []
    for _ in range(rng.randrange(1, 14)):
        kind = rng.random()
        if kind < 0.7:
            parts.append(rng.choice(_POOL))
        elif kind < 0.85:
            parts.append(chr(rng.choice(rng.choice(_PLACES))))
        else:
            text = rng.choice(CORPUS)
            begin = rng.randrange(len(text))
            parts.append(text[begin : begin + rng.randrange(30)])
    return "".join(parts)


def _changed(tokenizer: Tokenizer, change: Callable[[dict[str, Any]], object]) -> Tokenizer:
    described = json.loads(tokenizer.to_str())
    change(described)
    return Tokenizer.from_str(json.dumps(described))


def _without_bytes(described: dict[str, Any]) -> None:
    """Make byte tokens ordinary ones, as published tokenizers have them."""
    described["added_tokens"] = [t for t in described["added_tokens"] if t["content"] not in _BYTES]


def _finish(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_tokens(
        [
            AddedToken("<b>", lstrip=True, normalized=False),
            AddedToken("[X]", rstrip=True, normalized=True),
        ]
    )
    return tokenizer


def byte_pairs(pre: Any = None, normalizer: Any = None) -> Tokenizer:
    """Return byte-pair encoding over bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=_SPECIAL,
        initial_alphabet=splits.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _finish(tokenizer)


def sentence_piece_pairs(normalizer: Any, pre: Any = None, strips: bool = False) -> Tokenizer:
    """Return byte-pair encoding over characters that falls back to bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizer
    if pre is not None:
        tokenizer.pre_tokenizer = pre
    strip = [decoders.Strip(" ", 1, 0)] if strips else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=[*_SPECIAL, *_BYTES], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _finish(_changed(tokenizer, _without_bytes))


def unigram(scheme: str = "always", byte_fallback: bool = False) -> Tokenizer:
    """Return Unigram with Metaspace."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = splits.Metaspace(prepend_scheme=scheme, split=scheme != "never")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    special = ["<s>", "</s>", "<unk>", *(_BYTES if byte_fallback else [])]
    trainer = trainers.UnigramTrainer(
        vocab_size=500, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)

    def fall_back(described: dict[str, Any]) -> None:
        _without_bytes(described)
        described["model"]["byte_fallback"] = True
        described["decoder"] = {
            "type": "Sequence",
            "decoders": [{"type": "ByteFallback"}, described["decoder"]],
        }

    return _finish(_changed(tokenizer, fall_back) if byte_fallback else tokenizer)


def words(pre: Any) -> Tokenizer:
    """Return byte-pair encoding over characters with one token for all that are unknown."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=_SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _finish(tokenizer)


def _by(expression: str) -> Any:
    byte_level = splits.ByteLevel(add_prefix_space=False, use_regex=False)
    return splits.Sequence([splits.Split(Regex(expression), "isolated"), byte_level])


def _whole_words() -> Tokenizer:
    tokenizer = byte_pairs(_by(list(EXPRESSIONS)[3]))
    return _changed(tokenizer, lambda described: described["model"].update(ignore_merges=True))


_LLAMA2 = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
_DIGITS = splits.Digits(individual_digits=True)
_GPT2 = splits.ByteLevel(add_prefix_space=False)

TOKENIZERS: Mapping[str, Callable[[], Tokenizer]] = {
    "GPT-2": lambda: byte_pairs(_GPT2),
    "GPT-2 with a space in front": lambda: byte_pairs(splits.ByteLevel(add_prefix_space=True)),
    "SmolLM2": lambda: byte_pairs(splits.Sequence([_DIGITS, _GPT2])),
    "Qwen 2": lambda: byte_pairs(_by(list(EXPRESSIONS)[1]), normalizers.NFC()),
    "two digits": lambda: byte_pairs(_by(list(EXPRESSIONS)[2])),
    "Llama 3": _whole_words,
    "numbers": lambda: byte_pairs(_by(r"\p{N}+")),
    "Llama 2": lambda: sentence_piece_pairs(_LLAMA2, strips=True),
    "Gemma": lambda: sentence_piece_pairs(
        normalizers.Replace(" ", "▁"), splits.Split(" ", "merged_with_previous")
    ),
    "split before spaces": lambda: sentence_piece_pairs(
        normalizers.Replace("x", " "), splits.Split(" ", "merged_with_next")
    ),
    "spaces removed": lambda: sentence_piece_pairs(
        normalizers.Replace("x", " "), splits.Split(" ", "removed")
    ),
    "Metaspace once": lambda: words(splits.Metaspace(prepend_scheme="first", split=False)),
    "Unigram": unigram,
    "Unigram with bytes": lambda: unigram("first", byte_fallback=True),
    "Unigram of the whole text": lambda: unigram("never"),
}
