"""Start the stage of a bundle on this machine: as it is, or under QEMU if it is for another."""

import json
import select
import subprocess
import tempfile
import time
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


class StageProcess:
    """A stage process serves one bundle on this machine, and ends when this process does.

    Its standard input is a pipe from here: however this process ends, the pipe ends with it, and
    then so does the stage.

    Attributes:
        address: where it listens.
        pid: of the process.
    """

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
        check_trust(bundle.path, bundle.signature)
        if RUNNER not in bundle.manifest.files:
            raise BundleError(
                f"bundle {bundle.path} has no program to serve it: compile it with --runner"
            )
        command = [*_emulator(bundle, progress or Silent()), str(bundle.file(RUNNER))]
        command += ["--serve", listen, "--attached", "--bundle", str(bundle.file("").resolve())]
        command += ["--threads", str(threads), "--slots", str(slots)]
        if key_file is not None:
            command += ["--key", str(key_file)]
        if cores is not None:
            command = ["taskset", "-c", ",".join(map(str, sorted(cores))), *command]
        self._name = bundle.path.name
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - read when the stage ends
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._words
        )
        self.pid = self._process.pid
        try:
            self.address = self._await_address()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _await_address(self) -> str:
        assert self._process.stdout is not None
        until = time.monotonic() + START_SECONDS
        line = b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self._process.stdout], [], [], until - time.monotonic())
            data = self._process.stdout.read1() if ready else b""  # type: ignore[attr-defined]
            if not data:
                raise BoardError(f"stage {self._name} does not start: {self.last_words()}")
            line += data
        return str(json.loads(line)["listening"])

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
            self._process.wait(0.5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_SECONDS)
        self._words.close()


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
