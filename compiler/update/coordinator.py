"""Serve a fleet: boards report by POST and are told whether to go on; people ask by GET.

```text
POST /boards/NAME                     a board's report, with that board's key
GET  /status                          all boards and releases, with the secret
POST /channels/NAME/releases/NUMBER   {"stopped": "why"} or {"stopped": ""}, with the secret
```

The coordinator decides when a board installs, never what: that the repository's signatures say.
"""

import contextlib
import dataclasses
import hmac
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

import uvicorn
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgec.compiler.errors import UsageError
from edgec.compiler.serve.access import answer_errors, guards
from edgec.compiler.serve.listening import (
    AnnouncedServer,
    check_certificate,
    listen,
    url_of,
)
from edgec.compiler.serve.request_error import RequestError
from edgec.compiler.support.addresses import is_loopback
from edgec.compiler.update.fleet import Fleet
from edgec.compiler.update.release import CHANNEL_NAME
from edgec.compiler.update.reports import (
    BOARD_NAME,
    LEAST_SECRET,
    MOST_NUMBER,
    Report,
    board_key,
)

MOST_BODY_BYTES = 1 << 16

T = TypeVar("T", bound=BaseModel)


class _Verdict(BaseModel):
    model_config = ConfigDict(extra="forbid")

    stopped: str


def serve_fleet(
    fleet: Fleet,
    secret: str,
    host: str = "127.0.0.1",
    port: int = 0,
    certificate: tuple[Path, Path] | None = None,
    listening: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve until this process is interrupted.

    Args:
        fleet: what boards reported.
        secret: boards' keys are made of it, and whoever has it sees and stops everything.
        host: the address to listen on.
        port: 0 takes a free one.
        certificate: TLS certificate chain and its key, PEM; needed beyond loopback.
        listening: called with the URL once clients can ask.

    Raises:
        UsageError: the secret is short, or keys would travel in the clear.
        BadInputError: the address cannot be listened on, or the certificate cannot be read.
    """
    if certificate is None and not is_loopback(host):
        raise UsageError(
            f"{host} can be reached from other machines, and boards send keys: give "
            "--tls-certificate and --tls-key, or listen on 127.0.0.1 behind what does TLS"
        )
    app = make_app(fleet, secret)
    chain, key = certificate or (None, None)
    if chain is not None and key is not None:
        check_certificate(chain, key)
    listener = listen(host, port)
    config = uvicorn.Config(
        app,
        log_level="warning",
        ssl_certfile=chain,
        ssl_keyfile=key,
        timeout_graceful_shutdown=5,
    )
    server = AnnouncedServer(config)
    server.started_call = lambda: listening(
        url_of(listener, "http" if certificate is None else "https")
    )
    with contextlib.suppress(KeyboardInterrupt), listener:
        server.run(sockets=[listener])


def make_app(fleet: Fleet, secret: str) -> Starlette:
    """Return the application.

    Raises:
        UsageError: the secret is short.
    """
    if len(secret) < LEAST_SECRET or not secret.isascii():
        raise UsageError(f"the secret has at least {LEAST_SECRET} characters, all of them ASCII")

    async def report(request: Request) -> Response:
        board = request.path_params["board"]
        if not BOARD_NAME.fullmatch(board):
            raise RequestError(404, "no board is called so")
        _check_key(request, board_key(secret, board))
        return JSONResponse(fleet.report(board, await _read(request, Report)).model_dump())

    async def status(request: Request) -> Response:
        _check_key(request, secret)
        return JSONResponse(dataclasses.asdict(fleet.status()))

    async def stop(request: Request) -> Response:
        _check_key(request, secret)
        channel = request.path_params["channel"]
        if not CHANNEL_NAME.fullmatch(channel):
            raise RequestError(404, "no channel is called so")
        number = request.path_params["number"]
        if not 1 <= number <= MOST_NUMBER:
            raise RequestError(404, "no release has this number")
        verdict = await _read(request, _Verdict)
        fleet.set_stopped(channel, number, verdict.stopped)
        return JSONResponse({})

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        fleet.close()

    app = Starlette(
        routes=[
            Route("/boards/{board}", report, methods=["POST"]),
            Route("/status", status),
            Route("/channels/{channel}/releases/{number:int}", stop, methods=["POST"]),
        ],
        middleware=guards(None, MOST_BODY_BYTES),
        lifespan=lifespan,
    )
    answer_errors(app)
    return app


def _check_key(request: Request, key: str) -> None:
    given = request.headers.get("authorization", "").encode("latin-1")
    if not hmac.compare_digest(given, f"Bearer {key}".encode()):
        raise RequestError(401, "the key is missing or wrong")


async def _read(request: Request, kind: type[T]) -> T:
    try:
        return kind.model_validate_json(await request.body())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise RequestError(400, f"{place}: {first['msg']}") from None
