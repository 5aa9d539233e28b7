"""The rule for functions that no template covers: vectorize inside, run in parallel outside.

It knows nothing about what a function computes, only which loops carry no dependence.
"""

from typing import Any

from tvm import s_tir, tirx
from tvm.tirx.stmt import IterVar

from edgec.targets.target import Target

# Below this many innermost iterations, starting threads costs more than it gains.
PARALLEL_GRAIN = 16384


def schedule_generic(function: tirx.PrimFunc, target: Target) -> tirx.PrimFunc:
    """Schedule every block of a function with static shapes.

    Elementwise producers are inlined first. In each block that is left, the outer spatial
    loops are fused and run in parallel, and the innermost spatial loop is vectorized if it is
    the innermost loop of all.
    """
    schedule = s_tir.Schedule(function)
    root = schedule.get_sblock("root") if schedule_has_root(schedule) else None
    if root is None:
        return function
    for block in schedule.get_child_blocks(root):
        _inline(schedule, block)
    for block in schedule.get_child_blocks(root):
        _schedule_block(schedule, block, target)
    # The schedule gave it a public name of its own.
    return schedule.mod["main"].without_attr("global_symbol")


def schedule_has_root(schedule: s_tir.Schedule) -> bool:
    """Whether a function has blocks at all."""
    try:
        schedule.get_sblock("root")
    except Exception:
        return False
    return True


def _inline(schedule: s_tir.Schedule, block: Any) -> None:
    """Inline a block into its consumers if it only computes elements from elements."""
    if not schedule.get_consumers(block) or not _is_spatial(schedule, block):
        return
    try:
        schedule.compute_inline(block)
    except s_tir.ScheduleError:
        # A consumer that reads it through more than one index, for example.
        return


def _is_spatial(schedule: s_tir.Schedule, block: Any) -> bool:
    return all(v.iter_type == IterVar.DataPar for v in schedule.get(block).iter_vars)


def _schedule_block(schedule: s_tir.Schedule, block: Any, target: Target) -> None:
    kinds = [variable.iter_type for variable in schedule.get(block).iter_vars]
    loops = schedule.get_loops(block)
    if len(loops) != len(kinds) or not loops:
        return
    extents = [schedule.get(loop).extent for loop in loops]
    if not all(isinstance(extent, tirx.IntImm) for extent in extents):
        return
    spatial = 0
    while spatial < len(kinds) and kinds[spatial] == IterVar.DataPar:
        spatial += 1
    if spatial == 0:
        return
    total = 1
    for extent in extents:
        total *= int(extent)
    fused = schedule.fuse(*loops[:spatial]) if spatial > 1 else loops[0]
    if spatial == len(kinds):
        outer, inner = schedule.split(fused, [None, target.float_lanes])
        schedule.vectorize(inner)
        fused = outer
    if total >= PARALLEL_GRAIN:
        schedule.parallel(fused)
