"""Provide the plan session: a split model that is run like any other, and what it does in trouble.

A stage that dies or stalls is lost within the session's timeout. What waited for it is answered
by the whole model on this machine, if the plan has it; else by the stages again, if the lost one
has another address or was started here; else by one clear error. Meanwhile the stages are looked
for again, and used when all are back. The state of a stream cannot be restored: there the caller
is told to begin anew.
"""

import math
import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.distribute.linked_stages import LinkedStages
from edgec.compiler.distribute.routes import make_routes
from edgec.compiler.distribute.stage_places import StageOptions, StagePlaces
from edgec.compiler.distribute.stages import Outputs, StageLostError
from edgec.compiler.errors import BoardError, EdgecError, UsageError
from edgec.compiler.ir.signature import Tensors
from edgec.compiler.runtime.inputs import check_inputs, generate_inputs
from edgec.compiler.runtime.programs import Programs
from edgec.compiler.runtime.session import Session
from edgec.compiler.split.plan import Plan
from edgec.compiler.support.progress import Progress, Silent

TIMEOUT_SECONDS = 1.0
RETRY_SECONDS = 1.0
# A run of the whole model may take so much longer than it did, and a thread so long to wake up.
LOCAL_MARGIN = 1.5
WAKING_SECONDS = 0.01


