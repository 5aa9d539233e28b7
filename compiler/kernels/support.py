"""What a kernel, or the matcher of a kernel, answers about an operator."""

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray


@dataclass(frozen=True)
class Declined:
    """The kernel cannot compute the operator.

    Attributes:
        reason: for people, in one clause.
    """

    reason: str


@dataclass(frozen=True)
class Supported:
    """The kernel computes the operator.

    Attributes:
        operator: name of the kernel's template.
        workload: of the template.
        operands: constants after the first operand.
    """

    operator: str
    workload: Any
    operands: tuple[NDArray[Any], ...]
