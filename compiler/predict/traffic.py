"""Say where the bytes come from that a kernel touches: which cache, or memory.

It follows from what was touched since the same bytes were touched last (the reuse distance of
Mattson et al. 1970). Temporaries lie where the plan of the arena puts them, so that a result may be
written over what was read a moment ago, or over what left the caches long since; weights were read
an inference ago.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.codegen.memory import MemoryPlan
from edgec.compiler.ir.program import Program, Value
from edgec.compiler.kernels.emit.machine_model import KIB
from edgec.targets import Target

Row = NDArray[np.float64]

# Shares of a cache that a program keeps beside what else a core touches.
KEPT_OF_L2 = 0.75
KEPT_OF_L3 = 0.5
# Bytes of the arena that are looked at as one.
GRAIN = 256


@dataclass(frozen=True)
class Traffic:
    """Traffic describes what a kernel call moves.

    Attributes:
        moved: bytes from the core's caches, from the last one, and from memory.
        operand_distance: bytes touched since its operands were, constants left out, in the mean.
        result_distance: likewise of where its result goes.
    """

    moved: Row
    operand_distance: float
    result_distance: float


def traffic_of(program: Program, target: Target, plan: MemoryPlan) -> list[Traffic]:
    """Return the traffic of each step, in an inference that follows another one.

    Args:
        program: the program.
        target: whose caches.
        plan: where its temporaries are.
    """
    memory = _Memory(plan)
    steps = [list({id(v): v for v in step.arguments}.values()) for step in program.steps]
    for values in steps:
        memory.touch(values)
    found = []
    for step, values in zip(program.steps, steps, strict=True):
        own = sum(memory.size_of(value) for value in values)
        moved, operands = np.zeros(3), [0.0, 0.0]
        result = 0.0
        for value in values:
            size, distance = memory.size_of(value), memory.distance_of(value) + own
            moved[_level(distance, target)] += size
            if value is step.arguments[-1]:
                result = distance
            elif value.root.role != "constant":
                operands[0] += size
                operands[1] += size * distance
        found.append(Traffic(moved, operands[1] / max(1.0, operands[0]), result))
        memory.touch(values)
    return found


def _level(distance: float, target: Target) -> int:
    """Return where bytes come from: 0 the core's caches, 1 the last level, 2 memory."""
    if distance <= KEPT_OF_L2 * target.l2_kib * KIB:
        return 0
    return 1 if distance <= KEPT_OF_L3 * target.l3_kib * KIB else 2


class _Memory:
    """Remembers when bytes were touched last, by the bytes that were touched before."""

    def __init__(self, plan: MemoryPlan) -> None:
        self._plan = plan
        self._arena = np.zeros(plan.arena_bytes // GRAIN + 1)
        self._others: dict[int, float] = {}
        self._sizes: dict[int, int] = {}
        self._now = 0.0

    def size_of(self, value: Value) -> int:
        if id(value) not in self._sizes:
            self._sizes[id(value)] = value.size_bytes
        return self._sizes[id(value)]

    def _place(self, value: Value) -> slice | None:
        """Return the part of the arena where a temporary is; None of what is not there."""
        offset = self._plan.offsets.get(id(value.root))
        if value.root.role != "temporary" or offset is None:
            return None
        start = offset + value.offset_in_root
        return slice(start // GRAIN, (start + self.size_of(value)) // GRAIN + 1)

    def distance_of(self, value: Value) -> float:
        place = self._place(value)
        if place is None:
            return self._now - self._others.get(id(value.root), self._now)
        return self._now - float(self._arena[place].mean())

    def touch(self, values: list[Value]) -> None:
        self._now += sum(self.size_of(value) for value in values)
        for value in values:
            place = self._place(value)
            if place is None:
                self._others[id(value.root)] = self._now
            else:
                self._arena[place] = self._now
