"""Provide loops and branches as straight code: what a static program can run.

`Loop` and `Scan` are unrolled where their trip count is known when compiling. An `If` whose
condition is only known at run time becomes both branches and a choice between their results,
where that is cheap. What cannot be rewritten keeps a note that says why, and the import refuses
it with that.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx_ir import convenience
from onnx_ir.passes import common

from edgec.compiler.frontend.limits import DEFAULT_LIMITS, Limits

MAX_TRIPS = 1024
MAX_UNROLLED_NODES = 20_000
# Nodes of both branches of an If together that may be computed although one branch is enough.
MAX_BRANCH_NODES = 32

# Metadata of a node that stays: the reason.
WHY_KEPT = "edgec.why_kept"

_MUST_BE_CONSTANT = (
    "input {!r} must be constant; if it comes from an input of the model, fix that with --freeze"
)


class _Kept(Exception):  # noqa: N818 - an answer, not a malfunction
    """The node cannot be rewritten; the message says why."""


def flatten_control_flow(model: ir.Model, limits: Limits = DEFAULT_LIMITS) -> bool:
    """Rewrite the loops and branches of the main graph, not yet those inside of them.

    Args:
        model: folded, with inferred types; changed in place.
        limits: the limits of the number of nodes.

    Returns:
        Whether something changed; fold again then.
    """
    nodes = [node for node in model.graph if node.domain in ("", "ai.onnx")]
    nodes = [node for node in nodes if node.op_type in _REWRITES]
    if not nodes:
        return False
    common.LiftSubgraphInitializersToMainGraphPass()(model)
    changed = False
    total = sum(1 for _ in model.graph.all_nodes())
    for node in nodes:
        code = _Code(node, model.opset_imports.get("", 1))
        try:
            results = _REWRITES[node.op_type](code)
        except _Kept as reason:
            node.metadata_props[WHY_KEPT] = str(reason)
            continue
        total += sum(1 for _ in code.all_nodes())
        limits.check_nodes(total)
        # The results take the names of the old outputs: they must be values of their own.
        results = [code.call("Identity", [value]) for value in results]
        convenience.replace_nodes_and_values(
            model.graph, node, [node], code.nodes, node.outputs, results
        )
        changed = True
    return changed


class _Code:
    """Code is the nodes that replace one node.

    Attributes:
        node: the replaced one.
        opset: version of the default operator set.
        nodes: in order.
    """

    def __init__(self, node: ir.Node, opset: int) -> None:
        self.node = node
        self.opset = opset
        self.nodes: list[ir.Node] = []
        self.label = node.name or node.outputs[0].name or node.op_type

    def all_nodes(self) -> Iterator[ir.Node]:
        """Yield the nodes, and those of their subgraphs."""
        for node in self.nodes:
            yield node
            for attribute in node.attributes.values():
                if attribute.type is ir.AttributeType.GRAPH:
                    yield from attribute.as_graph().all_nodes()

    def call(self, op_type: str, inputs: Sequence[ir.Value], **attributes: Any) -> ir.Value:
        """Return the result of a new node."""
        name = f"{self.label}/{op_type}_{len(self.nodes)}"
        node = ir.node(op_type, inputs, attributes, name=name)
        node.outputs[0].name = name
        self.nodes.append(node)
        return node.outputs[0]

    def constant(self, array: NDArray[Any]) -> ir.Value:
        """Return a constant."""
        return self.call("Constant", [], value=ir.tensor(array))

    def insert(self, body: ir.Graph, inputs: Sequence[ir.Value], suffix: str) -> list[ir.Value]:
        """Return the outputs of a copy of a subgraph, whose nodes join the others."""
        copy = body.clone(allow_outer_scope_values=True)
        parameters, outputs = list(copy.inputs), list(copy.outputs)
        given = dict(zip(parameters, inputs, strict=True))
        copy.outputs.clear()
        copy.inputs.clear()
        for parameter, value in given.items():
            convenience.replace_all_uses_with(parameter, value)
        nodes = list(copy)
        copy.remove(nodes)
        for node in nodes:
            node.name = f"{self.label}/{suffix}/{node.name}"
            for output in node.outputs:
                output.name = f"{self.label}/{suffix}/{output.name}" if output.name else None
        self.nodes += nodes
        return [given.get(output, output) for output in outputs]

    def element(self, tensor: ir.Value, axis: int, index: int) -> ir.Value:
        """Return tensor[index] along an axis, which goes."""
        return self.call("Gather", [tensor, self.constant(np.array(index, np.int64))], axis=axis)

    def stack(self, parts: Sequence[ir.Value], axis: int) -> ir.Value:
        """Return tensors of one shape along a new axis."""
        if self.opset < 13:
            parts = [self.call("Unsqueeze", [part], axes=[axis]) for part in parts]
        else:
            axes = self.constant(np.array([axis], np.int64))
            parts = [self.call("Unsqueeze", [part, axes]) for part in parts]
        return self.call("Concat", parts, axis=axis)

    def body(self, name: str = "body") -> ir.Graph:
        """Return a subgraph of the replaced node."""
        return self.node.attributes[name].as_graph()

    def attribute(self, name: str, default: Any) -> Any:
        """Return an attribute of the replaced node."""
        given = self.node.attributes.get(name)
        return default if given is None else given.value

    def check_size(self, trips: int, body: ir.Graph) -> None:
        """Refuse to unroll what would become too large."""
        if trips > MAX_TRIPS:
            raise _Kept(f"it runs {trips} times; at most {MAX_TRIPS} are unrolled")
        count = trips * sum(1 for _ in body.all_nodes())
        if count > MAX_UNROLLED_NODES:
            raise _Kept(f"it unrolls to {count} nodes; at most {MAX_UNROLLED_NODES} are allowed")


def _unroll_loop(code: _Code) -> list[ir.Value]:
    """Rewrite Loop: the body takes the iteration number, a condition and the state.

    It gives the condition of the next iteration, the next state, and values that are stacked.
    """
    body, states = code.body(), list(code.node.inputs[2:])
    if any(state is None for state in states):
        raise _Kept("a state without an initial value is not supported")
    trips = _trip_count(code.node, body)
    code.check_size(trips, body)
    count = len(states)
    current = [state for state in states if state is not None]
    rows: list[list[ir.Value]] = []
    running = code.constant(np.array(True))
    for trip in range(trips):
        number = code.constant(np.array(trip, np.int64))
        outputs = code.insert(body, [number, running, *current], str(trip))
        current = outputs[1 : 1 + count]
        rows.append(outputs[1 + count :])
    stacked = [
        code.stack([row[index] for row in rows], 0) if rows else _no_rows(code, output)
        for index, output in enumerate(body.outputs[1 + count :])
    ]
    return [*current, *stacked]


def _no_rows(code: _Code, output: ir.Value) -> ir.Value:
    """Return what stacking the values of no iteration gives: [0, ...]."""
    shape = _static_shape(output)
    if shape is None or output.dtype is None:
        raise _Kept("it does not run at all, and the type of what it would give is unknown")
    return code.constant(np.zeros((0, *shape), output.dtype.numpy()))


def _trip_count(node: ir.Node, body: ir.Graph) -> int:
    limit, condition = node.inputs[0], node.inputs[1]
    trips = None if limit is None else int(_known(limit, "M").reshape(()))
    if condition is not None and not _known(condition, "cond").reshape(()):
        return 0
    if trips is not None and trips <= 0:
        return 0
    if _is_always_true(body):
        if trips is None:
            raise _Kept("it never ends")
        return trips
    return _simulate(node, body, trips)


def _is_always_true(body: ir.Graph) -> bool:
    condition: ir.Value | None = body.outputs[0]
    while condition is not None and condition is not body.inputs[1]:
        known = _constant(condition)
        if known is not None:
            return bool(known.reshape(()))
        producer = condition.producer()
        if producer is None or producer.op_type != "Identity":
            return False
        condition = producer.inputs[0]
    return condition is not None


def _simulate(node: ir.Node, body: ir.Graph, limit: int | None) -> int:
    """Run the part of the body that decides when the loop ends, which must not depend on data."""
    parameters = {value: index for index, value in enumerate(body.inputs)}
    inside = {output for item in body for output in item.outputs}
    pending, wanted = [body.outputs[0]], set[ir.Value]()
    constants: dict[str, NDArray[Any]] = {}
    state: dict[int, NDArray[Any]] = {}
    while pending:
        value = pending.pop()
        if value in wanted:
            continue
        wanted.add(value)
        producer = value.producer()
        if parameters.get(value, 0) >= 2:
            index = parameters[value]
            initial = node.inputs[index]
            assert initial is not None
            state[index] = _independent(initial)
            pending.append(body.outputs[index - 1])
        elif value in inside and producer is not None:
            if any(item.type is ir.AttributeType.GRAPH for item in producer.attributes.values()):
                raise _Kept("its condition is computed in a subgraph")
            pending += [item for item in producer.inputs if item is not None]
        elif value not in parameters:
            assert value.name is not None
            constants[value.name] = _independent(value)
    nodes = [ir.to_proto(item) for item in body if wanted.intersection(item.outputs)]
    names = [body.inputs[index].name or "" for index in (0, 1, *state)]
    results = [body.outputs[index].name or "" for index in (0, *(i - 1 for i in state))]
    graph = onnx.helper.make_graph(
        nodes,
        "condition",
        [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in names],
        [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in results],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [onnx.helper.make_opsetid("", node.graph.opset_imports.get("", 1))]  # type: ignore[union-attr]
    evaluator = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=opsets))
    for trip in range(MAX_TRIPS if limit is None else min(limit, MAX_TRIPS)):
        inputs = [np.array(trip, np.int64), np.array(True), *state.values()]
        condition, *after = evaluator.run(None, dict(zip(names, inputs, strict=True)))
        if not np.asarray(condition).reshape(()):
            return trip + 1
        state = {index: np.asarray(array) for index, array in zip(state, after, strict=True)}
    if limit is None or limit > MAX_TRIPS:
        raise _Kept(f"it runs more than {MAX_TRIPS} times, which is as many as are unrolled")
    return limit


def _independent(value: ir.Value) -> NDArray[Any]:
    array = _constant(value)
    if array is None:
        raise _Kept("how often it runs depends on data; only loops of a known length are supported")
    return array


def _unroll_scan(code: _Code) -> list[ir.Value]:
    """Rewrite Scan: the body takes the state and a slice of each input.

    And gives state and slices.
    """
    if code.opset < 9:
        return _unroll_batched_scan(code)
    inputs = [value for value in code.node.inputs if value is not None]
    count = len(inputs) - code.attribute("num_scan_inputs", 0)
    axes = code.attribute("scan_input_axes", [0] * (len(inputs) - count))
    output_axes = code.attribute("scan_output_axes", [0] * (len(code.node.outputs) - count))
    return _scan(code, inputs[:count], inputs[count:], axes, output_axes, "")


def _unroll_batched_scan(code: _Code) -> list[ir.Value]:
    """Rewrite Scan of version 8: states and inputs [N, ...] and [N, T, ...], by sequence."""
    if code.node.inputs[0] is not None:
        raise _Kept("sequences of different lengths are not supported")
    inputs = [value for value in code.node.inputs[1:] if value is not None]
    shape = _static_shape(inputs[-1])
    if shape is None:
        raise _Kept("the shape of its inputs is only known at run time")
    count = len(inputs) - code.attribute("num_scan_inputs", 0)
    rows = []
    for number in range(shape[0]):
        picked = [code.element(value, 0, number) for value in inputs]
        for source, item in zip(inputs, picked, strict=True):
            item.shape = ir.Shape(list(source.shape or ())[1:])
        outputs = [0] * (len(code.node.outputs) - count)
        axes = [0] * (len(inputs) - count)
        rows.append(_scan(code, picked[:count], picked[count:], axes, outputs, f"{number}/"))
    return [code.stack(parts, 0) for parts in zip(*rows, strict=True)]


def _scan(
    code: _Code,
    states: list[ir.Value],
    sequences: list[ir.Value],
    axes: Sequence[int],
    output_axes: Sequence[int],
    prefix: str,
) -> list[ir.Value]:
    body = code.body()
    backward = "scan_input_directions" if code.opset >= 9 else "directions"
    directions = code.attribute(backward, [0] * len(sequences))
    output_directions = code.attribute("scan_output_directions", [0] * len(output_axes))
    shape = _static_shape(sequences[0])
    if shape is None:
        raise _Kept("the length of its inputs is only known at run time")
    trips = shape[axes[0]]
    if trips == 0:
        raise _Kept("sequences of length 0 are not supported")
    code.check_size(trips, body)
    rows = []
    for trip in range(trips):
        slices = [
            code.element(sequence, axis, trips - 1 - trip if direction else trip)
            for sequence, axis, direction in zip(sequences, axes, directions, strict=True)
        ]
        outputs = code.insert(body, [*states, *slices], f"{prefix}{trip}")
        states = outputs[: len(states)]
        rows.append(outputs[len(states) :])
    stacked = []
    for index, (axis, direction) in enumerate(zip(output_axes, output_directions, strict=True)):
        parts = [row[index] for row in rows]
        stacked.append(code.stack(parts[::-1] if direction else parts, axis))
    return [*states, *stacked]


def _choose(code: _Code) -> list[ir.Value]:
    """Rewrite If: both branches, and Where between their results."""
    condition = code.node.inputs[0]
    assert condition is not None
    branches = [code.body(name) for name in ("then_branch", "else_branch")]
    must = _MUST_BE_CONSTANT.format("cond")
    count = sum(1 for branch in branches for _ in branch.all_nodes())
    if count > MAX_BRANCH_NODES:
        raise _Kept(
            f"{must}; its branches are {count} nodes, both are computed up to {MAX_BRANCH_NODES}"
        )
    for one, other in zip(*(branch.outputs for branch in branches), strict=True):
        shape = _static_shape(one)
        if shape is None or shape != _static_shape(other) or one.dtype != other.dtype:
            raise _Kept(f"{must}; its branches give different or unknown types")
    if code.opset < 9:
        raise _Kept(f"{must}; operator set {code.opset} has no Where")
    if _static_shape(condition) != ():
        shape_of_scalar = code.constant(np.array([], np.int64))
        condition = code.call("Reshape", [condition, shape_of_scalar])
    then, otherwise = (
        code.insert(branch, [], name)
        for branch, name in zip(branches, ("then", "else"), strict=True)
    )
    return [
        code.call("Where", [condition, one, other])
        for one, other in zip(then, otherwise, strict=True)
    ]


_REWRITES: dict[str, Callable[[_Code], list[ir.Value]]] = {
    "If": _choose,
    "Loop": _unroll_loop,
    "Scan": _unroll_scan,
}


def _constant(value: ir.Value) -> NDArray[Any] | None:
    tensor = convenience.get_const_tensor(value)
    return None if tensor is None else np.asarray(tensor.numpy())


def _known(value: ir.Value, name: str) -> NDArray[Any]:
    array = _constant(value)
    if array is None:
        raise _Kept(_MUST_BE_CONSTANT.format(name))
    return array


def _static_shape(value: ir.Value) -> tuple[int, ...] | None:
    if value.shape is None:
        return None
    extents = tuple(extent for extent in value.shape if isinstance(extent, int))
    return extents if len(extents) == len(value.shape) else None
