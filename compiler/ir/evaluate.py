"""Describe what evaluates a module: handed to the stages in the middle, which know no backend."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from edgec.compiler.ir.signature import Signature, Tensors


class Runnable(Protocol):
    """A runnable is a module that is ready to run on this machine."""

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """Return the outputs by name."""
        ...

    def run_shared(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """Return the outputs by name, in arrays that the next run may overwrite."""
        ...


@runtime_checkable
class HasState(Protocol):
    """What has a state can be told it."""

    def set_state(self, name: str, values: NDArray[Any]) -> None:
        """Change a state."""
        ...


# Compiles a canonical module (an IRModule) of a signature for this machine.
Evaluate = Callable[[Any, Signature], Runnable]
