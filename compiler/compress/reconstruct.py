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
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from tvm import IRModule, relax

from edgec.compiler.calibration.moments import (
    choose_patches,
    groups_of,
    has_moments,
    input_patches,
    patch_length,
    patches_per_batch,
)
from edgec.compiler.compress.least_squares import Fit, fit_of
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
                pairs = (
                    (changed.value(operator.inputs[0], i), kept(result, original.value(result, i)))
                    for i in range(len(samples))
                )
                weights[operator.anchor], bias = _corrected(
                    operator, graph, pairs, len(samples), random
                )
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


def _corrected(
    operator: Operator,
    graph: Graph,
    pairs: Iterable[tuple[Floats, Floats]],
    batches: int,
    random: np.random.Generator,
) -> tuple[Floats, Floats]:
    """Return weights and bias from what an operator reads and shall give.

    Args:
        operator: the operator.
        graph: the graph of the operator.
        pairs: inputs and outputs of one batch after another.
        batches: how many there are.
        random: chooses patches.
    """
    limit = patches_per_batch(operator, batches, TIMES_PATCHES)
    assert operator.weight is not None
    about_mean = operator.bias is not None
    fits: dict[bool, Fit] = {}
    for number, (data, values) in enumerate(pairs):
        chosen = choose_patches(operator, limit, random)
        y = _rows(operator, graph, values)[:, chosen]
        x = input_patches(operator, graph, data, chosen)
        held_out = number % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        if held_out not in fits:
            fits[held_out] = fit_of(x.shape[1], batches * len(chosen), about_mean)
        fits[held_out].add(x, y)
    fit = fits[False]
    old = to_rows(operator.weight.array, operator).astype(np.float64)
    old = old.reshape(groups_of(operator, graph), -1, old.shape[-1])
    if True in fits:
        best = fits[True].nearest(chain([old], fit.adjusted(old, DAMPING)))
    else:
        (best,) = fit.adjusted(old, DAMPING[-1:])
    rows = best.reshape(-1, best.shape[2]).astype(np.float32)
    return from_rows(rows, operator), fit.bias(best).reshape(-1).astype(np.float32)


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
