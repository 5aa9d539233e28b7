"""The tuning loop: choose decisions, build them, time them, write them down."""

import json
import os
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from edgec.compiler.errors import BoardError, ToolchainError
from edgec.compiler.kernels.templates import TEMPLATES, from_text
from edgec.compiler.lowering.tuning_records import Database, append, make_record, summarize
from edgec.compiler.tune.cost_model import CostModel, features_of
from edgec.compiler.tune.devices import Device, Host, MeasureFailed, Measurement, Rest
from edgec.compiler.tune.options import TuneOptions
from edgec.compiler.tune.rounds import KernelBuilder, Round, RoundBuilder
from edgec.compiler.tune.search import TaskSearch
from edgec.compiler.tune.tasks import Plan, Task
from edgec.targets.target import Target

# A round whose runs scatter more than this is timed again, once.
NOISY_SPREAD = 0.25
# A step that takes less says nothing about how fast the machine is at the moment.
LEAST_CONTROL_SECONDS = 2e-5
# How much of the model's time stays as it is in every round, to show the machine's drift.
CONTROL_SHARE = 0.15
EXPLORED_SHARE = 0.9
# A round has a price of its own, so kernels of little promise are tried along with the others.
LEAST_CHANCE = 0.35
# Decisions of each kernel that are compared at the end, in how many processes, and what a change
# must gain.
FINALISTS = 4
FINAL_PROCESSES = 3
LEAST_GAIN = 0.01
# Largest difference from the default's result, as part of the largest value.
ROUNDING = 1e-4
# With no device working for so long there is nothing to wait for.
GIVE_UP_SECONDS = 900.0
# How many of the explored kernels' object files are kept.
KEPT_DECISIONS = 8
# Comparing the finalists takes so many measurements and some building, but never more than a part.
FINAL_MEASUREMENTS = FINAL_PROCESSES * (FINALISTS + 3)
FINAL_BUILD_SECONDS = 10.0
LEAST_SEARCH_SHARE = 0.5

_T = TypeVar("_T")


@dataclass(frozen=True)
class TaskResult:
    """One kernel at the end.

    Attributes:
        task: the kernel.
        before: time of a call by the default decision [s].
        after: by the chosen one.
        decision: as text.
        trials: decisions that were measured.
        rejected: a faster decision whose result was wrong, with the reason.
    """

    task: Task
    before: float
    after: float
    decision: str
    trials: int
    rejected: str = ""

    def gflops(self, seconds: float) -> float:
        """Speed at a time [GFLOP/s]."""
        return self.task.flops / seconds / 1e9


@dataclass(frozen=True)
class TuneReport:
    """What a run found.

    Attributes:
        before: time of the model by the default decisions [s], every call counted.
        after: by the chosen ones, measured in turn with the others.
        trials: decisions that were measured in this run.
        seconds: how long it took.
        tasks: kernels, largest first.
        history: seconds, trials and time of the model by the best decisions then.
        reason: why it ended.
    """

    before: float
    after: float
    trials: int
    seconds: float
    tasks: tuple[TaskResult, ...]
    history: tuple[tuple[float, int, float], ...]
    reason: str


class Observer(Protocol):
    """Told what happens."""

    def event(self, kind: str, **fields: Any) -> None:
        """Something happened.

        It is one of `round`, `failed`, `rejected`, `rest`, `back`, `warning`, `phase`, `end`.
        """


@dataclass
class _Job:
    """Decisions of a round, on their way."""

    decisions: Mapping[int, str]
    explored: frozenset[int]
    built: Round | None = None
    attempts: int = 0


@dataclass
class _Place:
    device: Device
    rest: Rest = field(default_factory=Rest)