class PlanSession:
    """A plan session runs the model of a plan over its devices; a context.

    Any thread may call it. Requests are computed in order, several at the same time.

    Attributes:
        plan: the plan.
        folder: its folder.
        threads: that each stage here, and the whole model, computes on.
        index_bounds: rows by the name of an input that chooses from them.
        answers: how many requests were answered by the stages (`plan`), by the whole model here as
            a stage was lost (`whole`), or as a deadline was near (`late`).
        losses: what stages were lost and why, in order.
    """

    def __init__(
        self,
        folder: str | Path,
        devices: Mapping[str, str] | None = None,
        *,
        options: StageOptions | None = None,
        timeout: float = TIMEOUT_SECONDS,
        progress: Progress | None = None,
    ) -> None:
        """Start what is to run here, and connect with all stages.

        Args:
            folder: what `edgec compile --devices` wrote.
            devices: where devices are; those that are not named run here. See `StagePlaces`.
            options: of stages that are started here, and the key.
            timeout: seconds of silence after which a stage is lost.
            progress: reports what is fetched the first time.

        Raises:
            BundleError: the folder holds no plan, or not what the plan says.
            StageLostError: a stage cannot be reached.
        """
        self.folder = folder = Path(folder)
        options = options or StageOptions()
        self.plan = Plan.load(folder)
        self._bundles = {name: Bundle.load(folder / name) for name in self.plan.bundles}
        self._whole = None if self.plan.whole is None else Bundle.load(folder / self.plan.whole)
        self._timeout = timeout
        self.threads = options.threads
        self._programs = Programs({p.name: p.signature for p in self.plan.programs})
        self._outputs = [[t.name for t in program.outputs] for program in self.plan.programs]
        self._stateful = any(bundle.manifest.states for bundle in self._bundles.values())
        self.index_bounds = {
            name: rows
            for bundle in self._bundles.values()
            for name, rows in bundle.manifest.settings.index_bounds.items()
        }
        self.answers: Counter[str] = Counter()
        self.losses: list[str] = []
        self._places = StagePlaces(
            self.plan, self._bundles, devices or {}, options, progress or Silent()
        )
        self._key = self._places.key
        self._routes = make_routes(
            self.plan,
            {name: bundle.manifest.signatures for name, bundle in self._bundles.items()},
            self._places.relayed,
        )
        self._lock = threading.Lock()
        self._begins = True
        self._stream: LinkedStages | Session | None = None  # what has the state of the stream
        self._local: Session | None = None
        self._local_seconds = 0.0
        self._reviver: threading.Thread | None = None
        self._closed = threading.Event()
        self._pool = ThreadPoolExecutor(1, "edgec-whole")
        self._linked: LinkedStages | None = None
        try:
            self._linked = self._link()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def bundles(self) -> Mapping[str, Bundle]:
        """Return the bundles of the stages by name."""
        return self._bundles

    @property
    def whole(self) -> Bundle | None:
        """Return the bundle of the whole model, if the plan has one."""
        return self._whole

    @property
    def linked(self) -> LinkedStages | None:
        """Return the present session with the stages; None while one is lost."""
        return self._linked

    @property
    def pids(self) -> dict[str, int]:
        """Return the processes of stages that were started here, by bundle."""
        return self._places.pids

    @property
    def remote_bytes(self) -> int:
        """Return what a request of the first program sends to and from devices elsewhere."""
        return sum(size for _, size in self._remote_values())

    @property
    def remote_links(self) -> int:
        """Return how many links between here and elsewhere a request passes."""
        return len({link for link, _ in self._remote_values()})

    def _remote_values(self) -> list[tuple[tuple[str, str], int]]:
        """Return link and bytes of each value that is sent to or from elsewhere."""
        remote = self._places.remote
        return [
            ((value.source, target), math.prod(value.shape) * np.dtype(value.dtype).itemsize)
            for value in self.plan.programs[0].values
            for target in value.to
            if value.source in remote or target in remote
        ]

    # ---- requests ----

    def run(
        self,
        inputs: Tensors | NDArray[Any],
        program: str | None = None,
        *,
        deadline: float | None = None,
    ) -> Outputs:
        """Run once.

        Args:
            inputs: every input by name; of a model of one input the array itself will do.
            program: which program of the plan; None: the one that takes the inputs.
            deadline: seconds from now; when the stages would answer too late, the whole model on
                this machine does.

        Returns:
            Outputs by name.

        Raises:
            TensorInputError: the inputs do not fit.
            UsageError: there is a deadline, and no whole model, or a model with state.
            StageLostError: a stage is lost, and nothing else can answer.
        """
        if deadline is None:
            return self.submit(inputs, program).result()
        began = time.monotonic()
        reserve = LOCAL_MARGIN * self.local_seconds() + WAKING_SECONDS
        future = self.submit(inputs, program)
        try:
            return future.result(max(0.0, began + deadline - reserve - time.monotonic()))
        except FutureTimeoutError:
            future.cancel()
            self.answers["late"] += 1
            return self.run_whole(inputs, program)

    def submit(
        self, inputs: Tensors | NDArray[Any], program: str | None = None
    ) -> "Future[Outputs]":
        """Send a request as soon as the stages have room; its outputs come later.

        Raises:
            TensorInputError: the inputs do not fit.
        """
        if program is None:
            number, checked = self._programs.fitting(inputs, self.index_bounds)
        else:
            planned = self.plan.program(program)
            number = self.plan.programs.index(planned)
            checked = check_inputs(planned.signature.inputs, inputs, self.index_bounds)
        answer: Future[Outputs] = Future()
        with self._lock:
            begins, self._begins = self._begins, False
            linked = self._linked
            if self._stateful:
                if begins:
                    self._stream = linked if linked is not None else self._local_session()
                if self._stream is not linked or linked is None:
                    self._go_on(answer, number, checked, begins)
                    return answer
        if linked is None:
            self._answer_otherwise(answer, number, checked, begins, None)
            return answer

        def take(found: "Future[Outputs]") -> None:
            failure = found.exception()
            if failure is None:
                self.answers["plan"] += 1
                _resolve(answer, found.result())
                return
            assert isinstance(failure, StageLostError)
            self._note_loss(linked, failure)
            self._answer_otherwise(answer, number, checked, begins, failure)

        linked.submit(number, checked, begins).add_done_callback(take)
        return answer

    def reset(self) -> None:
        """Begin anew: all state is zeros for the next request."""
        self._begins = True

    # ---- the stages ----

    def _link(self) -> LinkedStages:
        """Open a session with the stages; every address is tried once.

        Raises:
            StageLostError: the last one that was lost.
        """
        for attempt in range(self._places.alternatives):
            try:
                places = self._places.locate()
                return LinkedStages(self._routes, self._outputs, places, self._key, self._timeout)
            except StageLostError as error:
                self._places.note_loss(error.device)
                if attempt + 1 == self._places.alternatives:
                    raise
        raise AssertionError

    def _note_loss(self, linked: LinkedStages, failure: StageLostError) -> None:
        """Look for the stages again, if this is the first to see that one is lost."""
        with self._lock:
            if self._linked is not linked or self._closed.is_set():
                return
            self._linked = None
            self.losses.append(str(failure))
            # Whoever sees that there are no stages waits for it.
            self._revived: Future[LinkedStages] = Future()
        self._reviver = threading.Thread(target=self._revive, args=(linked, failure), daemon=True)
        self._reviver.start()

    def _revive(self, lost: LinkedStages, failure: StageLostError) -> None:
        lost.close()
        self._places.note_loss(failure.device)
        while not self._closed.is_set():
            try:
                linked = self._link()
            except EdgecError as error:
                _refuse(self._revived, error)
                self._closed.wait(RETRY_SECONDS)
                continue
            with self._lock:
                closed = self._closed.is_set()
                if not closed:
                    self._linked = linked
            if closed:
                linked.close()
                break
            _resolve(self._revived, linked)
            return
        _refuse(self._revived, failure)

    # ---- without the stages ----

    def _answer_otherwise(
        self,
        answer: "Future[Outputs]",
        program: int,
        inputs: Outputs,
        begins: bool,
        failure: StageLostError | None,
    ) -> None:
        """Answer by the whole model, or by the stages when they are back; else by the error."""
        if self._closed.is_set():
            _refuse(answer, failure or BoardError("the session is closed"))
        elif self._stateful:
            _refuse(answer, _lost_state(failure))
        elif self._whole is not None:
            self._answer_here(answer, program, inputs)
        else:
            self._revived.add_done_callback(
                lambda revived: self._answer_again(answer, program, inputs, begins, revived)
            )

    def _answer_again(
        self,
        answer: "Future[Outputs]",
        program: int,
        inputs: Outputs,
        begins: bool,
        revived: "Future[LinkedStages]",
    ) -> None:
        failure = revived.exception()
        if failure is not None:
            _refuse(answer, failure)
            return

        def take(found: "Future[Outputs]") -> None:
            error = found.exception()
            if error is None:
                self.answers["plan"] += 1
                _resolve(answer, found.result())
            else:
                # Lost twice in a row: that is no accident.
                _refuse(answer, error)

        # Not on the thread that opened the session: sending may have to wait for room.
        self._pool.submit(
            lambda: revived.result().submit(program, inputs, begins).add_done_callback(take)
        )

    def _answer_here(self, answer: "Future[Outputs]", program: int, inputs: Outputs) -> None:
        def work() -> None:
            try:
                outputs = self.run_whole(inputs, self.plan.programs[program].name or None)
            except EdgecError as error:
                _refuse(answer, error)
            else:
                self.answers["whole"] += 1
                _resolve(answer, outputs)

        self._pool.submit(work)

    def run_whole(self, inputs: Tensors | NDArray[Any], program: str | None = None) -> Outputs:
        """Run the whole model on this machine.

        Args:
            inputs: every input by name.
            program: which program; None: the one that takes the inputs.

        Raises:
            UsageError: the plan has none.
        """
        session = self._local_session()
        if session is None:
            raise UsageError(f"{self.folder} has no whole model: compile it with --whole native")
        return session.run(inputs, program)

    def _local_session(self) -> Session | None:
        """Return the whole model, loaded here; None if the plan has none."""
        if self._local is None and self._whole is not None:
            self._local = self._whole.open(self.threads)
        return self._local

    def local_seconds(self) -> float:
        """Return how long the whole model takes here [s].

        Raises:
            UsageError: there is none, or it has state.
        """
        if self._whole is None or self._stateful:
            why = "the model has state" if self._stateful else "the plan has no whole model"
            raise UsageError(f"a deadline needs the whole model on this machine, and {why}")
        if not self._local_seconds:
            manifest = self._whole.manifest
            inputs = generate_inputs(manifest.signature.inputs, 0, manifest.settings.index_bounds)
            times = []
            for _ in range(4):
                began = time.monotonic()
                self.run_whole(inputs)
                times.append(time.monotonic() - began)
            # The first one loads it.
            self._local_seconds = max(times[1:])
        return self._local_seconds

    def _go_on(
        self, answer: "Future[Outputs]", program: int, inputs: Outputs, begins: bool
    ) -> None:
        """Answer a request of a stream that the stages do not have, or not any more."""
        stream = self._stream
        if stream is None or isinstance(stream, LinkedStages):
            _refuse(answer, _lost_state(stream.failure if stream is not None else None))
            return
        if begins:
            stream.reset()
        self.answers["whole"] += 1
        _resolve(answer, stream.run(inputs, self.plan.programs[program].name or None))

    def close(self) -> None:
        """End the session and what it started."""
        self._closed.set()
        with self._lock:
            linked, self._linked = self._linked, None
        if linked is not None:
            linked.close()
        if self._reviver is not None:
            self._reviver.join()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._places.close()


def _lost_state(failure: StageLostError | None) -> BoardError:
    what = str(failure) if failure is not None else "a stage was lost"
    return BoardError(f"{what}; the state of the stream is lost with it: begin anew, with reset()")


def _resolve(future: "Future[Any]", value: Any) -> None:
    if not future.done() and future.set_running_or_notify_cancel():
        future.set_result(value)


def _refuse(future: "Future[Any]", error: BaseException) -> None:
    if not future.done() and future.set_running_or_notify_cancel():
        future.set_exception(error)
