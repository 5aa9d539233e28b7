"""Put the server on a real board over ssh, start and stop it there, and take it away again.

What happens on the board is in server/board.sh; nothing is installed system-wide.
"""

import hashlib
import io
import re
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_state_path

from edgec.compiler.boards.artifacts import SERVER, SERVER_GLIBC, server_artifacts
from edgec.compiler.boards.capabilities import SPARE_DISK_BYTES, version_of
from edgec.compiler.boards.config import Board, Link, why_no_server
from edgec.compiler.boards.rpc import board_error, open_board_session
from edgec.compiler.boards.secret import keep_secret, secret_file
from edgec.compiler.boards.server import SCRIPT
from edgec.compiler.boards.ssh import by_hand, run_script
from edgec.compiler.errors import BoardConfigError, BoardError, OutputError
from edgec.compiler.support.files import locked
from edgec.compiler.support.progress import Progress
from edgec.targets import load_target

LOOK_SECONDS = 60.0
SEND_SECONDS = 900.0
START_SECONDS = 30.0
_RETRY_SECONDS = 0.5


@dataclass(frozen=True)
class SetupReport:
    """A setup report describes what `setup_board` did.

    Attributes:
        changed: whether anything was sent or started; else the board was set up already.
        sent_bytes: the size of the files that the board lacked.
        service: whether systemd runs the server.
        lingers: whether systemd's services of this user outlive the login; None without service.
    """

    changed: bool
    sent_bytes: int
    service: bool
    lingers: bool | None


@dataclass(frozen=True)
class _Seen:
    """This is what the script reported: values by name, and the SHA-256 of each file."""

    values: dict[str, str]
    files: dict[str, str]


def setup_board(board: Board, progress: Progress, service: bool = False) -> SetupReport:
    """Bring the server to a board and start it; what is there already is left alone.

    Args:
        board: one that is reached through ssh.
        progress: reports each step.
        service: let systemd start the server, also when the board does.

    Raises:
        BoardConfigError: the board is not reached through ssh, or is not what its target says.
        BoardError: the board cannot be reached, lacks something, or failed.
        ToolchainError: there is no ssh, or a part cannot be fetched or compiled.
    """
    link = _link(board)
    problem = why_no_server(load_target(board.target))
    if problem:
        raise BoardConfigError(f"board {board.name} of target {board.target}: {problem}")
    with _alone(board):
        lingers = None
        with progress.step(1, 5, "look at the board"):
            seen = _act(board, "look at the board", "look")
            _check(board, seen)
            if service or "service" in seen.values:
                answer = _act(board, "ask systemd", "check_service")
                lingers = answer.values.get("lingers") == "yes"
        folder = server_artifacts(seen.values["architecture"], progress, first_step=2, steps=5)
        sums = {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(folder.iterdir())
        }
        digest = hashlib.sha256(repr(sums).encode()).hexdigest()[:12]
        sent = 0
        if any(seen.files.get(f"server-{digest}/{name}") != sums[name] for name in sums):
            with progress.step(4, 5, "send"):
                sent = _send(board, seen, folder, sums, digest)
        with progress.step(5, 5, "start"):
            _fetch_secret(board)
            arguments = [digest, str(link.port), link.key, *(["service"] if service else [])]
            answer = _act(board, "start the server", "start", *arguments)
            _wait_until_answers(board)
    return SetupReport("started" in answer.values, sent, lingers is not None, lingers)


def start_server(board: Board) -> bool:
    """Start the server of a board that is set up; whether it was not running.

    Raises:
        BoardConfigError: the board is not reached through ssh.
        BoardError: it cannot be reached, is not set up, or failed.
        ToolchainError: there is no ssh.
    """
    link = _link(board)
    with _alone(board):
        seen = _act(board, "look at the board", "look")
        digests = [path.split("/")[0][len("server-") :] for path in seen.files if SERVER in path]
        if not digests:
            raise board_error(board, f"it is not set up: edgec board setup {board.name}")
        _fetch_secret(board)
        answer = _act(board, "start the server", "start", digests[0], str(link.port), link.key)
        _wait_until_answers(board)
    return "started" in answer.values


def stop_server(board: Board) -> bool:
    """Stop a board's server and its session; whether it was running.

    Raises:
        BoardConfigError: the board is not reached through ssh.
        BoardError: it cannot be reached, or failed.
        ToolchainError: there is no ssh.
    """
    with _alone(board):
        return "stopped" in _act(board, "stop the server", "stop").values


