"""Compile the best versions that a search found as `edgec compile` does, and choose one."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgec.compiler.bundle.bundle import Bundle, move_bundle
from edgec.compiler.bundle.manifest import LIBRARY
from edgec.compiler.errors import BoardError, EdgecError, OutputError
from edgec.compiler.fit.limits import Costs
from edgec.compiler.fit.measure import measure_latency
from edgec.compiler.fit.records import Records
from edgec.compiler.fit.search import Search, Trial
from edgec.compiler.fit.space import Point
from edgec.compiler.jobs.pool import Pool
from edgec.compiler.jobs.shared_path import SharedPath
from edgec.compiler.options import CompileOptions
from edgec.compiler.pipeline import compile_model
from edgec.compiler.runtime.session import why_not_here
from edgec.compiler.support.progress import Progress
from edgec.targets import Target

# Candidates that are compiled and measured, at most, until one keeps the limits.
MAX_FINALISTS = 4


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
        pool: measures where a board is, or a host of the target's CPU.
    """

    model: Path
    target: Target
    options: Callable[[Point], CompileOptions]
    output: Path
    board: str
    measure: bool
    records: Records
    progress: Progress
    pool: Pool
    _last: list[tuple[Point, Bundle]] = field(default_factory=list)

    def choose(self, search: Search) -> tuple[Bundle, Trial] | None:
        """Return the best version as a bundle at its place; None if none keeps the limits.

        Trials of the search get what was found: exact size and memory, measured latency.

        Raises:
            BoardError: the board cannot be reached, or failed.
            OutputError: the bundle cannot be written.
        """
        ratio, compiled = 1.0, set[Point]()
        try:
            while search.ranked:
                # What is still predicted is taken to be off like the last that was measured.
                first = min(search.ranked, key=lambda trial: search.order(trial, ratio))
                if len(compiled) == MAX_FINALISTS:
                    done = [trial for trial in search.ranked if trial.point in compiled]
                    if not done:
                        return None
                    first = done[0]
                if first.point in compiled:
                    return move_bundle(self._bundle(first.point), self.output), first
                trial = self._compiled(first)
                search.trials[trial.point] = trial
                compiled.add(trial.point)
                if trial.measured and trial.costs is not None and first.costs is not None:
                    ratio = trial.costs.latency / first.costs.latency
            return None
        finally:
            if self._candidate.is_dir():
                shutil.rmtree(self._candidate)
            self._candidate.unlink(missing_ok=True)

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
        """Return the bundle of a point, beside its place; the last one is compiled once."""
        if not self._last or self._last[-1][0] != point:
            options = self.options(point)
            made = compile_model(
                self.model, self.target, options, output=self._candidate, progress=self.progress
            )
            self._last[:] = [(point, made)]
        return self._last[-1][1]

    def _latency_ms(self, bundle: Bundle) -> float | None:
        if not self.measure:
            return None
        host = f"host-{self.target.cpu}"
        if self.board or self.pool.offers(host):
            executor = self.pool.executor(self.board or host)
            shared = self.pool.share(bundle.path)
            return executor.submit(measure_latency, shared, self.board).result()
        if why_not_here(self.target):
            return None
        return measure_latency(SharedPath(bundle.path), "")
