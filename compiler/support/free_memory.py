"""Give memory that nothing uses back to the system, and ask how much there is."""

import ctypes
import re
from pathlib import Path

_AVAILABLE = re.compile(r"^MemAvailable: +(\d+) kB$", re.MULTILINE)
_MEMORY = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")


def return_free_memory() -> None:
    """Return what the C library keeps of freed memory.

    After a phase that is copies of all weights, in gaps too small for those of the next phase.
    C libraries other than glibc have no such function.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def available_bytes() -> int | None:
    """Return what a process may still take: of the machine, and of its group (cgroup, version 2).

    None if the system does not say.
    """
    try:
        found = _AVAILABLE.search(_MEMORY.read_text(encoding="ascii"))
    except OSError:
        return None
    if found is None:
        return None
    machine = int(found[1]) * 1024
    try:
        most = int((_GROUP / "memory.max").read_text())
        used = int((_GROUP / "memory.current").read_text())
    except (OSError, ValueError):
        # Without a group of its own, or "max".
        return machine
    return min(machine, max(0, most - used))
