"""Provide pruning: weights become zero, one by one or in patterns that kernels can use.

With samples, what is removed is chosen by what it costs the outputs, and what stays makes up for
it (SparseGPT: Frantar and Alistarh 2023). With H = E[x x^T] and U the upper Cholesky factor of
its inverse, removing the weight of input j when all before are rounded adds w_j^2 / U_jj^2 to the
expected squared error. Where a bias follows, it takes the mean, and H is that of x - E[x].
"""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from tvm import IRModule

from edgec.compiler.calibration.float_model import FloatModel
from edgec.compiler.calibration.mean_change import mean_change
from edgec.compiler.calibration.moments import Moments, has_moments, measure_moments
from edgec.compiler.compress.step import CompressionStep, StepContext
from edgec.compiler.errors import UnsupportedModelError
from edgec.compiler.ir.anchors import Operator
from edgec.compiler.ir.graph import Graph
from edgec.compiler.ir.rewrite import with_weights
from edgec.compiler.ir.weight_rows import from_rows, to_rows
from edgec.compiler.numerics.masks import Mask, Pattern, Scores, spread_ratio
from edgec.compiler.numerics.second_order import DAMPING, inverse_factor, round_columns

# Longer dot products have no second moments: the matrix would be larger than all the rest.
MAX_INPUTS = 8192

# Inputs whose saliency is compared at a time.
BATCH = 128

# Of conjugate gradients, each one product with H for all rows.
REFIT_STEPS = 20

_SEED = 0
_TINY = float(np.finfo(np.float64).tiny)


class Sparse(CompressionStep):
    """The least salient weights become zero.

    Attributes:
        ratio: share of the weights that becomes zero.
        threshold: instead: weights of a smaller magnitude become zero.
        pattern: `single` weights; `block`: the same input of neighbouring outputs at once, which
            kernels gain by; `N:M`: of M neighbouring input channels all but N.
        block: outputs and inputs of a block.
        score: the saliency of a weight. `magnitude`; `wanda`: that times the mean size of its
            input; `second-order`: what the outputs lose, made up for by those that stay; `random`:
            nothing, for comparison. By default second-order with samples, else magnitude.
        scope: a ratio holds for each layer, or for all together: layers that have more to spare
            give more.
        depthwise: whether depthwise convolutions are pruned, too.
        least: layers of fewer weights stay as they are.
    """

    kind: Literal["sparse"] = "sparse"
    ratio: float | None = Field(default=None, gt=0, lt=1)
    threshold: float | None = Field(default=None, gt=0)
    pattern: str = "single"
    block: tuple[int, int] = (16, 1)
    score: Literal["magnitude", "wanda", "second-order", "random"] | None = None
    scope: Literal["layer", "model"] = "model"
    depthwise: bool = False
    least: int = 512

    @model_validator(mode="after")
    def _check(self) -> "Sparse":
        pieces = self._pieces()
        given = [self.ratio is not None, self.threshold is not None, pieces.group > 0]
        if sum(given) != 1:
            raise ValueError("expected one of ratio, threshold and a pattern N:M")
        if self.threshold is not None and (self.pattern != "single" or self.score is not None):
            raise ValueError("a threshold is for single weights and their magnitude")
        if min(self.block) < 1:
            raise ValueError(f"block {list(self.block)}: expected positive numbers")
        return self

    def _pieces(self) -> Pattern:
        if self.pattern == "single":
            return Pattern()
        if self.pattern == "block":
            return Pattern(self.block)
        return Pattern.of_groups(self.pattern)

    @property
    def needs_samples(self) -> bool:
        """Return whether the score looks at inputs."""
        return self.score in ("wanda", "second-order")

    def apply(self, graph: Graph, context: StepContext) -> IRModule:
        """Zero the least salient weights."""
        operators = [o for o in self.weighted(graph) if self._prunes(o)]
        if not operators:
            raise UnsupportedModelError(
                "sparse: the model has no convolution or matrix product with constant weights "
                f"that the step may prune ({self.pattern} pattern, {self.least} weights or more)"
            )
        ratios = self._ratios(operators)
        weights: dict[Any, NDArray[Any]] = {}
        biases: dict[Any, NDArray[Any]] = {}
        with context.progress.parts("sparse", len(operators)) as advance:
            for operator, moments in self._with_moments(graph, context, operators):
                pruned = self._pruned(operator, moments, ratios[operator.anchor])
                weights[operator.anchor] = pruned
                if moments is not None and operator.bias is not None:
                    assert operator.weight is not None
                    change = mean_change(operator, operator.weight.array - pruned, moments)
                    variable, bias = operator.bias
                    biases[variable] = _like_constant(graph, variable, bias + change)
                advance()
        return with_weights(graph, weights, biases)

    def _prunes(self, operator: Operator) -> bool:
        assert operator.weight is not None
        if operator.weight.array.size < self.least:
            return False
        if operator.kind == "depthwise_conv":
            return self.depthwise
        group = self._pieces().group
        return not group or (operator.kind != "conv_transpose" and _inputs(operator) % group == 0)

    def _ratios(self, operators: list[Operator]) -> dict[Any, float]:
        """Return the ratios by anchor."""
        ratio = self.ratio or 0.0
        if self.scope == "layer" or not ratio:
            return {operator.anchor: ratio for operator in operators}
        energies = [self._pieces().pooled(_to_matrix(o).astype(np.float64) ** 2) for o in operators]
        spread = spread_ratio(energies, ratio)
        return {o.anchor: share for o, share in zip(operators, spread, strict=True)}

    def _with_moments(
        self, graph: Graph, context: StepContext, operators: list[Operator]
    ) -> Iterator[tuple[Operator, Moments | None]]:
        """Yield operators, with the moments of their inputs where the score needs them."""
        looks = self.score in ("wanda", "second-order", None) and self.threshold is None
        seen: list[Operator] = []
        if looks and context.samples is not None:
            seen = [o for o in operators if has_moments(o) and _to_matrix(o).shape[1] <= MAX_INPUTS]
        for operator in operators:
            if operator not in seen:
                yield operator, None
        if seen:
            assert context.samples is not None
            model = FloatModel(
                graph, context.signature, [o.inputs[0] for o in seen], context.evaluate
            )
            yield from measure_moments(model, seen, context.samples, context.progress)

    def _pruned(
        self, operator: Operator, moments: Moments | None, ratio: float
    ) -> NDArray[np.float32]:
        rows = _to_matrix(operator).astype(np.float64)
        if self.threshold is not None:
            return _from_matrix(np.where(np.abs(rows) < self.threshold, 0, rows), operator)
        if moments is None:
            random = np.random.default_rng(_SEED)
            scores = random.random(rows.shape) if self.score == "random" else _relative(rows**2)
            return _from_matrix(rows * self._pieces().mask(scores, ratio), operator)
        groups = len(moments.second)
        places = _places(operator)
        parts = []
        for part, second, mean in zip(
            np.split(rows, groups), moments.second, moments.mean, strict=True
        ):
            moment = second.astype(np.float64)
            if operator.bias is not None:
                moment -= np.outer(mean, mean)
            parts.append(self._pruned_rows(part, moment[np.ix_(places, places)], ratio))
        return _from_matrix(np.concatenate(parts), operator)

    def _pruned_rows(self, rows: Scores, second: Scores, ratio: float) -> Scores:
        """Return the pruned rows of one group, given the moments of its inputs."""
        pieces, power = self._pieces(), np.diag(second)
        if self.score == "wanda":
            return rows * pieces.mask(_relative(rows**2 * power), ratio)
        upper = inverse_factor(second[None].astype(np.float32))
        scale = np.maximum((rows @ second * rows).sum(axis=1, keepdims=True), _TINY)
        batch = BATCH // pieces.group * pieces.group if pieces.group else BATCH
        kept: Mask = np.ones(rows.shape, bool)

        def round_column(left: NDArray[np.float64], place: int) -> NDArray[np.float64]:
            if place % batch == 0:
                part = slice(place, place + batch)
                scores = left[0, :, part] ** 2 / np.diag(upper[0])[part] ** 2 / scale
                kept[:, part] = pieces.mask(scores, ratio)
            return np.asarray(np.where(kept[:, place], left[:, :, place], 0), np.float64)

        pruned = round_columns(rows[None], upper, round_column, batch)
        return _refit(rows, pruned[0], second)


