"""Search in a tuning run: choose decisions, build them, time them, write them down."""

import random
import time
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from edgec.compiler.errors import ToolchainError
from edgec.compiler.lowering.tuning_records import append
from edgec.compiler.tune.devices import Device, MeasureFailed, Measurement
from edgec.compiler.tune.finals import FINAL_MEASUREMENTS
from edgec.compiler.tune.rounds import Round
from edgec.compiler.tune.run_state import RunState
from edgec.compiler.tune.slots import GIVE_UP_SECONDS, Slot

# A round whose runs scatter more than this is timed again, once.
NOISY_SPREAD = 0.25
EXPLORED_SHARE = 0.9
# A round has a price of its own, so kernels of little promise are tried along with the others.
LEAST_CHANCE = 0.35
# How many of the explored kernels' object files are kept.
KEPT_DECISIONS = 8
# Of the time, comparing takes `FINAL_MEASUREMENTS` and some building, but never more than a part.
FINAL_BUILD_SECONDS = 10.0
LEAST_SEARCH_SHARE = 0.5


@dataclass
class _Job:
    """A job describes decisions of a round, on their way."""

    decisions: Mapping[int, str]
    explored: frozenset[int]
    built: Round | None = None
    attempts: int = 0


class SearchLoop:
    """A search loop makes the rounds of a run, on as many devices at a time as there are."""

    def __init__(self, run: RunState) -> None:
        self.run = run
        self._random = random.Random(run.options.seed)
        self._jobs: list[_Job] = []
        self._running: dict[Future[Measurement], tuple[Slot, _Job]] = {}
        self._round_seconds = 1.0

    def search(self) -> str:
        """Measure rounds until there is a reason to stop, and return the reason.

        Raises:
            BoardError: no board works for a quarter of an hour.
            ToolchainError: the model cannot be built or run by its default decisions.
        """
        defaults = self.run.defaults()
        new = {n for n, d in defaults.items() if d not in self.run.searches[n].times}
        self._jobs.append(_Job(defaults, frozenset(new)))
        reason = ""
        works_at = time.monotonic()
        pool = ThreadPoolExecutor(len(self.run.slots))
        try:
            while True:
                # The first round is measured whatever the limits: it is what others compare with.
                reason = (reason or self._why_stop()) if self.run.history else ""
                if not reason:
                    self._submit(pool)
                if not self._running:
                    if reason:
                        return reason
                    if time.monotonic() - works_at > GIVE_UP_SECONDS:
                        self.run.slots.give_up()
                    time.sleep(min(1.0, max(0.05, self.run.slots.backoff_seconds)))
                    continue
                if not reason and self._overlaps() and not self._jobs:
                    self._next_job()
                done, _ = wait(self._running, timeout=1.0, return_when=FIRST_COMPLETED)
                for future in done:
                    slot, job = self._running.pop(future)
                    if self._take(slot, job, future):
                        works_at = time.monotonic()
        finally:
            self.run.slots.cancel()
            pool.shutdown()

    def _overlaps(self) -> bool:
        return all(slot.device.apart for slot in self.run.slots)

    def _why_stop(self) -> str:
        limit = self.run.options.seconds
        if limit is not None:
            reserve = FINAL_BUILD_SECONDS + FINAL_MEASUREMENTS * self._round_seconds
            if self.run.seconds > max(limit - reserve, LEAST_SEARCH_SHARE * limit):
                return "time is over"
        if (
            self.run.options.trials is not None
            and self.run.measured + self.run.known >= self.run.options.trials
        ):
            return f"{self.run.options.trials} trials are done"
        if self.run.history and all(search.exhausted for search in self.run.searches.values()):
            return "no kernel improves any more"
        return ""

    def _submit(self, pool: ThreadPoolExecutor) -> None:
        busy = {id(slot) for slot, _ in self._running.values()}
        for slot in self.run.slots:
            if id(slot) in busy or slot.backoff.seconds > 0:
                continue
            # The first round of all gives the scale that others are compared on.
            if not self.run.history and self._running:
                return
            if not self._jobs:
                self._next_job()
            if not self._jobs:
                return
            job = self._jobs.pop(0)
            if job.built is None:
                self._build(job)
            assert job.built is not None
            self._running[pool.submit(self._timed, slot.device, job.built)] = (slot, job)

    def _timed(self, device: Device, built: Round) -> Measurement:
        start = time.monotonic()
        (measured,) = device.time(built)
        taken = time.monotonic() - start
        self._round_seconds = max(0.8 * self._round_seconds + 0.2 * taken, min(1.0, taken))
        return measured

    def _build(self, job: _Job) -> None:
        job.built = self.run.rounds.build(self.run.complete(job.decisions))
        for number in sorted(job.explored - set(job.built.decisions)):
            search = self.run.searches[number]
            decision = job.decisions[number]
            self.run.fail(search, decision, self.run.kernels.failed[search.task.key, decision])
        job.explored &= frozenset(job.built.decisions)

    def _bests(self) -> dict[int, str]:
        return {number: search.best for number, search in self.run.searches.items()}

    def _next_job(self) -> None:
        """Choose what to try: kernels by what more trials may save."""
        gains = {number: search.gain_expected() for number, search in self.run.searches.items()}
        most = max(gains.values(), default=0.0)
        if most <= 0:
            return
        if self.run.model is not None:
            self.run.model.fit()
        decisions = self._bests()
        controls = self.run.times.controls(self._random)
        decisions |= {n: self.run.searches[n].task.default for n in controls}
        explored: set[int] = set()
        left = None
        if self.run.options.trials is not None:
            flying = [*self._jobs, *(job for _, job in self._running.values())]
            coming = sum(len(job.explored) for job in flying)
            left = self.run.options.trials - self.run.known - self.run.measured - coming
        for number in sorted(gains, key=lambda n: -gains[n]):
            chance = min(EXPLORED_SHARE, max(LEAST_CHANCE, 3 * gains[number] / most))
            if number in controls or self._random.random() > chance:
                continue
            if gains[number] == 0 or (left is not None and len(explored) >= left):
                continue
            decision = self.run.searches[number].propose()
            if decision is not None:
                decisions[number] = decision
                explored.add(number)
        if explored:
            job = _Job(decisions, frozenset(explored))
            self._build(job)
            self._jobs.append(job)

    def _take(self, slot: Slot, job: _Job, future: "Future[Measurement]") -> bool:
        """Take a finished round; whether the device works."""
        assert job.built is not None
        try:
            measured = future.result()
        except MeasureFailed as error:
            self._failed(slot, job, error)
            return error.reached
        if slot.backoff.succeeded():
            self.run.observer.event("back", device=slot.device.name)
        if measured.spread > NOISY_SPREAD and not job.attempts:
            job.attempts += 1
            self._jobs.insert(0, job)
            return True
        self._learn(slot.device, job, measured)
        self.run.rounds.discard(job.built)
        self._trim()
        return True

    def _failed(self, slot: Slot, job: _Job, error: MeasureFailed) -> None:
        assert job.built is not None
        if not error.reached:
            self.run.slots.back_off(slot, error)
            self._jobs.insert(0, job)
            return
        job.attempts += 1
        self.run.observer.event("failed", device=slot.device.name, why=str(error))
        if job.attempts < 2:
            # It may have been the device.
            slot.backoff.failed()
            self._jobs.insert(0, job)
            return
        self.run.rounds.discard(job.built)
        if not self.run.history:
            raise ToolchainError(f"the model does not run by its default decisions: {error}")
        explored = sorted(job.explored)
        if len(explored) == 1:
            search = self.run.searches[explored[0]]
            self.run.fail(search, job.decisions[explored[0]], str(error))
            return
        # One of several is to blame: look for it in halves.
        for half in (explored[::2], explored[1::2]):
            decisions = self._bests()
            decisions |= {n: job.decisions[n] for n in half}
            if half:
                self._jobs.insert(0, _Job(decisions, frozenset(half)))

    def _learn(self, device: Device, job: _Job, measured: Measurement) -> None:
        """Bring times to the scale of the first round, and write them down."""
        assert job.built is not None
        calls = self.run.times.calls(measured.seconds)
        drift = self.run.times.drift(job.decisions, job.explored, measured.seconds, calls)
        records, gained = [], []
        for number, search in self.run.searches.items():
            decision = job.decisions[number]
            if number not in job.built.decisions:
                continue
            seconds = calls[number] / drift
            gain = search.learn(decision, seconds)
            if number in job.explored:
                self.run.measured += 1
                records.append(self.run.record(search.task, decision, seconds, device))
                if gain and self.run.history:
                    gained.append(search.task.label)
        append(self.run.database, records)
        self.run.times.fix(measured.seconds, drift)
        now = self.run.times.model_seconds()
        self.run.history.append((self.run.seconds, self.run.measured, now))
        self.run.observer.event(
            "round",
            seconds=self.run.seconds,
            trials=self.run.measured,
            model_ms=now * 1e3,
            gained=gained,
            drift=drift,
            device=device.name,
        )

    def _trim(self) -> None:
        keep = {(task.key, task.default) for task in self.run.plan.tasks}
        for search in self.run.searches.values():
            keep |= {(search.task.key, d) for d in search.candidates(KEPT_DECISIONS)}
        for job in self._jobs:
            keep |= {
                (self.run.plan.tasks[n].key, d) for n, d in self.run.complete(job.decisions).items()
            }
        self.run.kernels.forget(keep)
