"""Give the tokens of a reply as they come."""

import ctypes
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.errors import EdgecError
from edgec.compiler.generation.native import Tokenizer, utf8
from edgec.compiler.generation.sampling import Sampling

Reason = Literal["end", "length", "stop", "context"]

# Reasons in the order of EDGEC_REPLY_END and the following.
_REASONS: tuple[Reason, ...] = ("end", "length", "stop", "context")


class GenerationError(EdgecError):
    """A program of the model failed while it generated text."""

    exit_code = 4


class Guide(Protocol):
    """A guide says which tokens may follow those before."""

    def allowed(self) -> NDArray[np.bool_]:
        """Return for each token whether it may be the next: bool [vocabulary]."""

    def accept(self, token: int) -> None:
        """Take note of the next token."""


@dataclass(frozen=True)
class TokenOdds:
    """Token odds describe how likely a token was.

    Attributes:
        token: the id.
        logprob: the logarithm of its share of the softmax of all logits, before the temperature.
    """

    token: int
    logprob: float


@dataclass(frozen=True)
class Piece:
    """A piece describes what one step adds to a reply.

    Attributes:
        token: the id; None if only text that was held back comes.
        text: whole characters; empty while a character or a stop string may not be complete.
        odds: of the token, if they were asked for.
        likeliest: those of as many tokens as were asked for, the likeliest first.
    """

    token: int | None
    text: str
    odds: TokenOdds | None = None
    likeliest: tuple[TokenOdds, ...] = ()


class Reply:
    """A reply is an iterator over the pieces of a text that a model generates.

    Attributes:
        prompt_tokens: tokens of the prompt.
        cached_tokens: how many of them were not computed again.
        tokens: ids so far, without the one that ends the text.
        text: so far.
        reason: why it ended: "end" (the model said so), "length" (as many tokens as were asked
            for), "stop" (a stop string), "context" (the cache is full); None until then.
        first_token_seconds: from the call to the first token; None until then.
    """

    def __init__(
        self,
        functions: Any,
        tokenizer: Tokenizer,
        generator: int,
        lock: threading.RLock,
        sampling: Sampling,
        *,
        owner: object,
        began: float,
        prompt_tokens: int,
        computed_tokens: int,
        max_tokens: int,
        stop: Sequence[str],
        continues: bool,
        guide: Guide | None = None,
        logprobs: int | None = None,
    ) -> None:
        self._guide = guide
        self._logprobs = logprobs
        self._functions = functions
        self._tokenizer = tokenizer
        self._generator = generator
        # What closes the generator lives as long as the reply.
        self._owner = owner
        self._lock = lock
        self._began = began
        self._ended: float | None = None
        self.prompt_tokens = prompt_tokens
        self.cached_tokens = prompt_tokens - computed_tokens
        self.tokens: list[int] = []
        self.text = ""
        self.reason: Reason | None = None
        self.first_token_seconds: float | None = None
        self._handle: int | None = functions.reply_open(
            generator, tokenizer.handle, sampling.struct(), max_tokens, int(continues)
        )
        if not self._handle:
            raise MemoryError("for a reply")
        for text in stop:
            encoded = utf8(text, "a stop string")
            functions.reply_stop_at(self._handle, encoded, len(encoded))

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._functions.reply_close(self._handle)

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        """Return the next piece.

        Raises:
            GenerationError: a program failed.
        """
        if self.reason is not None:
            raise StopIteration
        text, size = ctypes.POINTER(ctypes.c_char)(), ctypes.c_int64()
        with self._lock:
            odds = self._prepare()
            token = self._functions.reply_next(self._handle, text, size)
            code = self._functions.reply_reason(self._handle)
            added = ctypes.string_at(text, max(0, size.value)).decode()
        self._ended = time.perf_counter()
        if code > len(_REASONS):
            failure = self._functions.generator_error(self._generator).decode(errors="replace")
            raise GenerationError(failure or "no token can follow: no logit is a number")
        self.reason = _REASONS[code - 1] if code else None
        self.text += added
        if token < 0:
            if not added:
                raise StopIteration
            return Piece(None, added)
        if self.first_token_seconds is None:
            self.first_token_seconds = self._ended - self._began
        self.tokens.append(token)
        if self._guide is not None:
            self._guide.accept(token)
        if odds is None or self._logprobs is None:
            return Piece(token, added)
        first = np.argsort(-odds, kind="stable")[: self._logprobs]
        return Piece(
            token,
            added,
            TokenOdds(token, float(odds[token])),
            tuple(TokenOdds(int(id_), float(odds[id_])) for id_ in first),
        )

    def _prepare(self) -> NDArray[np.float64] | None:
        """Read the last token, rule out what must not follow, and return how likely the others are.

        None if nobody asked.
        """
        if self._guide is None and self._logprobs is None:
            return None
        self._functions.replies_read((ctypes.c_void_p * 1)(self._handle), 1)
        memory = self._functions.generator_logits(self._generator)
        size = self._functions.generator_vocabulary(self._generator)
        logits = np.ctypeslib.as_array(memory, (size,))
        if self._guide is not None:
            allowed = np.zeros(size, np.bool_)
            known = self._guide.allowed()[:size]
            allowed[: len(known)] = known
            logits[~allowed] = -np.inf
        if self._logprobs is None:
            return None
        highest = float(logits.max())
        shifted = logits.astype(np.float64) - highest
        return np.asarray(shifted - np.log(np.exp(shifted).sum()))

    @property
    def tokens_per_second(self) -> float | None:
        """Return the rate behind the first token; None before there are two."""
        if self._ended is None or self.first_token_seconds is None or len(self.tokens) < 2:
            return None
        return (len(self.tokens) - 1) / (self._ended - self._began - self.first_token_seconds)

    @property
    def lock(self) -> threading.RLock:
        """Return what is held while the session computes."""
        return self._lock

    def complete(self) -> "Reply":
        """Generate until it ends, and return it."""
        for _ in self:
            pass
        return self


def read_together(replies: Sequence[Reply]) -> None:
    """Compute what the next pieces of replies are chosen from, as many as possible in one run.

    Those whose generators are of one session (`Generator(beside=…)`) are computed together. Without
    it, each reply does so itself when its next piece is asked for; the tokens are the same.
    """
    sessions: dict[int, list[Reply]] = {}
    for reply in replies:
        sessions.setdefault(id(reply.lock), []).append(reply)
    for together in sessions.values():
        handles = (ctypes.c_void_p * len(together))(*(reply._handle for reply in together))
        with together[0].lock:
            together[0]._functions.replies_read(handles, len(together))
