"""Which side of an operator gives up bits, where 8 on both overflow the target's int16 sums.

    weights      weights keep to sums (`LARGEST_SUM`)
    activations  codes of the input have 7 bits; 127 * (127 + 127) fits
    none         both keep 8 bits, and products are summed in int32: slower

Errors of both sides are taken to add up: with the signal-to-noise ratio s of rounding each side,
an operator has 1 / (1 / s_weights + 1 / s_input). The weights give up bits unless the other side
is `GAIN_DB` better; none does where that leaves less than `NEEDS_DB` and 8 bits on both sides
give `GAIN_DB` more.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from edgec.compiler.calibration.float_model import FloatModel, observe
from edgec.compiler.calibration.samples import Samples
from edgec.compiler.ir.anchors import Operator
from edgec.compiler.numerics.affine import (
    ChannelWeight,
    Scale,
    dequantize_array,
    quantize_array,
    sqnr_db,
)
from edgec.compiler.numerics.observers import Range
from edgec.compiler.quantize.encode import quantize_numbers, store_weight
from edgec.compiler.quantize.plan import Plan
from edgec.compiler.quantize.recipe import Resolved, Side
from edgec.compiler.support.progress import Progress

# Batches that inputs are rounded of.
MAX_ROUNDED = 8

# Of the 6 that a bit is worth; the other sides are slower.
GAIN_DB = 3.0
NEEDS_DB = 30.0

# Kinds that have a kernel for each side.
_KINDS = ("conv", "matmul")


@dataclass(frozen=True)
class Choice:
    """The side of one operator, and why.

    Attributes:
        side: that gives up bits.
        db: signal-to-noise ratio of its rounding, by side [dB].
    """

    side: Side
    db: Mapping[Side, float]


def choose_sides(
    plan: Plan,
    resolved: Resolved,
    ranges: Mapping[str, Range],
    model: FloatModel,
    samples: Samples,
    progress: Progress | None = None,
) -> dict[str, Choice]:
    """A choice for each convolution and matrix product on codes, by name."""
    operators = [o for o in plan.weighted() if o.keep == "integer" and o.kind in _KINDS]
    if not operators:
        return {}
    everywhere: dict[Side, Resolved] = {
        side: replace(resolved, sides={o.name: side for o in operators})
        for side in ("weights", "activations")
    }
    scales = {
        side: quantize_numbers(plan, each, ranges).scales for side, each in everywhere.items()
    }
    names = {o.inputs[0]: plan.graph.names[o.inputs[0]] for o in operators}
    rounded = {
        side: _input_noise(model, {names[v]: found[v] for v in names}, samples, progress)
        for side, found in scales.items()
    }
    found = {}
    for operator in operators:
        name = names[operator.inputs[0]]
        found[operator.name] = _choice(
            {side: _weight_noise(operator, each) for side, each in everywhere.items()},
            {side: noise[name] for side, noise in rounded.items()},
        )
    return _settled(plan, operators, found)


def _weight_noise(operator: Operator, resolved: Resolved) -> float:
    assert operator.weight is not None
    stored = store_weight(operator, resolved)
    assert isinstance(stored, ChannelWeight)
    return _noise(sqnr_db(operator.weight.array, stored.values))


def _noise(db: float) -> float:
    return float(10 ** (-db / 10))


def _input_noise(
    model: FloatModel,
    scales: Mapping[str, Scale],
    samples: Samples,
    progress: Progress | None,
) -> dict[str, float]:
    """Noise over signal of values rounded to codes, by name."""
    signal, noise = dict.fromkeys(scales, 0.0), dict.fromkeys(scales, 0.0)
    for values in observe(model, samples.limited(MAX_ROUNDED), "sides", progress):
        for name, scale in scales.items():
            array = values[name].astype(np.float64)
            back = dequantize_array(quantize_array(values[name], scale), scale)
            signal[name] += float(np.square(array).sum())
            noise[name] += float(np.square(back - array).sum())
    return {name: noise[name] / signal[name] if signal[name] > 0 else 0.0 for name in scales}


def _choice(weights: Mapping[Side, float], inputs: Mapping[Side, float]) -> Choice:
    """Args: noise of weights and of the input, where one side gives up bits and the other not."""
    noise: dict[Side, float] = {
        "weights": weights["weights"] + inputs["weights"],
        "activations": weights["activations"] + inputs["activations"],
        "none": weights["activations"] + inputs["weights"],
    }
    db = {side: float(-10 * np.log10(max(ratio, 1e-30))) for side, ratio in noise.items()}
    better = db["activations"] - db["weights"] > GAIN_DB
    best: Side = "activations" if better else "weights"
    needed = db[best] < NEEDS_DB and db["none"] - db[best] > GAIN_DB
    return Choice("none" if needed else best, db)


def _settled(
    plan: Plan, operators: list[Operator], choices: dict[str, Choice]
) -> dict[str, Choice]:
    """Choices that agree: a value has 7 bits only if all that read its scale want that."""
    names = {o.name for o in operators}
    readers: dict[object, set[str]] = {}
    for operator in plan.operators:
        for variable in (*operator.inputs, operator.result):
            if variable in plan.shared and (variable in operator.inputs or operator.shares_scale):
                readers.setdefault(plan.shared[variable], set()).add(operator.name)
    for operator in operators:
        reading = readers[plan.shared[operator.inputs[0]]]
        wanted = all(name in names and choices[name].side == "activations" for name in reading)
        choice = choices[operator.name]
        if choice.side == "activations" and not wanted:
            choices[operator.name] = replace(choice, side="weights")
    return choices
