"""Provide decisions from tuning records."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from edgec.compiler.errors import BadInputError
from edgec.compiler.kernels.template import from_text, to_text
from edgec.compiler.kernels.templates import TEMPLATES
from edgec.compiler.lowering.schedule import default_decide
from edgec.compiler.lowering.tuning_records import (
    READY,
    Database,
    Key,
    Record,
    alike,
    best_records,
)
from edgec.compiler.support.progress import Progress
from edgec.targets.target import Target


class RecordedDecisions:
    """Recorded decisions are a `Decide` that follows the records.

    The analytic model's choice where they say nothing, or what the kernel does not offer any more.

    Args:
        best: record to use by kernel.

    Attributes:
        used: kernels for which there was a record.
    """

    def __init__(self, best: Mapping[Key, Record]) -> None:
        self._best = best
        self._alike = {alike(key): record for key, record in best.items()}
        self.used: set[Key] = set()

    def __call__(self, operator: str, workload: Any, target: Target) -> Any:
        """Return the decision for a workload."""
        key = Key(operator, to_text(workload))
        record = self._best.get(key) or self._alike.get(alike(key))
        decision = record and decision_offered(operator, workload, record.decision_text, target)
        if decision is None:
            return default_decide(operator, workload, target)
        self.used.add(key)
        return decision


@lru_cache(maxsize=4096)
def decision_offered(operator: str, workload: Any, text: str, target: Target) -> Any:
    """Return a decision that `to_text` wrote; None where the kernel does not offer it any more."""
    template = TEMPLATES[operator]
    try:
        decision = from_text(template.decision, text)
    except ValidationError:
        return None
    return decision if decision in template.space(workload, target) else None


def read_record(record: Record, target: Target) -> tuple[Any, Any] | None:
    """Return a record's workload and decision; None where its kernel is not what it was then."""
    template = TEMPLATES.get(record.operator)
    if template is None:
        return None
    try:
        workload = from_text(template.workload, record.key.workload)
    except ValidationError:
        return None
    decision = decision_offered(record.operator, workload, record.decision_text, target)
    return None if decision is None else (workload, decision)


def tuned_records(
    target: Target,
    database: Path | None,
    threads: int | None,
    ready: bool,
    progress: Progress,
) -> dict[Key, Record]:
    """Return the tuning record of each kernel: of a database before those that come with edgec.

    Args:
        target: what they are for.
        database: the file; None takes none.
        threads: those tuned for so many; None takes those for the most there are.
        ready: whether those that come with edgec are taken, too.
        progress: hears of a database that is damaged, or that an emulator measured.

    Raises:
        BadInputError: the database cannot be read, or holds nothing for this target.
    """
    best: dict[Key, Record] = {}
    if ready:
        shipped = Database.read(READY / f"{target.name}.jsonl", missing_ok=True)
        best = best_records(shipped.fitting(target))
    if database is None:
        return best
    read = Database.read(database)
    if read.warning():
        progress.warn(read.warning())
    records = read.fitting(target)
    threads = threads or max((r.threads for r in records), default=0)
    records = [record for record in records if record.threads == threads]
    if not records:
        why = read.why_unfit(target) or f"{database} has none for {threads} threads"
        raise BadInputError(f"no tuning record fits: {why}")
    if any(record.emulated for record in records):
        progress.warn(f"{database} was measured in an emulator, which knows no caches")
    return best | best_records(records)
