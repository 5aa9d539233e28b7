"""Choose a saturation mode: which range an operator reduces where int16 accumulators saturate.

    weights      pairs of weights are bounded (`LARGEST_PAIR_SUM`)
    activations  the input has 7 bits; 127 * (127 + 127) fits
    none         both keep 8 bits, and products are accumulated in int32: slower

Errors of weights and input are taken to add up: with the signal-to-noise ratio s of rounding each,
an operator has 1 / (1 / s_weights + 1 / s_input). The range of the weights is reduced unless that
of the input is `GAIN_DB` better; neither is where that leaves less than `NEEDS_DB` and 8 bits for
both give `GAIN_DB` more.
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
from edgec.compiler.quantize.encode import quantize_numbers, quantize_weight
from edgec.compiler.quantize.plan import QuantizationPlan
from edgec.compiler.quantize.quantization_recipe import ResolvedRecipe, SaturationMode
from edgec.compiler.quantize.shared_weights import shared_weights
from edgec.compiler.support.progress import Progress

# Batches that inputs are rounded of.
MAX_ROUNDED = 8

# Of the 6 that a bit is worth; the other modes are slower.
GAIN_DB = 3.0
NEEDS_DB = 30.0

# Kinds that have a kernel for each side.
_KINDS = ("conv", "matmul")


@dataclass(frozen=True)
class SaturationChoice:
    """A saturation choice describes the saturation mode of one operator, and why.

    Attributes:
        mode: operand whose range is reduced.
        db: signal-to-noise ratio of its rounding, by side [dB].
    """

    mode: SaturationMode
    db: Mapping[SaturationMode, float]


def choose_saturation_modes(
    plan: QuantizationPlan,
    resolved: ResolvedRecipe,
    ranges: Mapping[str, Range],
    model: FloatModel,
    samples: Samples,
    progress: Progress | None = None,
) -> dict[str, SaturationChoice]:
    """Return a choice for each convolution and matrix product on quantized values, by name."""
    operators = [o for o in plan.weighted() if o.keep == "integer" and o.kind in _KINDS]
    if not operators:
        return {}
    everywhere: dict[SaturationMode, ResolvedRecipe] = {
        mode: replace(resolved, saturation_modes={o.name: mode for o in operators})
        for mode in ("weights", "activations")
    }
    scales = {
        mode: quantize_numbers(plan, each, ranges).scales for mode, each in everywhere.items()
    }
    names = {o.inputs[0]: plan.graph.names[o.inputs[0]] for o in operators}
    rounded = {
        mode: _input_noise(model, {names[v]: found[v] for v in names}, samples, progress)
        for mode, found in scales.items()
    }
    found = {}
    for operator in operators:
        name = names[operator.inputs[0]]
        found[operator.name] = _choice(
            {mode: _weight_noise(operator, each) for mode, each in everywhere.items()},
            {mode: noise[name] for mode, noise in rounded.items()},
        )
    for group in shared_weights(plan.graph, operators):
        modes = {found[operator.name].mode for operator in group}
        if len(modes) > 1:
            # One weight for all of them: as each of them can multiply it.
            found |= {o.name: replace(found[o.name], mode="weights") for o in group}
    return _agreed(plan, operators, found)


def _weight_noise(operator: Operator, resolved: ResolvedRecipe) -> float:
    assert operator.weight is not None
    packed_weight = quantize_weight(operator, resolved)
    assert isinstance(packed_weight, ChannelWeight)
    return _noise(sqnr_db(operator.weight.array, packed_weight.values))


def _noise(db: float) -> float:
    return float(10 ** (-db / 10))


def _input_noise(
    model: FloatModel,
    scales: Mapping[str, Scale],
    samples: Samples,
    progress: Progress | None,
) -> dict[str, float]:
    """Return noise over signal of values quantized, by name."""
    signal, noise = dict.fromkeys(scales, 0.0), dict.fromkeys(scales, 0.0)
    for values in observe(model, samples.limited(MAX_ROUNDED), "saturation", progress):
        for name, scale in scales.items():
            array = values[name].astype(np.float64)
            back = dequantize_array(quantize_array(values[name], scale), scale)
            signal[name] += float(np.square(array).sum())
            noise[name] += float(np.square(back - array).sum())
    return {name: noise[name] / signal[name] if signal[name] > 0 else 0.0 for name in scales}


def _choice(
    weights: Mapping[SaturationMode, float], inputs: Mapping[SaturationMode, float]
) -> SaturationChoice:
    """Choose by the noise of weights and of the input, each with the range of either reduced."""
    noise: dict[SaturationMode, float] = {
        "weights": weights["weights"] + inputs["weights"],
        "activations": weights["activations"] + inputs["activations"],
        "none": weights["activations"] + inputs["weights"],
    }
    db = {mode: float(-10 * np.log10(max(ratio, 1e-30))) for mode, ratio in noise.items()}
    better = db["activations"] - db["weights"] > GAIN_DB
    best: SaturationMode = "activations" if better else "weights"
    needed = db[best] < NEEDS_DB and db["none"] - db[best] > GAIN_DB
    return SaturationChoice("none" if needed else best, db)


def _agreed(
    plan: QuantizationPlan, operators: list[Operator], choices: dict[str, SaturationChoice]
) -> dict[str, SaturationChoice]:
    """Return choices that agree: a value has 7 bits only if all that read its scale want that."""
    names = {o.name for o in operators}
    readers: dict[object, set[str]] = {}
    for operator in plan.operators:
        for variable in (*operator.inputs, operator.result):
            if variable in plan.shared and (variable in operator.inputs or operator.shares_scale):
                readers.setdefault(plan.shared[variable], set()).add(operator.name)
    for operator in operators:
        reader_names = readers[plan.shared[operator.inputs[0]]]
        wanted = all(name in names and choices[name].mode == "activations" for name in reader_names)
        choice = choices[operator.name]
        if choice.mode == "activations" and not wanted:
            choices[operator.name] = replace(choice, mode="weights")
    return choices
