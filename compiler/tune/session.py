"""Provide the tuning of a model: what the database knows, the search, the comparison at the end."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path

from edgec.compiler.kernels.template import from_text
from edgec.compiler.kernels.templates import TEMPLATES
from edgec.compiler.lowering.tuning_records import Database, summarize
from edgec.compiler.tune.cost_model import features_of
from edgec.compiler.tune.devices import Device, Host
from edgec.compiler.tune.finals import Finals
from edgec.compiler.tune.options import TuneOptions
from edgec.compiler.tune.report_data import TuneReport, TuningObserver
from edgec.compiler.tune.rounds import KernelBuilder
from edgec.compiler.tune.run_state import RunState
from edgec.compiler.tune.search import TaskSearch
from edgec.compiler.tune.search_loop import SearchLoop
from edgec.compiler.tune.tasks import Task, TuningPlan
from edgec.targets.target import Target

__all__ = ["TuneOptions", "TuneReport", "Tuner"]


class Tuner:
    """A tuner is one run over one plan."""

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
        self._run = RunState(plan, tasks, target, database, options, folder, observer, elsewhere)

    @property
    def options(self) -> TuneOptions:
        """Return how long and how it searches."""
        return self._run.options

    @property
    def searches(self) -> Mapping[int, TaskSearch]:
        """Return what was measured of each task, by its number."""
        return self._run.searches

    @property
    def measured(self) -> int:
        """Return the trials of this run, all of which are in the database."""
        return self._run.measured

    @property
    def seconds(self) -> float:
        """Return the seconds since the run began."""
        return self._run.seconds

    def run(self, devices: Callable[[KernelBuilder], Sequence[Device]]) -> TuneReport:
        """Search until time, trials or decisions are used up.

        Args:
            devices: makes the places to measure on.

        Raises:
            BoardError: no board works for a quarter of an hour.
            ToolchainError: the model cannot be built or run by its default decisions.
            OutputError: the database cannot be written.
        """
        run, affinity = self._run, os.sched_getaffinity(0)
        try:
            run.start(devices)
            run.kernels.start()
            for slot in run.slots:
                if isinstance(slot.device, Host) and slot.device.others:
                    # This process, and the linker, keep off the cores that measure.
                    os.sched_setaffinity(0, slot.device.others)
            run.rounds.prepare()
            self._resume()
            run.observer.event("phase", name="search", known=run.known)
            reason = SearchLoop(run).search()
            run.observer.event("phase", name="compare", trials=run.measured)
            return Finals(run).conclude(reason)
        finally:
            run.slots.cancel()
            run.kernels.close()
            os.sched_setaffinity(0, affinity)

    def _resume(self) -> None:
        """Take over what the database knows of these kernels, and learn from the others."""
        database = Database.read(self._run.database, missing_ok=True)
        if database.warning():
            self._run.observer.event("warning", text=database.warning())
        records = database.fitting(self._run.target, self._run.slots.first.threads)
        known = summarize(records)
        for search in self._run.searches.values():
            for decision, seconds in known.pop(search.task.key, {}).items():
                search.learn(decision, seconds)
            self._run.known += len(search.trials)
            for record in records:
                if record.key == search.task.key and record.seconds is None:
                    search.fail(record.decision_text, record.failure)
        if self._run.model is not None:
            for key, times in known.items():
                for decision, seconds in times.items():
                    self._teach(key.operator, key.workload, decision, seconds)
            self._run.model.fit()

    def _teach(self, operator: str, workload: str, decision: str, seconds: float) -> None:
        template = TEMPLATES[operator]
        estimate = template.estimate(
            from_text(template.workload, workload),
            from_text(template.decision, decision),
            self._run.target,
        )
        assert self._run.model is not None
        features = features_of(operator, json.loads(workload), json.loads(decision))
        self._run.model.add(features, seconds, estimate)
