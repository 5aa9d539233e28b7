"""Provide what segments of a model cost: between which cuts, shared how, by whom.

A kernel takes the share of its estimated time that its part of the results is. Values from before
the last segment are taken to be where that segment's are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from edgec.compiler.ir.relax_helpers import op_name, shape_of
from edgec.compiler.split.cut_graph import Before, CutGraph
from edgec.compiler.split.devices import StageRequest
from edgec.compiler.split.link import Network
from edgec.compiler.split.minimum_cuts import minimum_cuts
from edgec.compiler.split.model_values import bytes_of
from edgec.compiler.split.operator_costs import OperatorCosts
from edgec.compiler.split.operator_regions import sums_over
from edgec.compiler.split.part_graph import Owner, PartReadings, last_product, own_region
from edgec.compiler.split.regions import Reading, Region, meet, size_of
from edgec.compiler.split.segments import Along, Segment

Parallel = Literal["channels", "rows", "auto"]
WAYS: dict[Parallel, tuple[Along, ...]] = {
    "channels": ("channels", "sums"),
    "rows": ("rows",),
    "auto": ("rows", "channels", "sums"),
}
# What a byte takes to be brought in and out of a stage and into its layout.
_MS_PER_BYTE = 1e-6
# Of more cuts those of the fewest bytes are planned with.
_MAX_CUTS = 60
# So many cuts a segment may have in it: a product needs all channels of the one before.
_REACH: dict[Along | None, int] = {"rows": 24, "channels": 6, "sums": 6, None: 60}
_PRODUCTS = ("relax.nn.conv1d", "relax.nn.conv2d", "relax.matmul")


@dataclass(frozen=True)
class SharedStage:
    """A shared stage is a segment of the plan.

    Attributes:
        request: as `split_model` takes it.
        ms: of computing it, the slowest part [ms].
        fetch_ms: of fetching what that lacks [ms].
        fetched_bytes: the same in bytes.
        weight_bytes: by device.
        value_bytes: what the values need at once, with those that come and go, by device.
    """

    request: StageRequest
    ms: float
    fetch_ms: float
    fetched_bytes: int
    weight_bytes: tuple[int, ...]
    value_bytes: tuple[int, ...]

    def __str__(self) -> str:
        """Write who computes it, how long, and how much memory that needs."""
        along = f" along {self.request.along}" if self.request.along else ""
        needed = zip(self.weight_bytes, self.value_bytes, strict=True)
        largest = max(weights + values for weights, values in needed)
        return (
            f"{' and '.join(self.request.names)}{along}: fetch {self.fetched_bytes:,} bytes "
            f"({self.fetch_ms:.1f} ms), compute {self.ms:.1f} ms in {largest / 1e6:.1f} MB"
        )


@dataclass(frozen=True)
class _Node:
    """A node is a cut; `sums` if a product ends there whose sums are to be added."""

    before: Before
    sums: bool


class SegmentCosts:
    """Segment costs know a model's cuts, and what parts of segments between them cost.

    Args:
        graph: the graph.
        names: of the devices.
        costs: of the whole model on each.
        network: what connects them.
        parallel: what segments may be shared along.
        block: channels that are best kept together.
    """

    def __init__(
        self,
        graph: CutGraph,
        names: Sequence[str],
        costs: Sequence[OperatorCosts],
        network: Network,
        parallel: Parallel,
        block: int,
    ) -> None:
        self._graph, self._names, self._costs = graph, names, costs
        self._network, self._block = network, block
        self._bindings = graph.values.graph.bindings
        self._tied = {
            place
            for state in graph.values.states
            for place in graph.operators
            if graph.values.inputs[state.input] in graph.values.sources(self._bindings[place][1])
        }
        ways = WAYS[parallel]
        self._ways: tuple[Along | None, ...] = (None, *ways)
        self.nodes = self._find_nodes("sums" in ways)
        self._until = [graph.cut_names(node.before) for node in self.nodes]
        self._products = [
            {last_product(graph, [self._bindings[p][0] for p in graph.crossing(node.before)])}
            if node.sums
            else set[Any]()
            for node in self.nodes
        ]
        self._ms = [_kernel_ms(graph, cost) for cost in costs]
        self._known: dict[tuple[int, int, Segment], list[_Part]] = {}
        self._found: dict[tuple[Any, Region], Reading] = {}
        self._operator_shares: dict[int, tuple[Reading, _Share]] = {}
        self._item_bytes: dict[Any, int] = {}
        speeds = [1 / max(sum(cost.ms.values()), 1e-9) for cost in costs]
        self._shares = tuple(speed / max(speeds) for speed in speeds)

    def _find_nodes(self, sums: bool) -> list[_Node]:
        cuts = minimum_cuts(self._graph)
        size = -(-len(cuts) // _MAX_CUTS)
        groups = [cuts[n : n + size] for n in range(0, len(cuts), max(1, size))]
        row = [Before(), *(min(group, key=self._graph.cut_bytes) for group in groups)]
        row.append(Before(self._graph.operators))
        nodes = [_Node(row[0], False)]
        for before, after in pairwise(row):
            products = [p for p in after - before if self._is_float_product(p)]
            if sums and len(products) == 1:
                inside = before | self._graph.closed([*before, *products])
                if before < inside < after and self._graph.is_cut(inside, in_kernels=True):
                    nodes.append(_Node(inside, True))
            nodes.append(_Node(after, False))
        return nodes

    def _is_float_product(self, place: int) -> bool:
        """Tell whether an operator is a product of floats: sums of codes are rounded."""
        variable, value = self._bindings[place]
        if op_name(value) not in _PRODUCTS or sums_over(variable, value, (0, 1)) is None:
            return False
        definitions = self._graph.values.graph.definitions
        return not any(op_name(definitions.get(x)) == "relax.dequantize" for x in value.args)

    def segments(self, begin: int, end: int) -> list[Segment]:
        """Return how what lies between two cuts may be shared."""
        node = self.nodes[end]
        found = []
        for along in self._ways:
            if end - begin > _REACH[along] or (along == "sums") != node.sums:
                continue
            if along is None:
                found += [Segment((number,)) for number in range(len(self._names))]
            elif not (node.before - self.nodes[begin].before) & self._tied:
                devices = tuple(range(len(self._names)))
                found.append(Segment(devices, along, self._shares))
        return found

    def cost(self, begin: int, end: int, segment: Segment, before: Segment | None) -> SharedStage:
        """Return what a segment between two cuts costs, behind one that was shared like this."""
        read = self._readings(begin, end, segment)
        names = tuple(self._names[number] for number in segment.devices)
        many = len(names) > 1
        request = StageRequest(
            device="" if many else names[0],
            devices=names if many else (),
            along=segment.along,
            shares=segment.shares if many and len(set(segment.shares)) > 1 else (),
            until=() if end == len(self.nodes) - 1 else self._until[end],
        )
        fetched = [
            sum(self._lacking(v, region, device, begin, before) for v, region in part.fetched)
            for device, part in zip(segment.devices, read, strict=True)
        ]
        most = max(fetched)
        moved = max(part.moved_bytes for part in read)
        return SharedStage(
            request=request,
            ms=max(part.ms for part in read),
            fetch_ms=self._network.mean_ms(most) + _MS_PER_BYTE * moved,
            fetched_bytes=most,
            weight_bytes=self._by_device(segment, [part.weight_bytes for part in read]),
            value_bytes=self._by_device(segment, [part.value_bytes for part in read]),
        )

    def _by_device(self, segment: Segment, values: Sequence[int]) -> tuple[int, ...]:
        found = [0] * len(self._names)
        for device, value in zip(segment.devices, values, strict=True):
            found[device] = value
        return tuple(found)

    def _lacking(
        self, variable: Any, region: Region, device: int, begin: int, before: Segment | None
    ) -> int:
        """Return the bytes of a region that a device does not have."""
        size = self._bytes(variable, region)
        if before is None or variable in self._graph.values.parameters:
            # Inputs are at the first device.
            return 0 if device == 0 else size
        if variable in self._products[begin]:
            return size * (len(before.devices) - 1)
        if device not in before.devices:
            return size
        own = own_region(
            self._graph.shape(variable), before, before.devices.index(device), self._block
        )
        mine = None if own is None else meet(own, region)
        return size - (0 if mine is None else self._bytes(variable, mine))

    def _readings(self, begin: int, end: int, segment: Segment) -> list["_Part"]:
        """Return what each device does in a segment between two cuts."""
        key = (begin, end, segment)
        if key not in self._known:
            inner = [self.nodes[begin].before, self.nodes[end].before]
            bounds = [*inner, self.nodes[-1].before]
            segments = [Segment((0,)), segment, Segment((0,))]
            number = 1
            if end == len(self.nodes) - 1:
                bounds, segments = bounds[:2], segments[:2]
            if begin == 0:
                bounds, segments, number = bounds[1:], segments[1:], 0
            readings = PartReadings(self._graph, bounds, segments, self._block, number, self._found)
            self._known[key] = [
                self._part(readings, (number, place), device)
                for place, device in enumerate(segment.devices)
            ]
        return self._known[key]

    def _part(self, readings: PartReadings, owner: Owner, device: int) -> "_Part":
        ms, weights, largest = 0.0, 0.0, 0
        for variable, reading in readings.computed[owner].items():
            share = self._share(variable, reading)
            place = self._graph.values.place[variable]
            work = share.weights if readings.is_sum(variable) else share.results
            ms += work * self._ms[device].get(place, 0.0)
            weights += share.weights * self._graph.weight_bytes.get(place, 0)
            largest = max(largest, share.value_bytes)
        fetched = tuple(readings.fetched[owner].items())
        given_bytes = sum(
            self._bytes(v, readings.computed[owner][v].region)
            for v in readings.crossing(owner[0])
            if v in readings.computed[owner]
        )
        moved = given_bytes + sum(self._bytes(v, region) for v, region in fetched)
        return _Part(ms, int(weights), largest + moved, moved, fetched)

    def _share(self, variable: Any, reading: Reading) -> "_Share":
        """Return what a reading is a share of; readings are the same object when met again."""
        if id(reading) not in self._operator_shares:
            whole_size = math.prod(self._graph.shape(variable))
            read = [(x, region) for x, region in reading.operands if region]
            constants = [(x, region) for x, region in read if self._is_weight(x)]
            all_weights = sum(math.prod(shape_of(x) or ()) for x, _ in constants)
            kept = sum(size_of(region) for _, region in constants)
            value_bytes = 0
            if variable in self._graph.held[0]:
                value_bytes = self._bytes(variable, reading.region)
                values = [(x, region) for x, region in read if not self._is_weight(x)]
                value_bytes += sum(self._bytes(x, region) for x, region in values)
            self._operator_shares[id(reading)] = (
                reading,
                _Share(
                    size_of(reading.region) / max(1, whole_size),
                    kept / max(1, all_weights),
                    value_bytes,
                ),
            )
        return self._operator_shares[id(reading)][1]

    def _bytes(self, variable: Any, region: Region) -> int:
        if variable not in self._item_bytes:
            count = math.prod(self._graph.shape(variable))
            self._item_bytes[variable] = bytes_of(variable) // max(1, count)
        return self._item_bytes[variable] * size_of(region)

    def _is_weight(self, expression: Any) -> bool:
        values = self._graph.values
        return (
            expression not in values.dependent
            and expression not in values.parameters
            and not values.is_floats_of_data(expression)
        )


@dataclass(frozen=True)
class _Share:
    """A share says what a part has of an operator: of its results, of its weights, bytes held."""

    results: float
    weights: float
    value_bytes: int


@dataclass(frozen=True)
class _Part:
    """A part is what one device does in a segment."""

    ms: float
    weight_bytes: int
    value_bytes: int
    moved_bytes: int
    fetched: tuple[tuple[Any, Region], ...]


def _kernel_ms(graph: CutGraph, costs: OperatorCosts) -> dict[int, float]:
    """Return the times by place, those of products at the product instead of its kernel's end."""
    found = dict(costs.ms)
    for place in graph.operators:
        if op_name(graph.values.graph.bindings[place][1]) not in _PRODUCTS or place in found:
            continue
        end = place
        while end not in found and len(graph.readers[end]) == 1:
            (end,) = graph.readers[end]
        if end in found:
            found[place] = found.pop(end)
    return found
