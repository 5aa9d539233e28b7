"""Candidates at the end: what is measured counts, and corrects what is predicted of the others."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.fit.finals import Finals
from edgec.compiler.fit.limits import Costs, Limits
from edgec.compiler.fit.records import Records
from edgec.compiler.fit.search import Search, Trial
from edgec.compiler.fit.space import Point, Space
from edgec.compiler.jobs.pool import JobOptions, open_pool
from edgec.compiler.options import CompileOptions
from edgec.compiler.support.progress import Silent
from edgec.targets import load_target

FAST, MIDDLE, SLOW = (Point(name) for name in ("int8", "int8-dynamic", "none"))
PREDICTED = {FAST: 4.0, MIDDLE: 6.0, SLOW: 9.0}


@dataclass(frozen=True, kw_only=True)
class Told(Finals):
    """Is told the measured latencies; its bundles are all the same one."""

    latencies: dict[Point, float | None]
    bundle: Path

    def _compile(self, trial: Trial) -> dict[str, Any]:
        latency = self.latencies[trial.point]
        if latency is None:
            return {"failure": "parity"}
        assert trial.costs is not None
        costs = replace(trial.costs, latency=latency, latency_low=latency)
        return {"costs": costs.fields(), "measured": True}

    def _bundle(self, point: Point) -> Bundle:
        if not self._candidate.exists():
            shutil.copytree(self.bundle, self._candidate)
        return Bundle.load(self._candidate)


@pytest.mark.parametrize(
    ("limits", "latencies", "chosen"),
    [
        (Limits(drop=0.01), {FAST: 5.0, MIDDLE: 6.0, SLOW: 9.0}, FAST),
        # The first exceeds its limit, the second does not; the third is predicted to.
        (Limits(latency=7, drop=0.01), {FAST: 8.0, MIDDLE: 6.5, SLOW: 9.0}, MIDDLE),
        (Limits(latency=7, drop=0.01), {FAST: 8.0, MIDDLE: 7.5, SLOW: 9.0}, None),
        (Limits(drop=0.01), {FAST: None, MIDDLE: 6.0, SLOW: 9.0}, MIDDLE),
        # Half as slow again as predicted, and the others are taken to be as well: not the second.
        (Limits(drop=0.01), {FAST: 6.5, MIDDLE: 6.2, SLOW: 9.0}, FAST),
    ],
)
def test_the_best_that_keeps_the_limits_is_placed(
    digits_bundle: Path,
    tmp_path: Path,
    limits: Limits,
    latencies: dict[Point, float | None],
    chosen: Point | None,
) -> None:
    search = Search(Space(), limits, "latency", 3, 0, True)
    for point, latency in PREDICTED.items():
        costs = Costs(latency, 0.0, 1e6, 1e5, latency)
        search.trials[point] = Trial(point, predicted=costs, costs=costs)
    with open_pool(JobOptions(workers=1)) as pool:
        finals = Told(
            model=tmp_path / "none.onnx",
            target=load_target("native"),
            options=lambda point: CompileOptions(),
            output=tmp_path / "out.edgec",
            board="",
            measure=True,
            records=Records(tmp_path / "facts", "one"),
            progress=Silent(),
            pool=pool,
            latencies=latencies,
            bundle=digits_bundle,
        )
        found = finals.choose(search)
    assert (found[1].point if found else None) == chosen
    assert (tmp_path / "out.edgec").is_dir() == (chosen is not None)
    assert not (tmp_path / "out.candidate.edgec").exists()
