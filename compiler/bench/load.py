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
        processes = [
            running.enter_context(
                subprocess.Popen([sys.executable, "-I", "-S", "-c", _SPIN], stdout=subprocess.PIPE)
            )
            for _ in range(count)
        ]
        for process in processes:
            # Called before the process is waited for.
            running.callback(process.kill)
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        yield
