"""Provide places where rounds are timed: this machine, and boards."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgec.compiler.boards.config import Board
from edgec.compiler.errors import ToolchainError
from edgec.compiler.support.cores import usable_cores
from edgec.compiler.tune import measure
from edgec.compiler.tune.rounds import KernelBuilder, Round
from edgec.targets.native import cpu_name
from edgec.targets.target import Target

HOST_SECONDS = 0.6
BOARD_SECONDS = 1.0
LEAST_RUNS = 8
# Beyond what a measurement should take: starting, loading, a slow machine.
HOST_GRACE_SECONDS = 60.0
BOARD_GRACE_SECONDS = 900.0
# How long a device rests after it failed; twice as long each time, up to the last.
BACKOFF_SECONDS = (5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0)


class MeasureFailed(Exception):  # noqa: N818 - an outcome
    """A round gave no times.

    Attributes:
        reached: whether the device was there, so that the round itself may be to blame.
    """

    def __init__(self, text: str, *, reached: bool) -> None:
        super().__init__(text)
        self.reached = reached


@dataclass(frozen=True)
class Measurement:
    """A measurement describes times of a round.

    Attributes:
        seconds: the seconds of each step of the program.
        spread: interquartile range of whole runs over their median.
    """

    seconds: tuple[float, ...]
    spread: float


class Device(Protocol):
    """A device says where rounds are timed, one at a time."""

    name: str
    machine: str
    emulated: bool
    threads: int
    # Whether kernels may be compiled here while it measures.
    apart: bool

    def time(self, *rounds: Round) -> list[Measurement]:
        """Time rounds; several take turns in short bursts.

        Raises:
            MeasureFailed: there are no times.
        """

    def compute(self, built: Round, outputs: Path) -> None:
        """Run once and write the outputs to a file, one after the other.

        Raises:
            MeasureFailed: it did not run.
        """

    def cancel(self) -> None:
        """Let a measurement that another thread waits for fail at once."""


class Host:
    """A host is this machine: some of its cores, which nothing else of ours uses meanwhile."""

    def __init__(self, threads: int, kernels: KernelBuilder) -> None:
        self._process: subprocess.Popen[str] | None = None
        cores = sorted(os.sched_getaffinity(0))
        self.name = "this machine"
        self.machine = cpu_name()
        self.emulated = False
        self.threads = min(threads or usable_cores(), len(cores))
        self.cores = cores[: self.threads]
        self.others = set(cores[self.threads :])
        self.apart = bool(self.others)
        self._kernels = kernels

    def time(self, *rounds: Round) -> list[Measurement]:
        """See `Device`."""
        with self._kernels.quiet(set(self.cores)):
            return _measurements(self._ask(rounds, {"seconds": HOST_SECONDS}))

    def compute(self, built: Round, outputs: Path) -> None:
        """See `Device`."""
        self._ask([built], {"seconds": 0.0, "least_runs": 1, "outputs": str(outputs)})

    def _ask(self, rounds: Sequence[Round], request: dict[str, Any]) -> Any:
        request = {**_request(rounds, self.threads), "cores": self.cores, **request}
        command = [sys.executable, str(Path(measure.__file__))]
        status, answer, errors = self._converse(command, request, HOST_GRACE_SECONDS)
        if status is None:
            raise MeasureFailed(f"no result in {HOST_GRACE_SECONDS:.0f} s", reached=True)
        if status != 0:
            raise MeasureFailed(_why(status, errors), reached=True)
        return answer

    def cancel(self) -> None:
        """See `Device`."""
        process = self._process
        if process is not None:
            process.kill()

    def _converse(
        self, command: list[str], request: dict[str, Any], seconds: float
    ) -> tuple[int | None, Any, str]:
        """Exit status (None: out of time), answer and standard error of a measuring process."""
        process = self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Ctrl-C is for the tuner, which then ends it.
            start_new_session=True,
        )
        try:
            output, errors = process.communicate(json.dumps(request), timeout=seconds)
        except subprocess.TimeoutExpired:
            return None, {}, ""
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
            self._process = None
        if process.returncode != 0:
            return process.returncode, {}, errors
        return 0, json.loads(output), errors


class BoardDevice:
    """A board device is a board; every request is a session of its own with it.

    The process that talks to it stays, since it loads TVM, until a request takes too long.
    """

    apart = True

    def __init__(self, board: Board, threads: int, number: int = 0) -> None:
        self.board = board
        self.name = f"{board.name} #{number}" if number else board.name
        self.machine = f"board {board.name}"
        self.emulated = board.emulated
        self.threads = threads
        self._process: subprocess.Popen[str] | None = None

    def time(self, *rounds: Round) -> list[Measurement]:
        """See `Device`."""
        return _measurements(self._ask(rounds, {"seconds": BOARD_SECONDS}))

    def compute(self, built: Round, outputs: Path) -> None:
        """See `Device`."""
        self._ask([built], {"seconds": 0.0, "least_runs": 1, "outputs": str(outputs)})

    def cancel(self) -> None:
        """See `Device`."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _ask(self, rounds: Sequence[Round], request: dict[str, Any]) -> Any:
        board = self.board.model_dump(mode="json")
        request = {**_request(rounds, self.threads), "board": board, **request}
        process = self._process or self._start()
        answer = ""
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            if select.select([process.stdout], [], [], BOARD_GRACE_SECONDS)[0]:
                answer = process.stdout.readline()
        except (OSError, ValueError):
            # It was cancelled, or died.
            answer = ""
        if not answer:
            gone = process.poll() is not None
            self.cancel()
            text = "its process ended" if gone else f"no result in {BOARD_GRACE_SECONDS:.0f} s"
            raise MeasureFailed(text, reached=gone)
        found = json.loads(answer)
        if isinstance(found, dict):
            raise MeasureFailed(found["failure"], reached=found["reached"])
        return found

    def _start(self) -> subprocess.Popen[str]:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edgec.compiler.tune.measure_board"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            # Ctrl-C is for the tuner, which then ends it.
            start_new_session=True,
        )
        return self._process


