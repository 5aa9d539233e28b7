"""Generate text with the language model of a bundle.

```python
generator = Generator("smollm2.edgec")
for piece in generator.generate("The capital of France is", max_tokens=8):
    print(piece.text, end="", flush=True)
```

What a prompt shares with the one before, from its beginning, is not computed again.
"""

import ctypes
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.bundle.generation_files import (
    GENERATION,
    LANGUAGE,
    TOKENIZER,
    special_tokens,
)
from edgec.compiler.errors import BadInputError, BundleError, UsageError
from edgec.compiler.generation.native import Tokenizer, load_generation, utf8
from edgec.compiler.generation.reply import GenerationError, Guide, Reply
from edgec.compiler.generation.sampling import Sampling
from edgec.compiler.language.language_model import LanguageModel
from edgec.compiler.runtime.static_session import StaticSession
from edgec.compiler.tokenizer.chat_pieces import ChatTemplate, Message

if TYPE_CHECKING:
    from edgec.compiler.generation.guide import GuideTokenizer

Prompt = str | Sequence[Message]

Speculation = int | Literal["auto", "off"]
"""Tokens that are guessed at once, at most; "auto" guesses as long as it makes text faster."""

_CONTEXT_FULL = -11
_THAT_PAY, _MOST_GUESSES = -1, 1024
_MESSAGE_BYTES = 512


@dataclass(frozen=True)
class Tokens:
    """Tokens are a prompt that was put into tokens before.

    Attributes:
        ids: of the tokenizer.
        continues: whether the reply goes on with this text, so that a space in front of it stays.
    """

    ids: Sequence[int]
    continues: bool


@dataclass(frozen=True)
class Guesses:
    """Guesses count what came of guessing tokens.

    Attributes:
        runs: runs that checked guesses.
        guessed: tokens that were guessed in them.
        right: of these the ones that then were chosen, and took no run of their own.
    """

    runs: int
    guessed: int
    right: int


def guesses_of(speculate: Speculation | str) -> int:
    """Return tokens to guess at once as the C knows them.

    Raises:
        UsageError: it is neither a number nor "auto" nor "off".

    >>> [guesses_of(given) for given in ("off", "auto", "3", 2)]
    [0, -1, 3, 2]
    """
    if speculate in ("auto", "off"):
        return _THAT_PAY if speculate == "auto" else 0
    if re.fullmatch(r"[0-9]{1,6}", str(speculate)) and int(speculate) <= _MOST_GUESSES:
        return int(speculate)
    raise UsageError(
        f"speculate is {speculate}; auto, off or a number up to {_MOST_GUESSES} is expected"
    )


class ContextFullError(BadInputError):
    """A prompt is longer than the context."""


