"""Rewrite a graph so that devices compute parts of its values at the same time.

What comes out computes the same as the graph that went in. Every operator belongs to one device's
part of one segment; where a part needs what others have, these cut out what it lacks, and it joins
the pieces, or adds them where each is a part of a sum.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from tvm import IRModule, relax

from edgec.compiler.errors import UnsupportedModelError
from edgec.compiler.ir.relax_helpers import constant, op_name, shape_of, value_of
from edgec.compiler.kernels.emit.requantize import Requantization
from edgec.compiler.lowering.pack.packer import REQUANTIZATIONS
from edgec.compiler.split.cut_graph import Before, CutGraph
from edgec.compiler.split.operator_regions import read_for, sums_over
from edgec.compiler.split.regions import (
    Reading,
    Region,
    cut_out,
    extents,
    meet,
    union,
    whole,
    with_axis,
)
from edgec.compiler.split.segments import Segment, intervals, shared_axis

op = relax.op
# A segment, and the place of a device in it.
Owner = tuple[int, int]


@dataclass(frozen=True)
class PartGraph:
    """A part graph is a graph whose operators belong to parts.

    Attributes:
        module: computes the same as before.
        names: of values by those of variables.
        owners: of operators, by the name of their variable.
        requantizations: how accumulators of some channels become quantized: as those of all, by
            the name of the variable; None: not in fixed point.
    """

    module: IRModule
    names: Mapping[str, str]
    owners: Mapping[str, Owner]
    requantizations: Mapping[str, Requantization | None]


def axis_in(shape: Sequence[int], segment: Segment) -> int | None:
    """Return the axis along which a segment shares values of a shape; None: it does not."""
    axis = None if segment.along is None else shared_axis(segment.along, len(shape))
    return None if axis is None or shape[axis] < len(segment.devices) else axis


def own_region(shape: Sequence[int], segment: Segment, place: int, block: int) -> Region | None:
    """Return the region of a value that one device of a segment has; None: it has nothing."""
    axis = axis_in(shape, segment)
    if axis is None:
        return whole(shape) if place == 0 else None
    blocks = 1 if segment.along == "rows" else block
    interval = intervals(shape[axis], segment.shares, blocks)[place]
    return with_axis(whole(shape), axis, interval)


def last_product(graph: CutGraph, variables: Sequence[Any]) -> Any:
    """Return the last of some variables that is a product, whose sums devices can share.

    Raises:
        UnsupportedModelError: there is none.
    """
    definitions = graph.values.graph.definitions
    for variable in reversed(variables):
        if sums_over(variable, definitions[variable], (0, 1)) is not None:
            return variable
    names = ", ".join(graph.name(graph.values.place[variable]) for variable in variables)
    raise UnsupportedModelError(
        f"a stage along sums ends with {names}: it must end with a convolution without groups, or "
        "with a matrix product"
    )


class PartReadings:
    """Part readings say what each part computes and what it reads, in regions.

    Attributes:
        segments: all of them.
        computed: of each part the readings of its variables, in order.
        fetched: of each part the regions of variables that others, or the host, give.
        joining: the part that puts the results of the model together.
    """

    def __init__(
        self,
        graph: CutGraph,
        bounds: Sequence[Before],
        segments: Sequence[Segment],
        block: int = 1,
        only: int | None = None,
        known: dict[tuple[Any, Region], Reading] | None = None,
    ) -> None:
        """Find out.

        Args:
            graph: the graph.
            bounds: what is computed up to the end of each segment.
            segments: as many.
            block: channels that are best kept together.
            only: of which segment to find out; None: of all.
            known: readings that were found before, and are found now.
        """
        self._graph, self._values = graph, graph.values
        self.segments = segments
        self._known = {} if known is None else known
        self.segment_of: dict[Any, int] = {}
        for number in reversed(range(len(bounds))):
            for place in bounds[number]:
                self.segment_of[graph.values.graph.bindings[place][0]] = number
        self._block = block
        last = len(segments) - 1
        self.joining: Owner = (last, 0) if segments[last].along is None else (last + 1, 0)
        self.computed: dict[Owner, dict[Any, Reading]] = {}
        self.fetched: dict[Owner, dict[Any, Region]] = {}
        self._crossing = self._find_crossing(bounds)
        self._sums = {
            last_product(graph, self._crossing[number])
            for number, segment in enumerate(segments)
            if segment.along == "sums"
        }
        if self.joining[0] > last and only is None:
            self.computed[self.joining] = {}
            self.fetched[self.joining] = self._results()
        for number in reversed(range(len(segments))) if only is None else (only,):
            for place in range(len(segments[number].devices)):
                self._read((number, place))

    @property
    def owners(self) -> list[Owner]:
        """Return all parts, in order."""
        return sorted(self.computed)

    def device_of(self, owner: Owner) -> int:
        """Return the device that computes a part."""
        number = min(owner[0], len(self.segments) - 1)
        return self.segments[number].devices[owner[1]]

    def crossing(self, segment: int) -> list[Any]:
        """Return the variables of a segment that others read, or that are results."""
        return self._crossing[segment]

    def is_sum(self, variable: Any) -> bool:
        """Tell whether each device computes some summands of a value."""
        return variable in self.segment_of and self.along(variable) == "sums"

    def along(self, variable: Any) -> str | None:
        """Return how a value is shared: `sums`, along an axis, or not at all (None)."""
        number = self.segment_of[variable]
        segment = self.segments[number]
        if segment.along is None:
            return None
        if variable in self._sums:
            return "sums"
        return "axis" if self.axis_of(variable) is not None else None

    def axis_of(self, variable: Any) -> int | None:
        """Return the axis along which parts have a value; None if the first has all of it."""
        segment = self.segments[self.segment_of[variable]]
        return axis_in(self._graph.shape(variable), segment)

    def own_region(self, variable: Any, place: int) -> Region | None:
        """Return the region of a value that a part must have for others; None: nothing."""
        shape = self._graph.shape(variable)
        if self.along(variable) == "sums":
            return whole(shape)
        return own_region(shape, self.segments[self.segment_of[variable]], place, self._block)

    def _results(self) -> dict[Any, Region]:
        return {
            variable: whole(shape_of(variable) or ())
            for variable in self._values.graph.results
            if variable in self.segment_of
            and self.segments[self.segment_of[variable]].along is not None
        }

    def _find_crossing(self, bounds: Sequence[Before]) -> list[list[Any]]:
        """Return of each segment the variables that others read, or that are results."""
        bindings = self._values.graph.bindings
        parts = [after - before for before, after in pairwise([Before(), *bounds])]
        return [[bindings[place][0] for place in self._graph.read_behind(part)] for part in parts]

    def _read(self, owner: Owner) -> None:
        number, place = owner
        wanted: dict[Any, Region] = {}
        fetched: dict[Any, Region] = self._results() if owner == self.joining else {}
        for variable in self._crossing[number]:
            region = self.own_region(variable, place)
            if region is not None:
                wanted[variable] = region
        readings: dict[Any, Reading] = {}
        for variable, value in reversed(self._values.graph.bindings):
            if variable not in wanted:
                continue
            reading = None
            if self.is_sum(variable):
                reading = self._part_of_sums(variable, value, place)
            reading = reading or self._reading(variable, value, wanted[variable])
            readings[variable] = reading
            for operand, region in reading.operands:
                into = self._wanted_in(operand, number, wanted, fetched)
                if into is not None:
                    into[operand] = union(into[operand], region) if operand in into else region
        self.computed[owner] = dict(reversed(readings.items()))
        self.fetched[owner] = fetched

    def _reading(self, variable: Any, value: Any, region: Region) -> Reading:
        key = (variable, region)
        if key not in self._known:
            found = read_for(variable, value, region, self._values.graph.definitions)
            # One object for each variable: others are equal, but it takes long to find out.
            operands = tuple((self._values.same.get(x, x), part) for x, part in found.operands)
            self._known[key] = replace(found, operands=operands)
        return self._known[key]

    def _wanted_in(
        self, operand: Any, number: int, wanted: dict[Any, Region], fetched: dict[Any, Region]
    ) -> dict[Any, Region] | None:
        """Return where to note that an operand is read; None: it depends on no input."""
        if not isinstance(operand, relax.Var):
            return None
        if operand in self._values.parameters:
            return fetched
        if operand in self.segment_of:
            return wanted if self.segment_of[operand] == number else fetched
        return wanted if self._values.is_floats_of_data(operand) else None

    def _part_of_sums(self, variable: Any, value: Any, place: int) -> Reading:
        segment = self.segments[self.segment_of[variable]]
        data = shape_of(value.args[0]) if isinstance(value, relax.Call) and value.args else None
        axis = None if data is None else shared_axis("channels", len(data))
        reading = None
        if data is not None and axis is not None:
            parts = intervals(data[axis], segment.shares, self._block)
            reading = sums_over(variable, value, parts[place])
        assert reading is not None
        return reading


def make_part_graph(
    readings: PartReadings, graph: CutGraph, device_names: Sequence[str]
) -> PartGraph:
    """Return the graph in parts.

    Args:
        readings: what each part computes.
        graph: the graph.
        device_names: of the devices, by number.
    """
    return _PartWriter(readings, graph, device_names).run()


class _PartWriter:
    def __init__(
        self, readings: PartReadings, graph: CutGraph, device_names: Sequence[str]
    ) -> None:
        self._readings, self._cut = readings, graph
        self._graph, self._values = graph.values.graph, graph.values
        self._devices = device_names
        others = {
            v: f
            for v, f in self._graph.module.functions_items()
            if not isinstance(f, relax.Function)
        }
        self._builder = relax.BlockBuilder(IRModule(others))
        self._names: dict[str, str] = {p.name: self._graph.names[p] for p in self._graph.parameters}
        self._owners: dict[str, Owner] = {}
        self._requantizations: dict[str, Requantization | None] = {}
        # What each part has of a variable: the expression, and of which region it is.
        self._held: dict[tuple[Owner, Any], tuple[Any, Region]] = {}
        self._cut_out: dict[tuple[Owner, Any, Region], Any] = {}
        self._shared: dict[tuple[Any, Region], Any] = {}

    def run(self) -> PartGraph:
        """Return the graph in parts."""
        function = self._graph.module["main"]
        single = not isinstance(function.ret_ty, relax.TupleType)
        attributes = {**dict(function.attrs or {}), REQUANTIZATIONS: ""}
        with self._builder.function("main", self._graph.parameters, attributes):
            with self._builder.dataflow():
                for owner in self._readings.owners:
                    self._compute(owner)
                fields = [self._result(result) for result in self._graph.results]
                bound = self._builder.emit_output(fields[0] if single else relax.Tuple(fields))
            self._builder.emit_func_output(bound)
        return PartGraph(self._builder.get(), self._names, self._owners, self._requantizations)

    def _compute(self, owner: Owner) -> None:
        for variable, region in self._readings.fetched[owner].items():
            self._held[owner, variable] = (self._fetch(owner, variable, region), region)
        for variable, reading in self._readings.computed[owner].items():
            given = [self._get(owner, operand, region) for operand, region in reading.operands]
            made = self._emit(owner, reading.build(given), variable)
            if op_name(self._graph.definitions[variable]) == "relax.quantize":
                self._keep_rounding(made, variable, reading.region)
            self._held[owner, variable] = (made, reading.region)

    def _keep_rounding(self, made: Any, variable: Any, region: Region) -> None:
        """Round some channels as all of them: kernels choose digits by the largest of them."""
        shape = self._cut.shape(variable)
        axis = shared_axis("channels", len(shape))
        if axis is None or region[axis] == (0, shape[axis]):
            return
        found = self._cut.requantizations.get(variable.name)
        begin, end = region[axis]
        self._requantizations[made.name] = found and found.of_channels(begin, end, end - begin)

    def _emit(self, owner: Owner | None, expression: Any, variable: Any) -> Any:
        """Have a part compute what it needs for an old variable."""
        if isinstance(expression, relax.Var):
            return expression
        bound = self._builder.emit(expression, variable.name)
        place = self._values.place.get(variable)
        name = self._graph.names[variable]
        if place is not None and place in self._cut.needs:
            name = self._cut.name(place)
        if owner is not None:
            self._owners[bound.name] = owner
            if self._is_shared(owner):
                name += f"@{self._devices[self._readings.device_of(owner)]}"
        self._names[bound.name] = name
        return bound

    def _is_shared(self, owner: Owner) -> bool:
        segments = self._readings.segments
        return owner[0] < len(segments) and segments[owner[0]].along is not None

    def _get(self, owner: Owner, operand: Any, region: Region) -> Any:
        """Return a region of what a part reads."""
        array = value_of(operand)
        if array is not None:
            if extents(region) == array.shape:
                return operand
            return constant(array[tuple(slice(*interval) for interval in region)])
        held = self._held.get((owner, operand))
        if held is None:
            return self._without_inputs(operand, region)
        if held[1] == region:
            return held[0]
        key = (owner, operand, region)
        if key not in self._cut_out:
            self._cut_out[key] = self._emit(owner, cut_out(*held, region), operand)
        return self._cut_out[key]

    def _without_inputs(self, operand: Any, region: Region) -> Any:
        """Return what depends on no input, or on counters alone: whoever reads it computes it."""
        if (operand, region) not in self._shared:
            value = self._graph.definitions[operand]
            if value_of(value) is not None:
                made = self._get((-1, 0), value, region)
            else:
                reading = read_for(operand, value, region, self._graph.definitions)
                given = [self._shared_operand(x, part) for x, part in reading.operands]
                made = self._emit(None, reading.build(given), operand)
                made = self._emit(None, cut_out(made, reading.region, region), operand)
            self._shared[operand, region] = made
        return self._shared[operand, region]

    def _shared_operand(self, operand: Any, region: Region) -> Any:
        if operand in self._values.parameters:
            shape = whole(shape_of(operand) or ())
            return self._emit(None, cut_out(operand, shape, region), operand)
        return self._get((-1, 0), operand, region)

    def _fetch(self, owner: Owner, variable: Any, region: Region) -> Any:
        """Return a region of what others, or the host, have."""
        if variable in self._values.parameters:
            held = whole(shape_of(variable) or ())
            return self._emit(owner, cut_out(variable, held, region), variable)
        pieces = [
            self._get(other, variable, part) for other, part in self._cover(owner, variable, region)
        ]
        if len(pieces) == 1:
            return pieces[0]
        if self._readings.along(variable) == "sums":
            total = pieces[0]
            for piece in pieces[1:]:
                total = self._emit(owner, op.add(total, piece), variable)
            return total
        axis = self._readings.axis_of(variable)
        return self._emit(owner, op.concat(pieces, axis), variable)

    def _cover(self, owner: Owner, variable: Any, region: Region) -> list[tuple[Owner, Region]]:
        """Return who gives which part of a region: as much as it can the same device."""
        number = self._readings.segment_of[variable]
        segment = self._readings.segments[number]
        along = self._readings.along(variable)
        if along is None:
            return [((number, 0), region)]
        parts = [(number, place) for place in range(len(segment.devices))]
        if along == "sums":
            return [(part, region) for part in parts]
        axis = self._readings.axis_of(variable)
        assert axis is not None
        me = self._readings.device_of(owner)
        begin, end = region[axis]
        found: list[tuple[Owner, Region]] = []
        mine = None
        if me in segment.devices:
            part = parts[segment.devices.index(me)]
            held = self._held.get((part, variable))
            mine = meet(held[1], region) if held is not None else None
            if mine is not None and with_axis(mine, axis, region[axis]) == region:
                found.append((part, mine))
                begin, end = mine[axis]
            else:
                begin = end = region[axis][1]
        else:
            begin = end = region[axis][1]
        for part in parts:
            own = self._readings.own_region(variable, part[1])
            for lacking in ((region[axis][0], begin), (end, region[axis][1])):
                if own is None or lacking[0] >= lacking[1]:
                    continue
                piece = meet(own, with_axis(region, axis, lacking))
                if piece is not None:
                    found.append((part, piece))
        return sorted(found, key=lambda item: item[1][axis])

    def _result(self, result: Any) -> Any:
        """Return a result of the model."""
        if not isinstance(result, relax.Var) or result in self._values.parameters:
            return result
        joined = self._held.get((self._readings.joining, result))
        if joined is not None:
            return joined[0]
        number = self._readings.segment_of.get(result)
        region = whole(shape_of(result) or ())
        if number is None:
            return self._without_inputs(result, region)
        return self._get((number, 0), result, region)
