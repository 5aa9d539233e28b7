"""Provide low-rank factorization: a convolution or matrix product becomes two smaller ones.

A matrix of weights has a best approximation of rank r, its singular value decomposition cut off
after r terms. Three ways to see weights as a matrix:

    product [k, n]            ->  [k, r] [r, n]
    channel: [o, c, h, w]     ->  [r, c, h, w], then [o, r, 1, 1]      (c h w by o)
    spatial: [o, c, h, w]     ->  [r, c, h, 1], then [o, r, 1, w]      (c h by o w)

The spatial one is of Jaderberg et al. 2014, section 2.1. With samples the error in the outputs is
cut, not that in the weights: with S S^T the covariance of the inputs of a dot product, W S is
decomposed, and a bias takes what the mean of the inputs makes of the difference.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from tvm import IRModule, relax

from edgec.compiler.calibration.float_model import FloatModel
from edgec.compiler.calibration.moments import Moments, groups_of, has_moments, measure_moments
from edgec.compiler.compress.step import CompressionStep, StepContext
from edgec.compiler.errors import UnsupportedModelError
from edgec.compiler.ir.anchors import Operator
from edgec.compiler.ir.graph import Graph
from edgec.compiler.ir.relax_helpers import constant, shape_of

Floats = NDArray[np.floating[Any]]
Scheme = Literal["channel", "spatial"]

# Added to the diagonal of a covariance, as a share of its mean, so that it has an inverse.
_DAMPING = 1e-3


class LowRank(CompressionStep):
    """Factorize where that saves multiplications.

    Ranks are multiples of the target's vector width. `ratio` is spread over the operators so that
    each weight saved costs as little of an operator's output as possible.

    Attributes:
        ratio: share of all weights of the model that goes away.
        energy: share of each operator's output (of its weights without samples) that stays.
        scheme: how convolutions with a kernel are seen; `auto` takes the better one.
    """

    kind: Literal["low-rank"] = "low-rank"
    ratio: float | None = Field(default=None, gt=0, lt=1)
    energy: float | None = Field(default=None, gt=0, lt=1)
    scheme: Literal["auto", "channel", "spatial"] = "auto"

    @model_validator(mode="after")
    def _says_how_much(self) -> Self:
        if (self.ratio is None) == (self.energy is None):
            raise ValueError("low-rank needs either ratio or energy")
        return self

    def apply(self, graph: Graph, context: StepContext) -> IRModule:
        """Factorize."""
        operators = self.weighted(graph)
        found = [_Factors.of(o, graph, context) for o in operators if _can_be_factored(o, graph)]
        usable = [factors for factors in found if factors is not None]
        moments = _moments([factors.operator for factors in usable], graph, context)
        choices = []
        for factors in usable:
            factors.learn(moments.get(factors.operator.anchor))
            choices.append(factors.choices(self.scheme))
        total = sum(o.weight.array.size for o in operators if o.weight is not None)
        if self.ratio is not None:
            chosen = _within_budget(choices, self.ratio * total, total)
        else:
            assert self.energy is not None
            chosen = [_of_energy(each, 1 - self.energy) for each in choices]
        if not any(chosen):
            raise UnsupportedModelError(
                "low-rank: no convolution or matrix product of this model is so large that two "
                "factors save multiplications at the wanted accuracy"
            )
        picked = {
            factors.operator.anchor: (factors, choice)
            for factors, choice in zip(usable, chosen, strict=True)
            if choice is not None
        }
        return _rewritten(graph, picked)


def _can_be_factored(operator: Operator, graph: Graph) -> bool:
    return (
        operator.kind in ("conv", "matmul")
        and has_moments(operator)
        and groups_of(operator, graph) == 1
    )


def _moments(
    operators: Sequence[Operator], graph: Graph, context: StepContext
) -> dict[Any, Moments]:
    if context.samples is None or not operators:
        return {}
    inputs = [operator.inputs[0] for operator in operators]
    model = FloatModel(graph, context.signature, inputs, context.evaluate)
    measured = measure_moments(model, operators, context.samples, context.progress)
    return {operator.anchor: moments for operator, moments in measured}


@dataclass(frozen=True)
class _Choice:
    """A choice describes one way to factorize an operator.

    Attributes:
        scheme: how.
        rank: the rank of the factors.
        saved: weights.
        error: share of the operator's output that is lost.
    """

    scheme: Scheme
    rank: int
    saved: int
    error: float


@dataclass(frozen=True)
class _Spectrum:
    """A spectrum describes a matrix of weights, decomposed.

    Attributes:
        left: [inputs, terms], what the first factor is made of.
        values: singular, largest first.
        right: [terms, outputs].
    """

    left: Floats
    values: Floats
    right: Floats

    @classmethod
    def of(cls, matrix: Floats, root: Floats | None) -> "_Spectrum":
        """Decompose a matrix [inputs, outputs] as S^-T (S^T matrix), S the root [inputs, same]."""
        if root is None:
            left, values, right = np.linalg.svd(matrix, full_matrices=False)
            return cls(left, values, right)
        left, values, right = np.linalg.svd(root.T @ matrix, full_matrices=False)
        return cls(np.linalg.solve(root.T, left), values, right)

    def lost(self, rank: int) -> float:
        """Return share of the energy beyond a rank."""
        energy = np.square(self.values)
        return float(energy[rank:].sum() / max(float(energy.sum()), 1e-30))

    def factors(self, rank: int) -> tuple[Floats, Floats]:
        """Return matrices [inputs, rank] and [rank, outputs].

        Both get an equal part of the scale.
        """
        half = np.sqrt(self.values[:rank])
        return self.left[:, :rank] * half, half[:, None] * self.right[:rank]


class _Factors:
    """Factors are an operator and its decompositions."""

    def __init__(self, operator: Operator, graph: Graph, lanes: int) -> None:
        assert operator.weight is not None
        self.operator = operator
        self.array = operator.weight.array
        self.lanes = lanes
        self.call = graph.definitions[operator.anchor]
        self.input = shape_of(self.call.args[0]) or ()
        self.output = shape_of(operator.anchor) or ()
        self.spectra: dict[Scheme, _Spectrum] = {}
        self.mean: Floats | None = None

    @classmethod
    def of(cls, operator: Operator, graph: Graph, context: StepContext) -> "_Factors | None":
        """Return none if no rank saves anything."""
        factors = cls(operator, graph, context.target.float_lanes)
        return (
            factors if any(factors._saves(s, factors.lanes) for s in factors._schemes()) else None
        )

    def _schemes(self) -> tuple[Scheme, ...]:
        if self.operator.kind == "conv" and min(self.array.shape[2:]) > 1:
            return "channel", "spatial"
        return ("channel",)

    def learn(self, moments: Moments | None) -> None:
        """Decompose, by what the inputs are if that is known."""
        covariance = None
        if moments is not None:
            covariance = moments.second[0].astype(np.float64)
            if self.operator.bias is not None:
                self.mean = moments.mean[0].astype(np.float64)
                covariance -= np.outer(self.mean, self.mean)
        for scheme in self._schemes():
            matrix, inputs = self._matrix(scheme).astype(np.float64), covariance
            if scheme == "spatial" and covariance is not None:
                # Of the values in one column of the kernel; the mean over its columns.
                _, channels, height, width = self.array.shape
                shaped = covariance.reshape(channels, height, width, channels, height, width)
                inputs = np.einsum("chwdgw->chdg", shaped).reshape(len(matrix), -1) / width
            self.spectra[scheme] = _Spectrum.of(matrix, None if inputs is None else _root(inputs))

    def _matrix(self, scheme: Scheme) -> Floats:
        """Return the weights as [inputs, outputs]."""
        if self.operator.kind == "matmul":
            return self.array
        if scheme == "channel":
            return self.array.reshape(len(self.array), -1).T
        out, channels, height, width = self.array.shape
        return self.array.transpose(1, 2, 0, 3).reshape(channels * height, out * width)

    def _saves(self, scheme: Scheme, rank: int) -> int:
        """Return weights that a rank saves, 0 if it saves no multiplications."""
        inputs, outputs = self._matrix(scheme).shape
        saved = self.array.size - rank * (inputs + outputs)
        places = int(np.prod(self.output)) // len(self.array)
        if self.operator.kind == "matmul":
            places = 1
        before, between = self.array.size * places, places
        if scheme == "spatial":
            # The first factor does not stride along rows yet.
            between = places // self.output[3] * self.input[3]
        after = rank * (inputs * between + outputs * places)
        return max(saved, 0) if after < before else 0

    def choices(self, wanted: Literal["auto", "channel", "spatial"]) -> list[_Choice]:
        """Return ways that save weights and multiplications.

        Each better than those that save as much.
        """
        found = []
        for scheme, spectrum in self.spectra.items():
            if wanted not in ("auto", scheme) and len(self.spectra) > 1:
                continue
            for rank in range(self.lanes, len(spectrum.values), self.lanes):
                saved = self._saves(scheme, rank)
                if saved:
                    found.append(_Choice(scheme, rank, saved, spectrum.lost(rank)))
        found.sort(key=lambda choice: (choice.saved, -choice.error))
        best: list[_Choice] = []
        for choice in found:
            while best and best[-1].error >= choice.error:
                best.pop()
            best.append(choice)
        return best

    def calls(self, choice: _Choice) -> tuple[Floats, Floats]:
        """Return weights of the first and the second operator."""
        first, second = self.spectra[choice.scheme].factors(choice.rank)
        if self.operator.kind == "matmul":
            return first, second
        out, channels, height, width = self.array.shape
        if choice.scheme == "channel":
            return (
                first.T.reshape(choice.rank, channels, height, width),
                second.T.reshape(out, choice.rank, 1, 1),
            )
        return (
            first.T.reshape(choice.rank, channels, height, 1),
            second.reshape(choice.rank, out, 1, width).transpose(1, 0, 2, 3),
        )

    def bias(self, choice: _Choice) -> Floats | None:
        """Return the bias that makes up for the mean of what is lost; None to keep the old one."""
        if self.mean is None or self.operator.bias is None:
            return None
        first, second = self.spectra[choice.scheme].factors(choice.rank)
        lost = self._matrix(choice.scheme) - first @ second
        if choice.scheme == "spatial":
            out, channels, height, width = self.array.shape
            lost = lost.reshape(channels, height, out, width).transpose(0, 1, 3, 2)
            lost = lost.reshape(-1, out)
        return np.asarray(self.operator.bias[1] + self.mean @ lost)


def _root(covariance: Floats) -> Floats:
    """Return S with S S^T the damped covariance."""
    values, vectors = np.linalg.eigh(covariance)
    damping = _DAMPING * max(float(values.mean()), 1e-12)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0) + damping))


def _of_energy(choices: Sequence[_Choice], most: float) -> _Choice | None:
    """Return what saves most at an error."""
    fitting = [choice for choice in choices if choice.error <= most]
    return fitting[-1] if fitting else None


def _within_budget(
    choices: Sequence[Sequence[_Choice]], wanted: float, total: int
) -> list[_Choice | None]:
    """Save so many weights at the least error, greedily by error for a weight."""
    taken: list[_Choice | None] = [None] * len(choices)
    saved = 0
    while saved < wanted:
        steps = list(_steps(choices, taken))
        if not steps:
            raise UnsupportedModelError(
                f"low-rank: factors can save {saved / total:.0%} of the weights at most, "
                f"{wanted / total:.0%} are wanted; ask for less"
            )
        _, place, choice = min(steps, key=lambda step: step[0])
        before = taken[place]
        saved += choice.saved - (before.saved if before is not None else 0)
        taken[place] = choice
    return taken


def _steps(
    choices: Sequence[Sequence[_Choice]], taken: Sequence[_Choice | None]
) -> Iterator[tuple[float, int, _Choice]]:
    """Yield the next choice of each operator: error for each weight that it saves more."""
    for place, each in enumerate(choices):
        current = taken[place]
        saved, error = (current.saved, current.error) if current is not None else (0, 0.0)
        further = [choice for choice in each if choice.saved > saved]
        if further:
            slopes = [(c.error - error) / (c.saved - saved) for c in further]
            best = int(np.argmin(slopes))
            yield slopes[best], place, further[best]


def _rewritten(graph: Graph, picked: dict[Any, tuple[_Factors, _Choice]]) -> IRModule:
    biases = {}
    for factors, choice in picked.values():
        bias, operator = factors.bias(choice), factors.operator
        if bias is not None and operator.bias is not None:
            rank = len(factors.output)
            axis = rank - 1 if operator.kind == "matmul" else 1
            shape = [-1 if i == axis else 1 for i in range(rank)]
            biases[operator.bias[0]] = constant(bias.reshape(shape).astype(np.float32))

    def change(
        builder: relax.BlockBuilder, variable: Any, value: Any, _current: Callable[[Any], Any]
    ) -> Any:
        if variable in picked:
            value = _factored(builder, variable, value, *picked[variable])
        elif variable in biases:
            fields = [x if graph.constant(x) is None else biases[variable] for x in value.args]
            value = relax.Call(value.op, fields, value.attrs)
        return value

    return graph.map_values(change)


def _factored(
    builder: relax.BlockBuilder, variable: Any, call: Any, factors: _Factors, choice: _Choice
) -> Any:
    """Return the call of the second operator, the first one emitted."""
    first, second = (constant(w.astype(np.float32)) for w in factors.calls(choice))
    data, name = call.args[0], f"{variable.name}_factor"
    if factors.operator.kind == "matmul":
        inner = builder.emit(relax.op.matmul(data, first), name)
        return relax.op.matmul(inner, second)
    attributes = call.attrs
    convolve = relax.op.nn.conv2d
    strides, padding, dilation = (
        tuple(int(n) for n in values)
        for values in (attributes.strides, attributes.padding, attributes.dilation)
    )
    if choice.scheme == "channel":
        inner = builder.emit(convolve(data, first, strides, padding, dilation), name)
        return convolve(inner, second)
    top, left, bottom, right = padding
    inner = builder.emit(
        convolve(data, first, (strides[0], 1), (top, 0, bottom, 0), (dilation[0], 1)), name
    )
    return convolve(inner, second, (1, strides[1]), (0, left, 0, right), (1, dilation[1]))
