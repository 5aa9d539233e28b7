"""Provide numbers that users give: each is checked where it enters, before any work."""

import math

from edgec.compiler.errors import UsageError

# Far more than any machine that edgec runs on has cores.
MAX_THREADS = 1024
_SEEDS = 1 << 32


def check_count(option: str, value: int | None, least: int, most: int) -> None:
    """Refuse a whole number out of bounds; None is not given.

    Raises:
        UsageError: names the option and the bounds.
    """
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{option} {value!r}: a whole number is expected")
    if not least <= value <= most:
        raise UsageError(f"{option} {value}: expected {least} to {most}")


def check_threads(threads: int) -> None:
    """Refuse a number of threads that cannot be; 0 is one for each core.

    Raises:
        UsageError: it is negative or absurd.
    """
    check_count("--threads", threads, 0, MAX_THREADS)


def check_busy(processes: int) -> None:
    """Refuse a number of busy processes that cannot be.

    Raises:
        UsageError: it is negative or absurd.
    """
    check_count("--busy", processes, 0, MAX_THREADS)


def check_seed(seed: int) -> None:
    """Refuse a seed that random number generators do not take.

    Raises:
        UsageError: it is negative, or of more than 32 bits.
    """
    check_count("--seed", seed, 0, _SEEDS - 1)


def check_positive(option: str, value: float | None) -> None:
    """Refuse what is not a finite number above 0; None is not given.

    Raises:
        UsageError: names the option.
    """
    if value is not None and not (math.isfinite(value) and value > 0):
        raise UsageError(f"{option} {value:g}: a number above 0 is expected")
