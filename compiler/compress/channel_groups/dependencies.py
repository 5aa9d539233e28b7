"""Which channels of which values, weights included, must be removed together.

Every index of every axis of every value has an identity. Operators say which identities are one:
a sum ties its operands index by index, a concatenation lines its operands' indices up, a
convolution ties the channels of its input to the second axis of its weights and those of its
output to the first. What hangs together by then is a `Group`: it is removed in all places or in
none. Identity 0 stays: inputs and outputs of the model, axes that are summed up or normalized,
and all that an operator touches which is not known here.

To remove a group is to drop its terms from the sums of the convolutions and matrix products that
read it: the same as zeros in their weights.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import IRModule, relax

from edgec.compiler.ir.graph import Graph
from edgec.compiler.ir.relax_helpers import constant, op_name, shape_of, value_of
from edgec.compiler.ir.rewrite import convolution_attributes

# Identities of an axis, int64 [extent].
Ids = NDArray[np.int64]
Axes = tuple[Ids, ...]

# A tensor by what holds it: a variable, or a constant by the variable and position that reads it.
Place = tuple[Any, int]

# As a position: the variable itself.
BOUND = -1

_ELEMENTWISE = frozenset(
    f"relax.{name}"
    for name in (
        *("abs", "add", "astype", "ceil", "clip", "cos", "divide", "equal", "erf", "exp"),
        *("floor", "greater", "greater_equal", "isnan", "less", "less_equal", "log"),
        *("logical_and", "logical_not", "logical_or", "maximum", "minimum", "mod", "multiply"),
        *("negative", "not_equal", "power", "round", "rsqrt", "sigmoid", "sign", "sin", "sqrt"),
        *("square", "subtract", "tanh", "where"),
        *("nn.gelu", "nn.gelu_tanh", "nn.leakyrelu", "nn.relu", "nn.relu6", "nn.silu"),
        "nn.softplus",
    )
) | {"edgec.hard_sigmoid", "edgec.hard_swish"}

_REDUCTIONS = ("max", "mean", "min", "prod", "std", "sum", "variance")


@dataclass(frozen=True)
class Slot:
    """Where a group is in a constant.

    Attributes:
        place: the constant.
        axis: of it.
        indices: int64, ascending.
    """

    place: Place
    axis: int
    indices: Ids


@dataclass(frozen=True, eq=False)
class Group:
    """Identities that are removed together.

    Attributes:
        identity: that stands for all of them.
        slots: where it is in the constants.
        family: of groups that are in the same axes of the same values: one of them can be removed
            instead of another, and one must stay.
    """

    identity: int
    slots: tuple[Slot, ...]
    family: frozenset[int]


@dataclass(frozen=True)
class Sum:
    """A convolution or matrix product.

    Attributes:
        variable: that holds what it gives.
        weight: its constant; None for the product of two activations.
        read: axis of the constant that is summed over; None where each channel is by itself.
        extents: axes whose extents multiply to its number of multiplications.
        factor: what they are multiplied with.
    """

    variable: Any
    weight: Place | None
    read: int | None
    extents: Axes
    factor: int


@dataclass(frozen=True)
class Term:
    """A number that shrinks with the model: the product of extents.

    Attributes:
        axes: identities of their indices.
        factor: what they are multiplied with.
    """

    axes: Axes
    factor: int


class Dependencies:
    """What hangs together in a canonical module.

    Attributes:
        graph: the module.
        constants: identities of the axes of every constant.
        sums: convolutions and matrix products, in order.
        groups: what can be removed, in the order in which it comes up; read by some sum.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        found = _Finder(graph)
        self.constants = found.constants
        self.sums = found.sums
        self._axes = found.axes
        self._roots = found.ties.roots()
        self.groups = self._groups()

    def roots(self, ids: Ids) -> Ids:
        """What stands for each identity; 0 if it stays."""
        return self._roots[ids]

    def axis(self, variable: Any, axis: int) -> Ids:
        """What stands for each index of a value's axis."""
        return self.roots(self._axes[variable][axis])

    def array(self, place: Place) -> NDArray[Any]:
        """The constant in a place."""
        variable, position = place
        value = self.graph.definitions[variable]
        array = value_of(value if position == BOUND else value.args[position])
        assert array is not None
        return array

    def _groups(self) -> list[Group]:
        slots: dict[int, list[Slot]] = {}
        for place, axes in self.constants.items():
            for axis, ids in enumerate(axes):
                roots = self.roots(ids)
                order = np.argsort(roots, kind="stable")
                changes = np.flatnonzero(np.diff(roots[order])) + 1
                for indices in np.split(order, changes):
                    if len(indices) and roots[indices[0]]:
                        slot = Slot(place, axis, indices)
                        slots.setdefault(int(roots[indices[0]]), []).append(slot)
        read = {(s.weight, s.read) for s in self.sums if s.weight and s.read is not None}
        families = self._families()
        return [
            Group(identity, tuple(found), frozenset(families[identity]))
            for identity, found in slots.items()
            if any((slot.place, slot.axis) in read for slot in found)
        ]

    def _families(self) -> dict[int, set[int]]:
        """The axes that each group is in, numbered; what an operator leaves alone is one axis."""
        every = [ids for axes in (*self._axes.values(), *self.constants.values()) for ids in axes]
        families: dict[int, set[int]] = {}
        for number, ids in enumerate({id(ids): ids for ids in every}.values()):
            for root in np.unique(self.roots(ids)):
                families.setdefault(int(root), set()).add(number)
        return families

    def kept(self, groups: Iterable[Group]) -> NDArray[np.bool_]:
        """Whether an identity is left when groups are removed, [identities]."""
        removed = np.zeros(len(self._roots), bool)
        removed[[group.identity for group in groups]] = True
        return ~removed[self._roots]

    def kept_values(
        self, variable: Any, array: NDArray[Any], kept: NDArray[np.bool_]
    ) -> NDArray[Any]:
        """What is left of a value."""
        return _compressed(array, self._axes[variable], kept)

    @property
    def multiplications(self) -> list[Term]:
        """Their number is the sum of these."""
        return [Term(s.extents, s.factor) for s in self.sums]

    @property
    def weights(self) -> list[Term]:
        """The number of constants is the sum of these."""
        return [Term(axes, 1) for axes in self.constants.values()]

    def without(self, groups: Sequence[Group]) -> IRModule:
        """The module with smaller constants and values."""
        kept = self.kept(groups)

        def change(_builder: Any, variable: Any, value: Any, _now: Any) -> Any:
            return self._smaller(variable, value, kept)

        return self.graph.revalued(change)

    def sliced(self, place: Place, array: NDArray[Any], kept: NDArray[np.bool_]) -> NDArray[Any]:
        """What is left of a constant, or of another of its shape."""
        return _compressed(array, self.constants[place], kept)

    def _smaller(self, variable: Any, value: Any, kept: NDArray[np.bool_]) -> Any:
        """The expression of a binding with what is left of its constants and attributes."""
        if (variable, BOUND) in self.constants:
            place = (variable, BOUND)
            return constant(self.sliced(place, self.array(place), kept))
        if not isinstance(value, relax.Call):
            return value
        arguments = [
            constant(self.sliced((variable, i), self.array((variable, i)), kept))
            if (variable, i) in self.constants
            else argument
            for i, argument in enumerate(value.args)
        ]
        name = op_name(value)
        if name in ("relax.reshape", "relax.broadcast_to"):
            extents = [int(np.count_nonzero(kept[ids])) for ids in self._axes[variable]]
            arguments[1] = relax.ShapeExpr(extents)
        elif name == "relax.strided_slice":
            return self._slice(self.graph.definitions[variable], arguments[0], kept)
        elif name == "relax.split":
            return self._split(self.graph.definitions[variable], arguments[0], kept)
        elif name in _CONVOLUTIONS:
            weight = shape_of(self.graph.definitions[variable].args[1]) or ()
            if _by_channel(value, weight):
                held = _place(self.graph, self.constants, variable, 1)
                channels = kept[self.constants[held][0]] if held else np.ones(weight[0], bool)
                repeat = weight[0] // int(value.attrs.groups) if not _is_transposed(name) else 1
                groups = int(np.count_nonzero(channels)) // repeat
                return relax.Call(value.op, arguments, convolution_attributes(value, groups=groups))
        return relax.Call(value.op, arguments, value.attrs)

    def _slice(self, old: Any, data: Any, kept: NDArray[np.bool_]) -> Any:
        axes, begin, end, strides = _slice_fields(old)
        shape = shape_of(old.args[0]) or ()
        left, right = [], []
        for axis, first, last, stride in zip(axes, begin, end, strides, strict=True):
            ids = self._axes[self.graph.operand(old.args[0])][axis]
            if stride == 1 and not kept[ids].all():
                start, stop, _ = slice(first, last).indices(shape[axis])
                first = int(np.count_nonzero(kept[ids[:start]]))
                last = int(np.count_nonzero(kept[ids[:stop]]))
            left.append(first)
            right.append(last)
        return relax.op.strided_slice(data, axes, left, right, strides)

    def _split(self, old: Any, data: Any, kept: NDArray[np.bool_]) -> Any:
        source = self.graph.operand(old.args[0])
        axis, cuts = _split_fields(old, shape_of(source) or ())
        ids = self._axes[source][axis]
        return relax.op.split(data, [int(np.count_nonzero(kept[ids[:cut]])) for cut in cuts], axis)


