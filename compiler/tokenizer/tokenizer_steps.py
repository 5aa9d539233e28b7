"""Translate the parts of a tokenizer.json to steps of tokenizer.bin.

What the C does not know is refused by its name: a tokenizer that is nearly right would give a model
other tokens than it was trained with.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from edgec.compiler.errors import UnsupportedModelError

Json = Mapping[str, Any]


class Normalize(IntEnum):
    """Steps of normalization, as native/tokenizer.h numbers them."""

    PREPEND, REPLACE, NFC = range(3)


class Split(IntEnum):
    """Steps of pre-tokenization, as native/tokenizer.h numbers them."""

    GPT2, LLAMA3, DIGITS, TEXT, METASPACE, PREPEND_SPACE = range(6)


class First(IntEnum):
    """What becomes of a space that the first token of a text begins with."""

    KEEP, STRIP_SPACE, DROP_MARKS = range(3)


@dataclass(frozen=True)
class Step:
    """A step is one row of the sections NORMALIZER and PRETOKENIZER.

    Attributes:
        kind: what it does.
        number: digits that stay together, or whether to split.
        first: the text that is looked for or put in.
        second: what replaces it.
        behavior: of a split, or when Metaspace prepends.
    """

    kind: Normalize | Split
    number: int = 0
    first: str = ""
    second: str = ""
    behavior: int = 0


@dataclass(frozen=True)
class Decoding:
    """Decoding describes how tokens become text.

    Attributes:
        space: what stands for a space in tokens; empty if nothing does.
        first: what becomes of the first one.
        bytes: tokens are bytes, or some of them stand for one.
    """

    space: str = ""
    first: First = First.KEEP
    bytes: bool = False


BEHAVIORS = ("MergedWithPrevious", "MergedWithNext", "Isolated", "Removed")
SCHEMES = ("always", "first", "never")

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Regular expressions that the C has as scanners. All of them match every character, or leave what
# they do not match together, so that matches stand alone.
EXPRESSIONS: Mapping[str, Step] = {
    GPT2: Step(Split.GPT2),
    **{
        _LLAMA3 % digits: Step(Split.LLAMA3, number)
        for digits, number in ((r"\p{N}", 1), (r"\p{N}{1,2}", 2), (r"\p{N}{1,3}", 3))
    },
    r"\p{N}": Step(Split.DIGITS, 1),
    r"\p{N}+": Step(Split.DIGITS, 0),
}


def unsupported(part: str, found: object) -> UnsupportedModelError:
    """Return the error for a part of a tokenizer that the C does not know."""
    return UnsupportedModelError(f"tokenizer.json: {part} {found} is not supported in bundles")


def normalizer_steps(part: Json | None) -> list[Step]:
    """Return the steps of the part `normalizer`.

    Raises:
        UnsupportedModelError: names the step that is not known.
    """
    return list(_steps(part, "normalizer", "normalizers", _normalizer_step))


def pretokenizer_steps(part: Json | None) -> list[Step]:
    """Return the steps of the part `pre_tokenizer`.

    Raises:
        UnsupportedModelError: names the step that is not known.
    """
    return list(_steps(part, "pre_tokenizer", "pretokenizers", _pretokenizer_step))


def has_byte_level(part: Json | None) -> bool:
    """Return whether a part, or a step of it, works on bytes as `ByteLevel` maps them."""
    inner = [step for name in ("pretokenizers", "decoders") for step in (part or {}).get(name, ())]
    return any(step.get("type") == "ByteLevel" for step in [part or {}, *inner])


def _steps(
    part: Json | None, name: str, inner: str, one: Callable[[Json], Iterator[Step]]
) -> Iterator[Step]:
    if part is None:
        return
    if part.get("type") == "Sequence":
        for step in part[inner]:
            yield from _steps(step, name, inner, one)
        return
    try:
        yield from one(part)
    except (KeyError, TypeError):
        raise unsupported(name, f"{part.get('type')} without its settings") from None


def _normalizer_step(part: Json) -> Iterator[Step]:
    match part.get("type"):
        case "NFC":
            yield Step(Normalize.NFC)
        case "Prepend":
            yield Step(Normalize.PREPEND, first=part["prepend"])
        case "Replace":
            yield Step(Normalize.REPLACE, first=_text(part, "normalizer"), second=part["content"])
        case kind:
            raise unsupported("normalizer", kind)


def _text(part: Json, name: str) -> str:
    pattern = part["pattern"]
    if not pattern.get("String"):
        raise unsupported(name, f"{part['type']} of the pattern {pattern}")
    return str(pattern["String"])


def _pretokenizer_step(part: Json) -> Iterator[Step]:
    match part.get("type"):
        case "ByteLevel":
            if part["add_prefix_space"]:
                yield Step(Split.PREPEND_SPACE)
            if part.get("use_regex", True):
                yield Step(Split.GPT2)
        case "Digits":
            yield Step(Split.DIGITS, int(part["individual_digits"]))
        case "Split":
            yield _split(part)
        case "Metaspace":
            yield Step(
                Split.METASPACE,
                int(part.get("split", True)),
                first=part["replacement"],
                behavior=SCHEMES.index(_scheme(part)),
            )
        case kind:
            raise unsupported("pre_tokenizer", kind)


def _split(part: Json) -> Step:
    expression = part["pattern"].get("Regex")
    if part["behavior"] not in BEHAVIORS or part.get("invert"):
        raise unsupported("pre_tokenizer", f"Split with {part['behavior']}, inverted")
    if expression is None:
        text = _text(part, "pre_tokenizer")
        return Step(Split.TEXT, first=text, behavior=BEHAVIORS.index(part["behavior"]))
    if part["behavior"] != "Isolated" or expression not in EXPRESSIONS:
        raise unsupported("pre_tokenizer", f"Split by {expression} ({part['behavior']})")
    return EXPRESSIONS[expression]


def _scheme(part: Json) -> str:
    scheme = part.get("prepend_scheme") or ("always" if part.get("add_prefix_space") else "never")
    if scheme not in SCHEMES:
        raise unsupported("pre_tokenizer", f"Metaspace with prepend_scheme {scheme}")
    return str(scheme)


def decoding(part: Json | None) -> Decoding:
    """Return what the part `decoder` does.

    Raises:
        UnsupportedModelError: names the step that is not known.
    """
    if part is None:
        raise unsupported("decoder", "null")
    steps: Sequence[Json] = part["decoders"] if part.get("type") == "Sequence" else [part]
    kinds = [step.get("type") for step in steps]
    try:
        return _decoding(steps, kinds)
    except KeyError:
        raise unsupported("decoder", " ".join(map(str, kinds))) from None


def _decoding(steps: Sequence[Json], kinds: Sequence[str | None]) -> Decoding:
    if kinds == ["ByteLevel"]:
        return Decoding(bytes=True)
    if kinds in (["Metaspace"], ["ByteFallback", "Metaspace"]):
        keeps = _scheme(steps[-1]) == "never"
        first = First.KEEP if keeps else First.DROP_MARKS
        return Decoding(steps[-1]["replacement"], first, bytes=len(kinds) > 1)
    first = First.KEEP
    if kinds[-1:] == ["Strip"]:
        strip = steps[-1]
        if (strip["content"], strip["start"], strip["stop"]) != (" ", 1, 0):
            raise unsupported("decoder", "Strip of other than one space at the beginning")
        first, kinds = First.STRIP_SPACE, kinds[:-1]
    if kinds not in (["Replace", "ByteFallback", "Fuse"], ["Replace", "Fuse"]):
        raise unsupported("decoder", " ".join(map(str, kinds)))
    if steps[0]["content"] != " ":
        raise unsupported("decoder", "Replace by other than a space")
    return Decoding(_text(steps[0], "decoder"), first, bytes="ByteFallback" in kinds)
