"""Find what a program need not compute when an early exit answers.

A step decides whether an exit answers. What depends on such a step chooses among the answers and
comes last; all between the two is needless where the exit does answer.
"""

from edgec.compiler.ir.early_exits import DECISION
from edgec.compiler.ir.program import KernelCall, Program


def order_exits(program: Program) -> None:
    """Bring the steps of a program in the order in which exits leave out most, and note its exits.

    First what each exit needs, then the rest of the model, then the choice among the answers.
    """
    deciding = [step for step in program.steps if step.label.startswith(DECISION)]
    if not deciding:
        return
    needs = _needs(program.steps)
    ordered: list[KernelCall] = []
    placed: set[int] = set()
    for step in deciding:
        wanted = needs[id(step)] | {id(step)}
        ordered += [s for s in program.steps if id(s) in wanted and id(s) not in placed]
        placed |= wanted
    decided = {id(step) for step in deciding}
    rest = [step for step in program.steps if id(step) not in placed]
    choosing = [step for step in rest if needs[id(step)] & decided]
    if not choosing:
        # A stage of a cut model: what chooses is in another one.
        return
    last = {id(step) for step in choosing}
    ordered += [step for step in rest if id(step) not in last]
    following = len(ordered)
    program.steps = ordered + choosing
    program.exits = [
        (number, following) for number, step in enumerate(program.steps) if id(step) in decided
    ]


def _needs(steps: list[KernelCall]) -> dict[int, set[int]]:
    """Return for each step, by its `id`, those before it that it depends on."""
    writers: dict[int, set[int]] = {}
    needs: dict[int, set[int]] = {}
    for step in steps:
        found: set[int] = set()
        for value in step.arguments:
            for writer in writers.get(id(value.root), ()):
                found |= needs[writer] | {writer}
        needs[id(step)] = found
        *others, result = step.arguments
        # Of several results all are new.
        written = [result, *(value for value in others if id(value.root) not in writers)]
        for value in written:
            if value.root.role in ("temporary", "output"):
                writers.setdefault(id(value.root), set()).add(id(step))
    return needs
