"""Turn features of kernel calls into times and instructions, by factors fitted on measurements.

A `.json` file beside this one holds factors for one kind of processor, by kernel template, with the
error bar that a fit reaches on models it has not seen; `tests/benchmarks/benchmark_prediction.py`
writes it.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from edgec.compiler.kernels.templates import TEMPLATES
from edgec.compiler.lowering.recorded_decisions import read_record
from edgec.compiler.lowering.tuning_records import Key, Record
from edgec.compiler.predict.features import FEATURES, Row, StepFeatures
from edgec.compiler.predict.prediction import Estimate
from edgec.compiler.predict.trees import Trees
from edgec.compiler.predict.workload_numbers import families_of
from edgec.targets import Target

FITS = Path(__file__).parent

Unit = Literal["ns", "instructions"]

# Where no times of a kind of processor were measured: what lies between these shares of the
# analytic model's time is taken for likely. They are a judgement, not a measurement.
UNMEASURED = (0.5, 2.5)
# Instructions that a core retires in a cycle at best in these kernels, where nothing was measured.
UNMEASURED_PER_CYCLE = 2.0
# In place of a model's name: operators that were measured by themselves.
SINGLE_OPERATORS = "operator"
# Tuning records of a template that correct its analytic model.
FEWEST_RECORDS = 5
# Kernels whose operations cannot be counted: their loops depend on data, as of sparse weights.
UNCOUNTED = "uncounted"


class TemplateFit(BaseModel):
    """A template fit holds the factors for the kernels of one template.

    Attributes:
        factors: what one of each feature costs; features that cost nothing are left out.
        low: the tenth percentile of measured over predicted, on models that were not fitted.
        high: the ninetieth.
        calls: kernel calls that it was fitted on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    factors: dict[str, float]
    low: float
    high: float
    calls: int


