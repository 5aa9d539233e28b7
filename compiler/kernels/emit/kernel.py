"""Provide a finished kernel."""

from dataclasses import dataclass

from tvm import tirx


@dataclass(frozen=True)
class Kernel:
    """A kernel describes code and how to call it.

    Attributes:
        function: takes one pointer for each buffer, then the range of tasks.
        tasks: number of independent tasks.
    """

    function: tirx.PrimFunc
    tasks: int
