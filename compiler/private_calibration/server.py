"""Serve a session of private calibration over HTTP until the sum is known."""

import asyncio
import contextlib
from collections.abc import Callable, Collection
from pathlib import Path

import uvicorn
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from edgec.compiler.errors import CalibrationError, EdgecError, InterruptedRunError
from edgec.compiler.private_calibration.masks import Words
from edgec.compiler.private_calibration.secure_server import SecureServer
from edgec.compiler.private_calibration.session import STAGES, Session
from edgec.compiler.private_calibration.statistics import vector_length
from edgec.compiler.serve.access import answer_errors, guards
from edgec.compiler.serve.listening import AnnouncedServer, listen, url_of
from edgec.compiler.serve.request_error import RequestError
from edgec.compiler.serve.server import ServeOptions
from edgec.compiler.trust.keys import PublicKey

# Of a message beside what grows with clients and values.
_MESSAGE_BYTES = 1 << 16


class _Stage:
    """A stage is over at some time, and then has an answer for each client, or failed."""

    def __init__(self) -> None:
        self.full = asyncio.Event()
        self.over = asyncio.Event()
        self.answer: Callable[[int], BaseModel] | None = None
        self.failure: EdgecError | None = None


class Rounds:
    """Rounds take the messages of clients and go from stage to stage.

    Attributes:
        server: what sums.
    """

    def __init__(
        self,
        session: Session,
        model: Path | None = None,
        allowed: Collection[PublicKey] | None = None,
    ) -> None:
        """Begin.

        Args:
            session: what is summed.
            model: the ONNX file that clients may fetch.
            allowed: the identities that may take part; None takes the first that come.
        """
        self.session = session
        self.server = SecureServer(session, vector_length(session), allowed)
        self._model = model
        self._stages = {stage: _Stage() for stage in STAGES}

    async def run(self) -> tuple[Words, int]:
        """Return the sum, and of how many clients it is.

        Raises:
            CalibrationError: too few clients came through a stage.
        """
        for name, stage in self._stages.items():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stage.full.wait(), self.session.wait_seconds)
            try:
                stage.answer = self.server.close()
            except CalibrationError as error:
                for other in list(self._stages.values())[STAGES.index(name) :]:
                    other.failure = error
                    other.over.set()
                raise
            stage.over.set()
        return await asyncio.to_thread(self.server.total), self.server.summed

    def app(self, options: ServeOptions) -> Starlette:
        """Return the application that clients talk to."""
        routes = [
            Route("/session", self._answer_session),
            Route("/model", self._fetch_model),
            Route("/{stage}", self._receive, methods=["POST"]),
        ]
        most = _MESSAGE_BYTES + 8 * vector_length(self.session) + 400 * self.session.clients
        app = Starlette(routes=routes, middleware=guards(options.key, most))
        answer_errors(app)
        return app

    async def _answer_session(self, _request: Request) -> Response:
        return _json(self.session)

    async def _fetch_model(self, _request: Request) -> Response:
        if self._model is None:
            raise RequestError(404, "the model has several files; give your copy by --model")
        return FileResponse(self._model)

    async def _receive(self, request: Request) -> Response:
        name = request.path_params["stage"]
        if name not in STAGES:
            raise RequestError(404, f"there is no stage {name[:40]}")
        text = request.query_params.get("client", "0")
        if not (text.isascii() and text.isdigit() and len(text) < 6):
            raise RequestError(400, f"client {text[:40]!r} is no number")
        signature = request.headers.get("edgec-signature", "")
        number = self.server.receive(name, int(text), signature, await request.body())
        stage = self._stages[name]
        if self.server.received == self.server.expected:
            stage.full.set()
        if name == STAGES[-1]:
            return Response(status_code=204)
        await stage.over.wait()
        if stage.failure is not None:
            raise RequestError(409, str(stage.failure))
        assert stage.answer is not None
        return _json(stage.answer(number))


def _json(message: BaseModel) -> Response:
    return Response(message.model_dump_json(), media_type="application/json")


def collect_sum(
    rounds: Rounds, options: ServeOptions, listening: Callable[[str], None]
) -> tuple[Words, int]:
    """Serve a session until its end, and return the sum and the number of clients in it.

    Args:
        rounds: the session.
        options: where to listen.
        listening: called with the URL once clients can come.

    Raises:
        BadInputError: the address cannot be listened on.
        CalibrationError: too few clients came through a stage.
        InterruptedRunError: a signal came first.
    """

    async def serve() -> tuple[Words, int]:
        scheme = "http" if options.certificate is None else "https"
        with listen(options.host, options.port) as listener:
            config = uvicorn.Config(
                rounds.app(options),
                log_level="warning",
                lifespan="off",
                ssl_certfile=options.certificate,
                ssl_keyfile=options.certificate_key,
                timeout_graceful_shutdown=5,
            )
            server = AnnouncedServer(config)
            server.started_call = lambda: listening(url_of(listener, scheme))
            serving = asyncio.ensure_future(server.serve(sockets=[listener]))
            summing = asyncio.ensure_future(rounds.run())
            await asyncio.wait([serving, summing], return_when=asyncio.FIRST_COMPLETED)
            if not summing.done():
                summing.cancel()
                await asyncio.gather(serving, return_exceptions=True)
                raise InterruptedRunError("interrupted; nothing was written")
            server.should_exit = True
            await serving
            return await summing

    return asyncio.run(serve())
