"""Decisions from tuning records."""

from collections.abc import Iterable
from typing import Any

from edgec.compiler.kernels.templates import TEMPLATES, from_text, to_text
from edgec.compiler.records import Key, Record, best_records
from edgec.compiler.schedule.select import default_decide
from edgec.targets.target import Target


class RecordedDecisions:
    """A `Decide`: what the records say, the analytic model's choice where they say nothing.

    Attributes:
        used: kernels for which there was a record.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self._best = best_records(list(records))
        self.used: set[Key] = set()

    def __call__(self, operator: str, workload: Any, target: Target) -> Any:
        """The decision for a workload."""
        key = Key(operator, to_text(workload))
        record = self._best.get(key)
        if record is None:
            return default_decide(operator, workload, target)
        self.used.add(key)
        return from_text(TEMPLATES[operator].decision, record.decision_text)
