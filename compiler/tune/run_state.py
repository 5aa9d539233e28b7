"""Describe what one tuning run knows: the plan, what was measured, and where it is written down."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from edgec.compiler.lowering.tuning_records import append, make_record
from edgec.compiler.support.cores import usable_cores
from edgec.compiler.tune.cost_model import CostModel
from edgec.compiler.tune.devices import Device
from edgec.compiler.tune.drift import ModelTimes
from edgec.compiler.tune.options import TuneOptions
from edgec.compiler.tune.report_data import TuningObserver
from edgec.compiler.tune.rounds import KernelBuilder, RoundBuilder
from edgec.compiler.tune.search import TaskSearch
from edgec.compiler.tune.slots import Slots
from edgec.compiler.tune.tasks import Task, TuningPlan
from edgec.targets.target import Target


class RunState:
    """A run state holds what the search and the comparison of a run share.

    Attributes:
        plan: the model's steps and kernels.
        target: the target that they are for.
        database: the file of records.
        options: how long and how to search.
        observer: is notified of what happens.
        kernels: builds kernels.
        rounds: builds programs of them.
        model: predicts times; None where the strategy needs none.
        searches: the searches of the tasks that are tuned, by number.
        times: the times of the model's steps.
        slots: where it is measured.
        history: seconds, trials and time of the model by the best decisions then.
        measured: trials of this run, all of which are in the database.
        known: trials that the database knew before.
    """

    def __init__(
        self,
        plan: TuningPlan,
        tasks: Sequence[Task],
        target: Target,
        database: Path,
        options: TuneOptions,
        folder: Path,
        observer: TuningObserver,
        elsewhere: Executor | None = None,
    ) -> None:
        self.plan = plan
        self.target = target
        self.database = database
        self.options = options
        self.observer = observer
        self.kernels = KernelBuilder(target, folder, usable_cores(), elsewhere)
        self.rounds = RoundBuilder(plan, target, folder, self.kernels)
        self.model = CostModel(options.seed) if options.strategy == "evolutionary" else None
        self.searches = {
            task.number: TaskSearch(task, options.strategy, self.model, options.seed)
            for task in tasks
        }
        self.times = ModelTimes(self.searches)
        self.slots = Slots([], database, observer)
        self.history: list[tuple[float, int, float]] = []
        self.measured = 0
        self.known = 0
        self._started = 0.0

    def start(self, devices: Callable[[KernelBuilder], Sequence[Device]]) -> None:
        """Start the clock, and the devices."""
        self._started = time.monotonic()
        self.slots = Slots(devices(self.kernels), self.database, self.observer)

    @property
    def seconds(self) -> float:
        """Return the seconds since the run began."""
        return time.monotonic() - self._started

    def record(
        self,
        task: Task,
        decision: str,
        seconds: float | None,
        device: Device,
        *,
        confirmed: bool = False,
        failure: str = "",
    ) -> Any:
        """Make a record of a time, or of a failure, on a device."""
        return make_record(
            task.key,
            decision,
            self.target,
            device.threads,
            seconds,
            confirmed=confirmed,
            failure=failure,
            machine=device.machine,
            emulated=device.emulated,
        )

    def fail(self, search: TaskSearch, decision: str, reason: str) -> None:
        """Note that a decision gives no time or a wrong result, and why."""
        search.fail(decision, reason)
        record = self.record(search.task, decision, None, self.slots.first, failure=reason)
        append(self.database, [record])
        self.observer.event("failed", task=search.task.label, why=reason)

    def defaults(self) -> dict[int, str]:
        """Return the default decision of every task that is tuned."""
        return {number: search.task.default for number, search in self.searches.items()}

    def complete(self, decisions: Mapping[int, str]) -> dict[int, str]:
        """Return decisions of every task of the plan, those that are not tuned by default."""
        everything = {task.number: task.default for task in self.plan.tasks}
        return {**everything, **decisions}
