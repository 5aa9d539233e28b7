"""Provide smoothing: channels of activations that outweigh others, moved into weights.

A few channels of what a normalization gives are far larger than the others (Dettmers et al. 2022),
and one scale for all leaves the others little of their 8 bits. A matrix product is the same for any
positive s of each channel of its input:

    x W = (x / s) (s W)                               (SmoothQuant: Xiao et al. 2023, eq. 3)

    s[c] = max |x[c]| ** alpha / max |W[c]| ** (1 - alpha)                            (eq. 4)

With alpha 0 the rows of the weights are even, with 1 the channels of the activations. All products
that read x share its s. For each x the alpha is taken that has the least expected noise in what
these products give, over rounding errors that are uniform and independent:

    a ** 2 / 12 * sum((s W) ** 2)  +  sum over outputs o of w[o] ** 2 / 12 * sum(E[(x / s) ** 2])

with a the step of the activations and w[o] those of the weights.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import IRModule, relax

from edgec.compiler.calibration.float_model import FloatModel, observe
from edgec.compiler.calibration.ranges import check_finite
from edgec.compiler.calibration.samples import Samples
from edgec.compiler.errors import CalibrationError
from edgec.compiler.ir.anchors import Operator, is_normalization
from edgec.compiler.ir.graph import Graph
from edgec.compiler.ir.relax_helpers import constant, op_name, shape_of
from edgec.compiler.numerics.affine import Floats
from edgec.compiler.numerics.observers import Range
from edgec.compiler.quantize.plan import QuantizationPlan
from edgec.compiler.quantize.shared_weights import shared_weights
from edgec.compiler.support.progress import Progress

ALPHAS = np.linspace(0.0, 1.0, 21)

# Noise that is left of it, at most: a division for each value must be worth its while.
WORTHWHILE = 0.8

# Channels of less than this part of the largest are taken for so large.
LEAST = 1e-4

_LEVELS, _WEIGHT_LEVELS = 255, 127


@dataclass(frozen=True)
class Channels:
    """Channels describe a value by its last axis, over all samples.

    Attributes:
        low: the least value of each, 0 if there is none below, float32 [channels].
        high: the largest, likewise.
        square: E[x ** 2], float64 [channels].
        batches: how many they were seen in.
    """

    low: Floats
    high: Floats
    square: NDArray[np.float64]
    batches: int = 1

    @classmethod
    def of(cls, value: Floats) -> "Channels":
        """Return those of one batch."""
        rows = value.reshape(-1, value.shape[-1])
        square = np.square(rows).mean(axis=0, dtype=np.float64)
        return cls(np.minimum(rows.min(axis=0), 0), np.maximum(rows.max(axis=0), 0), square)

    def joined(self, other: "Channels") -> "Channels":
        """Return those of the batches of both."""
        batches = self.batches + other.batches
        square = self.square * self.batches + other.square * other.batches
        low, high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        return Channels(low, high, square / batches, batches)

    def range(self, divisor: NDArray[Any]) -> Range:
        """Return the ends of all values when each channel is divided."""
        return float((self.low / divisor).min()), float((self.high / divisor).max())


def smoothing(channels: Channels, weights: Sequence[Floats]) -> Floats | None:
    """Return s by channel, float32 with a mean logarithm of 0; None if it is not worth while.

    Args:
        channels: of what is read.
        weights: of all products that read it, [channels, outputs] each.
    """
    sizes_of_weights = np.abs(np.concatenate(weights, axis=1))
    read = np.maximum(-channels.low, channels.high).astype(np.float64)
    own = sizes_of_weights.max(axis=1).astype(np.float64)
    if not (read.any() and own.any()):
        return None
    logarithms = [np.log(np.maximum(sizes, LEAST * sizes.max())) for sizes in (read, own)]

    def scales(alpha: float) -> NDArray[np.float64]:
        powers = alpha * logarithms[0] - (1 - alpha) * logarithms[1]
        return np.exp(powers - powers.mean())

    tried = [scales(alpha) for alpha in ALPHAS]
    noises = [_noise(channels, sizes_of_weights, s) for s in [*tried, np.ones(len(read))]]
    best = int(np.argmin(noises[:-1]))
    if noises[best] > WORTHWHILE * noises[-1]:
        return None
    return tried[best].astype(np.float32)


def _noise(channels: Channels, sizes: Floats, scales: NDArray[np.float64]) -> float:
    """Return the expected squared error of all outputs for one input.

    Args:
        channels: of the input.
        sizes: magnitudes of the weights.
        scales: s by channel.
    """
    low, high = channels.range(scales)
    smoothed = sizes * scales[:, None].astype(np.float32)
    steps = smoothed.max(axis=0).astype(np.float64) / _WEIGHT_LEVELS
    of_activations = ((high - low) / _LEVELS) ** 2 * float(np.square(smoothed).sum())
    of_weights = float(np.square(steps).sum()) * float((channels.square / scales**2).sum())
    return (of_activations + of_weights) / 12


def smoothable(plan: QuantizationPlan) -> dict[Any, list[Operator]]:
    """Return the products that read each value that may be smoothed; none without normalization.

    1. They are products of integers with one constant matrix, which no other product shares.
    2. The value is computed on floats: dividing it costs next to nothing then, and what it was
       computed from is not rounded. A normalization gives such values, and so does what follows
       another product.
    3. Nothing else rounds it.
    """
    graph = plan.graph
    if not any(is_normalization(graph, variable) for variable in graph.definitions):
        return {}
    integer = [operator for operator in plan.operators if operator.keep == "integer"]
    products = [o for o in integer if o.kind == "matmul" and o.weight is not None]
    found: dict[Any, list[Operator]] = {}
    for group in shared_weights(graph, products):
        weight = group[0].weight
        # (1)
        if len(group) == 1 and weight is not None and weight.array.ndim == 2:
            found.setdefault(group[0].inputs[0], []).append(group[0])
    makers = {operator.result: operator for operator in integer}
    readers: dict[Any, set[Operator]] = {}
    for operator in integer:
        for variable in operator.inputs:
            readers.setdefault(variable, set()).add(operator)

    def may_be_divided(variable: Any) -> bool:
        reading: Collection[Operator] = found[variable]
        while readers[variable] == set(reading):
            maker = makers.get(variable)
            if maker is None or maker.kind != "move":
                # (2)
                computed = variable not in graph.parameters
                return computed and (maker is None or maker.kind == "matmul")
            variable, reading = maker.inputs[0], [maker]
        # (3)
        return False

    return {value: group for value, group in found.items() if may_be_divided(value)}


def is_smoothing(graph: Graph, variable: Any) -> bool:
    """Return whether a value is a quotient that `smooth` made, or could have made."""
    call = graph.definitions[variable]
    readers = graph.readers.get(variable, [])
    return (
        op_name(call) == "relax.divide"
        and graph.constant(call.args[1]) is not None
        and bool(readers)
        and all(op_name(reader.call) == "relax.matmul" for reader in readers)
    )


def measure_channels(
    model: FloatModel, values: Sequence[Any], samples: Samples, progress: Progress | None = None
) -> dict[str, Channels]:
    """Return the channels of values over all samples, by name.

    Raises:
        CalibrationError: no samples, or a value is not finite.
    """
    names = [model.graph.names[value] for value in values]
    found: dict[str, Channels] = {}
    for seen in observe(model, samples, "channels", progress):
        for name in names:
            check_finite(name, seen[name], samples)
            now = Channels.of(seen[name])
            found[name] = found[name].joined(now) if name in found else now
    return found


def find_divisors(
    graph: Graph, groups: Mapping[Any, Sequence[Operator]], channels: Mapping[str, Channels]
) -> dict[str, Floats]:
    """Return s by the name of each value for which it is worth while."""
    found: dict[str, Floats] = {}
    for value, operators in groups.items():
        weights = [operator.weight.array for operator in operators if operator.weight is not None]
        scales = smoothing(channels[graph.names[value]], weights)
        if scales is not None:
            found[graph.names[value]] = scales
    return found


def smooth(
    graph: Graph, groups: Mapping[Any, Sequence[Operator]], scales: Mapping[str, Floats]
) -> tuple[IRModule, dict[str, Any]]:
    """Return the module with divided values, and the quotients by the name of what they divide.

    The weights make up for the division, which is no operator that is quantized: what it divides
    stays float.

    Args:
        graph: the canonical module.
        groups: the products that read each value.
        scales: s by the name of a value, see `find_divisors`; the module itself if empty.

    Raises:
        CalibrationError: the scales are of another model.
    """
    chosen = {value: scales[graph.names[value]] for value in groups if graph.names[value] in scales}
    for value, by_channel in chosen.items():
        channels = (shape_of(value) or ())[-1]
        if by_channel.shape != (channels,):
            raise CalibrationError(
                f"{graph.names[value]} has {channels} channels, the calibration cache has "
                f"{len(by_channel)} divisors of it: delete the cache and calibrate again"
            )
    anchors = {operator.anchor: operator for value in chosen for operator in groups[value]}
    divided: dict[Any, Any] = {}

    def change(
        builder: relax.BlockBuilder, variable: Any, value: Any, _current: Callable[[Any], Any]
    ) -> Any:
        operator = anchors.get(variable)
        if operator is None:
            return value
        source, weight = operator.inputs[0], operator.weight
        assert weight is not None
        by_channel = chosen[source]
        if source not in divided:
            quotient = relax.op.divide(value.args[0], constant(by_channel))
            divided[source] = builder.emit(quotient, f"{graph.names[source]}.smoothed")
        matrix = constant(weight.array * by_channel[:, None])
        return relax.Call(value.op, [divided[source], matrix], value.attrs)

    module = graph.map_values(change) if chosen else graph.module
    return module, {graph.names[source]: quotient for source, quotient in divided.items()}
