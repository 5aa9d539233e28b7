"""Shows a search: the front as it grows on a terminal, as lines elsewhere."""

import math
import sys

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from edgec.compiler.fit.limits import quantity_text
from edgec.compiler.fit.search import Search, Trial

SHOWN = 16


class Screen:
    """Draw the front and the last trial on standard error."""

    def __init__(self, search: Search, *, quiet: bool) -> None:
        self._search = search
        self._quiet = quiet
        self._console = Console(file=sys.stderr, highlight=False)
        self._live = Live(console=self._console, refresh_per_second=2, transient=True)

    def __enter__(self) -> "Screen":
        if self._console.is_terminal and not self._quiet:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def tried(self, trial: Trial, search: Search) -> None:
        """Show it."""
        if self._quiet:
            return
        line = self._line(trial)
        if not self._console.is_terminal:
            self._console.print(line, markup=False, soft_wrap=True)
            return
        head, rows = front_rows(search, None)
        table = Table(*head, box=None, header_style="dim")
        for row in rows[:SHOWN]:
            table.add_row(*row)
        self._live.update(Group(line, table))

    def _line(self, trial: Trial) -> str:
        search = self._search
        count = f"{search.attempts}/{search.budget}"
        if trial.costs is None:
            return f"{count} {trial.point.label}: {trial.failure}"
        found = ", ".join(
            f"{q} {quantity_text(q, trial.costs[q])}"
            for q in search.objectives
            if not math.isnan(trial.costs[q])
        )
        missed = ", ".join(search.limits.excess(trial.costs))
        mark = " (on the front)" if trial in search.front else ""
        return f"{count} {trial.point.label}: {found}{f'; misses {missed}' if missed else mark}"


def front_rows(search: Search, chosen: Trial | None) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of the table of a front."""
    head = ["version", *search.objectives, ""]
    rows = []
    for trial in search.front:
        assert trial.costs is not None
        costs = trial.costs
        missed = ", ".join(search.limits.excess(costs))
        mark = f"misses {missed}" if missed else ""
        mark = "chosen" if trial is chosen else mark
        values = [quantity_text(q, costs[q]) for q in search.objectives]
        rows.append([trial.point.label, *values, mark])
    return head, rows
