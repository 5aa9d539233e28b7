"""What people see of a run: tables, a file of every outcome, a line that counts."""

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import onnx
from conformance.cases import STATUSES, Case, Outcome
from conformance.known import reason


def tables(
    cases: Sequence[Case], outcomes: dict[str, Outcome], rival: dict[str, Outcome] | None
) -> str:
    """Return operators that do not pass in full, then totals."""
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        groups[case.operator].append(case)
    lines, complete = [], []
    heads = [*STATUSES, *(["ORT"] if rival else [])]
    row = "{:<32}{:>6}" + "{:>9}" * len(heads) + "  {}"
    lines.append(row.format("operator", "cases", *heads, "first reason"))
    for operator, members in sorted(groups.items()):
        count = _count(members, outcomes)
        if count["pass"] == len(members):
            complete.append(operator)
            continue
        numbers = [count[status] for status in STATUSES]
        if rival:
            numbers.append(_count(members, rival)["pass"])
        first = next(case for case in members if outcomes[case.name].status != "pass")
        why = reason(first, outcomes[first.name])
        lines.append(row.format(operator, len(members), *(n or "" for n in numbers), why[:110]))
    lines += ["", f"all pass ({len(complete)}): {', '.join(complete)}", ""]
    core = [case for case in cases if case.core]
    rest = [case for case in cases if not case.core]
    for title, members in (("core", core), ("other", rest)):
        if members:
            lines.append(_total(f"{title}, edgec", members, outcomes))
            if rival:
                lines.append(_total(f"{title}, ONNX Runtime", members, rival))
    passing = [outcomes[case.name] for case in cases if outcomes[case.name].status == "pass"]
    frozen = sum(bool(outcome.frozen) for outcome in passing)
    folded = sum(outcome.folded for outcome in passing if outcome.frozen)
    lines.append(
        f"{frozen} of the passing cases needed inputs frozen; {folded} of them are constant then"
    )
    return "\n".join(lines)


def _count(cases: Iterable[Case], outcomes: dict[str, Outcome]) -> Counter[str]:
    return Counter(outcomes[case.name].status for case in cases)


def _total(title: str, cases: Sequence[Case], outcomes: dict[str, Outcome]) -> str:
    count = _count(cases, outcomes)
    share = 100 * count["pass"] / len(cases)
    parts = ", ".join(f"{count[status]} {status}" for status in STATUSES)
    return f"{title:<22}{share:5.1f} % of {len(cases)}: {parts}"


def write_json(
    path: Path,
    cases: Sequence[Case],
    outcomes: dict[str, Outcome],
    rival: dict[str, Outcome] | None,
) -> None:
    """Write every outcome, and ONNX Runtime's beside it."""
    rows = []
    for case in cases:
        row = {"name": case.name, "kind": case.kind, "operator": case.operator, "core": case.core}
        row |= asdict(outcomes[case.name])
        if rival:
            row["onnxruntime"] = asdict(rival[case.name])
        rows.append(row)
    path.write_text(json.dumps({"onnx": onnx.__version__, "cases": rows}, indent=1) + "\n")


class Ticker:
    """A ticker is a line on stderr that counts."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done = what, total, 0
        self.failures: Counter[str] = Counter()

    def __call__(self, case: Case, outcome: Outcome) -> None:
        self.done += 1
        self.failures[outcome.status] += 1
        if self.done % 50 == 0 or self.done == self.total:
            parts = ", ".join(f"{n} {status}" for status, n in self.failures.items())
            print(f"{self.what} {self.done}/{self.total}: {parts}", file=sys.stderr, flush=True)
