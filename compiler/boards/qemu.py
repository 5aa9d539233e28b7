"""Provide QEMU boards: start the server of a CPU model under QEMU, find it again, stop it.

A board runs on in the background. What is known of it is in one folder of the user's state
folder: the process and when it began (so that a number used again is not taken for it), the
port, a log, and the files that were sent to it.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_state_path

from edgec.compiler.boards.artifacts import SERVER, QemuArtifacts, emulation, qemu_artifacts
from edgec.compiler.boards.config import (
    LOOPBACK,
    QEMU_PREFIX,
    Board,
    Link,
    configured_boards,
    emulated_target,
    qemu_board_names,
    unknown_board,
)
from edgec.compiler.boards.secret import keep_secret, new_secret, secret_file
from edgec.compiler.bundle.manifest import LIBRARY
from edgec.compiler.codegen.elf import llvm_features, why_not_on
from edgec.compiler.errors import BoardConfigError, BoardError, OutputError
from edgec.compiler.support.files import locked, write_atomically
from edgec.compiler.support.progress import Progress
from edgec.targets import load_target

START_SECONDS = 60.0
STOP_SECONDS = 5.0
_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class _Running:
    """A running server is a process; `began` is its start in clock ticks since the system's."""

    pid: int
    began: int
    link: Link


def find_board(name: str) -> Board:
    """Return a board by its name; a QEMU board has a link if it is running.

    Raises:
        BoardConfigError: no board has this name.
    """
    if name in qemu_board_names():
        running = _running(name)
        return Board(
            name=name,
            target=name.removeprefix(QEMU_PREFIX),
            link=running.link if running else None,
            emulated=True,
        )
    boards = configured_boards()
    if name not in boards:
        raise unknown_board(name, boards)
    return boards[name]


def all_boards() -> list[Board]:
    """Return every board that has a name."""
    return [*configured_boards().values(), *map(find_board, qemu_board_names())]


def start_board(name: str, progress: Progress, register: Link | None = None) -> Board:
    """Start a QEMU board, or find it running.

    Args:
        name: one of `qemu_board_names()`.
        progress: reports what is set up the first time.
        register: tracker or proxy that the board reports to; else it waits for clients itself.

    Raises:
        BoardConfigError: no QEMU board has this name, or it runs with another link.
        BoardError: it does not come up, or its tracker or proxy does not answer.
        ToolchainError: what it needs cannot be fetched.
    """
    board = find_board(name)
    if not board.is_qemu:
        raise BoardConfigError(f"board {name} is no QEMU board: it is started by itself")
    if register is not None:
        # Imported here: it loads TVM.
        from edgec.compiler.boards.relay import check_registry

        check_registry(register)
    target = load_target(board.target)
    parts = qemu_artifacts(target, progress)
    folder = _folder(name)
    try:
        (folder / "files").mkdir(parents=True, exist_ok=True)
        with locked(folder / "lock"):
            running = _running(name)
            if running is None:
                running = _start(name, parts, register)
            elif register is not None and running.link != register:
                raise BoardConfigError(
                    f"board {name} is running at {running.link}; stop it first: "
                    f"edgec board stop {name}"
                )
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from None
    return board.model_copy(update={"link": running.link})


def stop_board(name: str) -> bool:
    """Stop a QEMU board and its sessions; whether it was running.

    Raises:
        BoardConfigError: no QEMU board has this name.
    """
    if not find_board(name).is_qemu:
        raise BoardConfigError(f"board {name} is no QEMU board: stop it on the board itself")
    folder = _folder(name)
    if not folder.is_dir():
        return False
    with locked(folder / "lock"):
        running = _running(name)
        if running is not None:
            _end(running.pid, running.began)
        (folder / "state.json").unlink(missing_ok=True)
        (folder / "secret").unlink(missing_ok=True)
        shutil.rmtree(folder / "files" / "session", ignore_errors=True)
    return running is not None


