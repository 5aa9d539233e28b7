"""Write tokenizer.bin: a tokenizer.json in the form that the C of a bundle reads.

The form is that of native/tokenizer.h: a table of sections, each an array of one C type, so that
a board maps the file and reads it in place.
"""

import json
import struct
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgec.compiler.errors import ModelFileError
from edgec.compiler.tokenizer.chat_pieces import NO_CHAT, ChatPieces
from edgec.compiler.tokenizer.tokenizer_steps import (
    Decoding,
    Json,
    Normalize,
    Step,
    decoding,
    has_byte_level,
    normalizer_steps,
    pretokenizer_steps,
    unsupported,
)

MAGIC = b"EDGECTK1"
NONE = 0xFFFFFFFF
_BPE, _UNIGRAM = range(2)
_BYTES_NONE, _BYTES_ARE_SYMBOLS, _BYTES_IF_UNKNOWN = range(3)
_SPECIAL, _BYTE = 1, 2
_LSTRIP, _RSTRIP, _NORMALIZED = 1, 2, 4
# An id is a row of a table: a file that skips a million ids is no tokenizer.
_MOST_TOKENS = 1 << 22


def byte_characters() -> dict[str, int]:
    """Return the byte that each character of byte-level vocabularies stands for.

    Printable bytes are themselves; the others follow from U+0100 in their order (GPT-2's
    `bytes_to_unicode`).

    >>> byte_characters()["Ġ"]
    32
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + place): byte for place, byte in enumerate(others)
    }


def tokenizer_file(
    content: str,
    *,
    stop_tokens: Sequence[int] = (),
    chat: ChatPieces = NO_CHAT,
    digest: bytes = bytes(32),
) -> bytes:
    """Return the content of tokenizer.bin.

    Args:
        content: of tokenizer.json.
        stop_tokens: tokens that a model says when its text is complete.
        chat: the words of the model's chats.
        digest: 32 bytes that tell the model from others.

    Raises:
        ModelFileError: the content is no tokenizer, or contradicts itself.
        UnsupportedModelError: names the part that the C does not know.
    """
    try:
        described = json.loads(content)
    except ValueError as error:
        raise ModelFileError(f"tokenizer.json is no JSON: {error}") from None
    try:
        return _Writer(described, stop_tokens, chat, digest).content()
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise ModelFileError(
            f"tokenizer.json is damaged or of another version: {type(error).__name__} {error}"
        ) from None


@dataclass
class _Strings:
    """Strings that other sections refer to by offset and size."""

    data: bytearray = field(default_factory=bytearray)

    def place(self, text: str) -> tuple[int, int]:
        encoded = text.encode()
        offset = len(self.data)
        self.data += encoded
        return offset, len(encoded)


class _Writer:
    def __init__(
        self, described: Json, stop_tokens: Sequence[int], chat: ChatPieces, digest: bytes
    ) -> None:
        self._described = described
        self._model: Json = described["model"]
        self._added: Sequence[Json] = described.get("added_tokens") or []
        self._stop_tokens = list(stop_tokens)
        self._chat = chat
        self._digest = digest
        self._normalizer = normalizer_steps(described.get("normalizer"))
        self._pretokenizer = pretokenizer_steps(described.get("pre_tokenizer"))
        self._decoding: Decoding = decoding(described.get("decoder"))
        self._byte_level = has_byte_level(described.get("pre_tokenizer"))
        if self._byte_level != has_byte_level(described.get("decoder")):
            raise unsupported("ByteLevel", "in one of pre_tokenizer and decoder only")
        self._unigram = self._check_model() == "Unigram"
        self._vocabulary: dict[str, int] = (
            {piece: place for place, (piece, _) in enumerate(self._model["vocab"])}
            if self._unigram
            else dict(self._model["vocab"])
        )
        self._texts = {id_: self._bytes(text) for text, id_ in self._vocabulary.items()}
        added = {int(token["id"]): self._bytes(self._looked_for(token)) for token in self._added}
        self._count = max([*self._texts, *added]) + 1
        if not 0 < self._count <= _MOST_TOKENS or min([*self._texts, *added]) < 0:
            raise ModelFileError(f"tokenizer.json has ids up to {self._count - 1}")
        self._all_texts = self._texts | added
        self._strings = _Strings()

    def _check_model(self) -> str:
        """Return the kind of model; refuse settings that change what it does."""
        kind = self._model.get("type") or ("BPE" if "merges" in self._model else None)
        if kind not in ("BPE", "Unigram"):
            raise unsupported("model", kind)
        for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
            if self._model.get(name):
                raise unsupported("model", f"{kind} with {name}")
        if self._byte_level and kind == "Unigram":
            raise unsupported("model", "Unigram over bytes")
        return str(kind)

    def _bytes(self, text: str) -> bytes:
        """Return what a token stands for: text, or bytes where the vocabulary spells them."""
        if self._byte_level and all(char in _BYTE_CHARACTERS for char in text):
            return bytes(_BYTE_CHARACTERS[char] for char in text)
        return text.encode()

    def content(self) -> bytes:
        """Return the file."""
        prefix, suffix = self._template()
        sections: list[bytes] = [
            self._settings(),
            self._steps(self._normalizer),
            self._steps(self._pretokenizer),
            b"",
            np.cumsum(
                [len(self._all_texts.get(id_, b"")) for id_ in range(self._count)], dtype="<u4"
            ).tobytes(),
            b"".join(self._all_texts.get(id_, b"") for id_ in range(self._count)),
            self._flags(),
            _ids([id_ for text, id_ in sorted((t, i) for i, t in self._texts.items()) if text]),
            self._merges(),
            self._scores(),
            self._byte_ids(),
            self._added_tokens(),
            _ids(prefix),
            _ids(suffix),
            _ids(self._checked(self._stop_tokens)),
            self._digest,
            self._chat_pieces(),
        ]
        sections[3] = bytes(self._strings.data)
        return _assemble(sections)

    def _checked(self, ids: Sequence[int]) -> Sequence[int]:
        wrong = [id_ for id_ in ids if not 0 <= id_ < self._count]
        if wrong:
            raise ModelFileError(f"token {wrong[0]} is not one of the tokenizer's {self._count}")
        return ids

    def _settings(self) -> bytes:
        space, space_size = self._strings.place(self._decoding.space)
        settings = [
            _UNIGRAM if self._unigram else _BPE,
            self._unknown(),
            self._byte_tokens(),
            # Unigram always does.
            int(self._unigram or bool(self._model.get("fuse_unk"))),
            int(bool(self._model.get("ignore_merges"))),
            space,
            space_size,
            self._decoding.first,
            int(self._chat.trims),
        ]
        return struct.pack(f"<{len(settings)}I", *settings)

    def _unknown(self) -> int:
        if self._unigram:
            found = self._model.get("unk_id")
            if found is None and not self._model.get("byte_fallback"):
                raise unsupported("model", "Unigram without unk_id")
        else:
            token = self._model.get("unk_token")
            found = None if token is None else self._vocabulary[token]
        return NONE if found is None else self._checked([int(found)])[0]

    def _byte_tokens(self) -> int:
        fallback = bool(self._model.get("byte_fallback"))
        if self._byte_level:
            return _BYTES_ARE_SYMBOLS
        if fallback != self._decoding.bytes:
            raise unsupported("byte_fallback", "in one of model and decoder only")
        return _BYTES_IF_UNKNOWN if fallback else _BYTES_NONE

    def _byte_ids(self) -> bytes:
        kind = self._byte_tokens()
        if kind == _BYTES_NONE:
            return b""
        spelled = {byte: char for char, byte in _BYTE_CHARACTERS.items()}
        names = [
            spelled[byte] if kind == _BYTES_ARE_SYMBOLS else f"<0x{byte:02X}>"
            for byte in range(256)
        ]
        missing = [name for name in names if name not in self._vocabulary]
        if missing and kind == _BYTES_IF_UNKNOWN:
            raise unsupported("model", f"without a token for the byte {missing[0]}")
        return _ids([self._vocabulary.get(name, NONE) for name in names])

    def _flags(self) -> bytes:
        flags = bytearray(self._count)
        for token in self._added:
            flags[token["id"]] |= _SPECIAL if token.get("special") else 0
        if self._byte_tokens() == _BYTES_IF_UNKNOWN:
            for byte in range(256):
                flags[self._vocabulary[f"<0x{byte:02X}>"]] |= _BYTE
        return bytes(flags)

    def _merges(self) -> bytes:
        if self._unigram:
            return b""
        rows: dict[tuple[int, int], tuple[int, int]] = {}
        for rank, merge in enumerate(self._model["merges"]):
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            pair = self._vocabulary[left], self._vocabulary[right]
            rows[pair] = rank, self._vocabulary[left + right]
        ordered = [(*pair, *rows[pair]) for pair in sorted(rows)]
        return np.array(ordered, "<u4").tobytes()

    def _scores(self) -> bytes:
        if not self._unigram:
            return b""
        scores = np.zeros(self._count, "<f8")
        scores[: len(self._vocabulary)] = [score for _, score in self._model["vocab"]]
        return scores.tobytes()

    def _looked_for(self, token: Json) -> str:
        """Return the text of an added token: where it is looked for, and what it decodes to."""
        text = str(token["content"])
        return normalized(text, self._normalizer) if token.get("normalized") else text

    def _added_tokens(self) -> bytes:
        rows = []
        for token in self._added:
            if token.get("single_word"):
                raise unsupported("added token", f"{token['content']} with single_word")
            text = self._looked_for(token)
            flags = (
                (_LSTRIP if token.get("lstrip") else 0)
                | (_RSTRIP if token.get("rstrip") else 0)
                | (_NORMALIZED if token.get("normalized") else 0)
            )
            if text:
                rows.append((text.encode(), int(token["id"]), flags, text))
        packed = [(id_, flags, *self._strings.place(text)) for _, id_, flags, text in sorted(rows)]
        return np.array(packed, "<u4").tobytes()

    def _template(self) -> tuple[Sequence[int], Sequence[int]]:
        """Return the tokens that begin and end a text."""
        prefix: list[int] = []
        suffix: list[int] = []
        for part in _post_processors(self._described.get("post_processor")):
            kind = part.get("type")
            if kind == "ByteLevel":
                continue
            if kind != "TemplateProcessing":
                raise unsupported("post_processor", kind)
            before: list[int] = []
            after: list[int] | None = None
            for piece in part["single"]:
                if "Sequence" in piece:
                    after = []
                    continue
                token = part["special_tokens"][piece["SpecialToken"]["id"]]
                (before if after is None else after).extend(token["ids"])
            prefix, suffix = before + prefix, suffix + (after or [])
        return self._checked(prefix), self._checked(suffix)

    def _steps(self, steps: Sequence[Step]) -> bytes:
        rows = [
            (
                step.kind,
                step.number,
                *self._strings.place(step.first),
                *self._strings.place(step.second),
                step.behavior,
                0,
            )
            for step in steps
        ]
        return np.array(rows, "<u4").tobytes()

    def _chat_pieces(self) -> bytes:
        if self._chat == NO_CHAT:
            return b""
        places = [
            (NONE, 0) if piece is None else self._strings.place(piece)
            for piece in self._chat.pieces()
        ]
        return np.array(places, "<u4").tobytes()


def normalized(text: str, steps: Sequence[Step]) -> str:
    """Return a text after the steps of normalization, as the C computes it.

    >>> normalized("a b", [Step(Normalize.REPLACE, first=" ", second="_")])
    'a_b'
    """
    for step in steps:
        if not text:
            break
        if step.kind == Normalize.PREPEND:
            text = step.first + text
        elif step.kind == Normalize.REPLACE:
            text = text.replace(step.first, step.second)
        else:
            text = unicodedata.normalize("NFC", text)
    return text


def _post_processors(part: Json | None) -> Sequence[Json]:
    if part is None:
        return []
    found: Any = part.get("processors") if part.get("type") == "Sequence" else [part]
    return list(found)


def _ids(ids: Sequence[int]) -> bytes:
    return np.array(ids, "<u4").tobytes()


def _assemble(sections: Sequence[bytes]) -> bytes:
    head = len(MAGIC) + 8 * len(sections)
    offset = -(-head // 8) * 8
    table, body = [], bytearray()
    for section in sections:
        table.append((offset + len(body), len(section)))
        body += section + bytes(-len(section) % 8)
    return MAGIC + np.array(table, "<u4").tobytes() + bytes(offset - head) + bytes(body)


_BYTE_CHARACTERS: Mapping[str, int] = byte_characters()
