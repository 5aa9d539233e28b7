"""Start a stage on a board that has a name: its bundle is sent over ssh, and served there.

What happens on the board is in boards/server/board.sh. The stage is attached to the ssh connection
that started it: when that ends, however, so does the stage. Values do not pass through ssh: host
and stages connect with each other, and need a key.
"""

import hashlib
import tarfile
import tempfile
from pathlib import Path

from edgec.compiler.boards.capabilities import check_target
from edgec.compiler.boards.config import Board, Link
from edgec.compiler.boards.qemu import find_board
from edgec.compiler.boards.server import SCRIPT
from edgec.compiler.boards.ssh import run_script, script_command
from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.bundle.manifest import MANIFEST, RUNNER
from edgec.compiler.distribute.stage_process import AttachedStage, check_serves
from edgec.compiler.errors import BoardConfigError, BoardError
from edgec.compiler.support.progress import Progress
from edgec.compiler.trust.signature import SIGNATURE
from edgec.targets import load_target

SEND_SECONDS = 900.0
_MISSING = "edgec:missing="


class _MissingError(BoardError):
    """The board does not have the bundle."""


class BoardStage(AttachedStage):
    """A board stage is an ssh connection to a board that serves one bundle as long as it lasts."""

    end_seconds = 5.0

    def __init__(
        self, bundle: Bundle, board: Board, *, threads: int, slots: int, key_file: Path
    ) -> None:
        """Start a bundle that the board has; see `start_on_board`.

        Raises:
            BoardError: the stage does not start; _MissingError: the board lacks the bundle.
        """
        self._board = board
        link = link_of(board)
        words = ["serve_stage", bundle.path.name, _digest(bundle)]
        words += ["--threads", str(threads), "--slots", str(slots)]
        key = key_file.read_text("ascii").strip() + "\n"
        super().__init__(
            bundle.path.name, script_command(link, SCRIPT.read_text(), words), first_line=key
        )

    def _not_started(self, said: str) -> BoardError:
        if _MISSING in said:
            return _MissingError("missing")
        where = f"board {self._board.name} ({self._board.link})"
        return BoardError(f"{where}: stage {self._name} does not start: {self.last_words()}")


def link_of(board: Board) -> Link:
    """Return how ssh reaches a board.

    Raises:
        BoardConfigError: by something else.
    """
    if board.link is None or board.link.via != "ssh":
        raise BoardConfigError(
            f"board {board.name} is not reached through ssh; start its stage there and say where: "
            "--device NAME=HOST:PORT"
        )
    return board.link


def board_for(bundle: Bundle, name: str) -> Board:
    """Return a board that can serve a bundle.

    Raises:
        BoardConfigError: there is no such board, or no ssh leads there and it is none of QEMU's.
        BundleError: the bundle is for another machine, or has no runner.
    """
    board = find_board(name)
    if not board.is_qemu:
        link_of(board)
    check_target(bundle.manifest, load_target(board.target))
    check_serves(bundle)
    return board


def start_on_board(
    bundle: Bundle, board: Board, *, threads: int, slots: int, key_file: Path, progress: Progress
) -> BoardStage:
    """Start the stage of a bundle on a board; the bundle is sent first if it is not there.

    Args:
        bundle: see `board_for`.
        board: reached through ssh.
        threads: to compute on.
        slots: requests that it has memory for.
        key_file: what host and stages share.
        progress: reports what is sent.

    Raises:
        BoardError: the board cannot be reached, or the stage does not start.
        ToolchainError: there is no ssh.
    """
    try:
        return BoardStage(bundle, board, threads=threads, slots=slots, key_file=key_file)
    except _MissingError:
        with progress.step(1, 1, f"send {bundle.path.name} to {board.name}"):
            _send(bundle, board)
    try:
        return BoardStage(bundle, board, threads=threads, slots=slots, key_file=key_file)
    except _MissingError:
        raise BoardError(
            f"board {board.name} ({board.link}): bundle {bundle.path.name} was sent and is gone"
        ) from None


def _digest(bundle: Bundle) -> str:
    """Return what tells versions of a bundle apart: its manifest has the digests of its files."""
    signature = bundle.file("") / SIGNATURE
    data = bundle.file(MANIFEST).read_bytes()
    return hashlib.sha256(
        data + (signature.read_bytes() if signature.exists() else b"")
    ).hexdigest()[:16]


def _send(bundle: Bundle, board: Board) -> None:
    def own_mode(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.mode = 0o700 if member.isdir() or member.name == RUNNER else 0o600
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    words = ["install_stage", bundle.path.name, _digest(bundle)]
    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            for path in sorted(bundle.file("").iterdir()):
                tar.add(path, path.name, filter=own_mode)
        file.seek(0)
        try:
            run_script(link_of(board), SCRIPT.read_text(), words, SEND_SECONDS, file)
        except BoardError as error:
            raise BoardError(f"board {board.name} ({board.link}): send: {error}") from None
