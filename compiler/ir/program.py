"""Provide a compiled model as a list of kernel calls over values: what the static executor runs.

The program is what is left of a Relax function when all shapes are known: no control flow, no
allocation. Its values are inputs, outputs, constants and temporaries; a value may be a view of
another (a reshape, some of its channels). `memory.py` gives temporaries their place, `build.py`
writes it all as C.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from edgec.compiler.ir.signature import TensorSpec

Role = Literal["input", "output", "constant", "temporary", "state"]


@dataclass(eq=False)
class Value:
    """A value describes a buffer, or part of one.

    Attributes:
        role: where its memory is.
        shape: extents.
        dtype: NumPy name.
        array: the array of a constant.
        number: position among inputs or outputs; of state n it is 2 n, and 2 n + 1 for what becomes
            the state after the run.
        base: the value that this one is a view of.
        offset_bytes: where in its base it begins.
        label: for people.
    """

    role: Role
    shape: tuple[int, ...]
    dtype: str
    array: NDArray[Any] | None = None
    number: int = -1
    base: "Value | None" = None
    offset_bytes: int = 0
    label: str = ""

    @property
    def root(self) -> "Value":
        """Return the value whose memory this one uses."""
        return self if self.base is None else self.base.root

    @property
    def offset_in_root(self) -> int:
        """Return how many bytes of its root are before it."""
        return 0 if self.base is None else self.offset_bytes + self.base.offset_in_root

    @property
    def size_bytes(self) -> int:
        """Return bytes of all elements."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class KernelCall:
    """A kernel call describes one call of a kernel.

    Attributes:
        kernel: name of the function.
        arguments: its buffers in order.
        tasks: extent of its parallel loop.
        label: the operators it computes, for profiles.
        template: name of the template, or `generic`.
        flops: floating-point operations.
        workload: what the template was asked for, as text; empty for `generic`.
        constants: constant arguments by position, as they were before the kernel's packing.
        decision: how the template computes it, as text; empty for `generic`.
    """

    kernel: str
    arguments: tuple[Value, ...]
    tasks: int
    label: str
    template: str
    flops: int = 0
    workload: str = ""
    constants: Mapping[int, NDArray[Any]] = field(default_factory=dict)
    decision: str = ""


@dataclass
class Program:
    """A program describes a model ready to be built.

    Attributes:
        inputs: in the order of the signature; labels are their names.
        outputs: likewise.
        steps: in the order of execution.
        functions: code by kernel name.
        copies: outputs and next values of states that no kernel writes (an input or a constant
            that is returned), with their source.
        name: what tells it from other programs of the model.
        index_bounds: rows that an input chooses from, by the name of the input.
        states: what a session keeps from run to run, see `codegen/states.py`.
        swaps: numbers of the states whose next values are written beside the present ones.
        exits: steps that say by one int32, their last argument, whether the run goes on with a
            later step, and that step; by number, in order.
    """

    inputs: list[Value]
    outputs: list[Value]
    steps: list[KernelCall] = field(default_factory=list)
    functions: dict[str, tirx.PrimFunc] = field(default_factory=dict)
    copies: list[tuple[Value, Value]] = field(default_factory=list)
    name: str = ""
    index_bounds: Mapping[str, int] = field(default_factory=dict)
    states: list[Value] = field(default_factory=list)
    swaps: list[int] = field(default_factory=list)
    exits: list[tuple[int, int]] = field(default_factory=list)

    def constants(self) -> list[Value]:
        """Return constants that steps read, in the order of their first use."""
        found: dict[int, Value] = {}
        values = [value for step in self.steps for value in step.arguments]
        for value in [*values, *(source for _, source in self.copies)]:
            if value.root.role == "constant":
                found.setdefault(id(value.root), value.root)
        return list(found.values())

    def forget_unpacked(self) -> None:
        """Let go of constants as they were before packing, which only tuning packs anew."""
        self.steps = [replace(step, constants={}) for step in self.steps]

    def temporaries(self) -> list[Value]:
        """Return temporaries in the order of their first use."""
        found: dict[int, Value] = {}
        for step in self.steps:
            for value in step.arguments:
                if value.root.role == "temporary":
                    found.setdefault(id(value.root), value.root)
        return list(found.values())


def input_value(spec: TensorSpec, number: int) -> Value:
    """Return the value of an input of static shape."""
    return Value("input", _static(spec.shape), spec.dtype, number=number, label=spec.name)


def _static(shape: Sequence[int | None]) -> tuple[int, ...]:
    return tuple(extent for extent in shape if extent is not None)
