"""Describe what a model is predicted to cost on a target."""

from dataclasses import dataclass
from typing import Literal

TimeSource = Literal["model", "record"]
"""An analytic model with a fitted correction, or a measurement in a tuning record."""
SizeSource = Literal["compiled", "estimated"]
EnergySource = Literal["rapl", "model"]


@dataclass(frozen=True)
class Estimate:
    """An estimate describes a number with its error bar.

    Attributes:
        value: the most likely one [ms].
        low: the bar's lower end [ms].
        high: its upper end [ms]. Of one kernel call, where such a processor was measured, the ends
            are the tenth and the ninetieth percentile on models that were not fitted; elsewhere
            they are a judgement. Those of a sum are made of its parts', and have no known share.
    """

    value: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """Return how wide the bar is, as a share of the value."""
        return (self.high - self.low) / self.value if self.value else 0.0


@dataclass(frozen=True)
class OperatorTime:
    """An operator time describes one kernel call.

    Attributes:
        name: the operators that it computes, by their ONNX names where they are known.
        operator: name of the kernel template, or `generic`.
        time: of one call [ms].
        source: where the time is from.
        flops: floating-point operations.
        bytes: of all operands and results, each counted once.
        instructions: that one core executes, by the analytic model; 0: unknown.
    """

    name: str
    operator: str
    time: Estimate
    source: TimeSource
    flops: int = 0
    bytes: int = 0
    instructions: float = 0.0


@dataclass(frozen=True)
class Energy:
    """An energy describes what one inference takes.

    Attributes:
        millijoules: the energy [mJ].
        source: `rapl`, a counter of this machine, or `model`, an estimate from instructions, bytes
            and clock.
    """

    millijoules: float
    source: EnergySource


@dataclass(frozen=True)
class Prediction:
    """A prediction describes a model on a target.

    Attributes:
        target: name of the target.
        threads: the threads that share the kernels' tasks.
        latency: of one inference [ms].
        operators: in the order of execution.
        arena_bytes: activations at their peak, exact.
        weight_bytes: constants in the order that kernels read, each content once, exact.
        library_bytes: of the shared library.
        library_source: whether it was compiled, and is exact, or estimated.
        energy: of one inference.
        instructions: of one inference on one thread, by the analytic model; 0: unknown.
        fit: what the correction was fitted on, in one line.
        warnings: why the bars are wide, and which tuning records do not count.
    """

    target: str
    threads: int
    latency: Estimate
    operators: tuple[OperatorTime, ...]
    arena_bytes: int
    weight_bytes: int
    library_bytes: int
    library_source: SizeSource
    energy: Energy
    instructions: float = 0.0
    fit: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def recorded_share(self) -> float:
        """Return the part of the latency that tuning records know."""
        total = sum(item.time.value for item in self.operators)
        known = sum(item.time.value for item in self.operators if item.source == "record")
        return known / total if total else 0.0
