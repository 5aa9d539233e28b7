"""Provide a way to a board that can be cut: TVM's client knows no time limits.

TVM connects to the relay, the relay to the board (perhaps through a tracker or ssh). When a
step's time is over the relay ends, which makes the call that waits in TVM fail at once.
"""

import contextlib
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tvm.rpc import base

from edgec.compiler.boards import forward
from edgec.compiler.boards.config import LOOPBACK, Board, Link
from edgec.compiler.boards.secret import authenticate, read_secret
from edgec.compiler.boards.ssh import CONNECT_SECONDS, Tunnel
from edgec.compiler.errors import BoardError

TRACKER_SECONDS = 20.0
# A tracker or proxy may have been started just before.
REGISTRY_SECONDS = 10.0
_POLL_SECONDS = 0.2


class Relay:
    """Forwards one connection from a loopback port to a socket, in a process of its own.

    Attributes:
        port: where TVM's client is to connect to, on loopback.
    """

    def __init__(self, board: socket.socket, tunnel: Tunnel | None) -> None:
        self._tunnel = tunnel
        with board, socket.create_server((LOOPBACK[0], 0)) as listener:
            self.port = int(listener.getsockname()[1])
            descriptors = (listener.fileno(), board.fileno())
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(Path(forward.__file__)), *map(str, descriptors)],
                stdin=subprocess.PIPE,
                pass_fds=descriptors,
                # Ctrl-C is for the client, which then closes the relay.
                start_new_session=True,
            )

    def limit(self, seconds: float) -> None:
        """Break the connection after so many seconds from now; 0: no longer."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(f"{seconds}\n".encode())
            self._process.stdin.flush()

    def expired(self) -> bool:
        """Return whether the time was over."""
        try:
            return self._process.wait(1) == -signal.SIGALRM
        except subprocess.TimeoutExpired:
            return False

    def tunnel_failure(self) -> str | None:
        """Return why the tunnel ended, if there is one and it failed."""
        return None if self._tunnel is None else self._tunnel.failure()

    def close(self) -> None:
        """Break the connection, and end the tunnel."""
        self._process.kill()
        self._process.wait()
        if self._tunnel is not None:
            self._tunnel.close()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()


def open_relay(board: Board, seconds: float) -> tuple[Relay, str]:
    """Connect to a board, and make sure that it is the one whose secret we know.

    Args:
        board: one with a link.
        seconds: how long its server may take to answer; it serves one client after the other.

    Returns:
        The relay, and the key that the server expects of its client.

    Raises:
        BoardError: what did not work; the caller adds the board's name.
        ToolchainError: there is no ssh for a tunnel.
    """
    link = board.link
    assert link is not None
    if link.via == "ssh":
        return _through_ssh(board, link, seconds), link.key
    host, port, key = link.host, link.port, link.key
    if link.via == "tracker":
        host, port, key = _ask_tracker(link)
    server = _connect(host, port)
    try:
        # A proxy stands between and speaks TVM's protocol only: there the key has to do.
        if link.via != "proxy":
            authenticate(server, read_secret(board), seconds)
        return Relay(server, None), key
    except BaseException:
        server.close()
        raise


def _connect(host: str, port: int) -> socket.socket:
    try:
        board = socket.create_connection((host, port), CONNECT_SECONDS)
    except OSError as error:
        reason = "no answer" if isinstance(error, TimeoutError) else error.strerror or error
        raise BoardError(f"cannot connect to {host}:{port}: {reason}") from None
    board.settimeout(None)
    board.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return board


def check_registry(link: Link) -> None:
    """Make sure that the tracker or proxy that a board is to report to answers.

    One that was started a moment ago gets some seconds to come up.

    Raises:
        BoardError: nothing listens there, or something else does.
    """
    deadline = time.monotonic() + REGISTRY_SECONDS
    while True:
        try:
            with _connect(link.host, link.port) as registry:
                # A proxy says nothing to who has no key: that it listens has to do.
                if link.via == "tracker":
                    registry.settimeout(TRACKER_SECONDS)
                    _greet_tracker(registry, link)
            return
        except (BoardError, OSError) as error:
            if time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
                continue
            raise BoardError(
                f"no {link.via} answers at {link.host}:{link.port} ({error}); start one first: "
                f"python -m tvm.exec.rpc_{link.via}"
            ) from None


def count_boards(board: Board) -> int:
    """Return how many boards a name stands for: those that a tracker knows by its key, else one.

    Raises:
        BoardError: the tracker cannot be reached, or knows none.
    """
    link = board.link
    if link is None or link.via != "tracker":
        return 1
    with _connect(link.host, link.port) as tracker:
        tracker.settimeout(TRACKER_SECONDS)
        try:
            _greet_tracker(tracker, link)
            base.sendjson(tracker, [base.TrackerCode.SUMMARY])
            code, answer = base.recvjson(tracker)
            servers = answer["server_info"] if code == base.TrackerCode.SUCCESS else []
        except (OSError, ValueError, KeyError) as error:
            raise BoardError(f"the tracker at {link.host}:{link.port} broke off: {error}") from None
    count = sum(server["key"] == f"server:{link.key}" for server in servers)
    if not count:
        raise BoardError(
            f"the tracker at {link.host}:{link.port} knows no board with key {link.key}"
        )
    return count


def _greet_tracker(tracker: socket.socket, link: Link) -> None:
    magic = base.RPC_TRACKER_MAGIC.to_bytes(4, "little")
    tracker.sendall(magic)
    if base.recvall(tracker, 4) != magic:
        raise BoardError(f"{link.host}:{link.port} is no RPC tracker")


def _ask_tracker(link: Link) -> tuple[str, int, str]:
    """Return host, port and match key of a free board that the tracker knows by our key."""
    with _connect(link.host, link.port) as tracker:
        # The tracker answers a request when such a board becomes free, not before.
        tracker.settimeout(TRACKER_SECONDS)
        try:
            _greet_tracker(tracker, link)
            base.sendjson(tracker, [base.TrackerCode.REQUEST, link.key, "", 1])
            code, answer = base.recvjson(tracker)
        except TimeoutError:
            raise BoardError(
                f"the tracker at {link.host}:{link.port} has no free board with key {link.key} "
                f"(waited {TRACKER_SECONDS:.0f} s)"
            ) from None
        except (OSError, ValueError) as error:
            raise BoardError(f"the tracker at {link.host}:{link.port} broke off: {error}") from None
    if code != base.TrackerCode.SUCCESS:
        raise BoardError(f"the tracker at {link.host}:{link.port} refused: {answer}")
    host, port, key = answer
    return str(host), int(port), str(key)


def _through_ssh(board: Board, link: Link, seconds: float) -> Relay:
    near, far = socket.socketpair()
    with near:
        with far:
            tunnel = Tunnel(link, far)
        try:
            authenticate(near, read_secret(board), seconds)
            return Relay(near, tunnel)
        except BoardError as error:
            # If ssh failed, that is why.
            reason = tunnel.failure() or str(error)
            tunnel.close()
            raise BoardError(reason) from None
        except BaseException:
            tunnel.close()
            raise
