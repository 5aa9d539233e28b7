"""Who is served: nobody who does not know the board's secret, also on loopback."""

import contextlib
import ctypes
import os
import platform
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgec.compiler.boards import rpc
from edgec.compiler.boards.artifacts import SERVER, server_artifacts
from edgec.compiler.boards.config import Board, Link
from edgec.compiler.boards.secret import authenticate, keep_secret, new_secret
from edgec.compiler.codegen.link import link_shared
from edgec.compiler.errors import BoardError
from edgec.compiler.support.progress import Silent
from edgec.targets import load_target

MAGIC = (0xFF271).to_bytes(4, "little")
CLIENT = b"client:"


@dataclass(frozen=True)
class Served:
    """A server of this machine's own architecture, and the board that it is."""

    program: Path
    folder: Path
    board: Board
    pid: int

    @property
    def port(self) -> int:
        assert self.board.link is not None
        return self.board.link.port


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    program = server_artifacts(platform.machine(), Silent(), 1, 2) / SERVER
    program.chmod(0o755)
    secret = folder / "secret"
    keep_secret(secret, new_secret())
    command = [program, "127.0.0.1", "0", folder / "files", "--secret", secret]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    port = int(server.stdout.readline().split()[-1])
    link = Link(port=port, secret=str(secret))
    yield Served(program, folder, Board(name="own", target="x86-64", link=link), server.pid)
    server.kill()
    server.wait()
    server.stdout.close()


def answers(port: int, *messages: bytes) -> bytes:
    """What a server says to some messages before it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        heard = b""
        with contextlib.suppress(ConnectionError):
            for message in messages:
                connection.sendall(message)
            while part := connection.recv(4096):
                heard += part
        return heard


def greeting(key: bytes) -> bytes:
    """How TVM's own client begins."""
    return MAGIC + len(key).to_bytes(4, "little") + key


def other(board: Board, **changes: object) -> Board:
    assert board.link is not None
    return board.model_copy(update={"link": board.link.model_copy(update=changes)})


def open_and_leave(board: Board) -> None:
    with rpc.open_board_session(board):
        pass


def test_who_knows_the_secret_is_served(served: Served) -> None:
    with rpc.open_board_session(served.board) as session:
        assert session.capabilities().architecture == platform.machine()


@pytest.mark.parametrize(
    "messages",
    [
        [greeting(CLIENT)],
        [greeting(CLIENT + b" -timeout=1") + bytes(100)],
        [b"edgec-2\n" + bytes(32)],
        [b"GET / HTTP/1.1\r\n\r\n" + bytes(40)],
    ],
)
def test_others_hear_nothing(served: Served, messages: list[bytes]) -> None:
    assert answers(served.port, *messages) == b""


def test_a_guess_is_not_served(served: Served, tmp_path: Path) -> None:
    assert len(answers(served.port, b"edgec-1\n" + bytes(32), bytes(32), greeting(CLIENT))) == 64
    keep_secret(tmp_path / "other", new_secret())
    with pytest.raises(BoardError, match="does not know this board's secret"):
        open_and_leave(other(served.board, secret=str(tmp_path / "other")))
    with pytest.raises(BoardError, match=r"its secret cannot be read: .*; --secret FILE"):
        open_and_leave(other(served.board, secret=str(tmp_path / "none")))


def test_what_was_heard_once_does_not_help(served: Served) -> None:
    """A recorded conversation, played again."""
    assert served.board.link is not None
    secret = Path(served.board.link.secret).read_bytes().strip()
    with socket.create_server(("127.0.0.1", 0)) as middle:
        client = socket.create_connection(middle.getsockname())
        near, _ = middle.accept()
        far = socket.create_connection(("127.0.0.1", served.port))
        thread = threading.Thread(target=authenticate, args=(client, secret, 10.0))
        thread.start()
        hello = near.recv(40)
        far.sendall(hello)
        near.sendall(far.recv(64, socket.MSG_WAITALL))
        code = near.recv(32)
        thread.join()
        for each in (client, near, far):
            each.close()
    assert len(answers(served.port, hello, code, greeting(CLIENT))) == 64


