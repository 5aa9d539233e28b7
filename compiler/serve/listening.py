"""Listen on an address, and say when clients can ask."""

import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import uvicorn

from edgec.compiler.errors import BadInputError


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        BadInputError: the address cannot be listened on.
    """
    if not 0 <= port <= 65535:
        raise BadInputError(f"--port is {port}; ports are 0 to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise BadInputError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another --port, 0 takes a "
            "free one"
        ) from None


def check_certificate(chain: Path, key: Path) -> None:
    """Make sure that a server can show a certificate.

    Raises:
        BadInputError: it or its key cannot be read, or they do not belong together.
    """
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(chain, key)
    except OSError as error:
        raise BadInputError(
            f"TLS certificate {chain} with key {key} cannot be used: {error.strerror or error}; "
            "both are PEM files"
        ) from None


def url_of(listener: socket.socket, scheme: str = "http") -> str:
    """Return the URL of a socket that listens."""
    host, port = listener.getsockname()[:2]
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


class AnnouncedServer(uvicorn.Server):
    """An announced server is one of uvicorn that says when it listens."""

    started_call: Callable[[], None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        if self.started and self.started_call is not None:
            self.started_call()
