"""Read requests of OpenAI's interface for chat and plain completions.

Source: platform.openai.com/docs/api-reference, `chat/completions` and `completions`; `top_k`,
`min_p` and `repetition_penalty` are the extensions that other servers of local models take too.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgec.compiler.errors import UsageError
from edgec.compiler.generation.sampling import Sampling
from edgec.compiler.serve.request_error import RequestError

MOST_STOPS = 4
MOST_LIKELIEST = 20


class _TextPart(BaseModel):
    type: Literal["text"]
    text: str


class _Message(BaseModel):
    # Names and the like, which templates do not know.
    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_TextPart]

    def plain(self) -> dict[str, str]:
        """Return role and text."""
        role = "system" if self.role == "developer" else self.role
        if isinstance(self.content, str):
            return {"role": role, "content": self.content}
        return {"role": role, "content": "".join(part.text for part in self.content)}


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore")
    include_usage: bool = False


class _Schema(BaseModel):
    model_config = ConfigDict(extra="ignore")
    schema_: dict[str, Any] = Field(alias="schema")


class _Format(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _Schema | None = None


class CompletionRequest(BaseModel):
    """A completion request holds what both kinds of requests have.

    Fields that ask for what is not done are refused, not ignored.
    """

    model_config = ConfigDict(extra="forbid")
    model: str
    max_tokens: int | None = Field(None, ge=0)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: _StreamOptions | None = None
    response_format: _Format | None = None
    n: Literal[1] = 1
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    # Of these nothing depends.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None

    @property
    def most_tokens(self) -> int | None:
        """Return how many tokens are asked for at most; None: as many as the context holds."""
        return self.max_tokens

    @property
    def likeliest(self) -> int | None:
        """Return of how many tokens it is asked how likely they are; None: of none."""
        raise NotImplementedError

    def grammar(self) -> str | None:
        """Return the grammar of the answer, None if it may be anything.

        Raises:
            RequestError: 400, the schema is missing, or cannot be kept to.
        """
        form = self.response_format
        if form is None or form.type == "text":
            return None
        if form.type == "json_schema" and form.json_schema is None:
            raise RequestError(400, "response_format.json_schema: a schema is expected")
        from edgec.compiler.generation.guide import ANY_OBJECT, json_grammar

        try:
            return json_grammar(form.json_schema.schema_ if form.json_schema else ANY_OBJECT)
        except UsageError as error:
            raise RequestError(400, f"response_format: {error}") from None

    @property
    def stops(self) -> Sequence[str]:
        """Return the texts before which the reply ends.

        Raises:
            RequestError: 400, there are too many or an empty one.
        """
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > MOST_STOPS or not all(stops):
            raise RequestError(400, f"stop: up to {MOST_STOPS} texts that are not empty are taken")
        return stops

    def sampling(self, fresh_seed: int) -> Sampling:
        """Return how tokens are chosen; without a seed of its own with a fresh one.

        Raises:
            RequestError: 400, a value is out of its range.
        """
        try:
            return Sampling(
                repetition_penalty=self.repetition_penalty,
                temperature=self.temperature,
                top_k=self.top_k,
                top_p=self.top_p,
                min_p=self.min_p,
                seed=fresh_seed if self.seed is None else self.seed,
            )
        except UsageError as error:
            raise RequestError(400, str(error)) from None


class ChatRequest(CompletionRequest):
    """A chat request holds messages that the model answers."""

    messages: list[_Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=0)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LIKELIEST)

    @property
    def likeliest(self) -> int | None:
        """Return how many are asked for.

        Raises:
            RequestError: 400, `top_logprobs` without `logprobs`.
        """
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError(400, "top_logprobs: it goes with logprobs: true")
        return self.top_logprobs or 0 if self.logprobs else None

    @property
    def most_tokens(self) -> int | None:
        """Return how many tokens are asked for at most, by its newer or its older name."""
        newer = self.max_completion_tokens
        return self.max_tokens if newer is None else newer

    @property
    def prompt_or_messages(self) -> Sequence[Mapping[str, str]]:
        """Return the messages."""
        return [message.plain() for message in self.messages]


class TextRequest(CompletionRequest):
    """A text request holds a text that the model goes on with."""

    prompt: str
    echo: Literal[False] = False
    logprobs: int | None = Field(None, ge=0, le=5)

    @property
    def likeliest(self) -> int | None:
        """Return how many are asked for."""
        return self.logprobs

    @property
    def prompt_or_messages(self) -> str:
        """Return the text."""
        return self.prompt


R = TypeVar("R", bound=CompletionRequest)


def read_completion_request(kind: type[R], body: bytes) -> R:
    """Read a request.

    Raises:
        RequestError: 400, a field is missing, wrong, or asks for what is not done.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            raise RequestError(400, f"{place}: this server does not take it") from None
        raise RequestError(400, f"{place}: {problem['msg']}" if place else problem["msg"]) from None