class CountingDevice(BoardDevice):
    """A counting device is a board that QEMU plays: its time means nothing.

    So instructions are counted, and what goes beyond the level-2 cache where the target says how
    fast its memory is. They become a time, see `StepCount`. Results are computed on the board.
    """

    def __init__(self, board: Board, target: Target) -> None:
        super().__init__(board, 1)
        self._target = target

    def time(self, *rounds: Round) -> list[Measurement]:
        """See `Device`."""
        from edgec.compiler.boards.instructions import count_instructions

        target, measured = self._target, []
        for built in rounds:
            inputs = [measure.filled(spec) for spec in built.inputs]
            try:
                count = count_instructions(
                    built.library, target, inputs, traffic=target.memory_gb_per_s > 0
                )
            except ToolchainError as error:
                raise MeasureFailed(str(error), reached=True) from None
            steps = tuple(step.seconds(target) for step in count.steps)
            measured.append(Measurement(steps, 0.0))
        return measured


def _request(rounds: Sequence[Round], threads: int) -> dict[str, Any]:
    models = [
        {
            "library": str(built.library),
            "inputs": built.inputs,
            "output_bytes": built.output_bytes,
            "steps": built.steps,
        }
        for built in rounds
    ]
    return {
        "models": models,
        "threads": threads,
        "least_runs": LEAST_RUNS,
    }


def _measurements(answer: list[dict[str, Any]]) -> list[Measurement]:
    return [Measurement(tuple(a["seconds"]), a["spread"]) for a in answer]


def _why(status: int, errors: str) -> str:
    if status < 0:
        return f"crashed with {signal.Signals(-status).name}"
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    return lines[-1][:200] if lines else f"exit code {status}"


class Backoff:
    """A backoff says whether a device that failed may be tried again."""

    def __init__(self) -> None:
        self.failures = 0
        self._until = 0.0

    @property
    def seconds(self) -> float:
        """Return how long it still rests."""
        return max(0.0, self._until - time.monotonic())

    def failed(self) -> float:
        """Rest for a while; how long."""
        pause = BACKOFF_SECONDS[min(self.failures, len(BACKOFF_SECONDS) - 1)]
        self.failures += 1
        self._until = time.monotonic() + pause
        return pause

    def succeeded(self) -> bool:
        """Note that it works; return whether it did not before."""
        was_down, self.failures = self.failures > 0, 0
        return was_down
