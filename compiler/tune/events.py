"""Describe what happens in a tuning run: in words, as fields, and in a log file."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgec.compiler.errors import OutputError
from edgec.compiler.tune.report_data import TuneReport, TuningObserver


def describe(kind: str, fields: dict[str, Any]) -> str:
    """Return an event in one line; empty for those that only the table shows."""
    match kind:
        case "phase" if fields["name"] == "search":
            known = fields["known"]
            return f"search begins; {known} trials are in the database" if known else ""
        case "phase":
            return f"search ends after {fields['trials']} trials; comparing the best in turn"
        case "warning":
            return str(fields["text"])
        case "rest":
            return f"{fields['device']} rests for {fields['seconds']:.0f} s: {fields['why']}"
        case "back":
            return f"{fields['device']} is back"
        case "failed" | "rejected":
            who = fields.get("task") or fields.get("device")
            return f"{who}: {kind}: {fields['why']}"
        case "round" if fields["gained"]:
            gained = ", ".join(fields["gained"][:3]) + ("…" if len(fields["gained"]) > 3 else "")
            return f"{fields['trials']} trials, model {fields['model_ms']:.3f} ms; faster: {gained}"
    return ""


def report_fields(report: TuneReport) -> dict[str, Any]:
    """Return a report as numbers and text."""
    return {
        "before_ms": report.before * 1e3,
        "after_ms": report.after * 1e3,
        "trials": report.trials,
        "seconds": report.seconds,
        "reason": report.reason,
        "noisy": report.noisy,
        "tasks": [
            {
                "number": result.task.number,
                "label": result.task.label,
                "calls": len(result.task.steps),
                "before_us": result.before * 1e6,
                "after_us": result.after * 1e6,
                "trials": result.trials,
                "decision": json.loads(result.decision),
                "rejected": result.rejected,
            }
            for result in report.tasks
        ],
    }


class LogFile:
    """Write every event as a line with its time, in a file."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = path.open("a", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}") from None

    def __enter__(self) -> "LogFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def event(self, kind: str, **fields: Any) -> None:
        """Write one line."""
        if kind == "end":
            fields = report_fields(fields["report"])
        text = json.dumps({"event": kind, **fields})
        self._stream.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        self._stream.flush()


@dataclass
class Several:
    """Tells several observers."""

    observers: list[TuningObserver] = field(default_factory=list)

    def event(self, kind: str, **fields: Any) -> None:
        """Tell each."""
        for observer in self.observers:
            observer.event(kind, **fields)
