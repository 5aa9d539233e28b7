"""Decide which channels of which values, weights included, must be removed together.

Every index of every axis of every value has an identity. Operators say which identities are one:
a sum ties its operands index by index, a concatenation lines its operands' indices up, a
convolution ties the channels of its input to the second axis of its weights and those of its
output to the first. What hangs together by then is a `Group`: it is removed in all places or in
none. Identity 0 stays: inputs and outputs of the model, axes that are summed up or normalized,
and all that an operator touches which is not known here.

To remove a group is to drop its terms from the sums of the convolutions and matrix products that
read it: the same as zeros in their weights.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import IRModule, relax

from edgec.compiler.compress.channel_groups.finder import (
    BOUND,
    Axes,
    Finder,
    Ids,
    TensorPlace,
    place_of,
)
from edgec.compiler.compress.channel_groups.rules import (
    CONVOLUTIONS,
    RULES,
    is_by_channel,
    is_transposed,
    slice_fields,
    split_fields,
)
from edgec.compiler.ir.graph import Graph
from edgec.compiler.ir.relax_helpers import constant, op_name, shape_of, value_of
from edgec.compiler.ir.rewrite import convolution_attributes


@dataclass(frozen=True)
class Slot:
    """A slot says where a group is in a constant.

    Attributes:
        place: the constant.
        axis: the axis of it.
        indices: int64, ascending.
    """

    place: TensorPlace
    axis: int
    indices: Ids


@dataclass(frozen=True, eq=False)
class Group:
    """A group describes identities that are removed together.

    Attributes:
        identity: the one that stands for all of them.
        slots: where it is in the constants.
        coupled: what groups in the same axes of the same values share: one of them can be removed
            instead of another, and one must stay.
    """

    identity: int
    slots: tuple[Slot, ...]
    coupled: frozenset[int]


@dataclass(frozen=True)
class Term:
    """A term describes a number that shrinks with the model: the product of extents.

    Attributes:
        axes: identities of their indices.
        factor: what they are multiplied with.
    """

    axes: Axes
    factor: int


class Dependencies:
    """Dependencies say what hangs together in a canonical module.

    Attributes:
        graph: the module.
        constants: identities of the axes of every constant.
        linear_operators: convolutions and matrix products, in order.
        groups: what can be removed, in the order in which it comes up; read by some sum.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        found = Finder(graph, RULES)
        self.constants = found.constants
        self.linear_operators = found.linear_operators
        self._axes = found.axes
        self._roots = found.ties.roots()
        self.groups = self._groups()

    def roots(self, ids: Ids) -> Ids:
        """Return what stands for each identity; 0 if it stays."""
        return self._roots[ids]

    def axis(self, variable: Any, axis: int) -> Ids:
        """Return what stands for each index of a value's axis."""
        return self.roots(self._axes[variable][axis])

    def array(self, place: TensorPlace) -> NDArray[Any]:
        """Return the constant in a place."""
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
        read = {
            (s.weight, s.read) for s in self.linear_operators if s.weight and s.read is not None
        }
        coupled_channels = self._coupled_axes()
        return [
            Group(identity, tuple(found), frozenset(coupled_channels[identity]))
            for identity, found in slots.items()
            if any((slot.place, slot.axis) in read for slot in found)
        ]

    def _coupled_axes(self) -> dict[int, set[int]]:
        """Return the axes that each group is in, numbered.

        What an operator leaves alone is one axis.
        """
        every = [ids for axes in (*self._axes.values(), *self.constants.values()) for ids in axes]
        coupled_channels: dict[int, set[int]] = {}
        for number, ids in enumerate({id(ids): ids for ids in every}.values()):
            for root in np.unique(self.roots(ids)):
                coupled_channels.setdefault(int(root), set()).add(number)
        return coupled_channels

    def kept(self, groups: Iterable[Group]) -> NDArray[np.bool_]:
        """Return whether an identity is left when groups are removed, [identities]."""
        removed = np.zeros(len(self._roots), bool)
        removed[[group.identity for group in groups]] = True
        return ~removed[self._roots]

    def kept_values(
        self, variable: Any, array: NDArray[Any], kept: NDArray[np.bool_]
    ) -> NDArray[Any]:
        """Return what is left of a value."""
        return _compressed(array, self._axes[variable], kept)

    @property
    def multiplications(self) -> list[Term]:
        """Return numbers whose sum is the count of multiplications."""
        return [Term(s.extents, s.factor) for s in self.linear_operators]

    @property
    def weights(self) -> list[Term]:
        """Return numbers whose sum is the count of weights."""
        return [Term(axes, 1) for axes in self.constants.values()]

    def without(self, groups: Sequence[Group]) -> IRModule:
        """Return the module with smaller constants and values."""
        kept = self.kept(groups)

        def change(_builder: Any, variable: Any, value: Any, _current: Any) -> Any:
            return self._smaller(variable, value, kept)

        return self.graph.map_values(change)

    def sliced(
        self, place: TensorPlace, array: NDArray[Any], kept: NDArray[np.bool_]
    ) -> NDArray[Any]:
        """Return what is left of a constant, or of another of its shape."""
        return _compressed(array, self.constants[place], kept)

    def _smaller(self, variable: Any, value: Any, kept: NDArray[np.bool_]) -> Any:
        """Return the expression of a binding with what is left of its constants and attributes."""
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
        elif name in CONVOLUTIONS:
            weight = shape_of(self.graph.definitions[variable].args[1]) or ()
            if is_by_channel(value, weight):
                held = place_of(self.graph, self.constants, variable, 1)
                channels = kept[self.constants[held][0]] if held else np.ones(weight[0], bool)
                repeat = weight[0] // int(value.attrs.groups) if not is_transposed(name) else 1
                groups = int(np.count_nonzero(channels)) // repeat
                return relax.Call(value.op, arguments, convolution_attributes(value, groups=groups))
        return relax.Call(value.op, arguments, value.attrs)

    def _slice(self, old: Any, data: Any, kept: NDArray[np.bool_]) -> Any:
        axes, begin, end, strides = slice_fields(old)
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
        axis, cuts = split_fields(old, shape_of(source) or ())
        ids = self._axes[source][axis]
        return relax.op.split(data, [int(np.count_nonzero(kept[ids[:cut]])) for cut in cuts], axis)


def _compressed(array: NDArray[Any], axes: Axes, kept: NDArray[np.bool_]) -> NDArray[Any]:
    for axis, ids in enumerate(axes):
        if not kept[ids].all():
            array = np.compress(kept[ids], array, axis)
    return np.ascontiguousarray(array).reshape(array.shape)