class Fit(BaseModel):
    """A fit holds the factors for one kind of processor.

    Attributes:
        format: of this file.
        unit: what is predicted: nanoseconds on one core, or instructions.
        architecture: of the target that was measured.
        vector_bits: its vectors.
        target: its name.
        integer_dot: how it multiplies integers, see `Target`.
        clock_ghz: its clock, which times are scaled by.
        machine: where it was measured.
        date: when.
        trained: models that the factors were fitted on.
        random: random networks that it was fitted on beside them.
        held_out: models that the error was measured on.
        templates: factors by kind of kernel, see `families_of`.
        within: share of the kernel calls of the held-out models that are within 20 %.
        models: predicted over measured, of each held-out model as a whole.
        trees: correct the sum of factors.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    unit: Unit
    architecture: str
    vector_bits: int
    target: str
    integer_dot: str = ""
    clock_ghz: float
    machine: str
    date: str
    trained: tuple[str, ...]
    random: int = 0
    held_out: tuple[str, ...]
    templates: dict[str, TemplateFit]
    within: float
    models: dict[str, float]
    trees: Trees | None = None

    def estimate(self, features: StepFeatures) -> Estimate:
        """Return the number for one kernel call, in the unit of the fit."""
        families = families_of(features.kind) if features.counted else (UNCOUNTED, "any")
        own = next(self.templates[name] for name in families if name in self.templates)
        factors = row_of(own)
        value = float(factors @ features.row)
        if self.trees is not None:
            value *= self.trees.factor(features, factors)
        return Estimate(value, value * own.low, value * own.high)

    @property
    def _trained(self) -> str:
        models = [name for name in self.trained if name != SINGLE_OPERATORS]
        drawn = f", {self.random} random networks" if self.random else ""
        alone = " and single operators" if SINGLE_OPERATORS in self.trained else ""
        return f"{len(models)} models{drawn}{alone}"

    def describe(self) -> str:
        """Return one line for people."""
        whole = [abs(ratio - 1) for ratio in self.models.values()]
        worst = f", whole models within {max(whole):.0%}" if whole else ""
        return (
            f"fitted on {self._trained} on {self.machine} ({self.target}), {self.date}; "
            f"of {len(self.held_out)} models that it has not seen, "
            f"{self.within:.0%} of the kernel calls are within 20 %{worst}"
        )


@cache
def _row(factors: tuple[tuple[str, float], ...]) -> Row:
    given = dict(factors)
    return np.array([given.get(name, 0.0) for name in FEATURES])


def row_of(fit: TemplateFit) -> Row:
    """Return the factors in the order of `FEATURES`."""
    return _row(tuple(fit.factors.items()))


@cache
def fits() -> tuple[Fit, ...]:
    """Return the fits that come with edgec."""
    found: list[Any] = [json.loads(path.read_text()) for path in sorted(FITS.glob("*.json"))]
    return tuple(Fit.model_validate(item) for item in found)


def fit_for(target: Target, unit: Unit) -> Fit | None:
    """Return the fit for a target's processor; None where nothing like it was measured.

    Vectors of the same width on the same architecture are alike, those first that multiply
    integers alike; what a kernel costs in nanoseconds is scaled by the clock.
    """
    alike = [
        fit
        for fit in fits()
        if fit.unit == unit
        and fit.architecture == target.architecture
        and fit.vector_bits == target.vector_bits
    ]
    named = [fit for fit in alike if fit.target == target.name]
    same = [fit for fit in alike if fit.integer_dot == target.integer_dot]
    return next(iter([*named, *same, *alike]), None)


@dataclass(frozen=True)
class Corrected:
    """A corrected step is a kernel call with its time and instructions on one core.

    Attributes:
        time: of one call [ms].
        instructions: 0 where nothing was counted for this kind of processor.
    """

    time: Estimate
    instructions: float


def scales_of(records: Mapping[Key, Record], target: Target) -> dict[str, Estimate]:
    """Return measured time over the analytic model's by template, from a target's tuning records.

    They correct the model for kernels without a record, where no times of such a processor were
    fitted: the median, and the tenth and ninetieth percentile.
    """
    one_core = target.model_copy(update={"cores": 1})
    ratios: dict[str, list[float]] = defaultdict(list)
    for key, record in records.items():
        ms, read = record.measured_ms, read_record(record, target)
        if ms is None or read is None or record.threads != 1:
            continue
        cycles = TEMPLATES[key.operator].estimate(*read, one_core)
        if cycles > 0:
            estimated_ms = cycles / target.clock_ghz * 1e-6
            ratios[key.operator.removeprefix("edgec.")].append(ms / estimated_ms)
    return {
        name: Estimate(*(float(v) for v in np.percentile(found, [50, 10, 90])))
        for name, found in ratios.items()
        if len(found) >= FEWEST_RECORDS
    }


def correct(
    features: StepFeatures, target: Target, scales: Mapping[str, Estimate] = MappingProxyType({})
) -> Corrected:
    """Return the time of one kernel call on one core of a target.

    Args:
        features: of the call.
        target: where.
        scales: what `scales_of` gave for the target.
    """
    counting, timing = fit_for(target, "instructions"), fit_for(target, "ns")
    instructions = counting.estimate(features).value if counting is not None else 0.0
    if timing is not None:
        found = timing.estimate(features)
        return Corrected(scaled(found, 1e-6 * timing.clock_ghz / target.clock_ghz), instructions)
    scale = scales.get(features.kind.partition(" ")[0])
    if scale is not None:
        return Corrected(scaled(scale, features.cycles / target.clock_ghz * 1e-6), instructions)
    cycles = max(features.cycles, instructions / UNMEASURED_PER_CYCLE)
    value = cycles / target.clock_ghz * 1e-6
    low, high = UNMEASURED
    return Corrected(Estimate(value, value * low, value * high), instructions)


def scaled(estimate: Estimate, factor: float) -> Estimate:
    """Return an estimate in another unit."""
    return Estimate(estimate.value * factor, estimate.low * factor, estimate.high * factor)
