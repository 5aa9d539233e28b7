"""Repairs of rounding, without labels, in the order in which they run."""

from collections.abc import Iterator

from edgec.compiler.host_model import FloatModel
from edgec.compiler.progress import Progress
from edgec.compiler.quantize.bias_correction import corrected_bias
from edgec.compiler.quantize.encode import Quantization
from edgec.compiler.quantize.moments import Moments, assumed_moments, has_moments, measure_moments
from edgec.compiler.quantize.plan import Operator
from edgec.compiler.quantize.second_order import round_second_order
from edgec.compiler.samples import Samples


def repair(
    quantization: Quantization,
    model: FloatModel | None,
    samples: Samples | None,
    progress: Progress | None = None,
) -> Quantization:
    """Round weights by what they do to the outputs, then correct the biases.

    Without samples the inputs' moments are assumed, and biases stay: they would follow the
    assumption, not the data.
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
    for operator, moments in found:
        stored = quantization.weights[operator.name]
        better = round_second_order(operator, stored, moments, resolved)
        quantization = quantization.with_weights({operator.name: better})
        bias = corrected_bias(quantization, operator, moments) if samples is not None else None
        if bias is not None:
            quantization = quantization.with_biases({operator.name: bias})
    return quantization
