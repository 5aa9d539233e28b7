"""Provide worker processes that compile kernels, and the program that each of them runs.

`python -m edgec.compiler.tune.workers` is that program: it speaks in pickles over its standard
input and output. Pools of `multiprocessing` are not used, since they run the caller's script again
in each worker, and so for ever where that has no `if __name__ == "__main__"`.
"""

import contextlib
import ctypes
import os
import pickle
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgec.targets.target import Target

# A kernel is compiled in a tenth of a second; the first waits for TVM to load.
KERNEL_SECONDS = 120.0
CRASHED = "the compiler crashed"
TOO_LONG = f"compiling took over {KERNEL_SECONDS:.0f} s"
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Failure:
    """A failure says that a kernel cannot be compiled, and why."""

    why: str


class Worker:
    """A worker is a process, pinned to a core, that compiles one kernel at a time.

    Attributes:
        core: the core that it runs on.
        item: what it compiles at the moment; None if nothing.
    """

    def __init__(self, core: int, target: Target, folder: Path) -> None:
        self.core = core
        self.item: Any = None
        self._begun = 0.0
        # -P: files of the current folder must not hide modules.
        command = [sys.executable, "-P", "-m", "edgec.compiler.tune.workers"]
        self._process = subprocess.Popen(
            [*command, str(folder), str(core), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests = self._process.stdin
        self.replies = self._process.stdout
        self._send(target)

    def begin(self, item: Any) -> None:
        """Have a kernel compiled."""
        self.item, self._begun = item, time.monotonic()
        self._send(item)

    def _send(self, value: object) -> None:
        # One that died is noticed when its reply is read.
        with contextlib.suppress(OSError):
            pickle.dump(value, self._requests)
            self._requests.flush()

    def result(self) -> Any:
        """Return the reply; a failure if the process died."""
        self.item = None
        try:
            return pickle.load(self.replies)
        except (EOFError, OSError, pickle.UnpicklingError):
            return Failure(CRASHED)

    @property
    def overdue(self) -> bool:
        """Return whether it takes too long."""
        return self.item is not None and time.monotonic() - self._begun > KERNEL_SECONDS

    def signal(self, number: int) -> None:
        """Send a signal to the process, if it still lives."""
        self._process.send_signal(number)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        for stream in (self._requests, self.replies):
            with contextlib.suppress(OSError):
                stream.close()
        self._process.wait()


class Workers:
    """Workers share the work.

    A worker ends with the thread that started it, so all calls come from one thread.
    """

    def __init__(self, cores: Sequence[int], target: Target, folder: Path) -> None:
        self._target = target
        self._folder = folder
        self.all = [Worker(core, target, folder) for core in cores]

    def compile(self, items: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        """Yield each item with its `BuiltKernel`, or the `Failure` that it ended in.

        As they come.
        """
        waiting = deque(items)
        running = 0
        with selectors.DefaultSelector() as selector:
            for index in range(len(self.all)):
                running += self._next(index, waiting, selector)
            while running:
                ready = selector.select(1.0)
                for key, _ in ready:
                    worker = self.all[key.data]
                    item, result = worker.item, worker.result()
                    running -= 1
                    selector.unregister(worker.replies)
                    if isinstance(result, Failure) and result.why == CRASHED:
                        self._replace(key.data)
                    yield item, result
                    running += self._next(key.data, waiting, selector)
                for index, worker in enumerate(self.all):
                    if worker.overdue:
                        item = worker.item
                        running -= 1
                        selector.unregister(worker.replies)
                        self._replace(index)
                        yield item, Failure(TOO_LONG)
                        running += self._next(index, waiting, selector)

    def _next(self, index: int, waiting: deque[Any], selector: selectors.BaseSelector) -> int:
        """Give a worker the next item; how many it got."""
        if not waiting:
            return 0
        worker = self.all[index]
        worker.begin(waiting.popleft())
        selector.register(worker.replies, selectors.EVENT_READ, index)
        return 1

    def _replace(self, index: int) -> None:
        old = self.all[index]
        old.close()
        self.all[index] = Worker(old.core, self._target, self._folder)

    def close(self) -> None:
        """End all."""
        for worker in self.all:
            worker.close()


def _serve(folder: Path, core: int, parent: int) -> None:
    """Compile what standard input asks for, until it ends."""
    # A worker ends with the tuner, however that ends, even while it is stopped.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.sched_setaffinity(0, {core})
    replies = os.fdopen(os.dup(1), "wb")
    # What a compiler prints is no reply.
    os.dup2(2, 1)
    from edgec.compiler.tune.compile_kernel import compile_kernel

    target: Target = pickle.load(sys.stdin.buffer)
    while True:
        try:
            key, decision = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            result: object = compile_kernel(key, decision, target, folder)
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            result = Failure(lines[-1][:200])
        pickle.dump(result, replies)
        replies.flush()


if __name__ == "__main__":
    # The classes that travel belong to the module, not to this program.
    from edgec.compiler.tune import workers

    workers._serve(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
