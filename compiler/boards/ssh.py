"""Provide the OpenSSH client: a tunnel to a board's server, and commands on the board.

Keys, jump hosts and the like are in the user's `~/.ssh/config`; nothing here asks a question.
"""

import shlex
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from typing import IO

from edgec.compiler.boards.config import LOOPBACK, Link
from edgec.compiler.errors import BoardError, ToolchainError

CONNECT_SECONDS = 10.0
# How long ssh may take to say why it ends.
_LAST_WORDS_SECONDS = 2.0
# Exit code of ssh for errors of its own.
_SSH_FAILED = 255

# What ssh's server says of a port that nobody listens on.
NOT_LISTENING = "connect failed: Connection refused"

_OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": f"{CONNECT_SECONDS:.0f}",
    "ServerAliveInterval": "15",
    # A master that stays would hold our pipes; one that is there already is used.
    "ControlMaster": "no",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
    "RequestTTY": "no",
    "LogLevel": "INFO",
}


class Tunnel:
    """A tunnel is an ssh process between a socket and a board's server; it opens no port."""

    def __init__(self, link: Link, end: socket.socket) -> None:
        """Start ssh on one end of a socket pair, which the caller closes.

        Raises:
            ToolchainError: there is no ssh.
        """
        self._link = link
        command = _command(link, ["-W", f"{LOOPBACK[0]}:{link.port}"], [])
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - read when the tunnel ends
        try:
            self._process = subprocess.Popen(
                command,
                stdin=end.fileno(),
                stdout=end.fileno(),
                stderr=self._words,
                # Ctrl-C is for the client, which then closes the tunnel.
                start_new_session=True,
            )
        except BaseException:
            self._words.close()
            raise

    def failure(self) -> str | None:
        """Return why ssh ended; None if it still runs, or ended well."""
        try:
            code = self._process.wait(_LAST_WORDS_SECONDS)
        except subprocess.TimeoutExpired:
            return None
        self._words.seek(0)
        return None if code == 0 else _reason(self._link, code, self._words.read())

    def close(self) -> None:
        """End ssh."""
        self._process.kill()
        self._process.wait()
        self._words.close()


def script_command(link: Link, script: str, arguments: Sequence[str]) -> list[str]:
    """Return the command of this machine that runs a shell script on a board.

    Raises:
        ToolchainError: there is no ssh.
    """
    return _command(link, [], [shlex.join(["sh", "-c", script, "edgec", *arguments])])


def run_script(
    link: Link,
    script: str,
    arguments: Sequence[str],
    seconds: float,
    data: bytes | IO[bytes] = b"",
) -> str:
    """Run a shell script on a board: what it prints.

    Args:
        link: one through ssh.
        script: for a POSIX shell; it takes no notice of the user's own shell there.
        arguments: the arguments of the script.
        seconds: how long all of it may take.
        data: what the script reads, or a file of this machine with it.

    Raises:
        BoardError: no connection, or the script failed; the caller adds the board's name.
        ToolchainError: there is no ssh.
    """
    try:
        done = subprocess.run(
            script_command(link, script, arguments),
            input=data if isinstance(data, bytes) else None,
            stdin=None if isinstance(data, bytes) else data,
            capture_output=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BoardError(f"no answer in {seconds:.0f} s") from None
    if done.returncode != 0:
        raise BoardError(_reason(link, done.returncode, done.stderr))
    return done.stdout.decode(errors="replace")


def by_hand(link: Link, command: str = "") -> str:
    """Return what a person types to connect."""
    port = f" -p {link.ssh_port}" if link.ssh_port else ""
    return f"ssh{port} {link.host} {command}".rstrip()


def _command(link: Link, options: Sequence[str], words: Sequence[str]) -> list[str]:
    program = shutil.which("ssh")
    if program is None:
        raise ToolchainError(
            f"ssh is not on PATH, and the board at {link.host} is reached through it; install "
            "the OpenSSH client"
        )
    settings = [f"-o{name}={value}" for name, value in _OPTIONS.items()]
    port = ["-p", str(link.ssh_port)] if link.ssh_port else []
    return [program, *settings, *port, *options, "--", link.host, *words]


def _reason(link: Link, code: int, words: bytes) -> str:
    """Return one line from what ssh, or the script, wrote before it failed."""
    lines = [line.strip() for line in words.decode(errors="replace").splitlines() if line.strip()]
    refused = [line for line in lines if "open failed:" in line]
    if refused:
        what = refused[-1].partition("open failed: ")[2]
        return f"ssh reached {link.host}, but not port {link.port} of its loopback: {what}"
    last = lines[-1].removeprefix("ssh: ") if lines else f"exit code {code}"
    if code != _SSH_FAILED:
        return last
    if "Host key verification failed" in last:
        return f"ssh: {last} Connect once by hand, it says why: {by_hand(link)}"
    if "Permission denied" in last:
        return f"ssh: {last} edgec asks no password: it needs a key that {by_hand(link)} takes"
    return f"ssh: {last}"
