"""Provide the plan set: several plans of one model, of which each request takes the fastest.

Between a device and a server that is a plan with everything on the server, some that are cut at
other places, and the whole model on the device itself, which answers when the link is slow or gone.
"""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from edgec.compiler.distribute.plan_choice import PlanChooser, PlanCost
from edgec.compiler.distribute.plan_session import PlanSession
from edgec.compiler.distribute.stages import Outputs
from edgec.compiler.errors import UsageError
from edgec.compiler.ir.signature import Tensors
from edgec.compiler.runtime.inputs import generate_inputs

HERE = "here"
_RUNS = 3


class PlanSet:
    """A plan set answers each request by the plan that is estimated to be the fastest.

    One thread calls it.

    Attributes:
        chooser: what is known of plans and link.
        chosen: how many requests took which plan, by the name of its folder, or `here`.
    """

    def __init__(self, sessions: Sequence[PlanSession]) -> None:
        """Measure each plan once, and the whole model here, which the first plan must have.

        Raises:
            UsageError: there is no whole model, or it has state.
            StageLostError: a stage is lost.
        """
        if not sessions:
            raise UsageError("there is no plan to choose")
        self._sessions = list(sessions)
        self.chosen: Counter[str] = Counter()
        costs = [
            PlanCost(session.folder.name, 0.0, session.remote_bytes, session.remote_links)
            for session in sessions
        ]
        here = PlanCost(HERE, sessions[0].local_seconds(), 0, 0)
        self.chooser = PlanChooser([*costs, here])
        self._names = [cost.name for cost in (*costs, here)]
        specs = sessions[0].plan.programs[0].signature.inputs
        inputs = generate_inputs(specs, 0, sessions[0].index_bounds)
        for _ in range(_RUNS):
            for number in range(len(sessions)):
                self._run(number, inputs, None)

    def run(self, inputs: Tensors | NDArray[Any], *, deadline: float | None = None) -> Outputs:
        """Run once; see `PlanSession.run`."""
        number = self.chooser.choose()
        self.chosen[self._names[number]] += 1
        return self._run(number, inputs, deadline)

    def _run(self, number: int, inputs: Tensors | NDArray[Any], deadline: float | None) -> Outputs:
        began = time.monotonic()
        if number == len(self._sessions):
            outputs = self._sessions[0].run_whole(inputs)
            self.chooser.note(number, time.monotonic() - began, 0.0)
            return outputs
        session = self._sessions[number]
        before = session.answers["plan"]
        outputs = session.run(inputs, deadline=deadline)
        elapsed, linked = time.monotonic() - began, session.linked
        if session.answers["plan"] == before or linked is None:
            self.chooser.note_loss(number, elapsed)
        else:
            compute = linked.compute_seconds()
            self.chooser.note(number, compute, max(0.0, elapsed - compute))
        return outputs