def clean_board(board: Board) -> None:
    """Stop a board's server and remove all that edgec put there.

    Raises:
        BoardConfigError: the board is not reached through ssh.
        BoardError: it cannot be reached, or failed.
        ToolchainError: there is no ssh.
    """
    with _alone(board):
        _act(board, "clean the board", "clean")
        secret_file(board.name, board.link).unlink(missing_ok=True)


def how_to_linger(board: Board) -> str:
    """Return what a person types so that the user's services outlive the login."""
    return by_hand(_link(board), "'sudo loginctl enable-linger $USER'")


def _link(board: Board) -> Link:
    if board.link is None or board.link.via != "ssh":
        raise BoardConfigError(
            f"board {board.name} is not reached through ssh; add it with --ssh USER@HOST, or "
            "start and stop its server there"
        )
    return board.link


@contextmanager
def _alone(board: Board) -> Iterator[None]:
    """Let only one of this user's processes at a time change a board."""
    folder = user_state_path("edgec") / "boards"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / f"{board.name}.lock"):
            yield
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from None


def _act(
    board: Board,
    title: str,
    *words: str,
    seconds: float = LOOK_SECONDS,
    data: bytes = b"",
) -> _Seen:
    """Run one action of the script."""
    try:
        text = run_script(_link(board), SCRIPT.read_text(), words, seconds, data)
    except BoardError as error:
        raise board_error(board, f"{title}: {error}") from None
    reported = re.findall(r"^edgec:(\w+)=(.*)$", text, re.MULTILINE)
    files = dict(reversed(value.split(maxsplit=1)) for name, value in reported if name == "file")
    return _Seen(dict(reported), files)


def _fetch_secret(board: Board) -> None:
    """Keep here what the board's server asks of its clients; the board made it up."""
    secret = _act(board, "ask for its secret", "secret").values.get("secret", "")
    if not re.fullmatch(r"[0-9a-f]{64}", secret):
        raise board_error(board, "ask for its secret: it has none; is its /dev/urandom there?")
    keep_secret(secret_file(board.name, board.link), secret)


def _check(board: Board, seen: _Seen) -> None:
    """Refuse a machine that the server cannot run on."""
    architecture = seen.values.get("architecture", "unknown")
    expected = load_target(board.target).architecture
    if architecture != expected:
        raise BoardConfigError(
            f"board {board.name} is {architecture}, its target {board.target} is {expected}; "
            f"remove the board and add it with a target that fits"
        )
    if seen.values.get("bits") == "32":
        raise board_error(
            board,
            f"its kernel is {architecture}, but its programs are 32-bit; install a 64-bit system, "
            "or use edgec compile --runner with a 32-bit target",
        )
    name, _, version = seen.values.get("libc", "").partition(" ")
    if name != "glibc":
        raise board_error(board, f"its C library is not glibc; {SERVER_GLIBC} or newer is needed")
    if version_of(version) < version_of(SERVER_GLIBC):
        raise board_error(board, f"its glibc is {version}; {SERVER_GLIBC} or newer is needed")


def _send(board: Board, seen: _Seen, folder: Path, sums: dict[str, str], digest: str) -> int:
    """Send what the board lacks of a server; how many bytes."""
    paths = {found: path for path, found in seen.files.items()}
    same = {name: paths[value] for name, value in sums.items() if value in paths}
    size = sum((folder / name).stat().st_size for name in sums if name not in same)
    blocks, _, block_size = seen.values.get("disk", "").partition(" ")
    if not (blocks.isdigit() and block_size.isdigit()):
        raise board_error(board, "its stat -f does not tell how much disk space is free")
    free = int(blocks) * int(block_size)
    if free < size + SPARE_DISK_BYTES:
        raise board_error(
            board,
            f"it has {free / 1e6:.1f} MB of free disk space, the server needs "
            f"{(size + SPARE_DISK_BYTES) / 1e6:.1f} MB",
        )
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        listed = "".join(f"{value}  {name}\n" for name, value in sums.items()).encode()
        _add(tar, "SHA256SUMS", listed)
        for name in sums:
            if name not in same:
                _add(tar, name, (folder / name).read_bytes())
    words = [word for name, path in same.items() for word in (path, name)]
    _act(board, "send", "install", digest, *words, seconds=SEND_SECONDS, data=archive.getvalue())
    return size


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    member.mode = 0o700 if name == SERVER else 0o600
    tar.addfile(member, io.BytesIO(data))


def _wait_until_answers(board: Board) -> None:
    """Ask the server what it is, until it answers or its time is over."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with open_board_session(board) as session:
                session.capabilities()
            return
        except BoardError:
            if time.monotonic() > deadline:
                raise
        time.sleep(_RETRY_SECONDS)
