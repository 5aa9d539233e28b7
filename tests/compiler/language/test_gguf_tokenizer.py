"""Tokenizers of GGUF files split text as llama.cpp and the published tokenizers do."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from edgec.compiler.errors import EdgecError, ModelFileError, UnsupportedModelError
from edgec.compiler.language.gguf_tokenizer import Tokenizer, tokenizer_json
from edgec.compiler.language.settings import Settings

# GPT-2's names of bytes that are no printable characters.
BYTES = dict(enumerate([*range(33, 127), *range(161, 173), *range(174, 256)]))
SPACE, NEWLINE = "Ġ", "Ċ"


def bytes_as_letters() -> list[str]:
    printable = set(BYTES.values())
    shifted = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(shifted)) for b in range(256)]


def byte_level(pre: str = "gpt-2", **changes: Any) -> dict[str, Any]:
    letters = bytes_as_letters()
    merges = ["t h", f"{SPACE} th", "1 2", "12 3", f"{NEWLINE} {NEWLINE}"]
    pieces = ["<|im_end|>", "<s>", *letters, *(merge.replace(" ", "") for merge in merges)]
    return {
        "model": "gpt2",
        "pre": pre,
        "tokens": pieces,
        "token_type": np.array([3, 3] + [1] * (len(pieces) - 2), np.int32),
        "merges": merges,
        "bos_token_id": 1,
        "eos_token_id": 1,
        **changes,
    }


def made(values: dict[str, Any]) -> Tokenizer:
    entries = {f"tokenizer.ggml.{name}": value for name, value in values.items()}
    vocabulary = len(values.get("tokens", []) or [0])
    return tokenizer_json(Settings(Path("m.gguf"), entries, "tokenizer.ggml."), vocabulary)


def pieces_of(values: dict[str, Any], text: str) -> list[str]:
    tokenizer = tokenizers.Tokenizer.from_str(made(values).content)
    encoded = tokenizer.encode(text)
    assert tokenizer.decode(encoded.ids, skip_special_tokens=True) == text.replace("<|im_end|>", "")
    return list(encoded.tokens)


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        # The last space before a word is split off, unless it is the end of a part.
        ("gpt-2", "th th\n\n123", ["th", "Ġth", "Ċ", "Ċ", "123"]),
        ("smollm", "th th\n\n123", ["th", "Ġth", "ĊĊ", "1", "2", "3"]),
        ("qwen2", "th 123\n\n", ["th", "Ġ", "1", "2", "3", "ĊĊ"]),
        ("llama-bpe", "1234 th", ["<s>", "123", "4", "Ġth"]),
        ("default", "th=12", ["th", "=", "12"]),
        ("tekken", "thTh12", ["<s>", "th", "T", "h", "1", "2"]),
        ("smollm", "th<|im_end|>é", ["th", "<|im_end|>", "Ã", "©"]),
    ],
)
def test_words_are_split_as_named(pre: str, text: str, pieces: list[str]) -> None:
    assert pieces_of(byte_level(pre), text) == pieces


def test_special_tokens() -> None:
    tokenizer = made(byte_level(padding_token_id=0, unknown_token_id=2**32 - 1))
    assert (tokenizer.begin, tokenizer.padding, tokenizer.unknown) == (1, 0, None)
    # The end of a turn ends an answer, too.
    assert tokenizer.ends == (1, 0)
    assert not tokenizer.add_begin
    added = byte_level(add_bos_token=True, add_eos_token=True)
    assert pieces_of(added, "th") == ["<s>", "th", "<s>"]


def sentence_piece(**changes: Any) -> dict[str, Any]:
    scored = {"▁": -9.0, "a": -10.0, "b": -11.0, "c": -12.0, "ab": -2.0, "bc": -1.0, "▁a": -3.0}
    scored |= {"▁abc": -4.0}
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *scored]
    return {
        "model": "llama",
        "tokens": pieces,
        "token_type": np.array([2, 3, 3] + [6] * 256 + [1] * len(scored), np.int32),
        "scores": np.array([0.0] * 259 + list(scored.values()), np.float32),
        "bos_token_id": 1,
        "eos_token_id": 2,
        **changes,
    }


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        # The best pair is merged first: bc before ab.
        ("abc", ["<s>", "▁abc"]),
        ("bab", ["<s>", "▁", "b", "ab"]),
        ("ab ab", ["<s>", "▁", "ab", "▁", "ab"]),
        ("é", ["<s>", "▁", "<0xC3>", "<0xA9>"]),
    ],
)
def test_pieces_are_merged_by_score(text: str, pieces: list[str]) -> None:
    assert pieces_of(sentence_piece(), text) == pieces


def test_without_a_space_in_front() -> None:
    values = sentence_piece(add_space_prefix=False, add_bos_token=False)
    assert pieces_of(values, "abc ab") == ["a", "bc", "▁", "ab"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": "t5"}, UnsupportedModelError, "'t5' is not known; known are gpt2 and llama"),
        ({"pre": "kimi"}, UnsupportedModelError, "pre 'kimi' is not known; known are codeshell, "),
        ({"tokens": None}, ModelFileError, "tokens is no list of texts"),
        ({"merges": None}, ModelFileError, "merges is no list of texts"),
        ({"merges": ["t q"]}, ModelFileError, "merges is t q; two tokens that are one together"),
        ({"token_type": np.zeros(3, np.int32)}, ModelFileError, "token_type has not 263 numbers"),
        ({"eos_token_id": 5000}, ModelFileError, "eos_token_id is 5000; a token below 263"),
        ({"add_bos_token": 3}, ModelFileError, "add_bos_token is 3; true or false"),
    ],
)
def test_what_cannot_be(change: dict[str, Any], error: type[EdgecError], message: str) -> None:
    with pytest.raises(error, match=message):
        made(byte_level(**change))


def test_a_token_twice() -> None:
    values = byte_level()
    values["tokens"][5] = values["tokens"][6]
    with pytest.raises(ModelFileError, match="the same token twice"):
        made(values)
