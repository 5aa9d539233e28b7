"""Correct a model after rounding, without labels, step by step."""

from collections.abc import Callable, Iterator

from edgec.compiler.calibration.float_model import FloatModel
from edgec.compiler.calibration.moments import (
    Moments,
    assumed_moments,
    has_moments,
    measure_moments,
)
from edgec.compiler.calibration.samples import Samples
from edgec.compiler.ir.anchors import Operator
from edgec.compiler.quantize.encode import PackedWeight, Quantization
from edgec.compiler.quantize.options import Rounding
from edgec.compiler.quantize.quantization_recipe import ResolvedRecipe
from edgec.compiler.quantize.rounding.bias_correction import corrected_bias
from edgec.compiler.quantize.rounding.learned import round_learned
from edgec.compiler.quantize.rounding.scale_correction import scale_corrected
from edgec.compiler.quantize.rounding.second_order import round_second_order
from edgec.compiler.support.progress import Progress, Silent, counted


def _unchanged(
    _operator: Operator, packed_weight: PackedWeight, _moments: Moments, _resolved: ResolvedRecipe
) -> PackedWeight:
    return packed_weight


_ROUNDINGS: dict[
    Rounding, Callable[[Operator, PackedWeight, Moments, ResolvedRecipe], PackedWeight]
] = {
    "nearest": _unchanged,
    "second-order": round_second_order,
    "learned": round_learned,
}


def correct_after_training(
    quantization: Quantization,
    model: FloatModel | None,
    samples: Samples | None,
    rounding: Rounding,
    progress: Progress | None = None,
) -> Quantization:
    """Round weights by what they do to the outputs, then correct their scales and the biases.

    Without samples the inputs' moments are assumed, and scales and biases stay: they would follow
    the assumption, not the data.
    """
    if quantization.resolved.recipe.weights in ("fp16", "bf16", "float"):
        return quantization
    plan, resolved = quantization.plan, quantization.resolved
    operators = [operator for operator in plan.weighted() if has_moments(operator)]
    found: Iterator[tuple[Operator, Moments]]
    if samples is None:
        found = ((o, assumed_moments(o, plan.graph)) for o in operators)
    else:
        assert model is not None
        found = measure_moments(model, operators, samples, progress)
    shown = progress or Silent()
    for operator, moments in counted(found, shown, "rounding", len(operators)):
        packed_weight = quantization.weights[operator.name]
        better = _ROUNDINGS[rounding](operator, packed_weight, moments, resolved)
        quantization = quantization.with_weights({operator.name: better})
        if samples is not None:
            spread = scale_corrected(quantization, operator, moments)
            quantization = quantization.with_weights({operator.name: spread})
        bias = corrected_bias(quantization, operator, moments) if samples is not None else None
        if bias is not None:
            quantization = quantization.with_biases({operator.name: bias})
    return quantization
