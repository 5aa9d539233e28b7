"""Leave out copies of whole channels: who computes a part of a concatenation writes it in place.

In blocked layouts, [N, B, H, W, c], channels that begin and end with a block are one piece of
memory for N = 1. So a split along channels is a view of what it splits; and in place of a
concatenation its parts become views of the result. This happens where

1. the step moves whole channels in order: all of its inputs, or a slice of one;
2. N is 1, and every part but the last one is whole blocks;
3. every part begins at a multiple of `ALIGNMENT_BYTES`;
4. what the parts are views of are temporaries, and the result covers all of each: the places that
   they have in each other (nested concatenations, both halves of a split) agree;
5. the arena does not grow beyond `MORE_MEMORY`: the result lives from its first part on.
"""

import math
from collections.abc import Sequence

from edgec.compiler.codegen.memory import ALIGNMENT_BYTES, plan_memory
from edgec.compiler.ir.program import KernelCall, Program, Value
from edgec.compiler.kernels.layout import ChannelMapWorkload
from edgec.compiler.kernels.template import from_text

# How much larger the arena may become.
MORE_MEMORY = 1.1


def move_channels_in_place(program: Program) -> None:
    """Take out the steps of a program that only move whole channels, where that is possible."""
    limit = MORE_MEMORY * plan_memory(program).arena_bytes
    for step in [step for step in program.steps if step.template == "channel_map"]:
        moved = _views(step)
        if not moved:
            continue
        steps = program.steps
        for view, base, offset in moved:
            view.base, view.offset_bytes = base, offset
        program.steps = [other for other in steps if other is not step]
        if plan_memory(program).arena_bytes > limit:
            program.steps = steps
            for view, _, _ in moved:
                view.base, view.offset_bytes = None, 0
    used = {step.kernel for step in program.steps}
    program.functions = {name: code for name, code in program.functions.items() if name in used}


def _views(step: KernelCall) -> list[tuple[Value, Value, int]]:
    """Return what would be a view of what, from which byte on; empty if the step must stay."""
    workload = from_text(ChannelMapWorkload, step.workload)
    *parts, result = step.arguments
    block_bytes = result.size_bytes // math.prod(result.shape[:2])
    lanes = result.shape[-1]
    if workload.batch != 1 or any(v.root.role != "temporary" for v in step.arguments):
        return []
    first = workload.picks[0][1]
    slice_of_one = tuple((0, first + index) for index in range(len(workload.picks)))
    if workload.picks == slice_of_one and len(parts) == 1 and first % lanes == 0:
        offset = first // lanes * block_bytes
        return [] if offset % ALIGNMENT_BYTES else [(result, parts[0], offset)]
    whole = tuple((number, i) for number, count in enumerate(workload.inputs) for i in range(count))
    if workload.picks != whole or any(count % lanes for count in workload.inputs[:-1]):
        return []
    return _parts(parts, result)


def _parts(parts: Sequence[Value], result: Value) -> list[tuple[Value, Value, int]]:
    """Return roots of the parts as views of the result; empty if their places do not agree."""
    places: dict[int, int] = {}
    covered: dict[int, int] = {}
    roots: dict[int, Value] = {}
    position = 0
    for part in parts:
        root = part.root
        start = position - part.offset_in_root
        if places.setdefault(id(root), start) != start or position % ALIGNMENT_BYTES:
            return []
        roots[id(root)] = root
        covered[id(root)] = covered.get(id(root), 0) + part.size_bytes
        position += part.size_bytes
    if any(covered[key] != root.size_bytes for key, root in roots.items()):
        return []
    return [(root, result, places[key]) for key, root in roots.items()]