def execute_program(name: str, program: Path, arguments: Sequence[str], progress: Progress) -> int:
    """Run a program under QEMU; its exit code, as a shell gives it.

    Args:
        name: the name of a QEMU board, or of a target that QEMU plays and TVM has no runtime for.
        program: built for that target.
        arguments: the arguments of the program.
        progress: reports what is set up the first time.

    Raises:
        BoardConfigError: QEMU does not play this board, or the program is not for it.
        ToolchainError: what it needs cannot be fetched.
    """
    target = emulated_target(name)
    if target is None:
        if name in configured_boards():
            raise BoardConfigError(
                f"board {name} is no QEMU board: run programs on the board itself"
            )
        raise unknown_board(name, configured_boards())
    problem = why_not_on(program, target, llvm_features(target), beside=(LIBRARY,))
    if problem:
        raise BoardConfigError(f"{program} does not run on board {name}: {problem}")
    command = [*emulation(target, progress).command, str(program), *arguments]
    code = subprocess.run(command, check=False).returncode
    return code if code >= 0 else 128 - code


def _folder(name: str) -> Path:
    return user_state_path("edgec") / "boards" / name


def _running(name: str) -> _Running | None:
    """Return the server, if the state file says that there is one and it lives."""
    try:
        fields = json.loads((_folder(name) / "state.json").read_bytes())
        state = _Running(int(fields["pid"]), int(fields["began"]), Link(**fields["link"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return state if _began(state.pid) == state.began else None


def _began(pid: int) -> int | None:
    """Return when a process began, None if it is gone or only waits to be collected."""
    try:
        # The name before it may hold spaces and parentheses.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _start(name: str, parts: QemuArtifacts, register: Link | None) -> _Running:
    folder = _folder(name)
    log = folder / "log"
    options = []
    if register is not None:
        options = ["--key", register.key, f"--{register.via}", f"{register.host}:{register.port}"]
    secret = folder / "secret" if register is None else secret_file(name, register)
    if register is None or not secret.is_file():
        keep_secret(secret, new_secret())
    command = [
        *parts.emulation.command,
        *("-E", f"LD_LIBRARY_PATH={parts.server}:{parts.emulation.libraries}"),
        *(str(parts.server / SERVER), LOOPBACK[0], "0", str(folder / "files"), *options),
        *("--secret", str(secret)),
    ]
    # QEMU needs the execute bit of what it runs on some systems.
    (parts.server / SERVER).chmod(0o755)
    log.unlink(missing_ok=True)
    # It outlives this process: not a child that Python wants to be waited for.
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    pid = os.posix_spawn(command[0], command, os.environ, file_actions=actions, setsid=True)
    try:
        link = _wait_until_ready(pid, name, log, register)
        if register is None:
            link = link.model_copy(update={"secret": str(secret)})
        began = _began(pid)
        if began is None:
            raise _died(name, log)
        running = _Running(pid, began, link)
        state = {"pid": running.pid, "began": began, "link": link.model_dump()}
        write_atomically(folder / "state.json", json.dumps(state))
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        _collect(pid)
        raise
    return running


def _wait_until_ready(pid: int, name: str, log: Path, register: Link | None) -> Link:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        text = log.read_text(errors="replace") if log.exists() else ""
        if register is not None and re.search(r"^(listening|connecting)", text, re.MULTILINE):
            return register
        if match := re.search(r"^listening on (\d+)$", text, re.MULTILINE):
            return Link(port=int(match.group(1)))
        if _began(pid) is None:
            raise _died(name, log)
        time.sleep(_POLL_SECONDS)
    raise BoardError(f"board {name} did not come up in {START_SECONDS:.0f} s; see {log}")


def _died(name: str, log: Path) -> BoardError:
    lines = log.read_text(errors="replace").strip().splitlines() or ["it wrote nothing"]
    return BoardError(f"board {name} ended while it started: {lines[-1]}; see {log}")


def _end(pid: int, began: int) -> None:
    """End a process group: ask first, then kill."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, number)
        deadline = time.monotonic() + STOP_SECONDS
        while _began(pid) == began and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        if _began(pid) != began:
            break
    _collect(pid)


def _collect(pid: int) -> None:
    """Let go of a process that ended, if it is a child of this very one."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
