"""Correct weights after compression, without labels.

They give the original's values from what is left of its inputs.

For every output of a convolution or matrix product, y its values in the original model and x its
inputs in the changed one, with W the weights as they are:

    W' = W + (E[y x^T] - W E[x x^T]) (E[x x^T] + R)^-1

about the means where there is a bias, which takes up their difference. Layers are corrected from
the first to the last, each behind corrected ones alone: it makes up for what those could not. One
that was fitted to the error of another would, once that is corrected, make up for it again.
"""

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import IRModule, relax

from edgec.compiler.calibration.moments import (
    choose_patches,
    groups_of,
    has_moments,
    input_patches,
    patch_length,
    patches_per_batch,
)
from edgec.compiler.compress.staged_model import StagedModel
from edgec.compiler.compress.step import StepContext
from edgec.compiler.errors import CalibrationError
from edgec.compiler.ir.anchors import Operator, find_operators
from edgec.compiler.ir.graph import Graph, operands
from edgec.compiler.ir.relax_helpers import value_of
from edgec.compiler.ir.rewrite import with_bias, with_weight, with_weights
from edgec.compiler.ir.weight_rows import from_rows, to_rows
from edgec.compiler.numerics.affine import Floats

# Inputs of a dot product beyond which a layer is left as it is: the matrix has the square of it.
MAX_LENGTH = 6144

# Patches that are looked at, for each that a mean needs.
TIMES_PATCHES = 4

# Added to the diagonal, as a share of its mean: holds the weights where data say little. The one
# that does best on batches that are held back, one of so many, is taken; with no such batch the
# last.
DAMPING = (0.001, 0.01, 0.1, 1.0)
HELD_OUT_EVERY = 4

_SEED = 0

# The values of the original for a variable, as far as they are left, from its array.
Kept = Callable[[Any, Floats], Floats]


def reconstruct(
    module: IRModule, teacher: Graph, origins: Sequence[Any], context: StepContext, kept: Kept
) -> IRModule:
    """Return the module with corrected weights and biases.

    Args:
        module: changed.
        teacher: the module before.
        origins: variables of the teacher that the first bindings of the module stand for.
        context: has samples.
        kept: what is left of a value of the teacher.
    """
    assert context.samples is not None
    samples = list(context.samples)
    if not samples:
        raise CalibrationError(f"calibration data {context.samples.source} hold no samples")
    student = _Student(module, teacher, origins)
    stages = _stages(student)
    if not stages:
        return module
    graph, origin = student.graph, student.origins
    inputs = [[o.inputs[0] for o in stage] for stage in stages]
    outputs = [[origin[_result(o)] for o in stage] for stage in stages]
    weights: dict[Any, Floats] = {}
    biases: dict[Any, Floats] = {}
    corrected: dict[Any, Any] = {}
    random = np.random.default_rng(_SEED)
    with (
        tempfile.TemporaryDirectory(prefix="edgec-repair-") as folder,
        context.progress.parts("least squares", len(stages)) as advance,
    ):
        for side in ("left", "right"):
            (Path(folder) / side).mkdir()
        changed = StagedModel(
            graph, context.signature, inputs, samples, Path(folder) / "left", context.evaluate
        )
        original = StagedModel(
            teacher, context.signature, outputs, samples, Path(folder) / "right", context.evaluate
        )
        for number, stage in enumerate(stages):
            changed.run(number, corrected)
            original.run(number, {})
            for operator, result in zip(stage, outputs[number], strict=True):
                limit = patches_per_batch(operator, len(samples), TIMES_PATCHES)
                pairs = (
                    (changed.value(operator.inputs[0], i), kept(result, original.value(result, i)))
                    for i in range(len(samples))
                )
                weights[operator.anchor], bias = _corrected(operator, graph, pairs, limit, random)
                call = graph.definitions[operator.anchor]
                corrected[operator.anchor] = with_weight(call, weights[operator.anchor])
                if operator.bias is not None:
                    place = operator.bias[0]
                    biases[place] = _bias_constant(graph, operator, bias)
                    corrected[place] = with_bias(graph, graph.definitions[place], biases[place])
            advance()
    return with_weights(graph, weights, biases)


