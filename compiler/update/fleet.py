"""Keep what boards report, and decide which of them may take a release.

A release is stopped by itself when more boards failed than its limits allow. A board that began
and was not heard of again counts as failed: it may be what the release broke.
"""

import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgec.compiler.errors import BadInputError, UsageError
from edgec.compiler.update.reports import MOST_TEXT, Answer, Report

_TABLES = """
CREATE TABLE IF NOT EXISTS boards (
  board TEXT, channel TEXT, installed INTEGER, trying INTEGER, since REAL, seen REAL, problem TEXT,
  PRIMARY KEY (board, channel)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_installed ON boards (channel, installed);
CREATE INDEX IF NOT EXISTS by_trying ON boards (channel, trying);
CREATE TABLE IF NOT EXISTS failures (
  channel TEXT, number INTEGER, board TEXT, reason TEXT,
  PRIMARY KEY (channel, number, board)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS verdicts (
  channel TEXT, number INTEGER, stopped INTEGER, reason TEXT,
  PRIMARY KEY (channel, number)) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class FleetLimits:
    """Fleet limits say when a release is stopped, and how fast it spreads.

    Attributes:
        most_failed_percent: of the boards that finished; more stop the release,
        allowed_failures: but for so many boards.
        at_once: boards that install a release at the same time.
        silence_seconds: a board that installs for longer counts as failed.
    """

    most_failed_percent: float = 5.0
    allowed_failures: int = 1
    at_once: int = 20
    silence_seconds: float = 3600.0

    def __post_init__(self) -> None:
        if not 0 <= self.most_failed_percent <= 100 or self.allowed_failures < 0:
            raise UsageError("0 to 100 percent of the boards may fail, and no fewer than 0 boards")
        if self.at_once < 1 or self.silence_seconds <= 0:
            raise UsageError("at least one board installs at once, for more than 0 seconds")


@dataclass(frozen=True)
class BoardStatus:
    """A board's status is what it reported last.

    Attributes:
        board: its name.
        channel: what it follows.
        installed: the release that runs; None if there is none.
        trying: the release that it is installing.
        seen_seconds: how long ago it was heard.
        problem: why it could not look for releases.
        failed: releases that did not work on it, with the reason.
    """

    board: str
    channel: str
    installed: int | None
    trying: int | None
    seen_seconds: float
    problem: str
    failed: dict[int, str]


@dataclass(frozen=True)
class ReleaseStatus:
    """A release's status counts the boards of a channel.

    Attributes:
        channel: its channel.
        number: of the release.
        works: boards that run it.
        trying: boards that install it.
        failed: boards that it did not work on, or that were not heard of again.
        stopped: why no board may take it; empty if they may.
    """

    channel: str
    number: int
    works: int
    trying: int
    failed: int
    stopped: str


class Fleet:
    """A fleet is a file with what boards reported.

    Args:
        file: of SQLite; it is made.
        limits: of roll-outs.
        clock: seconds since 1970.

    Raises:
        BadInputError: the file is no such file, or cannot be written.
    """

    def __init__(
        self,
        file: Path,
        limits: FleetLimits | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._limits = limits or FleetLimits()
        self._clock = clock
        try:
            self._data = sqlite3.connect(file, isolation_level=None)
            self._data.execute("PRAGMA journal_mode=WAL")
            self._data.execute("PRAGMA synchronous=NORMAL")
            self._data.executescript(_TABLES)
        except sqlite3.Error as error:
            raise BadInputError(f"{file} cannot be used: {error}") from None

    def close(self) -> None:
        """Close the file."""
        self._data.close()

    def report(self, board: str, report: Report) -> Answer:
        """Keep a report, and say whether the board may install what it wants."""
        now, channel = self._clock(), report.channel
        with self._data:
            self._data.execute("BEGIN IMMEDIATE")
            self._data.execute(
                "INSERT INTO boards VALUES (?, ?, ?, NULL, NULL, ?, ?) ON CONFLICT DO UPDATE SET "
                "installed = excluded.installed, trying = NULL, since = NULL, seen = excluded.seen,"
                " problem = excluded.problem",
                (board, channel, report.installed, now, report.problem),
            )
            self._data.executemany(
                "INSERT OR REPLACE INTO failures VALUES (?, ?, ?, ?)",
                [(channel, number, board, why) for number, why in report.failed.items()],
            )
            if report.installed is not None:
                # It was tried again, and works.
                self._data.execute(
                    "DELETE FROM failures WHERE channel = ? AND number = ? AND board = ?",
                    (channel, report.installed, board),
                )
            for number in {*report.failed, *([report.wants] if report.wants else [])}:
                self._judge(channel, number)
            if report.wants is None:
                return Answer(proceed=True)
            return self._answer(board, channel, report.wants, now)

    def set_stopped(self, channel: str, number: int, reason: str) -> None:
        """Stop a release by hand; or, without a reason, let it go on whatever fails."""
        self._data.execute(
            "INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?)",
            (channel, number, bool(reason), reason[:MOST_TEXT]),
        )

    def boards(self) -> list[BoardStatus]:
        """Return each board's status, by name."""
        failed: dict[tuple[str, str], dict[int, str]] = {}
        for channel, number, board, reason in self._data.execute("SELECT * FROM failures"):
            failed.setdefault((board, channel), {})[number] = reason
        now = self._clock()
        rows = self._data.execute(
            "SELECT board, channel, installed, trying, seen, problem FROM boards ORDER BY 1, 2"
        )
        return [
            BoardStatus(
                board,
                channel,
                installed,
                trying,
                now - seen,
                problem,
                failed.get((board, channel), {}),
            )
            for board, channel, installed, trying, seen, problem in rows
        ]

    def releases(self) -> list[ReleaseStatus]:
        """Return each release's status that a board reported on, by channel and number."""
        keys = self._data.execute(
            "SELECT channel, installed FROM boards WHERE installed IS NOT NULL UNION "
            "SELECT channel, trying FROM boards WHERE trying IS NOT NULL UNION "
            "SELECT channel, number FROM failures UNION SELECT channel, number FROM verdicts"
        ).fetchall()
        return [self._status(channel, number) for channel, number in keys]

    def _answer(self, board: str, channel: str, number: int, now: float) -> Answer:
        status = self._status(channel, number)
        if status.stopped:
            return Answer(proceed=False, reason=f"it is stopped: {status.stopped}")
        if status.trying >= self._limits.at_once:
            return Answer(
                proceed=False, reason=f"{status.trying} other boards are installing it first"
            )
        self._data.execute(
            "UPDATE boards SET trying = ?, since = ? WHERE board = ? AND channel = ?",
            (number, now, board, channel),
        )
        return Answer(proceed=True)

    def _status(self, channel: str, number: int) -> ReleaseStatus:
        silent = self._clock() - self._limits.silence_seconds
        works = self._count("installed = ?", channel, number)
        trying = self._count("trying = ? AND since >= ?", channel, number, silent)
        lost = self._count("trying = ? AND since < ?", channel, number, silent)
        (failed,) = self._data.execute(
            "SELECT count(*) FROM failures WHERE channel = ? AND number = ?", (channel, number)
        ).fetchone()
        verdict = self._data.execute(
            "SELECT reason FROM verdicts WHERE channel = ? AND number = ?", (channel, number)
        ).fetchone()
        stopped = verdict[0] if verdict else ""
        return ReleaseStatus(channel, number, works, trying, failed + lost, stopped)

    def _judge(self, channel: str, number: int) -> None:
        """Stop a release that failed too often; what a person decided stays."""
        status, limits = self._status(channel, number), self._limits
        finished = status.works + status.failed
        share = 100 * status.failed / finished if finished else 0
        if status.failed > limits.allowed_failures and share > limits.most_failed_percent:
            self._data.execute(
                "INSERT OR IGNORE INTO verdicts VALUES (?, ?, 1, ?)",
                (channel, number, f"it failed on {status.failed} of {finished} boards"),
            )

    def _count(self, condition: str, channel: str, *values: float) -> int:
        (count,) = self._data.execute(
            f"SELECT count(*) FROM boards WHERE channel = ? AND {condition}", (channel, *values)
        ).fetchone()
        return int(count)
