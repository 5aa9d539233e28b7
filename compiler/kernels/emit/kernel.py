"""A finished kernel."""

from dataclasses import dataclass

from tvm import tirx


@dataclass(frozen=True)
class Kernel:
    """Code and how to call it.

    Attributes:
        function: takes one pointer for each buffer, then the range of tasks.
        tasks: number of independent tasks.
    """

    function: tirx.PrimFunc
    tasks: int
