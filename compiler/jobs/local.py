"""Provide an executor whose calls run in processes of this machine, and their program.

`python -m edgec.compiler.jobs.local` is that program: it speaks in pickles over its standard input
and output. `ProcessPoolExecutor` is not used: it runs the caller's script again in each process, so
for ever where that has no `if __name__ == "__main__"`, and one process that dies breaks all of it.
"""

import contextlib
import ctypes
import itertools
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from edgec.compiler.errors import JobLostError

_P = ParamSpec("_P")
_T = TypeVar("_T")

_PR_SET_PDEATHSIG = 1
_CRASHED = "the process that ran it died"


class Worker:
    """A worker is a process that answers one call at a time; it ends with its thread.

    Attributes:
        core: the core that it is pinned to; None: all of them.
    """

    def __init__(self, core: int | None) -> None:
        self.core = core
        self._start()

    def _start(self) -> None:
        # -P: files of the current folder must not hide modules.
        command = [sys.executable, "-P", "-m", "edgec.compiler.jobs.local"]
        core = "" if self.core is None else str(self.core)
        self._process = subprocess.Popen(
            [*command, core, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests = self._process.stdin
        self._replies = self._process.stdout

    def call(self, function: Callable[..., Any], given: Any, seconds: float | None) -> Any:
        """Return what a function gives in the process; one that dies or hangs is replaced.

        Raises:
            JobLostError: the process died, or took over `seconds`.
            Exception: what the function raised.
        """
        # One that died is noticed when its reply is read.
        with contextlib.suppress(OSError):
            pickle.dump((function, given), self._requests)
            self._requests.flush()
        if not select.select([self._replies], [], [], seconds)[0]:
            self._replace()
            raise JobLostError(f"it took over {seconds:g} s")
        try:
            done, value = pickle.load(self._replies)
        except (EOFError, OSError, pickle.UnpicklingError):
            self._replace()
            raise JobLostError(_CRASHED) from None
        if done:
            return value
        raise value

    def signal(self, number: int) -> None:
        """Send a signal to the process, if it still lives."""
        self._process.send_signal(number)

    def _replace(self) -> None:
        self.close()
        self._start()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        for stream in (self._requests, self._replies):
            with contextlib.suppress(OSError):
                stream.close()
        self._process.wait()


class LocalExecutor(Executor):
    """A local executor runs calls in processes; one that dies loses its own call alone.

    A thread waits for each process, so that their order is that of `ThreadPoolExecutor`.
    """

    def __init__(self, cores: Sequence[int | None], seconds: float | None = None) -> None:
        """Start nothing yet: a process starts with the first call that it gets.

        Args:
            cores: the core of each process; None: not pinned.
            seconds: how long a call may take.
        """
        self._cores = itertools.cycle(cores)
        self._seconds = seconds
        self._own = threading.local()
        self._lock = threading.Lock()
        self._ended = False
        self.workers: list[Worker] = []
        self._threads = ThreadPoolExecutor(len(cores), thread_name_prefix="edgec-job")

    def submit(
        self, function: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs
    ) -> Future[_T]:
        """Have a function of a module called, with arguments that can be pickled."""
        return self._threads.submit(self._call, function, (args, kwargs))

    def _call(self, function: Callable[..., Any], given: Any) -> Any:
        worker = getattr(self._own, "worker", None)
        if worker is None:
            with self._lock:
                if self._ended:
                    raise JobLostError("the work was called off")
                worker = self._own.worker = Worker(next(self._cores))
                self.workers.append(worker)
        return worker.call(function, given, self._seconds)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes; calls that run are lost unless `wait`."""
        if wait and not cancel_futures:
            self._threads.shutdown(wait=True)
        with self._lock:
            self._ended = True
            workers = tuple(self.workers)
        for worker in workers:
            worker.signal(signal.SIGKILL)
        self._threads.shutdown(wait=True, cancel_futures=True)
        for worker in workers:
            worker.close()


def _serve(core: str, parent: int) -> None:
    """Answer the calls of standard input, until it ends."""
    # A worker ends with its owner, however that ends, even while it is stopped.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if core:
        os.sched_setaffinity(0, {int(core)})
    replies = os.fdopen(os.dup(1), "wb")
    # What a compiler prints is no reply.
    os.dup2(2, 1)
    while True:
        try:
            function, (args, kwargs) = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        reply: bytes
        try:
            reply = pickle.dumps((True, function(*args, **kwargs)))
        except Exception as error:
            reply = _pickled(error)
        replies.write(reply)
        replies.flush()


def _pickled(error: Exception) -> bytes:
    """Return an error as a reply; one that does not travel becomes its text."""
    try:
        reply = pickle.dumps((False, error))
        pickle.loads(reply)
    except Exception:
        return pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}")))
    return reply


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))
