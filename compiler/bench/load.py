"""Keep cores busy while something is measured: what other programs do to a runtime."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator

# It ends with the process that started it, however that ends.
_SPIN = """
import os
parent = os.getppid()
print(flush=True)
while os.getppid() == parent:
    for _ in range(100_000):
        pass
"""


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Run processes that never wait, until the block ends.

    Args:
        count: how many; each takes what it gets of one core.
    """
    with contextlib.ExitStack() as running:
        processes = []
        for _ in range(count):
            command = [sys.executable, "-I", "-S", "-c", _SPIN]
            process = running.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
            # Leaving the block kills it first, and then waits for it.
            running.callback(process.kill)
            processes.append(process)
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        yield
