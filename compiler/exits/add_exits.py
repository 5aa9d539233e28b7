"""Add early exits to a model: small classifiers of values in its middle, trained on its answers.

The graph chooses among the answers of the exits and that of the whole model. It is an ordinary
graph: whoever runs it from end to end gets the right answer. The static executor leaves out what
an exit that is sure makes needless, see `lowering/early_exits.py`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import IRModule, relax, te, tirx

from edgec.compiler.calibration.context import ModelContext
from edgec.compiler.calibration.samples import Samples
from edgec.compiler.errors import CalibrationError, UnsupportedModelError
from edgec.compiler.exits.heads import (
    Head,
    agreement_of,
    are_probabilities,
    calibrate_thresholds,
    check_enough,
    confidence_of,
    parts,
    softmax,
    train_head,
)
from edgec.compiler.exits.options import ExitOptions
from edgec.compiler.exits.places import ExitPlace, exit_places
from edgec.compiler.ir.early_exits import ANSWERED_BY, DECISION
from edgec.compiler.ir.graph import Graph, substituted
from edgec.compiler.ir.relax_helpers import constant, op_name, shape_of
from edgec.compiler.ir.signature import Signature, TensorSpec

op = relax.op
Floats = NDArray[np.float64]

# Of four samples two train, one finds the thresholds, and one is what is reported.
_PARTS = 4
# Rows and columns that images are pooled to, where these divide them.
_GRIDS = (1, 2, 4)
_MOST_FEATURES = 2048
_OPAQUE = 8  # what TVM fuses with nothing


@dataclass(frozen=True)
class EarlyExit:
    """An early exit answers for the whole model where it is sure.

    Attributes:
        place: where it is.
        grid: rows and columns that the value is pooled to.
        head: its classifier.
        threshold: the largest probability from which on it answers.
        share: of samples that nothing else looked at, answered here.
        agreement: share of these with the answer of the whole model; 1 if there are none.
    """

    place: ExitPlace
    grid: int
    head: Head
    threshold: float
    share: float = 0.0
    agreement: float = 1.0


@dataclass(frozen=True)
class ExitedModel:
    """A model with early exits.

    Attributes:
        module: the graph.
        signature: its inputs and outputs: which exit answered is one more.
        exits: in order; those that may never answer are left out.
        agreement: share of samples that nothing else looked at, with the whole model's answer.
        samples: how many there were.
        work: multiplications of an inference over these samples, as a share of the model's.
    """

    module: IRModule
    signature: Signature
    exits: tuple[EarlyExit, ...]
    agreement: float
    samples: int
    work: float


def add_exits(module: IRModule, options: ExitOptions, context: ModelContext) -> ExitedModel:
    """Return a model with exits.

    Args:
        module: canonical, compressed and quantized.
        options: where, and what they may cost.
        context: has samples.

    Raises:
        UnsupportedModelError: the model is no classifier, or has no place for an exit.
        UsageError: two exits would be at the same place.
        CalibrationError: there are too few samples, or no exit agrees often enough.
    """
    graph = Graph(module, context.value_names)
    _check_classifier(context.signature)
    batch = context.signature.outputs[0].shape[0] or 1
    places = exit_places(graph, options.depths, batch)
    samples = context.samples
    assert samples is not None
    if samples.count is not None:
        check_enough(samples.count // _PARTS, len(places), options.drop)
    features, answers = _seen(graph, places, context, samples)
    probabilities = are_probabilities(answers)
    targets = answers if probabilities else softmax(answers)
    part = parts(len(answers) // batch, _PARTS)
    check_enough(len(part) // _PARTS, len(places), options.drop)
    train, calibrate, test = np.repeat(part < 2, batch), part == 2, part == 3
    exits = []
    for place, by_grid in zip(places, features, strict=True):
        heads = {g: train_head(x[train], targets[train]) for g, x in by_grid.items()}
        grid = min(heads, key=lambda g: heads[g].loss)
        exits.append(EarlyExit(place, grid, heads[grid], np.inf))
    scores = [e.head.scores(by_grid[e.grid]) for e, by_grid in zip(exits, features, strict=True)]
    sure = [_as_computed(confidence_of(s, False, batch), probabilities) for s in scores]
    agrees = [agreement_of(s, answers, batch) for s in scores]
    thresholds = calibrate_thresholds(
        [c[calibrate] for c in sure], [a[calibrate] for a in agrees], options.drop
    )
    exits = [replace(e, threshold=t) for e, t in zip(exits, thresholds, strict=True)]
    never = [e for e in exits if e.threshold > 1]
    if len(never) == len(exits):
        raise CalibrationError(
            f"no exit gives the answers of the whole model with a drop of {options.drop:g}: allow "
            "more with --exit-drop, or put exits deeper into the model"
        )
    for exit_ in never:
        context.progress.warn(
            f"the exit at {exit_.place.work:.2g} of the model is left out: it is never sure enough"
        )
    kept, wrong, left = [], 0.0, test.copy()
    work = 0.0
    for exit_, confidence, agree in zip(exits, sure, agrees, strict=True):
        answered = left & (confidence >= exit_.threshold)
        left &= ~answered
        count = int(answered.sum())
        wrong += float((1 - agree[answered]).sum())
        work += exit_.place.work * count
        if exit_ not in never:
            agreement = float(agree[answered].mean()) if count else 1.0
            kept.append(replace(exit_, share=count / test.sum(), agreement=agreement))
    count = int(test.sum())
    return ExitedModel(
        *_with_exits(graph, kept, context.signature, probabilities),
        tuple(kept),
        1 - wrong / count,
        count * batch,
        (work + float(left.sum())) / count,
    )


def _check_classifier(signature: Signature) -> None:
    """Refuse a model that gives anything but one row of classes for each sample."""
    outputs = signature.outputs
    if len(outputs) != 1 or len(outputs[0].shape) != 2 or outputs[0].dtype != "float32":
        raise UnsupportedModelError(
            "--exits is for classifiers, whose one output is [N,classes] float32; this model "
            f"gives {', '.join(map(str, outputs))}"
        )
    if (outputs[0].shape[1] or 0) < 2:
        raise UnsupportedModelError(f"--exits: {outputs[0]} has no classes to choose among")


def _as_computed(confidence: Floats, probabilities: bool) -> Floats:
    """Return confidences as float32 tells them apart where a decision is computed."""
    with np.errstate(invalid="ignore"):
        if probabilities:
            return confidence.astype(np.float32).astype(np.float64)
        return 1 / (1 / confidence).astype(np.float32).astype(np.float64)


def _bound(threshold: float, probabilities: bool) -> float:
    """Return what a decision compares with, rounded so that a threshold between stays between.

    It is the least probability that is enough, or the largest sum of exp(score - largest score).
    """
    exact = threshold if probabilities else 1 / threshold
    bound = np.float32(exact)
    if probabilities and bound < exact:
        return float(np.nextafter(bound, np.float32(np.inf)))
    if not probabilities and bound > exact:
        return float(np.nextafter(bound, np.float32(0)))
    return float(bound)


def _seen(
    graph: Graph, places: Sequence[ExitPlace], context: ModelContext, samples: Samples
) -> tuple[list[dict[int, Floats]], Floats]:
    """Return the features at each place by grid, and the answers of the model, by sample."""
    names = [f"exit {number}" for number in range(len(places))]
    specs = [
        TensorSpec(name, shape_of(place.variable) or (), "float32")
        for name, place in zip(names, places, strict=True)
    ]
    signature = context.signature
    module = graph.map_values(
        lambda builder, variable, value, current: value,
        extra_outputs=[place.variable for place in places],
    )
    seen = context.evaluate(module, Signature(signature.inputs, (*signature.outputs, *specs)))
    features: list[dict[int, list[Floats]]] = [{} for _ in places]
    answers = []
    with context.progress.parts("exits", samples.count) as advance:
        for sample in samples:
            outputs = seen.run_shared(sample)
            answers.append(outputs[signature.outputs[0].name].astype(np.float64))
            for by_grid, name in zip(features, names, strict=True):
                for grid in _grids(outputs[name].shape):
                    by_grid.setdefault(grid, []).append(_pooled(outputs[name], grid))
            advance()
    return (
        [{grid: np.concatenate(rows) for grid, rows in each.items()} for each in features],
        np.concatenate(answers),
    )


def _grids(shape: Sequence[int]) -> list[int]:
    """Return the grids that a value can be pooled to."""
    if len(shape) < 4:
        return [1]
    return [
        grid
        for grid in _GRIDS
        if shape[2] % grid == 0
        and shape[3] % grid == 0
        and (grid == 1 or shape[1] * grid * grid <= _MOST_FEATURES)
    ]


def _pooled(value: NDArray[Any], grid: int) -> Floats:
    """Return the features of a value, [samples, features]: as `_emit_pooled` has them."""
    wide = value.astype(np.float64)
    if value.ndim == 3:
        return np.asarray(wide.mean(axis=1))
    if value.ndim == 2:
        return wide
    batch, channels, height, width = value.shape
    cells = wide.reshape(batch, channels, grid, height // grid, grid, width // grid)
    return np.asarray(cells.mean(axis=(3, 5)).reshape(batch, -1))


def _emit_pooled(emit: Callable[[Any], Any], value: Any, grid: int) -> Any:
    shape = shape_of(value)
    assert shape is not None
    if len(shape) == 3:
        return emit(op.mean(value, axis=[1]))
    if len(shape) == 2:
        return value
    if grid == 1:
        return emit(op.mean(value, axis=[2, 3]))
    size = [shape[2] // grid, shape[3] // grid]
    pooled = emit(op.nn.avg_pool2d(value, pool_size=size, strides=size))
    return emit(op.reshape(pooled, [shape[0], shape[1] * grid * grid]))


def _in_order(graph: Graph, exits: Sequence[EarlyExit]) -> Iterable[tuple[int, list[int]]]:
    """Yield the number of each exit with what comes before it, last those behind all of them."""
    done: set[int] = set()
    for number, exit_ in enumerate(exits):
        yield number, sorted(exit_.place.before - done)
        done |= exit_.place.before
    yield len(exits), [n for n in range(len(graph.bindings)) if n not in done]


def _with_exits(
    graph: Graph, exits: Sequence[EarlyExit], signature: Signature, probabilities: bool
) -> tuple[IRModule, Signature]:
    """Return the graph with exits, and its inputs and outputs."""
    others = {v: f for v, f in graph.module.functions_items() if not isinstance(f, relax.Function)}
    builder = relax.BlockBuilder(IRModule(others))
    emit = builder.emit
    made: dict[Any, Any] = {}
    answers: list[tuple[Any, Any]] = []
    with builder.function("main", graph.parameters, dict(graph.module["main"].attrs or {})):
        with builder.dataflow():
            for number, places in _in_order(graph, exits):
                for place in places:
                    variable, value = graph.bindings[place]
                    made[variable] = emit(substituted(value, made), variable.name)
                if number == len(exits):
                    break
                exit_ = exits[number]
                value = made[exit_.place.variable]
                known = graph.definitions[exit_.place.variable]
                if op_name(known) == "relax.dequantize":
                    # Kernels that compute on codes look for readers of a dequantize of their own.
                    value = emit(substituted(known, made))
                features = _emit_pooled(emit, value, exit_.grid)
                product = emit(op.matmul(features, _floats(exit_.head.weights)))
                scores = emit(op.add(product, _floats(exit_.head.bias)))
                # What the decision needs is computed before what it may leave out.
                answer = emit(op.nn.softmax(scores, axis=-1)) if probabilities else scores
                call = builder.call_te(
                    _are_sure if probabilities else _scores_are_sure,
                    answer,
                    constant(np.array([_bound(exit_.threshold, probabilities)], np.float32)),
                    primfunc_name_hint=f"{DECISION}{number + 1}",
                    primfunc_attrs={"op_pattern": _OPAQUE},
                )
                answers.append((emit(call), answer))
            (result,) = graph.results
            answer = made.get(result, result)
            which = constant(np.zeros(1, np.int32))
            for number, (taken, own) in reversed(list(enumerate(answers, 1))):
                chosen = emit(op.astype(taken, "bool"))
                answer = emit(op.where(chosen, own, answer))
                which = emit(op.where(chosen, constant(np.array([number], np.int32)), which))
            bound = builder.emit_output(relax.Tuple([answer, which]))
        builder.emit_func_output(bound)
    told = TensorSpec(ANSWERED_BY, (1,), "int32")
    return builder.get(), Signature(signature.inputs, (*signature.outputs, told))


def _floats(array: Floats) -> Any:
    return constant(array.astype(np.float32))


def _scores_are_sure(scores: te.Tensor, bound: te.Tensor) -> te.Tensor:
    """Compute whether every row of scores is sure: one int32, 0 where one is not a number.

    The largest probability of a softmax is one over the sum of exp(score - largest score).
    """
    rows, classes = scores.shape
    each = te.reduce_axis((0, classes), "each")
    largest = te.compute((rows,), lambda row: te.max(scores[row, each], axis=each), "largest")
    every = te.reduce_axis((0, classes), "every")
    total = te.compute(
        (rows,),
        lambda row: te.sum(te.exp(scores[row, every] - largest[row]), axis=every),
        "total",
    )
    return _all_of(rows, lambda row: total[row] <= bound[0])


def _are_sure(probabilities: te.Tensor, bound: te.Tensor) -> te.Tensor:
    """Compute whether every row of probabilities is sure: one int32."""
    rows, classes = probabilities.shape
    each = te.reduce_axis((0, classes), "each")
    largest = te.compute(
        (rows,), lambda row: te.max(probabilities[row, each], axis=each), "largest"
    )
    return _all_of(rows, lambda row: largest[row] >= bound[0])


def _all_of(rows: Any, holds: Callable[[Any], Any]) -> te.Tensor:
    """Compute whether something holds for every row: one int32."""
    row = te.reduce_axis((0, rows), "row")
    return te.compute((1,), lambda _: te.min(tirx.Cast("int32", holds(row)), axis=row), "taken")
