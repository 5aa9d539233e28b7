"""Have facts about points found out by a pool, and keep them."""

from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from typing import Any

from edgec.compiler.fit import trial
from edgec.compiler.fit.limits import Costs
from edgec.compiler.fit.records import Kind, Records
from edgec.compiler.fit.space import Point
from edgec.compiler.fit.trial import Subject
from edgec.compiler.jobs.pool import Failure, Pool, outcome

# How often work is given anew whose process or machine died.
RETRIES = 2


class Facts:
    """Facts are what is known of points; what is not is found out in a pool.

    Attributes:
        records: where they are kept.
        done: how many pieces of work were done in this run, by kind.
    """

    def __init__(self, subject: Subject, pool: Pool, records: Records) -> None:
        self._subject = subject
        self._executor = pool.executor()
        self.records = records
        self.done: dict[Kind, int] = {"predicted": 0, "evaluated": 0, "compiled": 0}

    def predict(self, points: Sequence[Point]) -> list[Costs | str]:
        """Return what points are predicted to cost, or why they cannot be compiled."""
        return self._find("predicted", trial.predict, points)

    def evaluate(self, points: Sequence[Point]) -> list[Costs | str]:
        """Return what points cost, or why they cannot be compiled."""
        return self._find("evaluated", trial.evaluate, points)

    def _find(
        self, kind: Kind, work: Callable[[Subject, Point], dict[str, Any]], points: Sequence[Point]
    ) -> list[Costs | str]:
        found = {point: self.records.find(kind, point) for point in points}
        missing = [point for point in points if found[point] is None]
        for attempt in range(RETRIES + 1):
            futures = {
                self._executor.submit(work, self._subject, point): point for point in missing
            }
            lost = []
            # Each is kept when it comes, not when its turn comes.
            for future in as_completed(futures):
                point, result = futures[future], outcome(future)
                if isinstance(result, Failure):
                    if result.lost and attempt < RETRIES:
                        lost.append(point)
                        continue
                    result = {"failure": result.why}
                self.records.keep(kind, point, result)
                self.done[kind] += 1
                found[point] = result
            missing = lost
            if not missing:
                break
        return [_costs(found[point]) for point in points]


def _costs(fields: dict[str, Any] | None) -> Costs | str:
    assert fields is not None
    return str(fields["failure"]) if "failure" in fields else Costs.of(fields)
