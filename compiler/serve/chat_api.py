"""Speak OpenAI's interface for language models: `/v1/models`, chat and plain completions."""

import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from edgec.compiler.generation.reply import Piece, Reply
from edgec.compiler.serve.chat_model import ChatModel
from edgec.compiler.serve.chat_requests import (
    ChatRequest,
    CompletionRequest,
    TextRequest,
    read_completion_request,
)
from edgec.compiler.serve.disconnect import unless_gone
from edgec.compiler.serve.logprobs import TextOf, chat_logprobs, text_logprobs
from edgec.compiler.serve.request_error import RequestError

FINISH = {"end": "stop", "stop": "stop", "length": "length", "context": "length"}
Pieces = AsyncIterator[tuple[Reply, Piece | None]]


def chat_routes(models: Mapping[str, ChatModel]) -> list[Route]:
    """Return the routes of the interface for some language models."""
    began = int(time.time())

    def described(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": began, "owned_by": "edgec"}

    def model_of(name: str) -> ChatModel:
        if name not in models:
            raise RequestError(404, f"there is no model {name[:64]!r}; there are {list(models)}")
        return models[name]

    async def list_models(_request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [described(name) for name in models]})

    async def one_model(request: Request) -> Response:
        return JSONResponse(described(model_of(request.path_params["model"]).name))

    async def chat(request: Request) -> Response:
        return await answer(request, ChatRequest, _Chat)

    async def complete(request: Request) -> Response:
        return await answer(request, TextRequest, _Text)

    async def answer(
        request: Request,
        kind: "type[ChatRequest] | type[TextRequest]",
        form: "type[_Chat] | type[_Text]",
    ) -> Response:
        asked = read_completion_request(kind, await request.body())
        model = model_of(asked.model)
        pieces = model.pieces(
            asked.prompt_or_messages,
            asked.most_tokens,
            asked.sampling(secrets.randbits(63)),
            asked.stops,
            asked.grammar(),
            asked.likeliest,
        )
        written = form(asked, model.text_of)
        if not asked.stream:
            return JSONResponse(await unless_gone(request, _whole(pieces, written)))
        # The first item tells whether the prompt can be read, while a status can still say so.
        first = await anext(pieces)
        return StreamingResponse(_events(first, pieces, written), media_type="text/event-stream")

    return [
        Route("/v1/models", list_models),
        Route("/v1/models/{model}", one_model),
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/completions", complete, methods=["POST"]),
    ]


class _Text:
    """Writes answers to plain completions."""

    kind, chunk_kind, prefix = "text_completion", "text_completion", "cmpl"

    def __init__(self, request: CompletionRequest, text_of: TextOf) -> None:
        self._text_of = text_of
        self._odds_asked = request.likeliest is not None
        self.usage_asked = bool(request.stream_options and request.stream_options.include_usage)
        self._head = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": request.model,
        }

    def whole(self, reply: Reply, pieces: Sequence[Piece]) -> dict[str, Any]:
        """Return the answer when the reply is complete."""
        choice = {"index": 0, "finish_reason": _reason(reply), **self._odds(pieces, 0)}
        choice |= self._text(reply)
        return {**self._head, "object": self.kind, "choices": [choice], "usage": _usage(reply)}

    def chunk(
        self,
        text: str,
        reason: str | None,
        first: bool = False,
        pieces: Sequence[Piece] = (),
        begin: int = 0,
    ) -> dict[str, Any]:
        """Return a part of the answer.

        Args:
            text: what it adds.
            reason: why it ends, if it does.
            first: whether nothing was given before.
            pieces: the text in pieces.
            begin: characters that were given before.
        """
        choice = {
            "index": 0,
            "finish_reason": reason,
            **self._odds(pieces, begin),
            **self._part(text, first, ends=reason is not None),
        }
        return {**self._head, "object": self.chunk_kind, "choices": [choice]}

    def usage(self, reply: Reply) -> dict[str, Any]:
        """Return the part that says how many tokens there were."""
        return {**self._head, "object": self.chunk_kind, "choices": [], "usage": _usage(reply)}

    def _odds(self, pieces: Sequence[Piece], begin: int) -> dict[str, Any]:
        if not (self._odds_asked and pieces):
            return {"logprobs": None}
        return {"logprobs": self._written_odds(pieces, begin)}

    def _written_odds(self, pieces: Sequence[Piece], begin: int) -> dict[str, Any]:
        return text_logprobs(pieces, self._text_of, begin)

    def _text(self, reply: Reply) -> dict[str, Any]:
        return {"text": reply.text}

    def _part(self, text: str, first: bool, ends: bool) -> dict[str, Any]:
        return {"text": text}


class _Chat(_Text):
    """Writes answers to chats."""

    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def _written_odds(self, pieces: Sequence[Piece], begin: int) -> dict[str, Any]:
        return chat_logprobs(pieces, self._text_of)

    def _text(self, reply: Reply) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": reply.text, "refusal": None}}

    def _part(self, text: str, first: bool, ends: bool) -> dict[str, Any]:
        if ends:
            return {"delta": {}}
        return {"delta": {"role": "assistant", "content": text} if first else {"content": text}}


async def _whole(pieces: Pieces, written: _Text) -> dict[str, Any]:
    reply, _ = await anext(pieces)
    given = [piece async for _, piece in pieces if piece is not None]
    return written.whole(reply, given)


async def _events(
    first: tuple[Reply, Piece | None], pieces: Pieces, written: _Text
) -> AsyncIterator[str]:
    reply, _ = first
    try:
        yield _event(written.chunk("", None, first=True))
        # Pieces whose characters are not complete yet come with the next ones.
        waiting: list[Piece] = []
        begin = 0
        async for _, piece in pieces:
            if piece is None:
                continue
            waiting.append(piece)
            if piece.text:
                yield _event(written.chunk(piece.text, None, pieces=waiting, begin=begin))
                begin += len(piece.text)
                waiting = []
        yield _event(written.chunk("", _reason(reply), pieces=waiting, begin=begin))
        if written.usage_asked:
            yield _event(written.usage(reply))
        yield "data: [DONE]\n\n"
    finally:
        # A client that went away leaves the iteration here.
        await pieces.aclose()  # type: ignore[attr-defined]


def _event(content: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


def _reason(reply: Reply) -> str | None:
    return None if reply.reason is None else FINISH[reply.reason]


def _usage(reply: Reply) -> dict[str, Any]:
    given, made = reply.prompt_tokens, len(reply.tokens)
    return {
        "prompt_tokens": given,
        "completion_tokens": made,
        "total_tokens": given + made,
        "prompt_tokens_details": {"cached_tokens": reply.cached_tokens},
    }