class _Student:
    """A student is a changed module beside the one that it came from.

    Attributes:
        graph: the graph of the changed module.
        teacher: the one before.
        origins: variable of the teacher by variable of the graph.
        operators: the operators of the graph, by the teacher's variable for their anchor.
    """

    def __init__(self, module: IRModule, teacher: Graph, origins: Sequence[Any]) -> None:
        self.graph = Graph(module, teacher.value_names)
        self.teacher = teacher
        # A result gets a binding of its own, at the end.
        pairs = zip(self.graph.bindings, origins, strict=False)
        self.origins = {variable: origin for (variable, _), origin in pairs}
        self.operators: dict[Any, Operator] = {
            self.origins[o.anchor]: o for o in find_operators(self.graph) if o.weight is not None
        }

    def changed(self) -> set[Any]:
        """Return variables of the graph whose values may differ from the teacher's."""
        found: set[Any] = set()
        for variable, value in self.graph.bindings:
            origin = self.origins.get(variable)
            old = self.teacher.definitions.get(origin)
            arguments, originals = operands(value) or [value], operands(old) or [old]
            if len(arguments) != len(originals) or any(
                self._differs(one, other, found)
                for one, other in zip(arguments, originals, strict=True)
            ):
                found.add(variable)
        return found

    def _differs(self, argument: Any, original: Any, changed: set[Any]) -> bool:
        if isinstance(argument, relax.Var):
            before = self.teacher.operand(self.origins.get(argument, argument))
            return argument in changed or not before.same_as(self.teacher.operand(original))
        ours, theirs = value_of(argument), value_of(original)
        return ours is not None and (theirs is None or not np.array_equal(ours, theirs))


def _stages(student: _Student) -> list[list[Operator]]:
    """Return operators that read or compute something else now and can be corrected.

    Those of a stage depend on those of the stages before alone.
    """
    graph, changed = student.graph, student.changed()
    operators = {
        o.anchor: o
        for o in student.operators.values()
        if o.anchor in changed and has_moments(o) and patch_length(o) <= MAX_LENGTH
    }
    stages: dict[int, list[Operator]] = {}
    depths: dict[Any, int] = {}
    for variable, value in graph.bindings:
        depth = max((depths.get(x, 0) for x in operands(value)), default=0)
        if variable in operators:
            stages.setdefault(depth, []).append(operators[variable])
            depth += 1
        depths[variable] = depth
    return [stages[depth] for depth in sorted(stages)]


def _result(operator: Operator) -> Any:
    """Return the variable of an operator's result, with the bias."""
    return operator.bias[0] if operator.bias is not None else operator.anchor


@dataclass
class _Fit:
    """A fit describes sums over what was seen of one operator.

    Attributes:
        xx: inputs times inputs, [groups, length, length].
        xy: inputs times outputs, [groups, length, outputs].
        x: inputs, [groups, length].
        y: outputs, [groups, outputs].
        count: number of patches seen.
    """

    xx: NDArray[np.float64]
    xy: NDArray[np.float64]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    count: int


def _corrected(
    operator: Operator,
    graph: Graph,
    pairs: Iterable[tuple[Floats, Floats]],
    limit: int,
    random: np.random.Generator,
) -> tuple[Floats, Floats]:
    """Return weights and bias from what an operator reads and shall give.

    By `limit` patches a batch.
    """
    fits: list[_Fit | None] = [None, None]
    for number, (data, values) in enumerate(pairs):
        chosen = choose_patches(operator, limit, random)
        y = _rows(operator, graph, values)[:, chosen]
        x = input_patches(operator, graph, data, chosen)
        held_out = number % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        fits[held_out] = _fitted(fits[held_out], x, y)
    fit, other = fits
    assert fit is not None
    return _solve(operator, fit, other)


def _bias_constant(graph: Graph, operator: Operator, bias: Floats) -> Floats:
    """Return a bias by output channel as the constant that an operator adds."""
    assert operator.bias is not None
    arrays = map(graph.constant, graph.definitions[operator.bias[0]].args)
    old = next(array for array in arrays if array is not None)
    if old.size == bias.size:
        return bias.reshape(old.shape)
    return bias.reshape(-1, *(1,) * (0 if operator.kind == "matmul" else 2))