class Tuner:
    """One run over one plan.

    Attributes:
        measured: trials of this run, all of which are in the database.
    """

    def __init__(
        self,
        plan: Plan,
        tasks: Sequence[Task],
        target: Target,
        database: Path,
        options: TuneOptions,
        folder: Path,
        observer: Observer,
    ) -> None:
        self.plan = plan
        self.target = target
        self.options = options
        self.observer = observer
        self._path = database
        cores = len(os.sched_getaffinity(0))
        self._kernels = KernelBuilder(target, folder, cores)
        self._rounds = RoundBuilder(plan, target, folder, self._kernels)
        model = CostModel(options.seed) if options.strategy == "evolutionary" else None
        self._model = model
        self.searches = {
            task.number: TaskSearch(task, options.strategy, model, options.seed) for task in tasks
        }
        self._random = random.Random(options.seed)
        self._places: list[_Place] = []
        self._fixed: dict[int, float] = {}
        self._history: list[tuple[float, int, float]] = []
        self._jobs: list[_Job] = []
        self._running: dict[Future[Measurement], tuple[_Place, _Job]] = {}
        self.measured = 0
        self._known = 0
        self._started = 0.0
        self._round_seconds = 1.0

    # ---- The run ----

    def run(self, devices: Callable[[KernelBuilder], Sequence[Device]]) -> TuneReport:
        """Search until time, trials or decisions are used up.

        Args:
            devices: makes the places to measure on.

        Raises:
            BoardError: no board works for a quarter of an hour.
            ToolchainError: the model cannot be built or run by its default decisions.
            OutputError: the database cannot be written.
        """
        affinity = os.sched_getaffinity(0)
        self._started = time.monotonic()
        try:
            self._places = [_Place(device) for device in devices(self._kernels)]
            self._kernels.start()
            for place in self._places:
                if isinstance(place.device, Host) and place.device.others:
                    # This process, and the linker, keep off the cores that measure.
                    os.sched_setaffinity(0, place.device.others)
            self._rounds.prepare()
            self._resume()
            self.observer.event("phase", name="search", known=self._known)
            reason = self._search()
            self.observer.event("phase", name="compare", trials=self.measured)
            return self._conclude(reason)
        finally:
            for place in self._places:
                place.device.cancel()
            self._kernels.close()
            os.sched_setaffinity(0, affinity)

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self._started

    def _threads(self) -> int:
        return self._places[0].device.threads

    def _resume(self) -> None:
        """Take over what the database knows of these kernels, and learn from the others."""
        database = Database.read(self._path, missing_ok=True)
        if database.warning():
            self.observer.event("warning", text=database.warning())
        records = database.fitting(self.target, self._threads())
        known = summarize(records)
        for search in self.searches.values():
            for decision, seconds in known.pop(search.task.key, {}).items():
                search.learn(decision, seconds)
            self._known += len(search.trials)
            for record in records:
                if record.key == search.task.key and record.seconds is None:
                    search.fail(record.decision_text, record.failure)
        if self._model is not None:
            for key, times in known.items():
                for decision, seconds in times.items():
                    self._teach(key.operator, key.workload, decision, seconds)
            self._model.fit()

    def _teach(self, operator: str, workload: str, decision: str, seconds: float) -> None:
        template = TEMPLATES[operator]
        estimate = template.estimate(
            from_text(template.workload, workload),
            from_text(template.decision, decision),
            self.target,
        )
        assert self._model is not None
        features = features_of(operator, json.loads(workload), json.loads(decision))
        self._model.add(features, seconds, estimate)

    # ---- Search ----

    def _search(self) -> str:
        """Measure rounds until there is a reason to stop; the reason."""
        defaults = self._defaults()
        new = {n for n, d in defaults.items() if d not in self.searches[n].times}
        self._jobs.append(_Job(defaults, frozenset(new)))
        reason = ""
        works_at = time.monotonic()
        pool = ThreadPoolExecutor(len(self._places))
        try:
            while True:
                # The first round is measured whatever the limits: it is what others compare with.
                reason = (reason or self._why_stop()) if self._history else ""
                if not reason:
                    self._submit(pool)
                if not self._running:
                    if reason:
                        return reason
                    if time.monotonic() - works_at > GIVE_UP_SECONDS:
                        self._give_up()
                    time.sleep(min(1.0, max(0.05, min(p.rest.seconds for p in self._places))))
                    continue
                if not reason and self._overlaps() and not self._jobs:
                    self._next_job()
                done, _ = wait(self._running, timeout=1.0, return_when=FIRST_COMPLETED)
                for future in done:
                    place, job = self._running.pop(future)
                    if self._take(place, job, future):
                        works_at = time.monotonic()
        finally:
            for place in self._places:
                place.device.cancel()
            pool.shutdown()

    def _overlaps(self) -> bool:
        return all(place.device.apart for place in self._places)

    def _why_stop(self) -> str:
        limit = self.options.seconds
        if limit is not None:
            reserve = FINAL_BUILD_SECONDS + FINAL_MEASUREMENTS * self._round_seconds
            if self.seconds > max(limit - reserve, LEAST_SEARCH_SHARE * limit):
                return "time is over"
        if self.options.trials is not None and self.measured + self._known >= self.options.trials:
            return f"{self.options.trials} trials are done"
        if self._history and all(search.exhausted for search in self.searches.values()):
            return "no kernel improves any more"
        return ""

    def _submit(self, pool: ThreadPoolExecutor) -> None:
        busy = {id(place) for place, _ in self._running.values()}
        for place in self._places:
            if id(place) in busy or place.rest.seconds > 0:
                continue
            # The first round of all gives the scale that others are compared on.
            if not self._history and self._running:
                return
            if not self._jobs:
                self._next_job()
            if not self._jobs:
                return
            job = self._jobs.pop(0)
            if job.built is None:
                self._build(job)
            assert job.built is not None
            self._running[pool.submit(self._timed, place.device, job.built)] = (place, job)

    def _timed(self, device: Device, built: Round) -> Measurement:
        start = time.monotonic()
        (measured,) = device.time(built)
        taken = time.monotonic() - start
        self._round_seconds = max(0.8 * self._round_seconds + 0.2 * taken, min(1.0, taken))
        return measured

    def _build(self, job: _Job) -> None:
        job.built = self._rounds.build(self._complete(job.decisions))
        for number in sorted(job.explored - set(job.built.decisions)):
            search = self.searches[number]
            decision = job.decisions[number]
            self._fail(search, decision, self._kernels.failed[search.task.key, decision])
        job.explored &= frozenset(job.built.decisions)

    def _defaults(self) -> dict[int, str]:
        return {number: search.task.default for number, search in self.searches.items()}

    def _bests(self) -> dict[int, str]:
        return {number: search.best for number, search in self.searches.items()}

    def _complete(self, decisions: Mapping[int, str]) -> dict[int, str]:
        """Decisions of every task of the plan, those that are not tuned by default."""
        everything = {task.number: task.default for task in self.plan.tasks}
        return {**everything, **decisions}

    def _next_job(self) -> None:
        """Choose what to try: kernels by what more trials may save."""
        gains = {number: search.gain_expected() for number, search in self.searches.items()}
        most = max(gains.values(), default=0.0)
        if most <= 0:
            return
        if self._model is not None:
            self._model.fit()
        decisions = self._bests()
        controls = self._controls()
        decisions |= {n: self.searches[n].task.default for n in controls}
        explored: set[int] = set()
        left = None
        if self.options.trials is not None:
            flying = [*self._jobs, *(job for _, job in self._running.values())]
            coming = sum(len(job.explored) for job in flying)
            left = self.options.trials - self._known - self.measured - coming
        for number in sorted(gains, key=lambda n: -gains[n]):
            chance = min(EXPLORED_SHARE, max(LEAST_CHANCE, 3 * gains[number] / most))
            if number in controls or self._random.random() > chance:
                continue
            if gains[number] == 0 or (left is not None and len(explored) >= left):
                continue
            decision = self.searches[number].propose()
            if decision is not None:
                decisions[number] = decision
                explored.add(number)
        if explored:
            job = _Job(decisions, frozenset(explored))
            self._build(job)
            self._jobs.append(job)

    def _controls(self) -> set[int]:
        """Kernels that stay with their default in the next round, some of the model's time.

        They tell how fast the machine is at the moment. The best decisions would not do: a lucky
        time made some of them the best, and what follows always looks slow beside it.
        """
        whole = self._model_seconds()
        covered = sum(s for s in self._fixed.values() if s > LEAST_CONTROL_SECONDS)
        chosen: set[int] = set()
        order = sorted(self.searches)
        self._random.shuffle(order)
        for number in order[: len(order) // 2]:
            if covered >= CONTROL_SHARE * whole:
                break
            search = self.searches[number]
            seconds = search.seconds(search.task.default) * len(search.task.steps)
            if np.isfinite(seconds):
                chosen.add(number)
                covered += seconds
        return chosen

    def _take(self, place: _Place, job: _Job, future: "Future[Measurement]") -> bool:
        """Take a finished round; whether the device works."""
        assert job.built is not None
        try:
            measured = future.result()
        except MeasureFailed as error:
            self._failed(place, job, error)
            return error.reached
        if place.rest.succeeded():
            self.observer.event("back", device=place.device.name)
        if measured.spread > NOISY_SPREAD and not job.attempts:
            job.attempts += 1
            self._jobs.insert(0, job)
            return True
        self._learn(place.device, job, measured)
        self._rounds.discard(job.built)
        self._trim()
        return True

    def _failed(self, place: _Place, job: _Job, error: MeasureFailed) -> None:
        assert job.built is not None
        if not error.reached:
            self._let_rest(place, error)
            self._jobs.insert(0, job)
            return
        job.attempts += 1
        self.observer.event("failed", device=place.device.name, why=str(error))
        if job.attempts < 2:
            # It may have been the device.
            place.rest.failed()
            self._jobs.insert(0, job)
            return
        self._rounds.discard(job.built)
        if not self._history:
            raise ToolchainError(f"the model does not run by its default decisions: {error}")
        explored = sorted(job.explored)
        if len(explored) == 1:
            search = self.searches[explored[0]]
            self._fail(search, job.decisions[explored[0]], str(error))
            return
        # One of several is to blame: look for it in halves.
        for half in (explored[::2], explored[1::2]):
            decisions = self._bests()
            decisions |= {n: job.decisions[n] for n in half}
            if half:
                self._jobs.insert(0, _Job(decisions, frozenset(half)))

    def _let_rest(self, place: _Place, error: MeasureFailed) -> None:
        pause = place.rest.failed()
        self.observer.event("rest", device=place.device.name, why=str(error), seconds=pause)

    def _fail(self, search: TaskSearch, decision: str, reason: str) -> None:
        search.fail(decision, reason)
        record = self._record(search.task, decision, None, self._places[0].device, failure=reason)
        append(self._path, [record])
        self.observer.event("failed", task=search.task.label, why=reason)

    def _learn(self, device: Device, job: _Job, measured: Measurement) -> None:
        """Bring times to the scale of the first round, and write them down."""
        assert job.built is not None
        calls = self._calls(measured.seconds)
        drift = self._drift(job, measured, calls)
        records, gained = [], []
        for number, search in self.searches.items():
            decision = job.decisions[number]
            if number not in job.built.decisions:
                continue
            seconds = calls[number] / drift
            gain = search.learn(decision, seconds)
            if number in job.explored:
                self.measured += 1
                records.append(self._record(search.task, decision, seconds, device))
                if gain and self._history:
                    gained.append(search.task.label)
        append(self._path, records)
        if not self._fixed:
            tuned = {step for search in self.searches.values() for step in search.task.steps}
            self._fixed = {
                i: seconds / drift for i, seconds in enumerate(measured.seconds) if i not in tuned
            }
        now = self._model_seconds()
        self._history.append((self.seconds, self.measured, now))
        self.observer.event(
            "round",
            seconds=self.seconds,
            trials=self.measured,
            model_ms=now * 1e3,
            gained=gained,
            drift=drift,
            device=device.name,
        )

    def _calls(self, seconds: Sequence[float]) -> dict[int, float]:
        """Time of one call of each task, the mean over its steps; from the times of all steps."""
        return {
            number: statistics.fmean(seconds[step] for step in search.task.steps)
            for number, search in self.searches.items()
        }

    def _drift(self, job: _Job, measured: Measurement, calls: Mapping[int, float]) -> float:
        """How much slower the machine is than before, by what did not change.

        The scale is that of the first round, or of the database where there is one.
        """
        now, before = 0.0, 0.0
        for step, seconds in self._fixed.items():
            if seconds > LEAST_CONTROL_SECONDS:
                now, before = now + measured.seconds[step], before + seconds
        for number, search in self.searches.items():
            known = search.seconds(search.task.default)
            is_default = job.decisions[number] == search.task.default
            if is_default and number not in job.explored and np.isfinite(known):
                steps = len(search.task.steps)
                now, before = now + calls[number] * steps, before + known * steps
        return min(4.0, max(0.25, now / before)) if before > LEAST_CONTROL_SECONDS else 1.0

    def _model_seconds(self) -> float:
        tuned = sum(s.seconds(s.best) * len(s.task.steps) for s in self.searches.values())
        return tuned + sum(self._fixed.values())

    def _record(
        self,
        task: Task,
        decision: str,
        seconds: float | None,
        device: Device,
        *,
        confirmed: bool = False,
        failure: str = "",
    ) -> Any:
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

    def _trim(self) -> None:
        keep = {(task.key, task.default) for task in self.plan.tasks}
        for search in self.searches.values():
            keep |= {(search.task.key, d) for d in search.candidates(KEPT_DECISIONS)}
        for job in self._jobs:
            keep |= {(self.plan.tasks[n].key, d) for n, d in self._complete(job.decisions).items()}
        self._kernels.forget(keep)

    def _give_up(self) -> None:
        names = ", ".join(place.device.name for place in self._places)
        raise BoardError(
            f"no round could be measured on {names} for {GIVE_UP_SECONDS / 60:.0f} minutes; what "
            f"was measured before is in {self._path}, the same command goes on from there"
        )

    # ---- The end ----

    def _conclude(self, reason: str) -> TuneReport:
        """Compare the best decisions of each kernel in turn, check them and write them down."""
        medians = self._finals()
        chosen, rejected = self._choose(medians)
        results = [
            TaskResult(
                search.task,
                medians[number][search.task.default],
                medians[number][chosen[number]],
                chosen[number],
                len(search.trials),
                rejected.get(number, ""),
            )
            for number, search in self.searches.items()
        ]
        device = self._places[0].device
        append(
            self._path,
            [self._record(r.task, r.decision, r.after, device, confirmed=True) for r in results],
        )
        before, after = map(sum, self._compare([self._defaults(), chosen]))
        results.sort(key=lambda r: -r.before * len(r.task.steps))
        history = tuple(self._history)
        report = TuneReport(
            before, after, self.measured, self.seconds, tuple(results), history, reason
        )
        self.observer.event("end", report=report)
        return report

    def _finals(self) -> dict[int, dict[str, float]]:
        """Times of one call by the best decisions of each kernel, all of them compared in turn."""
        finalists = {n: search.candidates(FINALISTS) for n, search in self.searches.items()}
        count = max(len(found) for found in finalists.values())
        variants = [
            {n: found[min(place, len(found) - 1)] for n, found in finalists.items()}
            for place in range(count)
        ]
        variants.append(self._defaults())
        calls: dict[int, dict[str, list[float]]] = {n: {} for n in self.searches}
        for variant, seconds in zip(variants, self._compare(variants), strict=True):
            for number, call in self._calls(seconds).items():
                calls[number].setdefault(variant[number], []).append(call)
        return {
            number: {decision: statistics.median(times) for decision, times in found.items()}
            for number, found in calls.items()
        }

    def _choose(
        self, medians: Mapping[int, Mapping[str, float]]
    ) -> tuple[dict[int, str], dict[int, str]]:
        """The fastest decisions whose results are the default's, and why others were rejected."""
        rejected: dict[int, str] = {}
        wrong: set[tuple[int, str]] = set()
        right = {(number, search.task.default) for number, search in self.searches.items()}
        while True:
            chosen = {}
            for number, found in medians.items():
                default = self.searches[number].task.default
                left = [decision for decision in found if (number, decision) not in wrong]
                best = min(left, key=found.__getitem__)
                gains = found[best] <= found[default] * (1 - LEAST_GAIN)
                chosen[number] = best if gains else default
            unchecked = {n: d for n, d in chosen.items() if (n, d) not in right}
            if not unchecked:
                return chosen, rejected
            for number, difference in self._differences(unchecked).items():
                decision, search = unchecked[number], self.searches[number]
                if difference <= ROUNDING:
                    right.add((number, decision))
                    continue
                wrong.add((number, decision))
                rejected[number] = f"{decision} differs by {difference:.1e} of the largest value"
                self._fail(search, decision, rejected[number])
                self.observer.event("rejected", task=search.task.label, why=rejected[number])

    def _compare(self, variants: Sequence[Mapping[int, str]]) -> list[tuple[float, ...]]:
        """Times of every step of each variant, measured in turn."""
        built = [self._rounds.build(self._complete(variant)) for variant in variants]
        # Where its memory happens to lie makes a process faster or slower than the next.
        processes = [
            self._patiently(lambda device: device.time(*built)) for _ in range(FINAL_PROCESSES)
        ]
        for variant in built:
            self._rounds.discard(variant)
        return [
            tuple(np.median([item.seconds for item in items], axis=0))
            for items in zip(*processes, strict=True)
        ]

    def _patiently(self, action: Callable[[Device], _T]) -> _T:
        """Do something on whichever device works, on the first one if it does."""
        since = time.monotonic()
        while True:
            place = min(self._places, key=lambda p: p.rest.seconds)
            try:
                return action(place.device)
            except MeasureFailed as error:
                self._let_rest(place, error)
            if time.monotonic() - since > GIVE_UP_SECONDS:
                self._give_up()
            time.sleep(min(p.rest.seconds for p in self._places))

    def _differences(self, batch: Mapping[int, str]) -> dict[int, float]:
        """Largest difference of each result from the default's, as part of the largest value."""
        built = self._rounds.build_check(batch)
        outputs = built.library.parent / "outputs.bin"
        self._patiently(lambda device: device.compute(built, outputs))
        data = outputs.read_bytes()
        found, position = {}, 0
        for index, number in enumerate(batch):
            size = built.output_bytes[2 * index]
            pair = np.frombuffer(data, np.float32, size // 2, position).reshape(2, -1)
            position += 2 * size
            largest = float(np.abs(pair[0]).max(initial=1e-30))
            found[number] = float(np.abs(pair[0] - pair[1]).max(initial=0.0)) / largest
        self._rounds.discard(built)
        return found
