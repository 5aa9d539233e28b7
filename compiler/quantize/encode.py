"""The numbers of a quantized model: scales of values, codes of weights.

Repairs (`equalize`, `rounding`, `bias`) change these numbers; passes write them into a graph.
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
from edgec.compiler.quantize.codebook import CodebookWeight, fit_codebook
from edgec.compiler.quantize.plan import Plan
from edgec.compiler.quantize.recipe import Recipe, Resolved


@dataclass(frozen=True)
class HalfWeight:
    """Weights as float16 or bfloat16."""

    codes: NDArray[Any]

    @property
    def values(self) -> Floats:
        """As float32."""
        return self.codes.astype(np.float32)


StoredWeight = ChannelWeight | CodebookWeight | GroupWeight | HalfWeight


@dataclass(frozen=True)
class Quantization:
    """A plan and all its numbers.

    Attributes:
        plan: what is quantized.
        resolved: the recipe on the target.
        scales: by variable that becomes codes.
        weights: by name of an operator.
        biases: float32 [channels] by name of an operator; what is added to its products.
    """

    plan: Plan
    resolved: Resolved
    scales: dict[Any, Scale]
    weights: dict[str, StoredWeight]
    biases: dict[str, Floats]

    def with_weights(self, weights: Mapping[str, StoredWeight]) -> "Quantization":
        """The same with other codes for some operators."""
        return replace(self, weights={**self.weights, **weights})

    def with_biases(self, biases: Mapping[str, Floats]) -> "Quantization":
        """The same with other biases for some operators."""
        return replace(self, biases={**self.biases, **biases})

    def weight_values(self, operator: Operator) -> Floats:
        """What the stored weights of an operator stand for, in its weights' shape."""
        assert operator.weight is not None
        stored = self.weights[operator.name]
        if isinstance(stored, GroupWeight | CodebookWeight):
            return from_rows(stored.values, operator)
        return stored.values


def quantize_numbers(plan: Plan, resolved: Resolved, ranges: Mapping[str, Range]) -> Quantization:
    """Scales from ranges, codes of weights rounded to the nearest.

    Args:
        plan: what is quantized.
        resolved: the recipe on the target.
        ranges: by name, of every value that becomes codes.

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
        if resolved.sides.get(operator.name) == "activations" and operator.keep == "integer"
    }
    scales = {}
    for variable in plan.tensors:
        shared = plan.shared[variable]
        codes = resolved.activations.halved() if shared in narrow else resolved.activations
        scales[variable] = affine_scale(*united[shared], codes, symmetric=symmetric)
    weights = {o.name: store_weight(o, resolved) for o in plan.weighted()}
    biases = {o.name: o.bias[1] for o in plan.weighted() if o.bias is not None}
    return Quantization(plan, resolved, scales, weights, biases)


def store_weight(operator: Operator, resolved: Resolved) -> StoredWeight:
    """Weights of one operator in the recipe's format, rounded to the nearest."""
    assert operator.weight is not None
    weight, recipe = operator.weight, resolved.recipe
    if recipe.weights in ("fp16", "bf16"):
        kind = np.float16 if recipe.weights == "fp16" else ml_dtypes.bfloat16
        return HalfWeight(weight.array.astype(kind))
    if recipe.weights == "int8":
        largest = resolved.largest_weight
        summed = summed_axis(operator, resolved)
        return quantize_channels(weight.array, weight.axis, largest, summed)
    if recipe.codebook:
        rows = to_rows(weight.array, operator)
        found = fit_codebook(rows, recipe.codebook)
        # The table of a small tensor is larger than what it saves.
        half = HalfWeight(weight.array.astype(np.float16))
        return found if found.size < half.codes.nbytes else half
    return quantize_rows(to_rows(weight.array, operator), recipe)


# Where the products of neighbours are summed in int16.
_SUMMED = {"conv": 1, "depthwise_conv": -1, "matmul": -2}


def summed_axis(operator: Operator, resolved: Resolved) -> int | None:
    """Axis of the weights along which codes keep to `LARGEST_SUM`; None: they need not."""
    kept = resolved.sides.get(operator.name, "weights") == "weights"
    return _SUMMED.get(operator.kind) if resolved.paired and kept else None


def quantize_rows(rows: Floats, recipe: Recipe) -> GroupWeight:
    """4-bit codes of rows."""
    if recipe.weights == "log2":
        return quantize_log2(rows, recipe.weight_group)
    return quantize_groups(rows, recipe.weight_group, symmetric=recipe.symmetric_weights)