def _rows(operator: Operator, graph: Graph, values: Floats) -> Floats:
    """Return what an operator gives.

    In the order of the places of `input_patches`, [groups, patches, outputs].
    """
    if operator.kind == "matmul":
        return values.reshape(1, -1, values.shape[-1])
    groups = groups_of(operator, graph)
    batch, channels = values.shape[:2]
    split = values.reshape(batch, groups, channels // groups, -1)
    return split.transpose(1, 0, 3, 2).reshape(groups, -1, channels // groups)


def _fitted(fit: _Fit | None, x: Floats, y: Floats) -> _Fit:
    """Add inputs [groups, length, patches] and outputs [groups, patches, outputs] to a fit."""
    patches = (x @ x.transpose(0, 2, 1), x @ y, x.sum(axis=2), y.sum(axis=1))
    if fit is None:
        xx, xy, sx, sy = (array.astype(np.float64) for array in patches)
        return _Fit(xx, xy, sx, sy, x.shape[2])
    for total, array in zip((fit.xx, fit.xy, fit.x, fit.y), patches, strict=True):
        total += array
    fit.count += x.shape[2]
    return fit


def _solve(operator: Operator, fit: _Fit, held_out: _Fit | None) -> tuple[Floats, Floats]:
    """Return weights, and the bias by output channel that fits them."""
    assert operator.weight is not None
    groups = len(fit.xx)
    old = to_rows(operator.weight.array, operator).astype(np.float64)
    old = old.reshape(groups, len(old) // groups, -1)
    about_mean = operator.bias is not None
    xx, xy = _moments(fit, about_mean)
    lost = xy - xx @ old.transpose(0, 2, 1)
    if held_out is None:
        best = _adjusted(old, xx, lost, fit.count, DAMPING[-1])
    else:
        candidates = (_adjusted(old, xx, lost, fit.count, damping) for damping in DAMPING)
        best = _nearest(chain([old], candidates), *_moments(held_out, about_mean))
    bias = (fit.y - np.einsum("goi,gi->go", best, fit.x)) / fit.count
    rows = best.reshape(-1, best.shape[2]).astype(np.float32)
    return from_rows(rows, operator), bias.reshape(-1).astype(np.float32)


def _moments(fit: _Fit, about_mean: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return e[x x^T] and E[x y^T], about the means if a bias takes them up."""
    xx, xy = fit.xx / fit.count, fit.xy / fit.count
    if about_mean:
        x, y = fit.x / fit.count, fit.y / fit.count
        xx = xx - x[:, :, None] * x[:, None, :]
        xy = xy - x[:, :, None] * y[:, None, :]
    return xx, xy


def _adjusted(
    old: NDArray[np.float64],
    xx: NDArray[np.float64],
    lost: NDArray[np.float64],
    count: int,
    damping: float,
) -> NDArray[np.float64]:
    """Return weights by least squares, [groups, outputs, inputs].

    Args:
        old: the weights as they are.
        xx: E[x x^T], [groups, inputs, inputs].
        lost: E[x (y - W x)^T], [groups, inputs, outputs].
        count: sums that were seen.
        damping: added to the diagonal, as a share of its mean.
    """
    diagonal = np.einsum("gii->gi", xx)
    # A sum of n inputs seen m times: the fewer, the closer the weights stay to what they are.
    ridge = (xx.shape[1] / count) * diagonal + damping * diagonal.mean(axis=1)[:, None] + 1e-12
    damped = xx.copy()
    np.einsum("gii->gi", damped)[...] += ridge
    change = np.linalg.solve(damped, lost)
    return np.asarray(old + change.transpose(0, 2, 1))


def _nearest(
    candidates: Iterable[NDArray[np.float64]], xx: NDArray[np.float64], xy: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the weights with the least expected squared error, given moments of other batches."""

    def error(rows: NDArray[np.float64]) -> float:
        # But for a constant.
        return float(np.sum((rows @ xx) * rows) - 2 * np.sum(rows * xy.transpose(0, 2, 1)))

    return min(candidates, key=error)
