"""Shows a tuning run: live on a terminal, as lines elsewhere, as JSON events for programs."""

import json
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from edgec.compiler.tune.events import describe, report_fields
from edgec.compiler.tune.session import Tuner

# Without a terminal, a line at least so often.
LINE_SECONDS = 10.0
SHOWN_TASKS = 12
SHOWN_NOTES = 4


@dataclass
class JsonEvents:
    """Write every event as a line of JSON on standard output."""

    stream: TextIO = field(default_factory=lambda: sys.stdout)

    def event(self, kind: str, **fields: Any) -> None:
        """Write one line."""
        if kind == "end":
            fields = report_fields(fields["report"])
        print(json.dumps({"event": kind, **fields}), file=self.stream, flush=True)


class Screen:
    """Draw a bar, the tasks and the last news on standard error."""

    def __init__(self, tuner: Tuner) -> None:
        self._tuner = tuner
        self._options = tuner.options
        self._console = Console(file=sys.stderr, highlight=False)
        self._notes: deque[str] = deque(maxlen=SHOWN_NOTES)
        self._last: dict[str, Any] = {}
        self._first_ms = 0.0
        self._line_at = 0.0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(40),
            TextColumn("{task.percentage:3.0f}% {task.fields[left]}"),
        )
        self._task = self._bar.add_task("tuning", total=1.0, left="")
        self._live = Live(console=self._console, refresh_per_second=2, transient=True)

    def __enter__(self) -> "Screen":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def event(self, kind: str, **fields: Any) -> None:
        """Show it."""
        text = describe(kind, fields)
        if kind == "round":
            self._last = fields
            self._first_ms = self._first_ms or fields["model_ms"]
        if not self._console.is_terminal:
            self._line(kind, text)
            return
        if text:
            self._notes.append(text)
        self._live.update(self._picture())

    def _line(self, kind: str, text: str) -> None:
        now = time.monotonic()
        if kind == "round":
            if now - self._line_at < LINE_SECONDS:
                return
            self._line_at = now
            text = self._status()
        if text:
            self._console.print(text, markup=False, soft_wrap=True)

    def _status(self) -> str:
        last = self._last
        gain = self._first_ms / last["model_ms"]
        left = self._left()
        return (
            f"{last['seconds']:6.0f} s  {last['trials']} trials  model {last['model_ms']:.3f} ms, "
            f"{gain:.3f} times as fast as at the start{f'  {left}' if left else ''}"
        )

    def _done(self) -> float:
        """Return part of the run that is over, as far as limits tell."""
        last, parts = self._last, [0.0]
        if self._options.seconds:
            parts.append(self._tuner.seconds / self._options.seconds)
        if self._options.trials and last:
            parts.append(last["trials"] / self._options.trials)
        return min(1.0, max(parts))

    def _left(self) -> str:
        done = self._done()
        if not done:
            return ""
        seconds = self._tuner.seconds * (1 - done) / done
        return f"{int(seconds // 3600)}:{int(seconds % 3600 // 60):02}:{int(seconds % 60):02} left"

    def _picture(self) -> Group:
        self._bar.update(self._task, completed=self._done(), left=self._left())
        status = self._status() if self._last else "building the first round"
        return Group(self._bar, status, self._table(), *self._notes)

    def _table(self) -> Table:
        table = Table(box=None, header_style="dim")
        for name in ("task", "", "calls", "trials", "default µs", "best µs", "gain"):
            table.add_column(name, justify="left" if name in ("task", "") else "right")
        rows: Sequence[Any] = sorted(
            self._tuner.searches.values(),
            key=lambda s: -s.seconds(s.best) * len(s.task.steps) if s.times else -s.task.share,
        )
        for search in rows[:SHOWN_TASKS]:
            before, after = search.seconds(search.task.default), search.seconds(search.best)
            known = search.times and before < float("inf")
            numbers = [f"{before * 1e6:.1f}", f"{after * 1e6:.1f}", f"{before / after:.2f}"]
            table.add_row(
                str(search.task.number),
                search.task.label[:32],
                str(len(search.task.steps)),
                str(len(search.trials)),
                *(numbers if known else ["", "", ""]),
            )
        return table
