"""Call the C of a bundle that generates text: generation.so.

Python and the program `run` of a bundle use the same C, so that tokens, choices and text are the
same wherever a model runs; a second tokenizer and sampler in Python could only differ from it.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgec.compiler.errors import BadInputError, BundleError

_Ids = ctypes.POINTER(ctypes.c_int32)
_Text = ctypes.POINTER(ctypes.c_char)
_Size = ctypes.c_size_t
_NO_MEMORY, _NOT_UTF8 = -1, -2
_MESSAGE_BYTES = 512


class SamplingStruct(ctypes.Structure):
    """A sampling struct is `edgec_sampling`."""

    _fields_ = (
        ("repetition_penalty", ctypes.c_float),
        ("temperature", ctypes.c_float),
        ("top_k", ctypes.c_int32),
        ("top_p", ctypes.c_float),
        ("min_p", ctypes.c_float),
        ("seed", ctypes.c_uint64),
    )


class GuessCounts(ctypes.Structure):
    """Guess counts are `edgec_guess_counts`."""

    _fields_ = (
        ("runs", ctypes.c_int64),
        ("guessed", ctypes.c_int64),
        ("right", ctypes.c_int64),
    )


# Result and arguments by the name of the function.
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "tokenizer_open": (ctypes.c_void_p, (ctypes.c_void_p, _Size, ctypes.c_char_p, _Size)),
    "tokenizer_close": (None, (ctypes.c_void_p,)),
    "token_count": (ctypes.c_int32, (ctypes.c_void_p,)),
    "token_bytes": (
        ctypes.c_int64,
        (ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p, _Size),
    ),
    "is_stop_token": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_int32)),
    "model_digest": (ctypes.c_void_p, (ctypes.c_void_p,)),
    "encode": (
        ctypes.c_int64,
        (ctypes.c_void_p, ctypes.c_char_p, _Size, ctypes.c_int, ctypes.POINTER(_Ids)),
    ),
    "free": (None, (ctypes.c_void_p,)),
    "stream_open": (ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_int, ctypes.c_int)),
    "stream_close": (None, (ctypes.c_void_p,)),
    "stream_stop_at": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_char_p, _Size)),
    "stream_put": (
        ctypes.c_int64,
        (ctypes.c_void_p, ctypes.c_int32, ctypes.POINTER(_Text)),
    ),
    "stream_end": (ctypes.c_int64, (ctypes.c_void_p, ctypes.POINTER(_Text))),
    "stream_stopped": (ctypes.c_int, (ctypes.c_void_p,)),
    "chat_text": (
        ctypes.c_int64,
        (
            *(ctypes.c_void_p, ctypes.POINTER(ctypes.c_char_p), ctypes.POINTER(ctypes.c_char_p)),
            *(_Size, ctypes.POINTER(_Text)),
        ),
    ),
    "sampler_open": (ctypes.c_void_p, (ctypes.c_int32, ctypes.POINTER(SamplingStruct))),
    "sampler_close": (None, (ctypes.c_void_p,)),
    "sampler_note": (None, (ctypes.c_void_p, ctypes.c_int32)),
    "sampler_reset": (None, (ctypes.c_void_p,)),
    "sample": (ctypes.c_int32, (ctypes.c_void_p, ctypes.c_void_p)),
    "generator_open": (
        ctypes.c_void_p,
        (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p, _Size),
    ),
    "generator_close": (None, (ctypes.c_void_p,)),
    "generator_context": (ctypes.c_int32, (ctypes.c_void_p,)),
    "generator_vocabulary": (ctypes.c_int32, (ctypes.c_void_p,)),
    "generator_read": (ctypes.c_int64, (ctypes.c_void_p, _Ids, _Size)),
    "generator_append": (ctypes.c_int64, (ctypes.c_void_p, ctypes.c_int32)),
    "generator_speculate": (None, (ctypes.c_void_p, ctypes.c_int32)),
    "generator_guesses": (GuessCounts, (ctypes.c_void_p,)),
    "generator_logits": (ctypes.POINTER(ctypes.c_float), (ctypes.c_void_p,)),
    "generator_tokens": (_Size, (ctypes.c_void_p, ctypes.POINTER(_Ids))),
    "generator_save": (ctypes.c_int64, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)),
    "generator_load": (ctypes.c_int64, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)),
    "generator_error": (ctypes.c_char_p, (ctypes.c_void_p,)),
    "reply_open": (
        ctypes.c_void_p,
        (
            *(ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(SamplingStruct)),
            *(ctypes.c_int64, ctypes.c_int),
        ),
    ),
    "reply_close": (None, (ctypes.c_void_p,)),
    "replies_read": (None, (ctypes.POINTER(ctypes.c_void_p), _Size)),
    "reply_stop_at": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_char_p, _Size)),
    "reply_next": (
        ctypes.c_int32,
        (ctypes.c_void_p, ctypes.POINTER(_Text), ctypes.POINTER(ctypes.c_int64)),
    ),
    "reply_reason": (ctypes.c_int, (ctypes.c_void_p,)),
}


def load_generation(library: Path) -> Any:
    """Return the functions of generation.so by their names without `edgec_`.

    Raises:
        BundleError: it cannot be loaded.
    """
    # Under a name that was never used before: the loader would give an older file of this path.
    with TemporaryDirectory(prefix="edgec-") as folder:
        alias = Path(folder) / library.name
        # Not resolved: a file in memory has no other name.
        alias.symlink_to(library.absolute())
        try:
            loaded = ctypes.CDLL(str(alias))
            return _Functions(loaded)
        except (OSError, AttributeError) as error:
            raise BundleError(f"{library} cannot be loaded: {error}") from None


class _Functions:
    def __init__(self, library: ctypes.CDLL) -> None:
        for name, (result, arguments) in _FUNCTIONS.items():
            function = library[f"edgec_{name}"]
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)


def utf8(text: str, what: str) -> bytes:
    """Return a text's bytes.

    Raises:
        BadInputError: it holds bytes that are no UTF-8, as arguments of a program may.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise BadInputError(
            f"{what} is not UTF-8: character {error.start} is a byte that belongs to none"
        ) from None


