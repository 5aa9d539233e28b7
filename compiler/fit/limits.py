"""Describe what a user can afford, and what a version of a model costs."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from edgec.compiler.errors import UsageError

Quantity = Literal["latency", "drop", "size", "memory"]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)
"""What is limited; the first without a limit is what is made small."""

_UNITS: Mapping[Quantity, Mapping[str, float]] = {
    "latency": {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3},
    "drop": {"%": 0.01, "": 1.0},
    "size": {"B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20},
    "memory": {"B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20},
}
_EXAMPLES: Mapping[Quantity, str] = {
    "latency": "20ms",
    "drop": "1%",
    "size": "4MB",
    "memory": "8MB",
}


def parse_quantity(quantity: Quantity, text: str) -> float:
    """Return a limit [ms, share or bytes] of its text.

    Raises:
        UsageError: it is no such quantity.

    >>> parse_quantity("latency", "20ms"), parse_quantity("size", "1.5 MB")
    (20.0, 1500000.0)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([^\d\s]*)", text.strip())
    unit = _UNITS[quantity].get(match[2]) if match else None
    if match is None or unit is None:
        units = ", ".join(repr(name) for name in _UNITS[quantity] if name)
        raise UsageError(
            f"--{quantity} {text!r}: write {_EXAMPLES[quantity]}, a number and one of {units}"
        )
    return float(match[1]) * unit


def quantity_text(quantity: Quantity, value: float) -> str:
    """Return a quantity with its unit.

    >>> quantity_text("latency", 12.3456), quantity_text("drop", 0.0125)
    ('12.3 ms', '1.25%')
    """
    if quantity == "drop":
        return f"{100 * value:.3g}%"
    if quantity == "latency":
        return f"{value:.3g} ms" if value < 1000 else f"{value / 1000:.3g} s"
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"


@dataclass(frozen=True)
class Costs:
    """Costs describe a version of a model.

    Attributes:
        latency: of one inference [ms].
        drop: the part of the accuracy that is lost, 0.01 is one point; NaN where it is not known.
        size: of the library, weights and code [bytes].
        memory: of activations at their peak, the arena [bytes].
        latency_low: the lower end of the latency's error bar [ms]; the latency where measured.
    """

    latency: float
    drop: float
    size: float
    memory: float
    latency_low: float

    def __getitem__(self, quantity: Quantity) -> float:
        """Return one of the four."""
        value: float = getattr(self, quantity)
        return value

    def fields(self) -> dict[str, float | None]:
        """Return them by name, as JSON knows them: what is not known is None."""
        return {name: None if math.isnan(v) else v for name, v in asdict(self).items()}

    @classmethod
    def of(cls, fields: Mapping[str, float | None]) -> "Costs":
        """Return costs of their fields."""
        return cls(**{name: math.nan if v is None else v for name, v in fields.items()})


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits describe what a user can afford; None is no limit.

    Attributes:
        latency: of one inference [ms].
        drop: of the accuracy, as a share.
        size: of the library [bytes].
        memory: of activations [bytes].
    """

    latency: float | None = None
    drop: float | None = None
    size: float | None = None
    memory: float | None = None

    def __post_init__(self) -> None:
        """Refuse limits that cannot be.

        Raises:
            UsageError: says which.
        """
        for quantity, limit in self.given.items():
            if not (math.isfinite(limit) and limit >= 0) or (limit == 0 and quantity != "drop"):
                raise UsageError(f"--{quantity} {limit:g}: a limit is a positive number")
        if (self.drop or 0) > 1:
            raise UsageError(f"--drop {self.drop:g} is no share; write 1% or 0.01")

    @property
    def given(self) -> dict[Quantity, float]:
        """Return those that are given, by name."""
        limits = {quantity: getattr(self, quantity) for quantity in QUANTITIES}
        return {quantity: limit for quantity, limit in limits.items() if limit is not None}

    @property
    def goal(self) -> Quantity:
        """Return what is made as small as the limits allow: the first without one, or latency.

        >>> Limits(drop=0.01).goal, Limits(latency=5).goal
        ('latency', 'drop')
        """
        free = [quantity for quantity in QUANTITIES if quantity not in self.given]
        return free[0] if free else "latency"

    def excess(self, costs: Costs) -> dict[Quantity, float]:
        """Return by how much of each limit costs exceed it; what keeps all of them gives nothing.

        A drop that is not known exceeds none.

        >>> Limits(latency=10).excess(Costs(15, 0, 1, 1, 15))
        {'latency': 0.5}
        """
        found = {}
        for quantity, limit in self.given.items():
            value = costs[quantity]
            if value > limit * (1 + 1e-9) + 1e-12:
                found[quantity] = (value - limit) / limit if limit else math.inf
        return found

    def keeps(self, costs: Costs) -> bool:
        """Return whether costs are known and exceed no limit."""
        return not self.excess(costs) and not math.isnan(costs.drop)


def is_dominated(costs: Costs, others: "list[Costs]", by: tuple[Quantity, ...]) -> bool:
    """Return whether one of the others is nowhere worse and somewhere better."""
    mine = [costs[quantity] for quantity in by]
    for other in others:
        theirs = [other[quantity] for quantity in by]
        if theirs != mine and all(a <= b for a, b in zip(theirs, mine, strict=True)):
            return True
    return False
