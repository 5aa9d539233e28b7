"""Serve bundles: `serve_bundles` opens them, listens, and answers until it is interrupted."""

import contextlib
import math
import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import uvicorn
from starlette.applications import Starlette

from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.bundle.generation_files import LANGUAGE
from edgec.compiler.errors import UsageError
from edgec.compiler.generation.generator import Speculation, guesses_of
from edgec.compiler.ir.signature import TensorSpec
from edgec.compiler.serve.access import answer_errors, guards
from edgec.compiler.serve.batching import Batcher
from edgec.compiler.serve.chat_api import chat_routes
from edgec.compiler.serve.chat_model import ChatModel
from edgec.compiler.serve.inference_api import ServedModel, inference_routes
from edgec.compiler.serve.listening import AnnouncedServer, listen, url_of
from edgec.compiler.serve.streams import Streams
from edgec.compiler.support.addresses import is_loopback

# JSON spells a float in about five times its bytes.
JSON_FACTOR = 6
LEAST_BODY_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class ServeOptions:
    """Serve options say how a server listens and runs.

    Attributes:
        host: the address to listen on.
        port: its port; 0 takes a free one.
        key: what clients send as `Authorization: Bearer KEY`; None lets everybody on this machine
            ask, and is allowed on loopback only.
        threads: threads that a run computes on; 0 is one for each core.
        sessions: runs of one model at the same time; of a model with state the most streams.
        batch_wait_seconds: how long a request waits for others to share a run with.
        speculate: how many tokens of a reply are guessed at once; see `Generator`.
        most_waiting: requests of a model that may wait; more are refused.
        certificate: TLS certificate chain, PEM.
        certificate_key: its key, PEM.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    key: str | None = None
    threads: int = 0
    sessions: int = 1
    batch_wait_seconds: float = 0.0
    speculate: Speculation | str = "auto"
    most_waiting: int = 256
    certificate: Path | None = None
    certificate_key: Path | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise UsageError(f"port {self.port} is none; 0 to 65535 are")
        if self.threads < 0 or self.sessions < 1 or self.most_waiting < 1:
            raise UsageError(
                "give 0 threads (all cores) or more, and at least one session and one place to wait"
            )
        if not 0 <= self.batch_wait_seconds <= 10:
            raise UsageError("a request waits 0 to 10 seconds for others")
        guesses_of(self.speculate)
        if self.key is not None and (len(self.key) < 16 or not self.key.isascii()):
            raise UsageError("a key has at least 16 characters, all of them ASCII")
        if (self.certificate is None) != (self.certificate_key is None):
            raise UsageError("give the TLS certificate and its key, or neither")
        if self.key is None and not is_loopback(self.host):
            raise UsageError(
                f"{self.host} can be reached from other machines: give a key (--key-file), or "
                "listen on 127.0.0.1"
            )


def serve_bundles(
    bundles: Mapping[str, str | Path | Bundle],
    options: ServeOptions | None = None,
    *,
    listening: Callable[[str, Mapping[str, str]], None] | None = None,
) -> None:
    """Serve bundles until this process is interrupted.

    Those of language models by OpenAI's interface, all others by the Open Inference Protocol.

    Args:
        bundles: by the name that clients call them by.
        options: where to listen, and how to run.
        listening: called once clients can ask, with the URL and, by model, how it is run.

    Raises:
        UsageError: a name is wrong.
        BundleError: a bundle cannot run here.
        BadInputError: the address cannot be listened on.
    """
    options = options or ServeOptions()
    for name in bundles:
        if not _NAME.fullmatch(name):
            raise UsageError(f"a model is named {name!r}; letters, digits, '.', '_', '-' are taken")
    opened = {name: Bundle.of(bundle) for name, bundle in bundles.items()}
    talkers = {n: _talker(n, b, options) for n, b in opened.items() if LANGUAGE in b.manifest.files}
    models = {n: _served(n, b, options) for n, b in opened.items() if n not in talkers}
    listener = listen(options.host, options.port)
    app = make_app(models, talkers, options)
    scheme = "http" if options.certificate is None else "https"
    url = url_of(listener, scheme)
    config = uvicorn.Config(
        app,
        log_level="warning",
        ssl_certfile=options.certificate,
        ssl_keyfile=options.certificate_key,
        lifespan="on",
        timeout_graceful_shutdown=5,
    )
    server = AnnouncedServer(config)
    if listening is not None:
        how = {name: model.runner.describe() for name, model in models.items()}
        how |= {name: model.describe() for name, model in talkers.items()}
        server.started_call = lambda: listening(url, {name: how[name] for name in opened})
    # Uvicorn sends a signal that it stopped for once more.
    with contextlib.suppress(KeyboardInterrupt), listener:
        server.run(sockets=[listener])


def make_app(
    models: Mapping[str, ServedModel], talkers: Mapping[str, ChatModel], options: ServeOptions
) -> Starlette:
    """Return the application that answers for models of tensors and for models of language."""
    runners = [*(model.runner for model in models.values()), *talkers.values()]

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        for runner in runners:
            await runner.start()
        yield
        for runner in runners:
            await runner.stop()

    most_bytes = max([LEAST_BODY_BYTES, *(_body_bytes(model) for model in models.values())])
    app = Starlette(
        routes=[*inference_routes(models), *chat_routes(talkers)],
        middleware=guards(options.key, most_bytes),
        lifespan=lifespan,
    )
    answer_errors(app)
    return app


def _served(name: str, bundle: Bundle, options: ServeOptions) -> ServedModel:
    if bundle.manifest.states:
        return ServedModel(name, bundle, Streams(bundle, options.threads, options.sessions))
    batcher = Batcher(
        bundle,
        options.threads,
        options.sessions,
        options.batch_wait_seconds,
        options.most_waiting,
    )
    return ServedModel(name, bundle, batcher)


def _talker(name: str, bundle: Bundle, options: ServeOptions) -> ChatModel:
    return ChatModel(
        name,
        bundle,
        options.threads,
        options.sessions,
        options.most_waiting,
        options.speculate,
    )


def _body_bytes(model: ServedModel) -> int:
    """Return what the longest request may take, as JSON."""
    return max(
        JSON_FACTOR * sum(map(_size_bytes, signature.inputs)) + LEAST_BODY_BYTES
        for signature in model.bundle.manifest.signatures.values()
    )


def _size_bytes(spec: TensorSpec) -> int:
    extents = (extent or 0 for extent in spec.shape)
    return math.prod(extents) * np.dtype(spec.dtype).itemsize
