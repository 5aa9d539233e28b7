"""Try a call in a process of its own, where it can do no harm.

The packages that read ONNX files have parts in C++ that end the process, never return or take all
memory on a graph that contradicts itself. What a fork of this process survives, this process may
do as well. It costs a few milliseconds.
"""

import faulthandler
import os
import resource
import signal
import warnings
from collections.abc import Callable
from pathlib import Path

# What /proc counts memory in [bytes].
_PAGE = os.sysconf("SC_PAGE_SIZE")


def rehearse(call: Callable[[], object], seconds: int, megabytes: int) -> str:
    """Make a call in a child, whose result is thrown away.

    Args:
        call: must need no lock that another thread may hold; an exception is a good end, too.
        seconds: of processor time that it may take.
        megabytes: that it may allocate.

    Returns:
        How it ended, if it did not by itself: "it takes over 5 s" for example; else nothing.
    """
    with warnings.catch_warnings():
        # Python 3.12 warns of forks beside threads: the child would wait for locks of theirs.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        _child(call, seconds, megabytes)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        return f"it takes over {megabytes} MB" if os.WEXITSTATUS(status) else ""
    number = os.WTERMSIG(status)
    if number in (signal.SIGXCPU, signal.SIGKILL):
        return f"it takes over {seconds} s"
    return f"it ends with {signal.Signals(number).name}"


def _child(call: Callable[[], object], seconds: int, megabytes: int) -> None:
    code = 0
    try:
        faulthandler.disable()
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        space = _address_space() + megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (space, space))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        call()
    except MemoryError:
        code = 1
    except BaseException:
        # It raises here as well, where it is caught and said.
        code = 0
    finally:
        os._exit(code)


def _address_space() -> int:
    """Return what this process has mapped [bytes]."""
    with Path("/proc/self/statm").open() as file:
        return int(file.read().split()[0]) * _PAGE
