"""Which operators run sparse, and why others with zeros among their weights do not."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import IRModule

from edgec.compiler.dataflow import Graph
from edgec.compiler.kernels.codes import dot_of
from edgec.compiler.passes.base import is_static, op_name
from edgec.compiler.passes.choose_sparse import has_zeros, sparse_choices
from edgec.compiler.passes.pack_layouts import PackLayouts
from edgec.compiler.quantize.plan import find_operators
from edgec.targets import Target


@dataclass(frozen=True)
class KernelRow:
    """One operator with many zeros among its weights.

    Attributes:
        name: of the value that it gives.
        density: share of its weights that is not zero.
        sparse: whether a sparse kernel computes it.
        reason: for people.
    """

    name: str
    density: float
    sparse: bool
    reason: str


def kernel_rows(
    module: IRModule, value_names: Mapping[str, str], target: Target
) -> tuple[KernelRow, ...]:
    """Look at a canonical or quantized module, in the order of its operators.

    Args:
        module: the module.
        value_names: ONNX names by those of variables.
        target: that the kernels are for.
    """
    names = _names_by_weight(Graph(module, value_names)) if is_static(module) else {}
    if not names:
        return ()
    packed = PackLayouts(target.float_lanes, dot_of(target))(module)
    return tuple(
        KernelRow(
            names.get(_digest(choice.weight), variable.name),
            float(np.count_nonzero(choice.weight) / choice.weight.size),
            choice.kernel is not None,
            choice.reason,
        )
        for variable, choice in sparse_choices(packed, target).items()
    )


def describe_kernels(rows: Sequence[KernelRow]) -> str:
    """A line for each operator, below one for all."""
    count = sum(row.sparse for row in rows)
    lines = [f"sparse kernels for {count} of {len(rows)} operators with many zeros"]
    lines += [
        f"  {row.name}: {row.density:.0%} nonzero, {'sparse' if row.sparse else 'dense'}: "
        f"{row.reason}"
        for row in rows
    ]
    return "\n".join(lines)


def _names_by_weight(graph: Graph) -> dict[bytes, str]:
    """Of operators with many zeros, by the digest of their weights or stored codes."""
    operators = {operator.anchor: operator.name for operator in find_operators(graph)}
    names: dict[bytes, str] = {}
    for variable, call in graph.bindings:
        if len(getattr(call, "args", ())) < 2 or op_name(call) == "relax.dequantize":
            continue
        weight = _weight(graph, call.args[1])
        if weight is not None and has_zeros(weight):
            names.setdefault(_digest(weight), operators.get(variable, graph.names[variable]))
    return names


def _weight(graph: Graph, expression: Any) -> NDArray[Any] | None:
    stored = graph.definitions.get(graph.operand(expression))
    if stored is not None and op_name(stored) == "relax.dequantize":
        expression = stored.args[0]
    return graph.constant(expression)


def _digest(weight: NDArray[Any]) -> bytes:
    """The same for the same values, whatever their shape and type."""
    return hashlib.sha256(weight.astype(np.float32).tobytes()).digest()