def _refit(rows: Scores, pruned: Scores, second: Scores) -> Scores:
    """Return the nonzero weights that lose least.

    All of a row at once, those before the removed too.

    Minimizes (w - v) H (w - v)^T over v with the zeros of `pruned`, by conjugate gradients.
    """
    kept = pruned != 0
    damped = second + np.eye(len(second)) * DAMPING * max(float(np.diag(second).mean()), 1e-12)
    fitted: Scores = pruned.copy()
    residual: Scores = (rows - fitted) @ damped * kept
    direction = residual.copy()
    power = np.square(residual).sum(axis=1, keepdims=True)
    for _ in range(REFIT_STEPS):
        curved = direction @ damped * kept
        step = power / np.maximum((direction * curved).sum(axis=1, keepdims=True), _TINY)
        fitted += step * direction
        residual -= step * curved
        before, power = power, np.square(residual).sum(axis=1, keepdims=True)
        direction = residual + power / np.maximum(before, _TINY) * direction
    return fitted


def _relative(scores: Scores) -> Scores:
    """Return relative errors by output: batch normalizations are folded.

    So outputs differ in scale.
    """
    total: Scores = np.maximum(scores.sum(axis=1, keepdims=True), _TINY)
    return scores / total


def _inputs(operator: Operator) -> int:
    """Return input channels of a sum."""
    assert operator.weight is not None
    return int(operator.weight.array.shape[-2 if operator.kind == "matmul" else 1])


def _places(operator: Operator) -> NDArray[np.int64]:
    """Return columns of `to_rows` in the order of places in the window, then input channels."""
    assert operator.weight is not None
    shape = operator.weight.array.shape
    if operator.kind == "matmul":
        return np.arange(operator.weight.array.size // shape[-1])
    return np.arange(operator.weight.array[0].size).reshape(shape[1], -1).T.reshape(-1)


def _to_matrix(operator: Operator) -> NDArray[np.float32]:
    """Return weights as [outputs, inputs], neighbouring input channels side by side."""
    assert operator.weight is not None
    return to_rows(operator.weight.array, operator)[:, _places(operator)]


def _from_matrix(rows: Scores, operator: Operator) -> NDArray[np.float32]:
    """Return the inverse of `_to_matrix`."""
    ordered = np.empty(rows.shape, np.float32)
    ordered[:, _places(operator)] = rows
    return from_rows(ordered, operator)


def _like_constant(graph: Graph, variable: Any, bias: NDArray[Any]) -> NDArray[np.float32]:
    """Return a bias in the shape of the constant that it takes the place of."""
    arrays = [graph.constant(argument) for argument in graph.definitions[variable].args]
    (known,) = [array for array in arrays if array is not None]
    return bias.astype(np.float32).reshape(known.shape)
