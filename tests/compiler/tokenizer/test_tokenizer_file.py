"""The tokenizer in C gives what the package `tokenizers` gives, and reads only what it knows."""

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from support.generation_library import generation_library
from support.tokenizer_samples import TOKENIZERS, fuzzed
from tokenizers import Tokenizer as Reference
from tokenizers.processors import TemplateProcessing

from edgec.compiler.errors import BundleError, ModelFileError, UnsupportedModelError
from edgec.compiler.generation.native import Tokenizer
from edgec.compiler.tokenizer.tokenizer_file import tokenizer_file

# `SmolLM2` and `Unigram` see 10,000 texts, the others what differs in them.
THOROUGH = {"SmolLM2": 10_000, "Unigram": 10_000}


def ours(reference: Reference, **others: Any) -> Tokenizer:
    return Tokenizer(generation_library(), tokenizer_file(reference.to_str(), **others))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokens_and_text_are_those_of_tokenizers(name: str) -> None:
    reference = TOKENIZERS[name]()
    tokenizer = ours(reference)
    rng = random.Random(name)
    texts = ["", *(fuzzed(rng) for _ in range(THOROUGH.get(name, 500)))]
    expected = [e.ids for e in reference.encode_batch(texts, add_special_tokens=False)]
    found = [tokenizer.encode(text, template_tokens=False) for text in texts]
    wrong = [t for t, ids, right in zip(texts, found, expected, strict=True) if ids != right]
    assert wrong == []
    for ids in expected[:500]:
        for special in (False, True):
            right = reference.decode(ids, skip_special_tokens=not special)
            assert tokenizer.decode(ids, special=special) == right


def test_a_damaged_merge_is_found() -> None:
    described = json.loads(TOKENIZERS["SmolLM2"]().to_str())
    reference = Reference.from_str(json.dumps(described))
    described["model"]["merges"].reverse()
    tokenizer = Tokenizer(generation_library(), tokenizer_file(json.dumps(described)))
    rng = random.Random(1)
    texts = [fuzzed(rng) for _ in range(2000)]
    assert any(tokenizer.encode(t, template_tokens=False) != reference.encode(t).ids for t in texts)


def test_any_bytes_become_characters_as_tokenizers_has_it() -> None:
    reference = TOKENIZERS["SmolLM2"]()
    tokenizer = ours(reference)
    rng = random.Random(2)
    for _ in range(300):
        ids = [rng.randrange(reference.get_vocab_size()) for _ in range(8)]
        assert tokenizer.decode(ids) == reference.decode(ids)


def test_tokens_around_a_text() -> None:
    reference = TOKENIZERS["GPT-2"]()
    reference.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer = ours(reference, stop_tokens=[1], digest=bytes(range(32)))
    assert tokenizer.encode("a text") == reference.encode("a text").ids
    assert tokenizer.encode("<s>", template_tokens=False) == [0]
    assert [tokenizer.is_stop(id_) for id_ in (0, 1)] == [False, True]
    assert tokenizer.digest == bytes(range(32))
    assert tokenizer.size == reference.get_vocab_size()


def test_a_vocabulary_without_some_bytes_leaves_them_out() -> None:
    described = json.loads(TOKENIZERS["GPT-2"]().to_str())
    model = described["model"]
    model["vocab"].pop("a")
    model["merges"] = []
    reference = Reference.from_str(json.dumps(described))
    tokenizer = Tokenizer(generation_library(), tokenizer_file(json.dumps(described)))
    assert tokenizer.encode("abab c") == reference.encode("abab c").ids


def _set(*path: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(described: dict[str, Any]) -> None:
        for name in path[:-1]:
            described = described[name]
        described[path[-1]] = value

    return change


REFUSED = {
    "normalizer Lowercase is": _set("normalizer", value={"type": "Lowercase"}),
    "normalizer Replace of the pattern": _set(
        "normalizer",
        value={"type": "Replace", "pattern": {"Regex": "a+"}, "content": ""},
    ),
    "pre_tokenizer Whitespace is": _set("pre_tokenizer", value={"type": "Whitespace"}),
    "pre_tokenizer Split by x+": _set(
        "pre_tokenizer",
        value={
            "type": "Split",
            "pattern": {"Regex": "x+"},
            "behavior": "Isolated",
            "invert": False,
        },
    ),
    "model WordPiece is": _set("model", "type", value="WordPiece"),
    "model BPE with dropout is": _set("model", "dropout", value=0.5),
    "decoder WordPiece is": _set("decoder", value={"type": "WordPiece"}),
    "decoder null is": _set("decoder", value=None),
    "post_processor BertProcessing is": _set("post_processor", value={"type": "BertProcessing"}),
    "byte_fallback in one of": _set("model", "byte_fallback", value=True),
}


@pytest.mark.parametrize("message", REFUSED)
def test_unknown_parts_are_refused_by_name(message: str) -> None:
    name = "Metaspace once" if "byte_fallback" in message else "Gemma"
    described = json.loads(TOKENIZERS[name]().to_str())
    REFUSED[message](described)
    with pytest.raises(UnsupportedModelError, match=f"tokenizer.json: {message.replace('+', '.')}"):
        tokenizer_file(json.dumps(described))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("{}", "damaged or of another version"),
        ('{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}', "tokenizer.json"),
    ],
)
def test_files_that_are_no_tokenizers(content: str, message: str) -> None:
    with pytest.raises((ModelFileError, UnsupportedModelError), match=message):
        tokenizer_file(content)


def test_a_stop_token_that_is_none_of_the_vocabulary() -> None:
    with pytest.raises(ModelFileError, match="token 9999 is not one of the tokenizer's"):
        ours(TOKENIZERS["GPT-2"](), stop_tokens=[9999])


def test_damaged_files_are_refused_or_harmless() -> None:
    content = tokenizer_file(TOKENIZERS["Gemma"]().to_str())
    with pytest.raises(BundleError, match=r"tokenizer.bin is damaged: it is too short"):
        Tokenizer(generation_library(), content[:50])
    with pytest.raises(BundleError, match="does not begin with EDGECTK1"):
        Tokenizer(generation_library(), b"X" + content[1:])
    rng = random.Random(3)
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(3):
            place = rng.randrange(8, 400) if rng.random() < 0.5 else rng.randrange(8, len(content))
            damaged[place] = rng.choice((0, 1, 255, rng.randrange(256)))
        try:
            tokenizer = Tokenizer(generation_library(), bytes(damaged))
        except BundleError:
            refused += 1
            continue
        tokenizer.decode(tokenizer.encode("Ärger <b> [X] of  bytes\0"))
    assert 30 < refused < 300
