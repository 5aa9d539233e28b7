"""Compile the best versions that a search found as `edgec compile` does, and choose one."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgec.compiler.bench.compare import bench_bundles
from edgec.compiler.boards.remote_timing import BoardTimes
from edgec.compiler.boards.run import bench_on
from edgec.compiler.bundle.bundle import Bundle, move_bundle
from edgec.compiler.bundle.manifest import LIBRARY
from edgec.compiler.errors import BoardError, EdgecError, OutputError
from edgec.compiler.fit.limits import Costs
from edgec.compiler.fit.records import Records
from edgec.compiler.fit.search import Search, Trial
from edgec.compiler.fit.space import Point
from edgec.compiler.options import CompileOptions
from edgec.compiler.pipeline import compile_model
from edgec.compiler.runtime.session import why_not_here
from edgec.compiler.support.progress import Progress
from edgec.targets import Target

# Candidates that are compiled and measured, at most, until one keeps the limits.
MAX_FINALISTS = 4
MEASURING_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Finals:
    """Finals describe how candidates are compiled and measured.

    Attributes:
        model: the ONNX file.
        target: what it is compiled for.
        options: compile options of a point.
        output: where the chosen bundle goes.
        board: measures; empty: this machine, if it can.
        measure: whether latency is measured.
        records: keep what is found.
        progress: is told of the phases of each compile.
    """

    model: Path
    target: Target
    options: Callable[[Point], CompileOptions]
    output: Path
    board: str
    measure: bool
    records: Records
    progress: Progress

    def choose(self, search: Search) -> tuple[Bundle, Trial] | None:
        """Return the best version as a bundle at its place; None if none keeps the limits.

        Trials of the search get what was found: exact size and memory, measured latency.

        Raises:
            BoardError: the board cannot be reached, or failed.
            OutputError: the bundle cannot be written.
        """
        for _ in range(MAX_FINALISTS):
            ranked = search.ranked
            if not ranked:
                return None
            trial = self._compiled(ranked[0])
            search.trials[trial.point] = trial
            if trial.measured:
                _calibrate(search, ranked[0], trial)
            if search.ranked and search.ranked[0] is trial:
                return self._placed(trial), trial
        return None

    def _compiled(self, trial: Trial) -> Trial:
        """Return a trial with what its bundle is."""
        if trial.measured:
            return trial
        found = self.records.find("compiled", trial.point)
        if found is None:
            found = self._compile(trial)
            self.records.keep("compiled", trial.point, found)
        if "failure" in found:
            return replace(trial, failure=found["failure"], costs=None)
        return replace(trial, costs=Costs.of(found["costs"]), measured=found["measured"])

    def _compile(self, trial: Trial) -> dict[str, Any]:
        assert trial.costs is not None
        try:
            bundle = self._bundle(trial.point)
            latency = self._latency_ms(bundle)
        except (BoardError, OutputError):
            raise
        except EdgecError as error:
            return {"failure": str(error)}
        manifest = bundle.manifest
        costs = replace(
            trial.costs,
            size=manifest.files[LIBRARY].size_bytes,
            memory=manifest.execution.arena_bytes,
        )
        if latency is not None:
            costs = replace(costs, latency=latency, latency_low=latency)
        return {"costs": costs.fields(), "measured": latency is not None}

    @property
    def _candidate(self) -> Path:
        return self.output.with_name(f"{self.output.stem}.candidate{self.output.suffix}")

    def _bundle(self, point: Point) -> Bundle:
        return compile_model(
            self.model,
            self.target,
            self.options(point),
            output=self._candidate,
            progress=self.progress,
        )

    def _latency_ms(self, bundle: Bundle) -> float | None:
        if not self.measure:
            return None
        if self.board:
            times = bench_on(self.board, bundle, seconds=MEASURING_SECONDS)
            return times.latency.median_ms if isinstance(times, BoardTimes) else None
        if why_not_here(self.target):
            return None
        return bench_bundles([bundle], seconds=MEASURING_SECONDS).bundles[0].median_ms

    def _placed(self, trial: Trial) -> Bundle:
        """Return the bundle of a trial at its place, compiled again if it was another run's."""
        self.progress.detail(f"chosen: {trial.point.label}")
        return move_bundle(self._bundle(trial.point), self.output)


def _calibrate(search: Search, before: Trial, after: Trial) -> None:
    """Correct the latencies that are still predicted by what was measured so far."""
    assert before.costs is not None
    if after.costs is None or not before.costs.latency:
        return
    ratio = after.costs.latency / before.costs.latency
    for point, trial in search.trials.items():
        if trial.costs is not None and not trial.measured:
            latency = trial.costs.latency * ratio
            costs = replace(trial.costs, latency=latency, latency_low=latency)
            search.trials[point] = replace(trial, costs=costs)
