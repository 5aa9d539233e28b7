"""Start the stage of a bundle on this machine: as it is, or under QEMU if it is for another."""

import contextlib
import re
import select
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.bundle.manifest import RUNNER
from edgec.compiler.errors import BoardError, BundleError
from edgec.compiler.runtime.session import why_not_here
from edgec.compiler.support.progress import Progress, Silent
from edgec.compiler.trust.policy import check_trust

START_SECONDS = 60.0
STOP_SECONDS = 5.0
_LISTENING = re.compile(rb'^\{"listening": "([^"\n]+)".*\n', re.MULTILINE)


class AttachedStage:
    """An attached stage is a process here that serves a stage, or that leads to one elsewhere.

    Its standard input is a pipe from here: however this process ends, the pipe ends with it, and
    then so does the stage.

    Attributes:
        address: where the stage listens.
        pid: of the process here.
    """

    end_seconds = 0.5  # that it has to end by itself

    def __init__(self, name: str, command: Sequence[str], first_line: str = "") -> None:
        """Start it and wait until it listens.

        Args:
            name: for messages.
            command: prints `{"listening": "HOST:PORT"}` on a line of its own.
            first_line: what its standard input begins with.

        Raises:
            BoardError: the stage does not start.
        """
        self._name = name
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - read when the stage ends
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            # Ctrl-C is for this process, which then ends the stage.
            start_new_session=True,
        )
        self.pid = self._process.pid
        try:
            self._say(first_line)
            self.address = self._await_address()
        except BaseException:
            self.close()
            raise

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        # If it has ended, its last words say why.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _await_address(self) -> str:
        assert self._process.stdout is not None
        until = time.monotonic() + START_SECONDS
        text = b""
        while not (found := _LISTENING.search(text)):
            left = max(0.0, until - time.monotonic())
            ready, _, _ = select.select([self._process.stdout], [], [], left)
            data = self._process.stdout.read1() if ready else b""  # type: ignore[attr-defined]
            if not data:
                raise self._not_started(text.decode(errors="replace"))
            text += data
        return found[1].decode()

    def _not_started(self, said: str) -> BoardError:
        """Return the error of a stage that said something else than where it listens."""
        return BoardError(f"stage {self._name} does not start: {self.last_words()}")

    def last_words(self) -> str:
        """Return the last line that it wrote to its standard error."""
        self._words.seek(0)
        lines = self._words.read().decode(errors="replace").splitlines()
        if lines:
            return lines[-1].removeprefix("run: error: ")
        code = self._process.poll()
        return "it says nothing" if code is None else f"exit code {code}"

    @property
    def alive(self) -> bool:
        """Return whether it still runs."""
        return self._process.poll() is None

    def close(self, *, at_once: bool = False) -> None:
        """End it: by the end of its input, or `at_once` if it may not listen to that any more."""
        if self._words.closed:
            return
        if at_once:
            self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(self.end_seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_SECONDS)
        self._words.close()


class StageProcess(AttachedStage):
    """A stage process serves one bundle on this machine, and ends when this process does."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int = 1,
        slots: int = 4,
        key_file: Path | None = None,
        listen: str = "127.0.0.1:0",
        cores: "frozenset[int] | None" = None,
        progress: Progress | None = None,
    ) -> None:
        """Start it and wait until it listens.

        Args:
            bundle: was compiled with its runner.
            threads: to compute on.
            slots: requests that it has memory for.
            key_file: what it shares with host and other stages.
            listen: the address; port 0 is a free one.
            cores: that it may use; None: all of this process.
            progress: reports what is fetched for QEMU the first time.

        Raises:
            BundleError: the bundle has no runner, or is for a machine that this one cannot play.
            BoardError: the stage does not start.
        """
        check_serves(bundle)
        command = [*_emulator(bundle, progress or Silent()), str(bundle.file(RUNNER))]
        command += ["--serve", listen, "--attached", "--bundle", str(bundle.file("").resolve())]
        command += ["--threads", str(threads), "--slots", str(slots)]
        if key_file is not None:
            command += ["--key", str(key_file)]
        if cores is not None:
            command = ["taskset", "-c", ",".join(map(str, sorted(cores))), *command]
        super().__init__(bundle.path.name, command)


def check_serves(bundle: Bundle) -> None:
    """Refuse a bundle that cannot be served.

    Raises:
        BundleError: it was compiled without its runner.
        TrustError: the policy of this machine refuses it.
    """
    check_trust(bundle.path, bundle.signature)
    if RUNNER not in bundle.manifest.files:
        raise BundleError(
            f"bundle {bundle.path} has no program to serve it: compile it with --runner"
        )


def _emulator(bundle: Bundle, progress: Progress) -> tuple[str, ...]:
    """Return what runs programs of a bundle's target here: nothing for this machine's own."""
    target = bundle.manifest.target
    why = why_not_here(target)
    if not why:
        return ()
    if target.emulator is None:
        raise BundleError(
            f"bundle {bundle.path} is for {target.name}, and does not run here: {why}; start it on "
            "its device and say where: --device NAME=HOST:PORT"
        )
    # Imported here: most stages need no emulator.
    from edgec.compiler.boards.artifacts import emulation

    return emulation(target, progress).command
