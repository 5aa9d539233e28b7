"""Provide a board's secret: client and server show each other that they know it.

TVM's RPC lets whoever connects run any code, and other users of a machine can connect to its
loopback interface. So before TVM's protocol begins there are three messages, and no secret in
them: the client's number; the server's number and code; the client's code. A code is HMAC-SHA256
with the secret over its sender's name and both numbers. server/server.c has the other side.
"""

import hmac
import os
import secrets
import socket
from pathlib import Path

from platformdirs import user_state_path

from edgec.compiler.boards.config import Board, Link
from edgec.compiler.errors import BoardError, OutputError

HELLO = b"edgec-1\n"
NUMBER_BYTES = 32
CODE_BYTES = 32


def secret_file(name: str, link: Link | None) -> Path:
    """Return where this machine keeps a board's secret; boards of one key of a tracker share it."""
    if link is not None and link.secret:
        return Path(link.secret)
    if link is not None and link.via == "tracker":
        name = f"tracker-{link.key}"
    return user_state_path("edgec") / "boards" / f"{name}.secret"


def new_secret() -> str:
    """Return a random one."""
    return secrets.token_hex(32)


def keep_secret(path: Path, secret: str) -> None:
    """Write a file that only this user can read.

    Raises:
        OutputError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(f"{secret}\n")
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from None


def read_secret(board: Board) -> bytes:
    """Return a board's secret.

    Raises:
        BoardError: this machine has none; the caller adds the board's name.
    """
    path = secret_file(board.name, board.link)
    try:
        return path.read_bytes().strip()
    except OSError as error:
        what = "edgec board setup" if board.link and board.link.via == "ssh" else "--secret FILE"
        raise BoardError(f"its secret cannot be read: {path}: {error.strerror}; {what}") from None


def authenticate(server: socket.socket, secret: bytes, seconds: float) -> None:
    """Make sure that a server knows a secret, and show that we do.

    Args:
        server: a connection to it.
        secret: see `read_secret`.
        seconds: how long the server may take for its answer.

    Raises:
        BoardError: it said nothing, or does not know the secret; nothing that helps it was sent.
    """
    ours = secrets.token_bytes(NUMBER_BYTES)
    server.settimeout(seconds)
    try:
        server.sendall(HELLO + ours)
        answer = b""
        while len(answer) < NUMBER_BYTES + CODE_BYTES:
            part = server.recv(NUMBER_BYTES + CODE_BYTES - len(answer))
            if not part:
                raise BoardError("the server closed the connection")
            answer += part
        theirs, code = answer[:NUMBER_BYTES], answer[NUMBER_BYTES:]
        if not hmac.compare_digest(code, _code(secret, b"server", ours, theirs)):
            raise BoardError(
                "what listens there does not know this board's secret: it is another program, or "
                "was set up again from elsewhere"
            )
        server.sendall(_code(secret, b"client", ours, theirs))
    except TimeoutError:
        raise BoardError(f"no answer in {seconds:.0f} s") from None
    except OSError as error:
        raise BoardError(f"the connection broke: {error.strerror or error}") from None
    server.settimeout(None)


def _code(secret: bytes, sender: bytes, ours: bytes, theirs: bytes) -> bytes:
    return hmac.digest(secret, b"edgec " + sender + ours + theirs, "sha256")