class _Ties:
    """Union-find over identities; what is tied to 0 stays."""

    def __init__(self) -> None:
        self.parent = [0]

    def fresh(self, count: int) -> Ids:
        start = len(self.parent)
        self.parent.extend(range(start, start + count))
        return np.arange(start, start + count)

    def root(self, identity: int) -> int:
        parent = self.parent
        while parent[identity] != identity:
            parent[identity] = parent[parent[identity]]
            identity = parent[identity]
        return identity

    def tie(self, left: Ids, right: Ids) -> None:
        """Index by index; an axis of extent 1 is repeated."""
        if left is right:
            return
        for a, b in np.broadcast(left, right):
            low, high = sorted((self.root(int(a)), self.root(int(b))))
            self.parent[high] = low

    def freeze(self, axes: Iterable[Ids]) -> None:
        for ids in axes:
            self.tie(ids, np.zeros(1, np.int64))

    def roots(self) -> Ids:
        return np.array([self.root(i) for i in range(len(self.parent))])


@dataclass(frozen=True)
class _Product:
    """An axis that is the product of others, behind or before a reshape.

    Attributes:
        whole: its identities.
        factors: those of the others, the slowest first.
    """

    whole: Ids
    factors: Axes

    def spread(self, factor: int) -> Ids:
        """The identity of one factor for each index of the whole."""
        shape = [len(ids) for ids in self.factors]
        view = [-1 if i == factor else 1 for i in range(len(shape))]
        return np.broadcast_to(self.factors[factor].reshape(view), shape).reshape(-1)


