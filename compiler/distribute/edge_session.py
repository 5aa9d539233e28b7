"""Run a plan whose exits are in its first stage: on this machine, and the rest where it is served.

Where an exit is sure nothing is sent. Where none is, and the other stage cannot be reached or would
be too late, the last exit answers all the same.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.cascade.session import Ask, CascadeSession, FirstAnswer
from edgec.compiler.errors import UsageError
from edgec.compiler.ir.early_exits import ANSWERED_BY
from edgec.compiler.ir.signature import Tensors
from edgec.compiler.split.plan import Plan, PlannedExit, PlannedProgram


def has_exits(folder: str | Path) -> bool:
    """Return whether a plan has exits in its first stage.

    Raises:
        BundleError: there is no plan.
    """
    programs = Plan.load(folder).programs
    return len(programs) == 1 and bool(programs[0].exits) and len(programs[0].stages) == 2


class ExitStage:
    """An exit stage is the first stage of a plan, on this machine."""

    def __init__(self, program: PlannedProgram, bundle: Bundle, threads: int) -> None:
        """Load it.

        Raises:
            BundleError: it is for another machine.
        """
        self._exits: Sequence[PlannedExit] = program.exits
        self._output = next(t.name for t in program.outputs if t.name != ANSWERED_BY)
        self._handed = program.stages[1].inputs
        self._session = bundle.open(threads)

    def run(self, inputs: Tensors) -> FirstAnswer:
        """Return the answer of the first exit that is sure, else that of the last one."""
        found = self._session.run(inputs)
        sure = [n for n, one in enumerate(self._exits) if found[one.decided][0]]
        number = sure[0] if sure else len(self._exits) - 1
        outputs = {
            self._output: found[self._exits[number].answer],
            ANSWERED_BY: np.array([number + 1], np.int32),
        }
        values = {**inputs, **found}
        return FirstAnswer(outputs, bool(sure), {name: values[name] for name in self._handed})


def open_edge(folder: Path, ask: Ask | None, threads: int = 0) -> CascadeSession:
    """Open a plan with exits.

    Args:
        folder: what `edgec compile --exits … --devices …` wrote.
        ask: asks the second stage; None: it is loaded here.
        threads: that each stage here computes on.

    Raises:
        UsageError: the plan has no exits in its first stage.
        BundleError: there is no plan, or a stage is for another machine.
    """
    if not has_exits(folder):
        raise UsageError(f"{folder} has no exits in the first of two stages")
    program = Plan.load(folder).programs[0]
    first = Bundle.load(folder / program.stages[0].bundle)
    if ask is None:
        ask = Bundle.load(folder / program.stages[1].bundle).open(threads).run
    record = first.manifest.exits
    escalated = 1.0 if record is None else 1 - sum(one.share for one in record.exits)
    return CascadeSession(
        ExitStage(program, first, threads),
        ask,
        program.signature,
        escalated,
        first.manifest.settings.index_bounds,
    )
