"""Repairs of rounding, without labels, in the order in which they run."""

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
from edgec.compiler.quantize.encode import Quantization, StoredWeight
from edgec.compiler.quantize.options import Rounding
from edgec.compiler.quantize.recipe import Resolved
from edgec.compiler.quantize.rounding.bias_correction import corrected_bias
from edgec.compiler.quantize.rounding.learned import round_learned
from edgec.compiler.quantize.rounding.scale_correction import restandardized
from edgec.compiler.quantize.rounding.second_order import round_second_order
from edgec.compiler.support.progress import Progress, Silent, counted


def _as_stored(
    _operator: Operator, stored: StoredWeight, _moments: Moments, _resolved: Resolved
) -> StoredWeight:
    return stored


_ROUNDINGS: dict[Rounding, Callable[[Operator, StoredWeight, Moments, Resolved], StoredWeight]] = {
    "nearest": _as_stored,
    "second-order": round_second_order,
    "learned": round_learned,
}


def repair(
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
        stored = quantization.weights[operator.name]
        better = _ROUNDINGS[rounding](operator, stored, moments, resolved)
        quantization = quantization.with_weights({operator.name: better})
        if samples is not None:
            spread = restandardized(quantization, operator, moments)
            quantization = quantization.with_weights({operator.name: spread})
        bias = corrected_bias(quantization, operator, moments) if samples is not None else None
        if bias is not None:
            quantization = quantization.with_biases({operator.name: bias})
    return quantization
