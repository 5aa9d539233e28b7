"""Repair without labels: weights that give, from what a changed model reads, what the original gave.

For every output of a convolution or matrix product, y its values in the original model and x its
inputs in the changed one, with W the weights as they are:

    W' = W + (E[y x^T] - W E[x x^T]) (E[x x^T] + r I)^-1

about the means where there is a bias, which takes up their difference. Layers are repaired from
the first to the last, some at a time, so that later ones also make up for what earlier ones could
not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import IRModule

from edgec.compiler.compress.rewrite import with_weights
from edgec.compiler.compress.step import Work
from edgec.compiler.dataflow import Graph
from edgec.compiler.errors import CalibrationError
from edgec.compiler.host_model import FloatModel
from edgec.compiler.quantize.encode import from_rows, to_rows
from edgec.compiler.quantize.moments import groups_of, has_moments, input_sums
from edgec.compiler.quantize.plan import Operator, find_operators
from edgec.compiler.samples import Sample

# Layers are repaired in so many parts, each with the parts before it in place.
PARTS = 6

# Sums of each batch that are looked at.
MAX_SUMS = 1024

# Inputs of a sum beyond which a layer is left as it is: the matrix has the square of it.
MAX_LENGTH = 6144

# Added to the diagonal, as a share of its mean: holds the weights where data say little.
DAMPING = 0.01

_SEED = 0

# The values of the original for a variable, as far as they are left, from its array.
Kept = Callable[[Any, NDArray[np.float32]], NDArray[np.float32]]


def reconstruct(
    module: IRModule,
    teacher: Graph,
    work: Work,
    kept: Kept,
    skip: Callable[[Operator], bool] = lambda _: False,
) -> IRModule:
    """The module with repaired weights and biases.

    Args:
        module: changed; its values have the names that they have in `teacher`.
        teacher: the module before.
        work: has samples.
        kept: what is left of a value of the teacher.
        skip: operators whose weights stay.
    """
    assert work.samples is not None
    graph = Graph(module, teacher.value_names)
    wanted = [o for o in _repaired(graph, teacher) if not skip(o)]
    names = {name: v for v, name in teacher.names.items()}
    size = -(-len(wanted) // PARTS) if wanted else 1
    batches = list(work.samples)
    if not batches:
        raise CalibrationError(f"calibration data {work.samples.source} hold no samples")
    parts = [[o.name for o in wanted[i : i + size]] for i in range(0, len(wanted), size)]
    with work.progress.parts("least squares", len(parts)) as advance:
        for part in parts:
            graph = Graph(module, teacher.value_names)
            operators = [o for o in find_operators(graph) if o.name in part]
            module = _repair(graph, operators, teacher, names, work, batches, kept)
            advance()
    return module


def _repaired(graph: Graph, teacher: Graph) -> list[Operator]:
    """Operators that have a counterpart in the teacher, from the first whose inputs differ."""
    originals = {o.name: o for o in find_operators(teacher)}
    found = [
        o
        for o in find_operators(graph)
        if has_moments(o) and sum_length(o) <= MAX_LENGTH and o.name in originals
    ]
    for i, operator in enumerate(found):
        before = originals[operator.name].weight
        assert operator.weight is not None
        if before is None or before.array.shape != operator.weight.array.shape:
            return found[i:]
    return []


def sum_length(operator: Operator) -> int:
    """Inputs of each sum of an operator."""
    assert operator.weight is not None
    array = operator.weight.array
    return int(array.shape[0] if operator.kind == "matmul" else array[0].size)


def _result(operator: Operator) -> Any:
    """The variable of its sums, with the bias."""
    return operator.bias[0] if operator.bias is not None else operator.anchor


@dataclass
class _Fit:
    """Sums over what was seen of one operator.

    Attributes:
        xx: inputs times inputs, [groups, length, length].
        xy: inputs times outputs, [groups, length, outputs].
        x: inputs, [groups, length].
        y: outputs, [groups, outputs].
        count: number of sums seen.
    """

    xx: NDArray[np.float64]
    xy: NDArray[np.float64]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    count: int


def _repair(
    graph: Graph,
    operators: Sequence[Operator],
    teacher: Graph,
    names: dict[str, Any],
    work: Work,
    batches: Sequence[Sample],
    kept: Kept,
) -> IRModule:
    outputs = {o.name: names[graph.names[_result(o)]] for o in operators}
    student = FloatModel(graph, work.signature, [o.inputs[0] for o in operators])
    model = FloatModel(teacher, work.signature, outputs.values())
    fits: dict[str, _Fit] = {}
    random = np.random.default_rng(_SEED)
    for sample in batches:
        inputs, values = student.values(sample), model.values(sample)
        for o in operators:
            variable = outputs[o.name]
            y = _rows(o, graph, kept(variable, values[teacher.names[variable]]))
            x = input_sums(o, graph, inputs[graph.names[o.inputs[0]]])
            if x.shape[1] > MAX_SUMS:
                chosen = random.choice(x.shape[1], MAX_SUMS, replace=False)
                x, y = x[:, chosen], y[:, chosen]
            _add(fits, o.name, x, y)
    weights, biases = {}, {}
    for o in operators:
        weight, bias = _solve(o, fits.pop(o.name))
        weights[o.anchor] = weight
        if bias is not None and o.bias is not None:
            old = next(
                array
                for x in graph.definitions[o.bias[0]].args
                if (array := graph.constant(x)) is not None
            )
            biases[o.bias[0]] = (
                bias.reshape(old.shape)
                if old.size == bias.size
                else bias.reshape(-1, *(1,) * (0 if o.kind == "matmul" else 2))
            )
    return with_weights(graph, weights, biases)


def _rows(operator: Operator, graph: Graph, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """What an operator gives, in the order of `input_sums`, [groups, sums, outputs]."""
    if operator.kind == "matmul":
        return values.reshape(1, -1, values.shape[-1])
    groups = groups_of(operator, graph)
    batch, channels = values.shape[:2]
    split = values.reshape(batch, groups, channels // groups, -1)
    return split.transpose(1, 0, 3, 2).reshape(groups, -1, channels // groups)


def _add(fits: dict[str, _Fit], name: str, x: NDArray[np.float32], y: NDArray[np.float32]) -> None:
    turned = x.transpose(0, 2, 1)
    xx, xy, sx, sy = turned @ x, turned @ y, x.sum(axis=1), y.sum(axis=1)
    if name not in fits:
        wide = (array.astype(np.float64) for array in (xx, xy, sx, sy))
        fits[name] = _Fit(*wide, x.shape[1])
        return
    fit = fits[name]
    fit.xx += xx
    fit.xy += xy
    fit.x += sx
    fit.y += sy
    fit.count += x.shape[1]


def _solve(operator: Operator, fit: _Fit) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Weights, and the bias by output channel if there is one."""
    assert operator.weight is not None
    groups = len(fit.xx)
    old = to_rows(operator.weight.array, operator).astype(np.float64)
    old = old.reshape(groups, len(old) // groups, -1)
    xx, xy = fit.xx / fit.count, fit.xy / fit.count
    x, y = fit.x / fit.count, fit.y / fit.count
    if operator.bias is not None:
        xx = xx - x[:, :, None] * x[:, None, :]
        xy = xy - x[:, :, None] * y[:, None, :]
    ridge = DAMPING * np.einsum("gii->gi", xx).mean(axis=1) + 1e-12
    damped = xx + ridge[:, None, None] * np.eye(xx.shape[1])
    change = np.linalg.solve(damped, xy - xx @ old.transpose(0, 2, 1))
    new = old + change.transpose(0, 2, 1)
    rows = new.reshape(-1, new.shape[2]).astype(np.float32)
    bias = None
    if operator.bias is not None:
        bias = (y - np.einsum("goi,gi->go", new, x)).reshape(-1).astype(np.float32)
    return from_rows(rows, operator), bias