def test_an_impostor_learns_nothing(served: Served) -> None:
    """Who took the port while the server was down gets a random number, and no code."""
    with socket.create_server(("127.0.0.1", 0)) as impostor:
        client = socket.create_connection(impostor.getsockname())
        near, _ = impostor.accept()
        near.sendall(bytes(64))
        with client, pytest.raises(BoardError, match="does not know this board's secret"):
            authenticate(client, b"x" * 64, 10.0)
        heard = b""
        while part := near.recv(100):
            heard += part
        near.close()
    assert len(heard) == 40
    assert heard.startswith(b"edgec-1\n")


SECOND_USER = """
import socket, sys
port, secret = int(sys.argv[1]), sys.argv[2]
try:
    open(secret)
except PermissionError:
    print("no secret")
for first in (bytes.fromhex(sys.argv[3]), b"edgec-1\\n" + bytes(32)):
    with socket.create_connection(("127.0.0.1", port)) as server:
        heard = []
        try:
            server.sendall(first)
            heard.append(len(server.recv(64, socket.MSG_WAITALL)))
            server.sendall(bytes(32) + bytes.fromhex(sys.argv[3]))
            heard.append(len(server.recv(64)))
        except ConnectionError:
            pass
        print(sum(heard))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_of_the_machine(served: Served) -> None:
    """It can connect to loopback, and gets no further; it cannot read the secret or the store."""
    assert served.board.link is not None
    done = subprocess.run(
        # Not this environment's Python: another user may not read where it is.
        ["/usr/bin/env", "python3", "-c", SECOND_USER, str(served.port), served.board.link.secret,
         greeting(CLIENT).hex()],
        user=65534, group=65534, extra_groups=[], cwd="/",
        env={"PATH": f"{Path(sys.base_prefix)}/bin:/usr/bin:/bin"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "no secret\n0\n64\n", done.stderr
    assert (served.folder / "files").stat().st_mode & 0o077 == 0


WRITES = """
#include <fcntl.h>
__attribute__((constructor)) static void run(void) {
  open("%s", O_CREAT | O_WRONLY, 0600);
}
"""


def test_what_a_session_gives_up(served: Served, tmp_path: Path) -> None:
    source, library, trace = tmp_path / "evil.c", tmp_path / "evil.so", tmp_path / "trace"
    source.write_text(WRITES % trace)
    link_shared([source], library, load_target("native"), checked=False)
    with rpc.open_board_session(served.board) as session:
        children = Path(f"/proc/{served.pid}/task/{served.pid}/children").read_text().split()
        (child,) = children
        status = dict(
            line.split(":\t", 1)
            for line in Path(f"/proc/{child}/status").read_text().splitlines()
            if ":\t" in line
        )
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
        assert status["NoNewPrivs"] == "1"
        limits = Path(f"/proc/{child}/limits").read_text()
        assert "Max core file size        0 " in limits
        assert "Max data size             unlimited" not in limits
        session.push(library, "evil.so")
        with session.step("load", 30), contextlib.suppress(RuntimeError):
            session.load_module("evil.so")
    if landlock_version() >= 2:
        assert not trace.exists()


def landlock_version() -> int:
    """Return that of the kernel; 0 or less where there is none."""
    return int(ctypes.CDLL(None).syscall(444, None, 0, 1))


@pytest.mark.parametrize(
    ("text", "mode"), [(None, 0), ("short\n", 0o600), ("x" * 64, 0o644), ("x" * 64, 0o640)]
)
def test_a_server_wants_a_good_secret(
    served: Served, tmp_path: Path, text: str | None, mode: int
) -> None:
    words = []
    if text is not None:
        (tmp_path / "secret").write_text(text)
        (tmp_path / "secret").chmod(mode)
        words = ["--secret", str(tmp_path / "secret")]
    command = [served.program, "127.0.0.1", "0", tmp_path / "files", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    assert done.returncode == 2
    assert "a file of at least 32 letters that only its owner can read" in done.stderr


def test_listeners_are_on_loopback(served: Served) -> None:
    for line in Path(f"/proc/{served.pid}/net/tcp").read_text().splitlines()[1:]:
        local, state = line.split()[1], line.split()[3]
        if state == "0A" and int(local.split(":")[1], 16) == served.port:
            assert local.startswith("0100007F:")
