"""Provide what connects devices: one link, or the links that a trace of a network saw."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgec.compiler.errors import BadInputError, UsageError

_RATE = re.compile(r"(\d+(?:\.\d+)?)([kmg])bit")
_DELAY = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s)")
_UNITS = {"k": 1e3, "m": 1e6, "g": 1e9, "us": 1e-3, "ms": 1.0, "s": 1e3}
# Columns of a trace, and what others may be called that are meant for one.
_MBIT, _MS = "mbit", "ms"
_LIKE_DELAYS = re.compile(r"delay|latency|rtt|ping|ms\b|_ms")


@dataclass(frozen=True)
class Link:
    """A link carries values from one device to another.

    Attributes:
        bits_per_second: its rate.
        delay_ms: what each transfer takes beside that, one way [ms].
    """

    bits_per_second: float
    delay_ms: float

    def ms(self, size_bytes: int) -> float:
        """Return the time of a transfer [ms]; nothing is sent at once.

        >>> Link(100e6, 1.0).ms(125_000)
        11.0
        """
        return self.delay_ms + 8e3 * size_bytes / self.bits_per_second if size_bytes else 0.0


@dataclass(frozen=True)
class Network:
    """A network is the links that there may be, one as likely as the other.

    Attributes:
        links: at least one.
    """

    links: tuple[Link, ...]

    def mean_ms(self, size_bytes: int) -> float:
        """Return the time of a transfer, the mean over all links [ms]."""
        return sum(link.ms(size_bytes) for link in self.links) / len(self.links)

    def percentile_ms(self, size_bytes: int, percent: float) -> float:
        """Return the time that so many of a hundred transfers do not exceed [ms]."""
        times = sorted(link.ms(size_bytes) for link in self.links)
        return times[min(len(times) - 1, int(len(times) * percent / 100))]


def parse_link(text: str) -> Link:
    """Read `100mbit,1ms`; the delay may be left out.

    Raises:
        UsageError: it is not of that form.

    >>> parse_link("100mbit,1ms")
    Link(bits_per_second=100000000.0, delay_ms=1.0)
    """
    rate_text, _, delay_text = text.lower().partition(",")
    rate = _RATE.fullmatch(rate_text.strip())
    delay = _DELAY.fullmatch(delay_text.strip() or "0ms")
    if rate is None or delay is None or not float(rate.group(1)):
        raise UsageError(f"{text!r} is no link; write --link 100mbit,1ms")
    return Link(
        float(rate.group(1)) * _UNITS[rate.group(2)], float(delay.group(1)) * _UNITS[delay.group(2)]
    )


def read_network(path: Path) -> Network:
    """Read a trace: a CSV file with a column `mbit` and, if delays are known, one `ms`.

    Other columns are passed over, if they are none that may be delays.

    Raises:
        BadInputError: the file is wrong; says in which line.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            lines = csv.reader(stream)
            rows = [(lines.line_num, row) for row in lines if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInputError(f"network trace {path} cannot be read: {error}") from None
    return Network(_links(path, rows))


def _links(path: Path, rows: Sequence[tuple[int, list[str]]]) -> tuple[Link, ...]:
    head = [name.strip().lower() for name in rows[0][1]] if rows else []
    if len(rows) < 2 or head.count(_MBIT) != 1 or head.count(_MS) > 1:
        raise BadInputError(
            f"network trace {path}: a column `mbit` and at least a row are expected"
        )
    for name in head:
        if name != _MS and _LIKE_DELAYS.search(name):
            raise BadInputError(
                f"network trace {path}: of a column `{name}` nothing is known; delays are in a "
                "column `ms`, one way"
            )
    links = []
    for line, row in rows[1:]:
        fields = dict(zip(head, row, strict=False))
        try:
            rate, delay = float(fields[_MBIT]), float(fields.get(_MS, "").strip() or 0)
        except (KeyError, ValueError):
            rate = delay = -1.0
        if len(row) > len(head) or not 0 < rate < 1e6 or not 0 <= delay < 1e6:
            raise BadInputError(
                f"network trace {path}, line {line}: {','.join(row)!r} is no link; mbit is a "
                "number above 0, ms one from 0"
            )
        links.append(Link(rate * 1e6, delay))
    return tuple(links)
