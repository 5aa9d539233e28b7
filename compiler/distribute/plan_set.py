"""Provide the plan set: several plans of one model, of which each request takes the fastest.

Between a device and a server that is a plan with everything on the server, some that are cut at
other places, and the whole model on the device itself, which answers when the link is slow or gone.
"""

import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

from numpy.typing import NDArray

from edgec.compiler.distribute.plan_choice import PlanChooser, PlanCost
from edgec.compiler.distribute.plan_session import LOCAL_MARGIN, WAKING_SECONDS, PlanSession
from edgec.compiler.distribute.stages import Outputs
from edgec.compiler.errors import UsageError
from edgec.compiler.ir.signature import Tensors
from edgec.compiler.runtime.inputs import generate_inputs
from edgec.compiler.split.link import Network

HERE = "here"
_RUNS = 3
# A request that takes so many times what was estimated is answered here as well.
LATE = 1.25


class PlanSet:
    """A plan set answers each request by the plan that is estimated to be the fastest.

    One thread calls it.

    Attributes:
        chooser: what is known of plans and link.
        chosen: how many requests took which plan, by the name of its folder, or `here`.
        late: how many were answered here as well, as their plan took longer than was estimated.
    """

    def __init__(self, sessions: Sequence[PlanSession], network: Network | None = None) -> None:
        """Measure each plan once, and the whole model here, which the first plan must have.

        Args:
            sessions: with the stages of each plan.
            network: the links that there may be, as far as they are known.

        Raises:
            UsageError: there is no whole model, or it has state.
            StageLostError: a stage is lost.
        """
        if not sessions:
            raise UsageError("there is no plan to choose")
        self._sessions = list(sessions)
        self._lock = threading.Lock()
        self.chosen: Counter[str] = Counter()
        self.late = 0
        costs = [
            PlanCost(session.folder.name, 0.0, session.remote_bytes, session.remote_links)
            for session in sessions
        ]
        here = PlanCost(HERE, sessions[0].local_seconds(), 0, 0)
        self.chooser = PlanChooser([*costs, here], network=network)
        self._names = [cost.name for cost in (*costs, here)]
        specs = sessions[0].plan.programs[0].signature.inputs
        inputs = generate_inputs(specs, 0, sessions[0].index_bounds)
        for _ in range(_RUNS):
            for number in range(len(sessions)):
                self._send(number, inputs).result()

    def run(self, inputs: Tensors | NDArray[Any], *, deadline: float | None = None) -> Outputs:
        """Run once; see `PlanSession.run`."""
        with self._lock:
            number = self.chooser.choose()
            probed = self.chooser.probe() if number == len(self._sessions) else None
        self.chosen[self._names[number]] += 1
        if probed is not None:
            # Nobody waits for its answer.
            self._send(probed, inputs)
        return self._run(number, inputs, deadline)

    def _run(self, number: int, inputs: Tensors | NDArray[Any], deadline: float | None) -> Outputs:
        began = time.monotonic()
        if number == len(self._sessions):
            outputs = self._sessions[0].run_whole(inputs)
            with self._lock:
                self.chooser.note(number, time.monotonic() - began, 0.0)
            return outputs
        with self._lock:
            patience = LATE * self.chooser.estimate(number) + WAKING_SECONDS
        if deadline is not None:
            reserve = LOCAL_MARGIN * self._sessions[0].local_seconds() + WAKING_SECONDS
            patience = min(patience, max(0.0, deadline - reserve))
        future = self._send(number, inputs)
        try:
            return future.result(patience)
        except FutureTimeoutError:
            with self._lock:
                self.chooser.note_loss(number, time.monotonic() - began)
            self.late += 1
            outputs = self._sessions[0].run_whole(inputs)
            return future.result() if future.done() and not future.exception() else outputs

    def _send(self, number: int, inputs: Tensors | NDArray[Any]) -> "Future[Outputs]":
        """Send a request over the link, which is seen by its answer."""
        session, began = self._sessions[number], time.monotonic()
        before = session.answers["plan"]
        future = session.submit(inputs)
        future.add_done_callback(
            lambda _: self._note(number, time.monotonic() - began, session.answers["plan"] > before)
        )
        return future

    def _note(self, number: int, elapsed: float, answered: bool) -> None:
        linked = self._sessions[number].linked
        with self._lock:
            if not answered or linked is None:
                self.chooser.note_loss(number, elapsed)
                return
            compute = linked.compute_seconds()
            self.chooser.note(number, compute, max(0.0, elapsed - compute))
