"""Provide the numbers of a quantized model: scales of values, quantized weights.

Corrections (`equalize`, `rounding`, `bias`) change these numbers; passes write them into a graph.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from edgec.compiler.errors import CalibrationError
from edgec.compiler.ir.anchors import Operator
from edgec.compiler.ir.weight_rows import from_rows, to_rows
from edgec.compiler.numerics.affine import (
    ChannelWeight,
    Floats,
    GroupWeight,
    Scale,
    affine_scale,
    quantize_channels,
    quantize_groups,
    quantize_log2,
)
from edgec.compiler.numerics.observers import Range
from edgec.compiler.numerics.pair_sums import SumLimit
from edgec.compiler.quantize.codebook import CodebookWeight, fit_codebook
from edgec.compiler.quantize.plan import QuantizationPlan
from edgec.compiler.quantize.quantization_recipe import QuantizationRecipe, ResolvedRecipe


@dataclass(frozen=True)
class HalfWeight:
    """A half weight describes weights as float16 or bfloat16."""

    quantized: NDArray[Any]

    @property
    def values(self) -> Floats:
        """Return the values as float32."""
        return self.quantized.astype(np.float32)


PackedWeight = ChannelWeight | CodebookWeight | GroupWeight | HalfWeight


@dataclass(frozen=True)
class Quantization:
    """A quantization describes a plan and all its numbers.

    Attributes:
        plan: what is quantized.
        resolved: the recipe on the target.
        scales: by variable that is quantized.
        weights: by name of an operator.
        biases: float32 [channels] by name of an operator; what is added to its products.
    """

    plan: QuantizationPlan
    resolved: ResolvedRecipe
    scales: dict[Any, Scale]
    weights: dict[str, PackedWeight]
    biases: dict[str, Floats]

    def with_weights(self, weights: Mapping[str, PackedWeight]) -> "Quantization":
        """Return the same with other quantized values for some operators."""
        return replace(self, weights={**self.weights, **weights})

    def with_biases(self, biases: Mapping[str, Floats]) -> "Quantization":
        """Return the same with other biases for some operators."""
        return replace(self, biases={**self.biases, **biases})

    def weight_values(self, operator: Operator) -> Floats:
        """Return what the packed weights of an operator stand for, in its weights' shape."""
        assert operator.weight is not None
        packed_weight = self.weights[operator.name]
        if isinstance(packed_weight, GroupWeight | CodebookWeight):
            return from_rows(packed_weight.values, operator)
        return packed_weight.values


def quantize_numbers(
    plan: QuantizationPlan, resolved: ResolvedRecipe, ranges: Mapping[str, Range]
) -> Quantization:
    """Return scales from ranges, quantized weights rounded to the nearest.

    Args:
        plan: what is quantized.
        resolved: the recipe on the target.
        ranges: by name, of every value that is quantized.

    Raises:
        CalibrationError: names every value that has no range.
    """
    names = plan.graph.names
    missing = [names[v] for v in plan.tensors if names[v] not in ranges]
    if missing:
        raise CalibrationError(
            f"there is no range for {len(missing)} of {len(plan.tensors)} values "
            f"({', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}); the cache is of "
            "another model or recipe: delete it and calibrate again"
        )
    united: dict[Any, Range] = {}
    for variable in plan.tensors:
        low, high = ranges[names[variable]]
        known = united.get(plan.shared[variable], (low, high))
        united[plan.shared[variable]] = min(low, known[0]), max(high, known[1])
    symmetric = resolved.recipe.symmetric_activations
    narrow = {
        plan.shared[operator.inputs[0]]
        for operator in plan.weighted()
        if resolved.saturation_modes.get(operator.name) == "activations"
        and operator.keep == "integer"
    }
    scales = {}
    for variable in plan.tensors:
        shared = plan.shared[variable]
        qtype = resolved.activations.halved() if shared in narrow else resolved.activations
        scales[variable] = affine_scale(*united[shared], qtype, symmetric=symmetric)
    weights = {
        o.name: quantize_weight(o, resolved, _least_scales(o, scales)) for o in plan.weighted()
    }
    biases = {o.name: o.bias[1] for o in plan.weighted() if o.bias is not None}
    return Quantization(plan, resolved, scales, weights, biases)


