"""`edgec serve` in a process of its own."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


class Serving:
    """A server that runs while a `with` block does; the block gets its URL."""

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edgec.compiler", "serve", *arguments, "--port", "0"],
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
            )
        self.log = log

    def __enter__(self) -> str:
        assert self.process.stdout is not None
        url = self.process.stdout.readline().strip()
        assert url, self.log.read_text()
        return url

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.communicate(timeout=20)
        assert self.process.returncode == 0, self.log.read_text()
        assert "Traceback" not in self.log.read_text()
