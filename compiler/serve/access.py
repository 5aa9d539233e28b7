"""Guard a server: who may ask, how much at once, and what an error looks like."""

import hmac
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgec.compiler.errors import EdgecError
from edgec.compiler.serve.request_error import RequestError

Describe = Callable[[int, str], dict[str, object]]


def guards(key: str | None, most_bytes: int) -> list[Middleware]:
    """Return middleware that wants a key, if there is one, and limits bodies to a size in bytes."""
    limit = Middleware(_BodyLimit, most_bytes=most_bytes)
    return [limit] if key is None else [Middleware(_KeyCheck, key=key), limit]


def answer_errors(app: Starlette) -> None:
    """Make every error an answer of one line of JSON, in the form of the interface asked."""

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        return error_response(request.url.path, error.status, error.message)

    async def unsuited(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path = request.url.path
        message = f"{request.method} {path[:100]}: {error.detail}"
        return error_response(path, error.status_code, message)

    async def failed(request: Request, error: Exception) -> Response:
        message = str(error) if isinstance(error, EdgecError) else "the server failed; see its log"
        return error_response(request.url.path, 500, message)

    async def out_of_memory(request: Request, _error: Exception) -> Response:
        return error_response(request.url.path, 503, "there is not enough memory for this request")

    async def gone(_request: Request, _error: Exception) -> Response:
        # Nobody reads it.
        return Response(status_code=499)

    app.add_exception_handler(RequestError, refused)
    app.add_exception_handler(HTTPException, unsuited)
    app.add_exception_handler(EdgecError, failed)
    app.add_exception_handler(MemoryError, out_of_memory)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(Exception, failed)


def error_response(path: str, status: int, message: str) -> JSONResponse:
    """Return an error in the form of the Open Inference Protocol; under /v1 in OpenAI's."""
    if not path.startswith("/v1"):
        return JSONResponse({"error": message}, status)
    kinds = {401: "authentication_error", 404: "not_found_error", 413: "invalid_request_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    error = {"message": message, "type": kind, "param": None, "code": None}
    return JSONResponse({"error": error}, status)


class _KeyCheck:
    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._expected = f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                message = "the key is missing or wrong; send it as `Authorization: Bearer KEY`"
                await error_response(scope["path"], 401, message)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class _BodyLimit:
    def __init__(self, app: ASGIApp, most_bytes: int) -> None:
        self._app = app
        self._most_bytes = most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        message = f"the body is too long: up to {self._most_bytes} bytes are taken"
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        if not stated.isdigit() or int(stated) > self._most_bytes:
            await error_response(scope["path"], 413, message)(scope, receive, send)
            return
        received = 0

        async def limited() -> Message:
            nonlocal received
            part = await receive()
            received += len(part.get("body", b""))
            if received > self._most_bytes:
                raise RequestError(413, message)
            return part

        await self._app(scope, limited, send)
