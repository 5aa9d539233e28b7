"""Provide a model's graph as a splitter sees it: what may be computed where, and what then travels.

A cut is a set of values; whoever computes before it hands them over. It is given here as the
operators before it, which all operators that they need belong to. A cut changes no bit:

1. Only values that kernels of every target hold in memory as they are may travel, so that no
   kernel is cut apart: what one fuses on any of the targets stays together.
2. Quantized values travel as such; whoever reads them dequantizes them.
3. A state is read and written on one side.
4. Operators on constants alone belong to every stage that reads them. So do those on counters:
   states whose next value follows from scalars alone, as the length of a cache. Each stage that
   reads a counter keeps one.
"""

from collections.abc import Collection, Iterable
from functools import cached_property
from typing import Any

from tvm import relax

from edgec.compiler.backend import packing_notes
from edgec.compiler.ir.graph import operands
from edgec.compiler.ir.relax_helpers import op_name, shape_of, value_of
from edgec.compiler.split.model_values import ModelValues, bytes_of
from edgec.targets import Target

# Operators before a cut, by their places in the graph.
Before = frozenset[int]


class CutGraph:
    """A cut graph says where a model can be cut.

    Args:
        values: the values of the model.
        targets: whose kernels must not be cut apart.

    Attributes:
        values: the values.
        operators: the places of all operators that belong to one stage, in order.
        held: for each target the values that its kernels hold in memory, and whether in blocks.
        requantizations: by the names of variables how accumulators become quantized.
    """

    def __init__(self, values: ModelValues, targets: Collection[Target]) -> None:
        self.values = values
        self.operators = values.operators()
        notes = [packing_notes(values.graph.module, target) for target in targets]
        self.held = [each.held for each in notes]
        self.requantizations = notes[0].requantizations
        self._shapes: dict[Any, tuple[int, ...]] = {}

    @cached_property
    def needs(self) -> dict[int, tuple[int, ...]]:
        """Return the operators that each operator reads, the floats of one by itself."""
        return {
            place: tuple(
                dict.fromkeys(
                    self.values.place[v]
                    for v in self.values.sources(self.values.graph.bindings[place][1])
                    if v in self.values.dependent and v not in self.values.parameters
                )
            )
            for place in self.operators
        }

    @cached_property
    def readers(self) -> dict[int, list[int]]:
        """Return the operators that read each operator."""
        found: dict[int, list[int]] = {place: [] for place in self.operators}
        for place, needed in self.needs.items():
            for other in needed:
                found[other].append(place)
        return found

    @cached_property
    def given(self) -> dict[str, int]:
        """Return the operator behind each output of the model; inputs and constants have none."""
        return {
            name: self.values.place[variable]
            for name, variable in self.values.result_of.items()
            if isinstance(variable, relax.Var)
            and variable in self.values.dependent
            and variable not in self.values.parameters
            and self.values.place[variable] in self.needs
            and self.values.returned_parameter(variable) is None
        }

    def name(self, place: int) -> str:
        """Return what people call the value of an operator, in every program of the model."""
        return self._names[place]

    @cached_property
    def _names(self) -> dict[int, str]:
        """Return ONNX names, and of values without one what they are of the first named before.

        `relu_3/quantize`, and `relu_3/quantize#2` where that is taken.
        """
        found: dict[int, str] = {}
        taken = {*self.values.inputs, *self.values.result_of}
        for place in self.operators:
            variable, value = self.values.graph.bindings[place]
            name = self.values.graph.value_names.get(variable.name)
            if name is None or name in taken:
                source = next((found[p] for p in self.needs[place]), "")
                kind = op_name(value).rpartition(".")[2] or "value"
                name = f"{source}/{kind}".removeprefix("/")
            base, number = name, 1
            while name in taken:
                number += 1
                name = f"{base}#{number}"
            taken.add(name)
            found[place] = name
        outputs = {place: name for name, place in reversed(self.given.items())}
        return found | outputs

    def shape(self, expression: Any) -> tuple[int, ...]:
        """Return the shape of a tensor, () of several together; it is looked up once."""
        if expression not in self._shapes:
            self._shapes[expression] = shape_of(expression) or ()
        return self._shapes[expression]

    def size_bytes(self, place: int) -> int:
        """Return the bytes of an operator's value."""
        variable = self.values.graph.bindings[place][0]
        return 0 if shape_of(variable) is None else bytes_of(variable)

    def may_travel(self, place: int) -> bool:
        """Tell whether the value of an operator may go from one stage to another."""
        # (1)
        return self._is_tensor(place) and self.is_held(place)

    def _is_tensor(self, place: int) -> bool:
        """Tell whether an operator computes one tensor, and no state's next value (3)."""
        variable, value = self.values.graph.bindings[place]
        known = shape_of(variable) is not None and not isinstance(value, relax.Var)
        return known and place not in self._written

    def is_held(self, place: int) -> bool:
        """Tell whether kernels of every target hold the value of an operator in memory."""
        variable = self.values.graph.bindings[place][0]
        return all(variable in held for held in self.held)

    @cached_property
    def _written(self) -> frozenset[int]:
        """Return who computes the next value of a state."""
        return frozenset().union(*(writing for _, writing in self._tied))

    @cached_property
    def _tied(self) -> list[tuple[frozenset[int], frozenset[int]]]:
        """Return for each state who reads it, and who computes its next value."""
        tied = []
        for state in self.values.states:
            if state in self.values.counters:
                continue
            parameter = self.values.inputs[state.input]
            reading = frozenset(
                place
                for place in self.operators
                if parameter in self.values.sources(self.values.graph.bindings[place][1])
            )
            writing = frozenset([self.given[state.output]] if state.output in self.given else [])
            tied.append((reading, writing))
        return tied

    def closed(self, places: Iterable[int]) -> Before:
        """Return the operators before a cut behind some operators.

        These, all that they need, the whole of each state that they touch, and the outputs that
        are then computed anyway.
        """
        found: set[int] = set()
        waiting = list(places)
        while waiting:
            place = waiting.pop()
            if place in found:
                continue
            found.add(place)
            waiting += self.needs[place]
            if not waiting:
                for group in self._tied:
                    members = group[0] | group[1]
                    # (3)
                    if members & found:
                        waiting += members - found
        return frozenset(found)

    def crossing(self, before: Before) -> tuple[int, ...]:
        """Return the operators before a cut whose values are read behind it."""
        return tuple(
            place
            for place in sorted(before)
            if any(reader not in before for reader in self.readers[place])
        )

    def read_behind(self, part: Before) -> list[int]:
        """Return the operators of a part whose values others read, or that are results."""
        given = set(self.given.values())
        return [
            place
            for place in sorted(part)
            if place in given or any(reader not in part for reader in self.readers[place])
        ]

    def is_cut(self, before: Before, in_kernels: bool = False) -> bool:
        """Tell whether every value that crosses may travel, and no state is torn.

        Args:
            before: the operators.
            in_kernels: whether a kernel may be cut apart, which changes bits.
        """
        torn = any(
            0 < len((reading | writing) & before) < len(reading | writing)
            for reading, writing in self._tied
        )
        if torn or not before or len(before) == len(self.operators):
            return False
        crossing = self.crossing(before)
        if in_kernels:
            return bool(crossing) and all(map(self._is_tensor, crossing))
        return bool(crossing) and all(map(self.may_travel, crossing))

    def cut_bytes(self, before: Before) -> int:
        """Return the bytes of the values that cross."""
        return sum(map(self.size_bytes, self.crossing(before)))

    def cut_names(self, before: Before) -> tuple[str, ...]:
        """Return a cut by what crosses and what is an output before it, to find it again by."""
        outputs = [place for place in self.given.values() if place in before]
        return tuple(self.name(p) for p in dict.fromkeys((*self.crossing(before), *outputs)))

    def find_cut(self, names: Collection[str]) -> Before | None:
        """Return the cut behind values of these names; None if there is no value of a name."""
        by_name = {self.name(place): place for place in self.operators}
        if any(name not in by_name for name in names):
            return None
        return self.closed(by_name[name] for name in names)

    @cached_property
    def weight_bytes(self) -> dict[int, int]:
        """Return the bytes of the constants that each operator reads, as they are in the graph."""
        found = {}
        for place in self.operators:
            waiting = list(operands(self.values.graph.bindings[place][1]))
            size = 0
            seen: set[int] = set()
            while waiting:
                expression = waiting.pop()
                array = value_of(expression)
                if array is not None:
                    size += array.nbytes
                elif expression not in self.values.dependent and expression in self.values.place:
                    other = self.values.place[expression]
                    if other not in seen:
                        seen.add(other)
                        value = self.values.graph.bindings[other][1]
                        own = value_of(value)
                        size += own.nbytes if own is not None else 0
                        waiting += operands(value)
            found[place] = size
        return found
