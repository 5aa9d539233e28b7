"""Processes that run cases: if one dies or takes too long, its case alone is lost."""

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path

import numpy as np
from conformance.attempt import run_edgec
from conformance.cases import Case, Outcome
from conformance.comparison import last_line

# The light models take long to compile.
LARGE_KIND = "real"
LARGE_FACTOR = 10

Runner = Callable[[Case], Outcome]


class Workers:
    """Workers are processes that run cases; they start at once, and end with the context."""

    def __init__(self, runner: Runner, jobs: int) -> None:
        self._runner = runner
        # The linker's cache of what it compiles: it would keep every case's code for good.
        self._cache = tempfile.TemporaryDirectory(prefix="edgec-conformance-")
        self._workers = [_Worker(runner, self._cache.name) for _ in range(jobs)]

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.stop()
        self._cache.cleanup()

    def run(
        self,
        cases: Sequence[Case],
        timeout: float,
        done: Callable[[Case, Outcome], None] = lambda case, outcome: None,
    ) -> dict[str, Outcome]:
        """Run cases, the large ones first.

        Args:
            cases: what to run.
            timeout: seconds for one case, `LARGE_FACTOR` times as many for a large one.
            done: told of each outcome as it comes.

        Returns:
            Outcome by case name.
        """
        outcomes = self._run(cases, timeout, done)
        for case in cases:
            if outcomes[case.name].died:
                # Memory that an earlier case damaged can end a worker too: ask again, alone.
                for worker in self._workers:
                    worker.replace()
                [again] = self._run([case], timeout, lambda case, outcome: None).values()
                if not again.died:
                    print(
                        f"{case.name} ended its worker, but not when it ran alone: "
                        f"{outcomes[case.name].message}",
                        file=sys.stderr,
                    )
                outcomes[case.name] = again
        return outcomes

    def _run(
        self, cases: Sequence[Case], timeout: float, done: Callable[[Case, Outcome], None]
    ) -> dict[str, Outcome]:
        pending = sorted(cases, key=lambda case: case.kind == LARGE_KIND)
        outcomes: dict[str, Outcome] = {}
        while len(outcomes) < len(cases):
            for worker in self._workers:
                if worker.case is None and pending:
                    case = pending.pop()
                    large = case.kind == LARGE_KIND
                    worker.start(case, timeout * LARGE_FACTOR if large else timeout)
            busy = [worker for worker in self._workers if worker.case]
            remaining = min(worker.deadline for worker in busy) - time.monotonic()
            wait([worker.connection for worker in busy], max(0.0, remaining))
            for worker in busy:
                running, outcome = worker.case, worker.poll()
                if running is not None and outcome is not None:
                    outcomes[running.name] = outcome
                    done(running, outcome)
        return outcomes


class _Worker:
    """A worker is a process that runs cases one by one; replaced when it dies."""

    def __init__(self, runner: Runner, cache: str) -> None:
        self.runner = runner
        self.cache = cache
        self.case: Case | None = None
        self.deadline = 0.0
        self.started = 0.0
        self.timeout = 0.0
        self._log = tempfile.NamedTemporaryFile(prefix="edgec-conformance-")  # noqa: SIM115
        self._spawn()

    def _spawn(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, self.runner, self._log.name, self.cache), daemon=True
        )
        self._process.start()
        theirs.close()
        self._ready = False

    def start(self, case: Case, timeout: float) -> None:
        """Give it a case."""
        if not self._ready:
            # The time for imports is nobody's; a worker that cannot even start is our mistake.
            self.connection.recv()
            self._ready = True
        self.case, self.timeout = case, timeout
        self.started = time.monotonic()
        self.deadline = self.started + timeout
        self.connection.send(case)

    def poll(self) -> Outcome | None:
        """Return the outcome of its case if there is one by now."""
        outcome = None
        try:
            if self.connection.poll():
                outcome = self.connection.recv()
            elif time.monotonic() >= self.deadline:
                outcome = Outcome("timeout", f"took over {self.timeout:g} s")
                self.replace()
        except (EOFError, ConnectionResetError):
            self._process.join()
            words = f"{_ending(self._process.exitcode)}: {self._last_words()}"
            outcome = Outcome("crash", words, died=True)
            self.replace()
        if outcome is not None:
            self.case = None
            outcome = replace(outcome, seconds=round(time.monotonic() - self.started, 3))
        return outcome

    def stop(self) -> None:
        """End it, and what it started."""
        assert self._process.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        # It has no group of its own yet where it has only just started.
        self._process.kill()
        self._process.join()
        self.connection.close()

    def replace(self) -> None:
        """Start anew."""
        self.stop()
        self._spawn()

    def _last_words(self) -> str:
        text = Path(self._log.name).read_text(errors="replace").strip()
        lines = [line for line in text.splitlines() if "rror" in line or "erminate" in line]
        return (lines or text.splitlines() or ["no message"])[-1][:300]


def _serve(connection: Connection, runner: Runner, log: str, cache: str) -> None:
    """What a worker process does."""
    # A group of its own, so that a linker that it waits for ends with it.
    os.setpgid(0, 0)
    os.environ["ZIG_LOCAL_CACHE_DIR"] = cache
    stream = os.open(log, os.O_WRONLY | os.O_TRUNC | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    if runner is run_edgec:
        import edgec.compiler.pipeline  # noqa: F401
    connection.send("ready")
    with contextlib.suppress(EOFError):
        while True:
            case = connection.recv()
            os.ftruncate(stream, 0)
            try:
                outcome = runner(case)
            except Exception as error:
                outcome = Outcome("crash", f"{type(error).__name__}: {last_line(error)}")
            connection.send(outcome)


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"
