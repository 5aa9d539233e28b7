"""Split a chat template into the words between messages, which need no Jinja on the board.

A template is a program; most of them only put words around messages. Those are found by rendering
a few conversations, and the result is compared with Jinja's on others.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import pairwise

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgec.compiler.errors import BadInputError, UnsupportedModelError

Message = Mapping[str, str]


@dataclass(frozen=True)
class ChatPieces:
    """Chat pieces are the words between messages; None where a model has no such neighbours.

    Attributes:
        before_system: a conversation begins with a system message.
        before_first_user: it begins without one.
        system_to_user: between a system message and the user's.
        user_to_assistant: between a user's message and the answer that it got.
        assistant_to_user: between an answer and the next message.
        user_to_answer: behind the last message, where the model goes on.
        trims: white space around messages is cut off.
    """

    before_system: str | None
    before_first_user: str | None
    system_to_user: str | None
    user_to_assistant: str | None
    assistant_to_user: str | None
    user_to_answer: str | None
    trims: bool = False

    def pieces(self) -> tuple[str | None, ...]:
        """Return the words in the order of `chat_piece` in native/tokenizer.h."""
        return astuple(self)[:-1]

    def render(self, messages: Sequence[Message]) -> str:
        """Return a conversation as the C puts it together.

        Raises:
            KeyError: the model has no words for these neighbours.
        """
        words = {
            (None, "system"): self.before_system,
            (None, "user"): self.before_first_user,
            ("system", "user"): self.system_to_user,
            ("user", "assistant"): self.user_to_assistant,
            ("assistant", "user"): self.assistant_to_user,
            ("user", None): self.user_to_answer,
        }
        roles = [None, *(message["role"] for message in messages), None]
        between = [words[pair] for pair in pairwise(roles)]
        if None in between:
            raise KeyError("words")
        contents = [message["content"] for message in messages]
        contents = [text.strip() for text in contents] if self.trims else contents
        return "".join(a + b for a, b in zip(map(str, between), [*contents, ""], strict=True))


NO_CHAT = ChatPieces(None, None, None, None, None, None)


class ChatTemplate:
    """A chat template turns messages into a prompt, by Jinja's sandbox."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Read a template.

        Args:
            source: Jinja, as tokenizer_config.json and GGUF files have it.
            special_tokens: text by name: `bos_token`, `eos_token` and others.

        Raises:
            BadInputError: it is no Jinja.
        """
        # The settings and functions that transformers gives to templates.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        self._special_tokens = special_tokens
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise BadInputError(f"the chat template is no Jinja: {error}") from None

    def render(self, messages: Sequence[Message]) -> str:
        """Return the prompt that messages make, ready for the answer.

        Args:
            messages: each has `role` and `content`.

        A template that asks for today's date takes its own: a prompt is the same every day.

        Raises:
            BadInputError: the template refuses the messages.
        """
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=True,
                tools=None,
                documents=None,
                **self._special_tokens,
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, OverflowError) as error:
            raise BadInputError(f"the chat template refuses these messages: {error}") from None


def chat_pieces(template: ChatTemplate) -> ChatPieces:
    """Return the words of a template between messages.

    Raises:
        UnsupportedModelError: a template does more than to put words around messages.
    """
    try:
        found = _pieces(template)
    except (BadInputError, ValueError):
        raise UnsupportedModelError(
            "the chat template cannot be split into words between messages, so `run --chat` "
            "has none on a board; `edgec chat` renders it"
        ) from None
    for messages in _CONVERSATIONS:
        if messages[0]["role"] == "system" and found.before_system is None:
            continue
        if found.render(messages) != template.render(messages):
            roles = ", ".join(message["role"] for message in messages)
            raise UnsupportedModelError(
                f"the chat template does more than to put words around messages ({roles}), so "
                "`run --chat` has none on a board; `edgec chat` renders it"
            )
    return found


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


# Marks that no template has in its own words.
_MARKS = ("\ue000first\ue001", "\ue000answer\ue001", "\ue000second\ue001", "\ue000system\ue001")


def _pieces(template: ChatTemplate) -> ChatPieces:
    first, answer, second, system = _MARKS
    turns = [_message("user", first), _message("assistant", answer), _message("user", second)]
    before, to_answer, to_user, end = _between(template.render(turns), first, answer, second)
    single, at_end = _between(template.render(turns[:1]), first)
    if (single, at_end) != (before, end):
        raise ValueError("it depends on the number of messages")
    spaced = template.render([_message("user", f" \n{first}\n ")])
    begin: tuple[str | None, str | None]
    try:
        with_system = template.render([_message("system", system), turns[0]])
        before_system, to_first, _ = _between(with_system, system, first)
        # Some put the system's message into the user's.
        if template.render([_message("system", system), *turns]).count(system) != 1:
            raise ValueError("the system's message is there twice")
        begin = (before_system, to_first)
    except (BadInputError, ValueError):
        begin = (None, None)
    return ChatPieces(
        begin[0], before, begin[1], to_answer, to_user, end, trims=spaced == before + first + end
    )


def _between(text: str, *marks: str) -> list[str]:
    """Return what is before, between and behind marks.

    Raises:
        ValueError: the marks are not in the text in this order, once each.
    """
    parts = []
    for mark in marks:
        if text.count(mark) != 1:
            raise ValueError("a message is not there once")
        part, text = text.split(mark)
        parts.append(part)
    return [*parts, text]


_QUESTION, _ODD = "What is an edge?", " \n{{ odd }} <|im_end|>\té✓ 'quoted' \\n\n"
_CONVERSATIONS: Sequence[Sequence[Message]] = (
    [_message("user", _QUESTION)],
    [_message("user", _ODD)],
    [_message("system", "Answer in one line."), _message("user", _QUESTION)],
    [_message("system", _ODD), _message("user", _ODD)],
    [
        _message("user", _QUESTION),
        _message("assistant", _ODD),
        _message("user", _ODD),
        _message("assistant", "A border."),
        _message("user", "Thanks"),
    ],
    [
        _message("system", "Be brief."),
        _message("user", _ODD),
        _message("assistant", "A border."),
        _message("user", _QUESTION),
        _message("assistant", "A line."),
        _message("user", "Thanks"),
    ],
)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
