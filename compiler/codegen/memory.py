"""Describe where temporaries live: one arena, planned when compiling.

Greedy by size, as in Pisarchyk and Lee 2020: the largest value is placed first, each at the
lowest offset where it overlaps no value that lives at the same time.
"""

from dataclasses import dataclass

from edgec.compiler.ir.program import Program

ALIGNMENT_BYTES = 64


@dataclass(frozen=True)
class MemoryPlan:
    """A memory plan describes offsets in the arena.

    Attributes:
        offsets: byte offset by `id` of the root value.
        arena_bytes: size of the arena, the peak of activation memory.
    """

    offsets: dict[int, int]
    arena_bytes: int


@dataclass(frozen=True)
class _Interval:
    """An interval describes a temporary: its size and the first and last step that touch it."""

    key: int
    size: int
    first: int
    last: int


def plan_memory(program: Program) -> MemoryPlan:
    """Place every temporary of a program."""
    spans: dict[int, list[int]] = {}
    sizes: dict[int, int] = {}
    for number, step in enumerate(program.steps):
        for value in step.arguments:
            root = value.root
            if root.role == "temporary":
                spans.setdefault(id(root), [number, number])[1] = number
                sizes[id(root)] = root.size_bytes
    for _, source in program.copies:
        if source.root.role == "temporary":
            spans[id(source.root)][1] = len(program.steps)
    intervals = [
        _Interval(key, _aligned(sizes[key]), first, last) for key, (first, last) in spans.items()
    ]
    # The order of equals must not depend on addresses.
    order = {key: position for position, key in enumerate(spans)}
    intervals.sort(key=lambda i: (-i.size, order[i.key]))
    offsets: dict[int, int] = {}
    placed: list[_Interval] = []
    for interval in intervals:
        alive = [p for p in placed if p.first <= interval.last and interval.first <= p.last]
        alive.sort(key=lambda p: offsets[p.key])
        offset = 0
        for other in alive:
            if offset + interval.size <= offsets[other.key]:
                break
            offset = max(offset, offsets[other.key] + other.size)
        offsets[interval.key] = offset
        placed.append(interval)
    arena = max((offsets[i.key] + i.size for i in intervals), default=0)
    return MemoryPlan(offsets, arena)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
