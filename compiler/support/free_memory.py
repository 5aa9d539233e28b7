"""Give memory that nothing uses back to the system."""

import ctypes


def return_free_memory() -> None:
    """Return what the C library keeps of freed memory.

    After a phase that is copies of all weights, in gaps too small for those of the next phase.
    C libraries other than glibc have no such function.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
