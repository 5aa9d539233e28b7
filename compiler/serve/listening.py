"""Listen on an address, and say when clients can ask."""

import ipaddress
import socket
from collections.abc import Callable

import uvicorn

from edgec.compiler.errors import BadInputError


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address.

    >>> is_loopback("127.0.0.1"), is_loopback("0.0.0.0")
    (True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        BadInputError: the address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise BadInputError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another --port, 0 takes a "
            "free one"
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
