"""Find operators that share their weights: what is stored of them once as floats stays one."""

from collections.abc import Sequence

import numpy as np

from edgec.compiler.ir.anchors import Operator
from edgec.compiler.ir.graph import Graph

# Values that tell most weights apart before all are compared.
_FIRST = 64


def shared_weights(graph: Graph, operators: Sequence[Operator]) -> list[list[Operator]]:
    """Return operators with weights in groups that have the same, in the order of the first.

    1. The values are equal, and so is what becomes of them: type, groups and treatment.
    2. All have a bias or none: scales are corrected in another way without.
    """
    alike: dict[tuple[object, ...], list[list[Operator]]] = {}
    groups: list[list[Operator]] = []
    for operator in operators:
        weight = operator.weight
        assert weight is not None
        array = weight.array
        independent = int(getattr(graph.definitions[operator.anchor].attrs, "groups", 1))
        traits = operator.kind, weight.axis, independent, operator.keep, operator.bias is None
        key = (*traits, array.shape, array.reshape(-1)[:_FIRST].tobytes())
        known = alike.setdefault(key, [])
        for group in known:
            first = group[0].weight
            if first is not None and np.array_equal(first.array, array):
                group.append(operator)
                break
        else:
            known.append([operator])
            groups.append(known[-1])
    return groups