# No products of a table's values are summed: all 8 bits hold a value on every target.
LARGEST_IN_TABLE = 127


def _least_scales(operator: Operator, scales: Mapping[Any, Scale]) -> Floats | None:
    """Return what the scales of weights must not be below for the bias to be an int32 as well.

    A channel that training has let die has weights near 0 and a bias. In units of its products
    that bias would be beyond int32, and one such channel would keep the whole operator's epilogue
    in floats. What is left of its weights is less than 2**-29 of the bias for each step of data.
    """
    if operator.bias is None or operator.kind not in _BIASED:
        return None
    data = scales.get(operator.inputs[0])
    if data is None:
        return None
    reach = np.abs(operator.bias[1].astype(np.float64))
    return (reach / (_LARGEST_BIAS * float(data.scale))).astype(np.float32)


# Operators with a bias for each channel of their weights, and the largest in units of products.
_BIASED = ("conv", "depthwise_conv")
_LARGEST_BIAS = 2.0**28


def quantize_weight(
    operator: Operator, resolved: ResolvedRecipe, least: Floats | None = None
) -> PackedWeight:
    """Return weights of one operator in the recipe's format, rounded to the nearest.

    Args:
        operator: of the plan.
        resolved: the recipe on the target.
        least: what the scales of int8 weights are not below, by channel.
    """
    assert operator.weight is not None
    weight, recipe = operator.weight, resolved.recipe
    if operator.kind == "embedding" and recipe.weights not in ("fp16", "bf16"):
        return quantize_channels(weight.array, weight.axis, LARGEST_IN_TABLE)
    if recipe.weights in ("fp16", "bf16"):
        kind = np.float16 if recipe.weights == "fp16" else ml_dtypes.bfloat16
        return HalfWeight(weight.array.astype(kind))
    if recipe.weights == "int8":
        largest = resolved.largest_weight
        limited = sum_limit(operator, resolved)
        if limited is None:
            return quantize_channels(weight.array, weight.axis, largest, least=least)
        reduced_axis, limit = limited
        return quantize_channels(weight.array, weight.axis, largest, reduced_axis, least, limit)
    if recipe.codebook:
        rows = to_rows(weight.array, operator)
        found = fit_codebook(rows, recipe.codebook)
        # The table of a small tensor is larger than what it saves.
        half = HalfWeight(weight.array.astype(np.float16))
        return found if found.size < half.quantized.nbytes else half
    return quantize_rows(to_rows(weight.array, operator), recipe)


# Where the products of neighbours are summed in int16.
_PAIR_SUM_AXES = {"conv": 1, "depthwise_conv": -1, "matmul": -2}
_HALF_SUM_AXES = {"conv": 1}


def sum_limit(operator: Operator, resolved: ResolvedRecipe) -> tuple[int, SumLimit] | None:
    """Return what quantized values of weights keep to, and along which axis; None: to nothing."""
    limit = resolved.limit
    if limit is None or resolved.saturation_modes.get(operator.name, "weights") != "weights":
        return None
    axis = (_HALF_SUM_AXES if limit.in_halves else _PAIR_SUM_AXES).get(operator.kind)
    return None if axis is None else (axis, limit)


def quantize_rows(rows: Floats, recipe: QuantizationRecipe) -> GroupWeight:
    """Return 4-bit values of rows."""
    if recipe.weights == "log2":
        return quantize_log2(rows, recipe.weight_group)
    return quantize_groups(rows, recipe.weight_group, symmetric=recipe.symmetric_weights)
