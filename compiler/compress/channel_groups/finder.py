"""Provide a walk over a module that finds which channels of which values are one.

Every index of every axis of every value has an identity; the rules of the operators (`rules.py`)
say which identities are one. Identity 0 stays.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax

from edgec.compiler.ir.graph import Graph
from edgec.compiler.ir.relax_helpers import op_name, shape_of, value_of

# Identities of an axis, int64 [extent].
Ids = NDArray[np.int64]
Axes = tuple[Ids, ...]

# A tensor by what holds it: a variable, or a constant by the variable and position that reads it.
TensorPlace = tuple[Any, int]

# As a position: the variable itself.
BOUND = -1


@dataclass(frozen=True)
class LinearOperator:
    """A linear operator describes a convolution or matrix product.

    Attributes:
        variable: the one that holds what it gives.
        weight: its constant; None for the product of two activations.
        read: axis of the constant that is summed over; None where each channel is by itself.
        extents: axes whose extents multiply to its number of multiplications.
        factor: what they are multiplied with.
    """

    variable: Any
    weight: TensorPlace | None
    read: int | None
    extents: Axes
    factor: int


class Ties:
    """Ties are a union-find over identities; what is tied to 0 stays."""

    def __init__(self) -> None:
        self.parent = [0]

    def fresh(self, count: int) -> Ids:
        """Return identities that nothing else has."""
        start = len(self.parent)
        self.parent.extend(range(start, start + count))
        return np.arange(start, start + count)

    def root(self, identity: int) -> int:
        """Return the smallest identity that is tied to this one."""
        parent = self.parent
        while parent[identity] != identity:
            parent[identity] = parent[parent[identity]]
            identity = parent[identity]
        return identity

    def tie(self, left: Ids, right: Ids) -> None:
        """Tie index by index; an axis of extent 1 is repeated."""
        if left is right:
            return
        for a, b in np.broadcast(left, right):
            low, high = sorted((self.root(int(a)), self.root(int(b))))
            self.parent[high] = low

    def freeze(self, axes: Iterable[Ids]) -> None:
        """Tie axes to identity 0: they stay."""
        for ids in axes:
            self.tie(ids, np.zeros(1, np.int64))

    def roots(self) -> Ids:
        """Return what stands for each identity, int64 [identities]."""
        return np.array([self.root(i) for i in range(len(self.parent))])


@dataclass(frozen=True)
class Product:
    """A product describes an axis that is the product of others, behind or before a reshape.

    Attributes:
        whole: its identities.
        factors: those of the others, the slowest first.
    """

    whole: Ids
    factors: Axes

    def spread(self, factor: int) -> Ids:
        """Return the identity of one factor for each index of the whole."""
        shape = [len(ids) for ids in self.factors]
        view = [-1 if i == factor else 1 for i in range(len(shape))]
        return np.broadcast_to(self.factors[factor].reshape(view), shape).reshape(-1)


@dataclass
class Finder:
    """A finder visits every operator in order, by its rule, and notes what is tied.

    Attributes:
        graph: the module.
        rules: by the name of an operator, what ties its operands and its result; see `rules.py`.
        axes: by variable, the identities of its axes.
        constants: those of every constant.
        linear_operators: convolutions and matrix products, in order.
        ties: which identities are one.
        parts: by variable that holds a tuple, the axes of its fields.
        products: reshapes that are decided when all else is known.
    """

    graph: Graph
    rules: Mapping[str, "Rule"]
    axes: dict[Any, Axes] = field(default_factory=dict)
    constants: dict[TensorPlace, Axes] = field(default_factory=dict)
    linear_operators: list[LinearOperator] = field(default_factory=list)
    ties: Ties = field(default_factory=Ties)
    parts: dict[Any, list[Axes]] = field(default_factory=dict)
    products: list[Product] = field(default_factory=list)

    def __post_init__(self) -> None:
        for parameter in self.graph.parameters:
            self.axes[parameter] = _fixed(parameter)
        for variable, value in self.graph.bindings:
            self._visit(variable, value)
        for result in self.graph.results:
            if isinstance(result, relax.Var):
                self.ties.freeze(self.axes[result])
        for product in self.products:
            self._resolve(product)

    def _visit(self, variable: Any, value: Any) -> None:
        if isinstance(value, relax.Var):
            if value in self.parts:
                self.parts[variable] = self.parts[value]
            else:
                self.axes[variable] = self.axes[value]
        elif value_of(value) is not None:
            self.axes[variable] = self.constants[variable, BOUND] = self._new(variable)
        elif isinstance(value, relax.TupleGetItem) and value.tuple_value in self.parts:
            self.axes[variable] = self.parts[value.tuple_value][value.index]
        elif isinstance(value, relax.Call) and (rule := self.rules.get(op_name(value))):
            rule(self, variable, value)
        else:
            self.unknown(variable, value)

    def _new(self, expression: Any) -> Axes:
        """Return identities for a tensor; an axis of extent 1 stays."""
        shape = shape_of(expression) or ()
        return tuple(self.ties.fresh(n) if n != 1 else np.zeros(1, np.int64) for n in shape)

    def operand(self, variable: Any, call: Any, position: int) -> Axes:
        """Return the axes of an argument; a constant gets new ones."""
        argument = call.args[position]
        if isinstance(argument, relax.Var):
            return self.axes[argument]
        place = (variable, position)
        if place not in self.constants:
            self.constants[place] = self._new(argument)
        return self.constants[place]

    def unknown(self, variable: Any, value: Any) -> None:
        """Freeze all that an operator reads and gives."""

        def visit(expression: Any) -> None:
            if isinstance(expression, relax.Var):
                for axes in self.parts.get(expression, [self.axes.get(expression, ())]):
                    self.ties.freeze(axes)

        relax.analysis.post_order_visit(value, visit)
        if isinstance(variable.ty, relax.TupleType):
            self.parts[variable] = [_fixed_type(kind) for kind in variable.ty.fields]
        else:
            self.axes[variable] = _fixed(variable)

    def joined(self, operands: Sequence[Axes], shape: Sequence[int]) -> Axes:
        """Return the axes of what is computed from operands of broadcast shapes."""
        result = []
        for axis, extent in enumerate(shape):
            here = [axes[axis - len(shape)] for axes in operands if len(axes) >= len(shape) - axis]
            full = [ids for ids in here if len(ids) == extent]
            for ids in full[1:]:
                self.ties.tie(full[0], ids)
            result.append(full[0])
        return tuple(result)

    def _resolve(self, product: Product) -> None:
        """Decide which factor of an axis can shrink: the slowest that leaves a choice."""
        for factor in range(len(product.factors)):
            if self._choices(product, factor) > 1:
                self.ties.tie(product.whole, product.spread(factor))
                others = [ids for i, ids in enumerate(product.factors) if i != factor]
                self.ties.freeze(others)
                return
        self.ties.freeze([product.whole, *product.factors])

    def _choices(self, product: Product, factor: int) -> int:
        """Count the groups that would be left in an axis if that factor of it could shrink."""
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


Rule = Callable[[Finder, Any, Any], None]


def place_of(
    graph: Graph, constants: Mapping[TensorPlace, Axes], variable: Any, position: int
) -> TensorPlace | None:
    """Return the constant that an operator reads, None if it reads none."""
    if (variable, position) in constants:
        return variable, position
    argument = graph.operand(graph.definitions[variable].args[position])
    return (argument, BOUND) if (argument, BOUND) in constants else None


def _fixed(expression: Any) -> Axes:
    return zeros(shape_of(expression) or ())


def _fixed_type(kind: Any) -> Axes:
    return zeros([int(n) for n in kind.shape.values])


def zeros(shape: Sequence[int]) -> Axes:
    """Return axes that stay."""
    return tuple(np.zeros(extent, np.int64) for extent in shape)
