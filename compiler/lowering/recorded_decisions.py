"""Provide decisions from tuning records."""

from collections.abc import Mapping
from typing import Any

from edgec.compiler.kernels.template import from_text, to_text
from edgec.compiler.kernels.templates import TEMPLATES
from edgec.compiler.lowering.schedule import default_decide
from edgec.compiler.lowering.tuning_records import Key, Record
from edgec.targets.target import Target


class RecordedDecisions:
    """Recorded decisions are a `Decide` that follows the records.

    The analytic model's choice where they say nothing.

    Args:
        best: record to use by kernel.

    Attributes:
        used: kernels for which there was a record.
    """

    def __init__(self, best: Mapping[Key, Record]) -> None:
        self._best = best
        self.used: set[Key] = set()

    def __call__(self, operator: str, workload: Any, target: Target) -> Any:
        """Return the decision for a workload."""
        key = Key(operator, to_text(workload))
        record = self._best.get(key)
        if record is None:
            return default_decide(operator, workload, target)
        self.used.add(key)
        return from_text(TEMPLATES[operator].decision, record.decision_text)
