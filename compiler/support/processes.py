"""Run a program that must succeed."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from edgec.compiler.errors import ToolchainError

REASON_CHARACTERS = 400


def run_program(
    command: Sequence[str], failure: str, seconds: float, folder: Path | None = None
) -> bytes:
    """Run a program that reads nothing.

    Args:
        command: the program and its arguments.
        failure: what did not work if it fails, as the beginning of a sentence.
        seconds: how long it may take.
        folder: where it runs.

    Returns:
        What it wrote to standard output.

    Raises:
        ToolchainError: it failed or took too long; with the last line that it wrote.
    """
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ToolchainError(f"{failure}: it took over {seconds:.0f} s") from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
        reason = lines[-1] if lines else f"exit code {done.returncode}"
        raise ToolchainError(f"{failure}: {reason[:REASON_CHARACTERS]}")
    return done.stdout