@dataclass
class _Finder:
    """Visits every operator in order; see the module."""

    graph: Graph
    axes: dict[Any, Axes] = field(default_factory=dict)
    constants: dict[Place, Axes] = field(default_factory=dict)
    sums: list[Sum] = field(default_factory=list)
    ties: _Ties = field(default_factory=_Ties)

    def __post_init__(self) -> None:
        self._parts: dict[Any, list[Axes]] = {}
        self._products: list[_Product] = []
        for parameter in self.graph.parameters:
            self.axes[parameter] = _fixed(parameter)
        for variable, value in self.graph.bindings:
            self._visit(variable, value)
        for result in self.graph.results:
            self.ties.freeze(self.axes[result])
        for product in self._products:
            self._settle(product)

    def _visit(self, variable: Any, value: Any) -> None:
        if isinstance(value, relax.Var):
            if value in self._parts:
                self._parts[variable] = self._parts[value]
            else:
                self.axes[variable] = self.axes[value]
        elif value_of(value) is not None:
            self.axes[variable] = self.constants[variable, BOUND] = self._new(variable)
        elif isinstance(value, relax.TupleGetItem) and value.tuple_value in self._parts:
            self.axes[variable] = self._parts[value.tuple_value][value.index]
        elif isinstance(value, relax.Call) and (rule := _RULES.get(op_name(value))):
            rule(self, variable, value)
        else:
            self._unknown(variable, value)

    def _new(self, expression: Any) -> Axes:
        """Identities for a tensor; an axis of extent 1 stays."""
        shape = shape_of(expression) or ()
        return tuple(self.ties.fresh(n) if n != 1 else np.zeros(1, np.int64) for n in shape)

    def _operand(self, variable: Any, call: Any, position: int) -> Axes:
        """Axes of an argument; a constant gets new ones."""
        argument = call.args[position]
        if isinstance(argument, relax.Var):
            return self.axes[argument]
        place = (variable, position)
        if place not in self.constants:
            self.constants[place] = self._new(argument)
        return self.constants[place]

    def _unknown(self, variable: Any, value: Any) -> None:
        """All that it reads and gives stays."""

        def visit(expression: Any) -> None:
            if isinstance(expression, relax.Var):
                for axes in self._parts.get(expression, [self.axes.get(expression, ())]):
                    self.ties.freeze(axes)

        relax.analysis.post_order_visit(value, visit)
        if isinstance(variable.ty, relax.TupleType):
            self._parts[variable] = [_fixed_type(kind) for kind in variable.ty.fields]
        else:
            self.axes[variable] = _fixed(variable)

    def _elementwise(self, variable: Any, call: Any) -> None:
        tensors = [i for i, x in enumerate(call.args) if isinstance(x.ty, relax.TensorType)]
        operands = [self._operand(variable, call, i) for i in tensors]
        self.axes[variable] = self._joined(operands, shape_of(variable) or ())

    def _joined(self, operands: Sequence[Axes], shape: Sequence[int]) -> Axes:
        """Of what is computed from operands of broadcast shapes."""
        result = []
        for axis, extent in enumerate(shape):
            here = [axes[axis - len(shape)] for axes in operands if len(axes) >= len(shape) - axis]
            full = [ids for ids in here if len(ids) == extent]
            for ids in full[1:]:
                self.ties.tie(full[0], ids)
            result.append(full[0])
        return tuple(result)

    def _prelu(self, variable: Any, call: Any) -> None:
        axes = self._operand(variable, call, 0)
        (slope,) = self._operand(variable, call, 1)
        channels = axes[int(call.attrs.axis)]
        if len(slope) == len(channels):
            self.ties.tie(slope, channels)
        self.axes[variable] = axes

    def _convolution(self, variable: Any, call: Any) -> None:
        data, weight = (self._operand(variable, call, i) for i in (0, 1))
        transposed, groups = _is_transposed(op_name(call)), int(call.attrs.groups)
        layouts = str(call.attrs.data_layout)[:2], str(call.attrs.kernel_layout)[:2]
        by_channel = _by_channel(call, [len(ids) for ids in weight])
        in_groups = groups > 1 and not by_channel
        if layouts != ("NC", "IO" if transposed else "OI") or (transposed and in_groups):
            return self._unknown(variable, call)
        shape = shape_of(variable) or ()
        channels = self.ties.fresh(shape[1])
        self.ties.freeze([data[0], *data[2:], *weight[2:]])
        self.axes[variable] = (np.zeros(shape[0], np.int64), channels, *_zeros(shape[2:]))
        inputs, outputs = (0, 1) if transposed else (1, 0)
        if by_channel:
            repeat = len(channels) // len(data[1])
            self.ties.tie(channels, np.repeat(data[1], repeat))
            self.ties.tie(weight[0], np.repeat(data[1], len(weight[0]) // len(data[1])))
        elif groups == 1:
            self.ties.tie(data[1], weight[inputs])
            self.ties.tie(channels, weight[outputs])
        else:
            # Groups stay of equal size: what goes in one goes in all.
            for whole, part in ((data[1], weight[1]), (channels, weight[0])):
                rows = whole.reshape(groups, -1)
                for row in rows:
                    self.ties.tie(row, rows[0])
                self.ties.tie(whole, np.tile(part, len(whole) // len(part)))
        place = _place(self.graph, self.constants, variable, 1)
        if place is None:
            self.ties.freeze(data)
        # Each output meets a kernel of inputs; transposed, each input one of outputs.
        met = [len(ids) for ids in data[2:]] if transposed else shape[2:]
        each = math.prod([shape[0], *met, *(len(ids) for ids in weight[2:])])
        read = None if by_channel else inputs
        self.sums.append(Sum(variable, place, read, weight[:2], each))
        return None

    def _matmul(self, variable: Any, call: Any) -> None:
        data, other = (self._operand(variable, call, i) for i in (0, 1))
        if min(len(data), len(other)) < 2:
            return self._unknown(variable, call)
        self.ties.tie(data[-1], other[-2])
        place = _place(self.graph, self.constants, variable, 1)
        if place is None:
            # Between activations every term of the sum counts.
            self.ties.freeze(data[-1:])
        shape = shape_of(variable) or ()
        batch = self._joined([data[:-2], other[:-2]], shape[:-2])
        self.axes[variable] = (*batch, data[-2], other[-1])
        extents = (*self.axes[variable], data[-1])
        self.sums.append(Sum(variable, place, len(other) - 2, extents, 1))
        return None

    def _pool(self, variable: Any, call: Any) -> None:
        data = self._operand(variable, call, 0)
        if not str(call.attrs.layout).startswith("NC"):
            return self._unknown(variable, call)
        self.ties.freeze(data[2:])
        shape = shape_of(variable) or ()
        self.axes[variable] = (*data[:2], *_zeros(shape[2:]))
        return None

    def _reduction(self, variable: Any, call: Any) -> None:
        data = self._operand(variable, call, 0)
        rank = len(data)
        given = call.attrs.axis
        reduced = {int(a) % rank for a in given} if given is not None else set(range(rank))
        self.ties.freeze(data[axis] for axis in reduced)
        one = np.zeros(1, np.int64)
        self.axes[variable] = tuple(
            one if axis in reduced else ids
            for axis, ids in enumerate(data)
            if axis not in reduced or call.attrs.keepdims
        )

    def _along(self, variable: Any, call: Any) -> None:
        """Softmax: the axis that it normalizes stays."""
        data = self._operand(variable, call, 0)
        self.ties.freeze([data[int(call.attrs.axis)]])
        self.axes[variable] = data

    def _layer_norm(self, variable: Any, call: Any) -> None:
        data = self._operand(variable, call, 0)
        self.ties.freeze(data[int(axis)] for axis in call.attrs.axes)
        self.axes[variable] = data

    def _concat(self, variable: Any, call: Any) -> None:
        fields = call.args[0].fields if isinstance(call.args[0], relax.Tuple) else ()
        if not fields or not all(isinstance(x, relax.Var) for x in fields):
            return self._unknown(variable, call)
        operands = [self.axes[x] for x in fields]
        axis = int(call.attrs.axis) % len(operands[0])
        for other in operands[1:]:
            for i, ids in enumerate(other):
                if i != axis:
                    self.ties.tie(operands[0][i], ids)
        joined = list(operands[0])
        joined[axis] = np.concatenate([axes[axis] for axes in operands])
        self.axes[variable] = tuple(joined)
        return None

    def _split(self, variable: Any, call: Any) -> None:
        data = self._operand(variable, call, 0)
        axis, cuts = _split_fields(call, [len(ids) for ids in data])
        parts = np.split(data[axis], cuts)
        self._parts[variable] = [(*data[:axis], part, *data[axis + 1 :]) for part in parts]

    def _slice(self, variable: Any, call: Any) -> None:
        data = list(self._operand(variable, call, 0))
        fields = _slice_fields(call)
        if fields is None:
            return self._unknown(variable, call)
        for axis, begin, end, stride in zip(*fields, strict=True):
            if stride != 1:
                self.ties.freeze([data[axis]])
            data[axis] = data[axis][begin:end:stride]
        if [len(ids) for ids in data] != list(shape_of(variable) or ()):
            return self._unknown(variable, call)
        self.axes[variable] = tuple(data)
        return None

    def _permute(self, variable: Any, call: Any) -> None:
        data = self._operand(variable, call, 0)
        axes = call.attrs.axes
        order = [int(a) for a in axes] if axes is not None else range(len(data))[::-1]
        self.axes[variable] = tuple(data[axis] for axis in order)

    def _resize(self, variable: Any, call: Any) -> None:
        data = self._operand(variable, call, 0)
        if str(call.attrs.layout) != "NCHW":
            return self._unknown(variable, call)
        self.ties.freeze(data[2:])
        self.axes[variable] = (*data[:2], *_zeros((shape_of(variable) or ())[2:]))
        return None

    def _pad(self, variable: Any, call: Any) -> None:
        data = list(self._operand(variable, call, 0))
        widths = [int(n) for n in call.attrs.pad_width]
        for axis, extent in enumerate(shape_of(variable) or ()):
            if any(widths[2 * axis : 2 * axis + 2]):
                self.ties.freeze([data[axis]])
                data[axis] = np.zeros(extent, np.int64)
        self.axes[variable] = tuple(data)

    def _broadcast(self, variable: Any, call: Any) -> None:
        data, shape = self._operand(variable, call, 0), shape_of(variable) or ()
        given = _zeros([1] * (len(shape) - len(data))) + data
        self.axes[variable] = tuple(
            ids if len(ids) == extent else np.zeros(extent, np.int64)
            for ids, extent in zip(given, shape, strict=True)
        )

    def _reshape(self, variable: Any, call: Any) -> None:
        data, shape = self._operand(variable, call, 0), shape_of(variable) or ()
        squeezed = op_name(call) == "relax.squeeze" and call.attrs.axis is None
        if squeezed or 0 in shape:
            return self._unknown(variable, call)
        result: list[Ids] = list(_zeros(shape))
        for before, after in _blocks([len(ids) for ids in data], shape):
            sources = [data[axis] for axis in before]
            if len(before) == len(after) == 1:
                result[after[0]] = sources[0]
            elif len(before) == 1:
                for axis in after:
                    result[axis] = self.ties.fresh(shape[axis])
                self._products.append(_Product(sources[0], tuple(result[a] for a in after)))
            elif len(after) == 1:
                result[after[0]] = self.ties.fresh(shape[after[0]])
                self._products.append(_Product(result[after[0]], tuple(sources)))
            else:
                self.ties.freeze(sources)
        self.axes[variable] = tuple(result)
        return None

    def _settle(self, product: _Product) -> None:
        """Decide which factor of an axis can shrink: the slowest that leaves a choice."""
        for factor in range(len(product.factors)):
            if self._choices(product, factor) > 1:
                self.ties.tie(product.whole, product.spread(factor))
                others = [ids for i, ids in enumerate(product.factors) if i != factor]
                self.ties.freeze(others)
                return
        self.ties.freeze([product.whole, *product.factors])

    def _choices(self, product: _Product, factor: int) -> int:
        """Groups that would be left in an axis if that factor of it could shrink."""
        local: dict[int, int] = {0: 0}

        def root(identity: int) -> int:
            identity = self.ties.root(identity)
            while local.setdefault(identity, identity) != identity:
                identity = local[identity]
            return identity

        pairs = list(zip(product.whole, product.spread(factor), strict=True))
        for a, b in pairs:
            low, high = sorted((root(int(a)), root(int(b))))
            local[high] = low
        return len({root(int(a)) for a, _ in pairs} - {0})


def _place(
    graph: Graph, constants: Mapping[Place, Axes], variable: Any, position: int
) -> Place | None:
    """Of the constant that an operator reads, None if it reads none."""
    if (variable, position) in constants:
        return variable, position
    argument = graph.operand(graph.definitions[variable].args[position])
    return (argument, BOUND) if (argument, BOUND) in constants else None


def _compressed(array: NDArray[Any], axes: Axes, kept: NDArray[np.bool_]) -> NDArray[Any]:
    for axis, ids in enumerate(axes):
        if not kept[ids].all():
            array = np.compress(kept[ids], array, axis)
    return np.ascontiguousarray(array).reshape(array.shape)


def _fixed(expression: Any) -> Axes:
    return _zeros(shape_of(expression) or ())


def _fixed_type(kind: Any) -> Axes:
    return _zeros([int(n) for n in kind.shape.values])


def _zeros(shape: Sequence[int]) -> Axes:
    return tuple(np.zeros(extent, np.int64) for extent in shape)


def _blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Axes of a reshape that make each other up, those of extent 1 left out."""
    found = []
    left = [axis for axis, extent in enumerate(before) if extent != 1]
    right = [axis for axis, extent in enumerate(after) if extent != 1]
    while left and right:
        ours, theirs = [left.pop(0)], [right.pop(0)]
        while (a := math.prod(before[i] for i in ours)) != (
            b := math.prod(after[i] for i in theirs)
        ):
            if a < b:
                ours.append(left.pop(0))
            else:
                theirs.append(right.pop(0))
        found.append((ours, theirs))
    return found


_CONVOLUTIONS = (
    "relax.nn.conv1d",
    "relax.nn.conv2d",
    "relax.nn.conv3d",
    "relax.nn.conv1d_transpose",
    "relax.nn.conv2d_transpose",
)


def _is_transposed(name: str) -> bool:
    return name.endswith("_transpose")


def _by_channel(call: Any, weight: Sequence[int]) -> bool:
    """Whether each input channel has its own weights, which see no other."""
    groups = int(call.attrs.groups)
    if groups == 1:
        return False
    return weight[1] == 1 if not _is_transposed(op_name(call)) else weight[0] == groups


def _split_fields(call: Any, shape: Sequence[int]) -> tuple[int, list[int]]:
    """Axis and cuts of a split."""
    axis = int(call.attrs.axis) % len(shape)
    given = call.attrs.indices_or_sections
    if isinstance(given, (int, tvm.tirx.IntImm)):
        part = -(-shape[axis] // int(given))
        return axis, list(range(part, shape[axis], part))
    return axis, [int(cut) for cut in given]


def _slice_fields(call: Any) -> Any:
    """Axes, begins, ends and strides of a slice, None if they are not constant."""
    fields = []
    for argument in call.args[1:]:
        if not isinstance(argument, relax.Tuple):
            return None
        fields.append([int(value) for value in argument.fields])
    if len(fields) == 3:
        fields.append([1] * len(fields[0]))
    rank = len(shape_of(call.args[0]) or ())
    fields[0] = [axis % rank for axis in fields[0]]
    return tuple(fields)


_POOLS = ("adaptive_avg_pool2d", "avg_pool1d", "avg_pool2d", "max_pool1d", "max_pool2d")

_RULES: dict[str, Callable[[_Finder, Any, Any], None]] = {
    **dict.fromkeys(_ELEMENTWISE, _Finder._elementwise),
    **dict.fromkeys(_CONVOLUTIONS, _Finder._convolution),
    **dict.fromkeys((f"relax.nn.{name}" for name in _POOLS), _Finder._pool),
    **dict.fromkeys((f"relax.{name}" for name in _REDUCTIONS), _Finder._reduction),
    "relax.broadcast_to": _Finder._broadcast,
    "relax.concat": _Finder._concat,
    "relax.expand_dims": _Finder._reshape,
    "relax.flatten": _Finder._reshape,
    "relax.image.resize2d": _Finder._resize,
    "relax.matmul": _Finder._matmul,
    "relax.nn.layer_norm": _Finder._layer_norm,
    "relax.nn.log_softmax": _Finder._along,
    "relax.nn.pad": _Finder._pad,
    "relax.nn.prelu": _Finder._prelu,
    "relax.nn.softmax": _Finder._along,
    "relax.permute_dims": _Finder._permute,
    "relax.reshape": _Finder._reshape,
    "relax.split": _Finder._split,
    "relax.squeeze": _Finder._reshape,
    "relax.strided_slice": _Finder._slice,
}