class Generator:
    """A generator is one conversation, or one text, with the language model of a bundle.

    Generators of one bundle are independent of each other: each has a cache of its own.

    Attributes:
        language: what is known of the model.
        tokenizer: turns text into tokens and back.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        threads: int = 0,
        *,
        beside: "Generator | None" = None,
        text: int = 0,
        speculate: Speculation | str = "auto",
    ) -> None:
        """Load a model.

        Args:
            bundle: of a language model.
            threads: threads to compute on; 0 is one for each core that this process may use.
            beside: another generator of the same bundle, of a text of the same session: both can
                be computed in one run; see `read_together`.
            text: which of the texts that a session keeps, see `texts`.
            speculate: how many tokens are guessed at once where the last ones were there before;
                the reply is the same whatever is guessed.

        Raises:
            UsageError: no such way to guess.
            BundleError: the bundle is for another machine, is of no language model, or its sessions
                keep fewer texts.
        """
        guesses = guesses_of(speculate)
        bundle = Bundle.of(bundle)
        if LANGUAGE not in bundle.manifest.files:
            raise BundleError(
                f"{bundle.path} is not of a language model: it has no {LANGUAGE}; compile a GGUF "
                "file or a Hugging Face folder"
            )
        session = bundle.open(threads) if beside is None else beside._session
        assert isinstance(session, StaticSession)
        self._session: StaticSession = session
        self._beside = beside
        self.language = LanguageModel.model_validate_json(bundle.file(LANGUAGE).read_bytes())
        self._functions = load_generation(bundle.loadable(GENERATION))
        self.tokenizer = Tokenizer(self._functions, bundle.file(TOKENIZER).read_bytes())
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        self._handle: int = self._functions.generator_open(
            *session.addresses, text, message, _MESSAGE_BYTES
        )
        if not self._handle:
            raise BundleError(f"{bundle.path}: {message.value.decode(errors='replace')}")
        self._functions.generator_speculate(self._handle, guesses)
        self._template: ChatTemplate | None = None

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._functions.generator_close(self._handle)

    @property
    def context(self) -> int:
        """Return how many tokens the cache holds."""
        return int(self._functions.generator_context(self._handle))

    @property
    def texts(self) -> int:
        """Return how many texts a session keeps (`--streams`), one a generator."""
        return self._session.state_parts

    @property
    def guesses(self) -> Guesses:
        """Return what came of guessing, since the generator was made."""
        counts = self._functions.generator_guesses(self._handle)
        return Guesses(counts.runs, counts.guessed, counts.right)

    @property
    def cached(self) -> list[int]:
        """Return the tokens that the cache holds now."""
        ids = ctypes.POINTER(ctypes.c_int32)()
        return ids[: self._functions.generator_tokens(self._handle, ids)]

    def prompt_tokens(self, prompt: Prompt | Tokens) -> list[int]:
        """Return the tokens of a text, or of messages in the words of the model's chats.

        Raises:
            BadInputError: it is not UTF-8, or the model has no form for these messages.
        """
        if isinstance(prompt, Tokens):
            return list(prompt.ids)
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        for message in prompt:
            _check_message(message)
        text = self._chat_template().render(prompt)
        # The template puts tokens that begin a text itself.
        return self.tokenizer.encode(text, template_tokens=False)

    def generate(
        self,
        prompt: Prompt | Tokens,
        *,
        max_tokens: int = 256,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        guide: Guide | None = None,
        logprobs: int | None = None,
    ) -> Reply:
        """Read a prompt, and return the reply, which computes one token at each step.

        Args:
            prompt: a text that the model goes on with, or messages (`role` and `content`) that it
                answers; or what `prompt_tokens` made of one of them.
            max_tokens: at most so many.
            sampling: how tokens are chosen; the default takes the likeliest.
            stop: texts before which the reply ends.
            guide: says which tokens may follow; see `edgec.compiler.generation.guide`.
            logprobs: pieces say how likely their token was, and so many of the likeliest ones.

        Raises:
            UsageError: the number of tokens is negative.
            BadInputError: the prompt is empty, not UTF-8, has no form in the model's chats, or is
                longer than the context (`ContextFullError`).
        """
        began = time.perf_counter()
        if max_tokens < 0:
            raise UsageError(f"max_tokens is {max_tokens}; 0 or more is expected")
        tokens = self.prompt_tokens(prompt)
        if not tokens:
            raise BadInputError("the prompt is empty; give the model at least one token to go on")
        return Reply(
            self._functions,
            self.tokenizer,
            self._handle,
            self._session.lock,
            sampling or Sampling(),
            owner=self,
            began=began,
            prompt_tokens=len(tokens),
            computed_tokens=self.read(tokens),
            max_tokens=max_tokens,
            stop=stop,
            guide=guide,
            logprobs=logprobs,
            continues=prompt.continues if isinstance(prompt, Tokens) else isinstance(prompt, str),
        )

    def read(self, tokens: Sequence[int]) -> int:
        """Read a whole text: bring the cache to these tokens, at least one.

        Returns:
            How many were computed; those that the cache held already are not.

        Raises:
            ContextFullError: they are more than the context; the cache stays as it is.
            GenerationError: a program failed, or one of them is none of the model's.
        """
        ids = (ctypes.c_int32 * len(tokens))(*tokens)
        with self._session.lock:
            return self._computed(self._functions.generator_read(self._handle, ids, len(tokens)))

    def append(self, token: int) -> None:
        """Read one more token.

        Raises:
            ContextFullError: there is no room for it.
            GenerationError: a program failed, or it is none of the model's.
        """
        with self._session.lock:
            self._computed(self._functions.generator_append(self._handle, token))

    def save(self, path: str | Path) -> None:
        """Write what the cache holds to a file, to go on from there in another process.

        Raises:
            BadInputError: it cannot be written.
        """
        self._cache_file(self._functions.generator_save, path)

    def load(self, path: str | Path) -> None:
        """Read the cache from a file that `save` wrote with this model, for whatever machine.

        Raises:
            BadInputError: it cannot be read, or is of another model.
        """
        self._cache_file(self._functions.generator_load, path)

    def _cache_file(self, function: "ctypes._NamedFuncPointer", path: str | Path) -> None:
        with self._session.lock:
            if function(self._handle, str(path).encode(), self.tokenizer.digest) < 0:
                raise BadInputError(self._error())

    def _computed(self, count: int) -> int:
        if count == _CONTEXT_FULL:
            raise ContextFullError(self._error())
        if count < 0:
            raise GenerationError(self._error())
        return int(count)

    @cached_property
    def guide_tokenizer(self) -> "GuideTokenizer":
        """Return the tokenizer for guides, which is made when it is first asked for.

        Raises:
            UsageError: no token of the model ends a text.
        """
        from edgec.compiler.generation.guide import GuideTokenizer

        if self._beside is not None:
            return self._beside.guide_tokenizer
        return GuideTokenizer(self.tokenizer, self.language.end_tokens)

    def _error(self) -> str:
        message: bytes = self._functions.generator_error(self._handle)
        return message.decode(errors="replace")

    def _chat_template(self) -> ChatTemplate:
        if self._template is None:
            if not self.language.chat_template:
                raise BadInputError(
                    f"{self.language.name} has no chat template; give it a text to go on with"
                )
            special = special_tokens(
                self.language,
                lambda token: self.tokenizer.decode([token], special=True, continues=True),
            )
            self._template = ChatTemplate(self.language.chat_template, special)
        return self._template


def _check_message(message: object) -> None:
    if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
        raise BadInputError(
            f"a message is {message!r}; a mapping with role and content is expected"
        )
    for name in ("role", "content"):
        if not isinstance(message[name], str):
            raise BadInputError(f"{name} of a message is {message[name]!r}; a text is expected")
        utf8(message[name], f"{name} of a message")