class Tokenizer:
    """A tokenizer turns text into tokens and back; it is that of tokenizer.bin."""

    def __init__(self, functions: Any, content: bytes) -> None:
        """Read a tokenizer.

        Raises:
            BundleError: the file is damaged.
        """
        self._functions = functions
        # Aligned to 16 bytes, and it stays where it is.
        self._content = ctypes.create_string_buffer(content, max(1, len(content)))
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        self.handle: int | None = functions.tokenizer_open(
            self._content, len(content), message, _MESSAGE_BYTES
        )
        if not self.handle:
            raise BundleError(message.value.decode(errors="replace"))

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self._functions.tokenizer_close(self.handle)

    @property
    def size(self) -> int:
        """Return the number of ids; an id of them may be without text."""
        return int(self._functions.token_count(self.handle))

    @property
    def digest(self) -> bytes:
        """Return 32 bytes that tell the model from others."""
        return ctypes.string_at(self._functions.model_digest(self.handle), 32)

    def bytes_of(self, token: int) -> bytes | None:
        """Return what a token stands for behind other ones; None if it is special, or none."""
        room = 64
        while True:
            memory = ctypes.create_string_buffer(room)
            count = int(self._functions.token_bytes(self.handle, token, memory, room))
            if count <= room:
                return None if count < 0 else memory.raw[:count]
            room = count

    def is_stop(self, token: int) -> bool:
        """Return whether a model says by this token that its text is complete."""
        return bool(self._functions.is_stop_token(self.handle, token))

    def encode(self, text: str, *, template_tokens: bool = True) -> list[int]:
        """Return the tokens of a text.

        Args:
            text: any.
            template_tokens: put those around it that begin and end a text, if the model has any.

        Raises:
            BadInputError: it is not UTF-8.
            MemoryError: there is not enough.
        """
        encoded = utf8(text, "the text")
        ids = _Ids()
        count = self._functions.encode(
            self.handle, encoded, len(encoded), int(template_tokens), ids
        )
        if count < 0:
            raise MemoryError(f"for the tokens of {len(encoded)} bytes of text")
        found = ids[:count]
        self._functions.free(ids)
        return found

    def decode(
        self, tokens: Sequence[int], *, special: bool = False, continues: bool = False
    ) -> str:
        """Return the text of tokens.

        Args:
            tokens: ids; those that are none of the tokenizer's have no text.
            special: give the text of special tokens, too.
            continues: whether they go on after other text, so that a space at the beginning stays.
        """
        stream = self._functions.stream_open(self.handle, int(continues), int(special))
        text = _Text()
        parts = []
        for token in tokens:
            count = self._functions.stream_put(stream, token, text)
            parts.append(ctypes.string_at(text, max(0, count)))
        count = self._functions.stream_end(stream, text)
        parts.append(ctypes.string_at(text, max(0, count)))
        self._functions.stream_close(stream)
        return b"".join(parts).decode()

    def chat_text(self, messages: Sequence[tuple[str, str]]) -> str | None:
        """Return what the C of a board makes of a conversation: roles and contents.

        None if it has no words for these roles.
        """
        roles = (ctypes.c_char_p * len(messages))(*(role.encode() for role, _ in messages))
        contents = (ctypes.c_char_p * len(messages))(*(text.encode() for _, text in messages))
        text = _Text()
        count = self._functions.chat_text(self.handle, roles, contents, len(messages), text)
        if count < 0:
            return None
        found = ctypes.string_at(text, count).decode()
        self._functions.free(text)
        return found
