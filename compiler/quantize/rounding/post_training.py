"""Correct a model after rounding, without labels, step by step."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from edgec.compiler.calibration.float_model import FloatModel
from edgec.compiler.calibration.moments import (
    Moments,
    MomentSums,
    assumed_moments,
    has_moments,
    joined_moments,
    measure_moments,
)
from edgec.compiler.calibration.samples import Samples
from edgec.compiler.ir.anchors import Operator
from edgec.compiler.quantize.encode import PackedWeight, Quantization
from edgec.compiler.quantize.options import Rounding
from edgec.compiler.quantize.plan import QuantizationPlan
from edgec.compiler.quantize.quantization_recipe import ResolvedRecipe
from edgec.compiler.quantize.rounding.bias_correction import corrected_bias
from edgec.compiler.quantize.rounding.learned import round_learned
from edgec.compiler.quantize.rounding.scale_correction import scale_corrected
from edgec.compiler.quantize.rounding.second_order import round_second_order
from edgec.compiler.quantize.shared_weights import shared_weights
from edgec.compiler.support.progress import Progress, Silent, counted


def _unchanged(
    _operator: Operator, packed_weight: PackedWeight, _moments: Moments, _resolved: ResolvedRecipe
) -> PackedWeight:
    return packed_weight


_Round = Callable[[Operator, PackedWeight, Moments, ResolvedRecipe], PackedWeight]

_ROUNDINGS: dict[Rounding, _Round] = {
    "nearest": _unchanged,
    "second-order": round_second_order,
    "learned": round_learned,
}


def corrected_groups(plan: QuantizationPlan, resolved: ResolvedRecipe) -> list[list[Operator]]:
    """Return the operators that are corrected; those that share their weights are a group."""
    if resolved.recipe.weights in ("fp16", "bf16", "float"):
        return []
    weighted = [operator for operator in plan.weighted() if has_moments(operator)]
    return shared_weights(plan.graph, weighted)


def correct_after_training(
    quantization: Quantization,
    model: FloatModel | None,
    samples: Samples | None,
    rounding: Rounding,
    progress: Progress | None = None,
    begun: MomentSums | None = None,
) -> Quantization:
    """Round weights by what they do to the outputs, then correct their scales and the biases.

    Without samples the inputs' moments are assumed, and scales and biases stay: they would follow
    the assumption, not the data. Moments may have `begun` while ranges were measured.
    """
    plan = quantization.plan
    groups = corrected_groups(plan, quantization.resolved)
    operators = [operator for group in groups for operator in group]
    found: Iterator[tuple[Operator, Moments]]
    if samples is None:
        found = ((o, assumed_moments(o, plan.graph)) for o in operators)
    else:
        assert model is not None
        found = measure_moments(model, operators, samples, progress, begun)
    shown = progress or Silent()
    group_of = {operator.name: group for group in groups for operator in group}
    # Until all of a group have been seen; they come in the order that takes least memory.
    seen: dict[str, Moments] = {}
    for operator, own in counted(found, shown, "rounding", len(operators)):
        seen[operator.name] = own
        group = group_of[operator.name]
        if all(other.name in seen for other in group):
            each = {other.name: seen.pop(other.name) for other in group}
            quantization = _corrected(quantization, group, each, _ROUNDINGS[rounding], samples)
    return quantization


def _corrected(
    quantization: Quantization,
    group: Sequence[Operator],
    each: Mapping[str, Moments],
    rounded: _Round,
    samples: Samples | None,
) -> Quantization:
    """Return one weight for all of a group, rounded for what all of them read, and their biases."""
    first, names = group[0], [operator.name for operator in group]
    moments = joined_moments([*each.values()]) if len(group) > 1 else each[first.name]
    packed_weight = quantization.weights[first.name]
    better = rounded(first, packed_weight, moments, quantization.resolved)
    quantization = quantization.with_weights(dict.fromkeys(names, better))
    if samples is None:
        return quantization
    spread = scale_corrected(quantization, first, moments)
    quantization = quantization.with_weights(dict.fromkeys(names, spread))
    for operator in group:
        bias = corrected_bias(quantization, operator, each[operator.name])
        if bias is not None:
            quantization = quantization.with_biases({operator.name: bias})
    return quantization
