"""Provide sparse kernels for weights whose zeros are where these gain by them.

The dense and the sparse kernel of an operator are estimated by the models of the schedule
library; a sparse one must be clearly better, as neither model is exact. Single zeros are no use:
what counts is how often all weights of a vector of outputs are zero for an input.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import IRModule, relax

from edgec.compiler.ir.graph import Graph
from edgec.compiler.ir.relax_helpers import constant, is_static, op_name, value_of
from edgec.compiler.kernels.conv.sparse import SparseConvWorkload, lists_of_weight
from edgec.compiler.kernels.conv.workload import ConvWorkload
from edgec.compiler.kernels.matmul.dense import MatmulWorkload
from edgec.compiler.kernels.matmul.sparse import SparseMatmulWorkload, lists_of_matrix
from edgec.compiler.kernels.sparse_lists import MAX_VECTORS, Lists
from edgec.compiler.kernels.template import from_text, to_text
from edgec.compiler.kernels.templates import TEMPLATES
from edgec.compiler.lowering.kernel_operators import kernel_call
from edgec.compiler.lowering.schedule import default_decide
from edgec.compiler.passes.base import Pass
from edgec.targets.target import Target

# Share of zeros below which no kernel is looked for.
FEW_ZEROS = 0.3

# Share of the dense kernel's estimated time that a sparse one may take: measured, the two models
# disagree by a fifth at most.
WORTHWHILE = 0.8


@dataclass(frozen=True)
class SparseKernel:
    """A sparse kernel describes what takes the place of a dense kernel.

    Attributes:
        operator: its template.
        workload: the workload of that.
        lists: the weights.
    """

    operator: str
    workload: SparseConvWorkload | SparseMatmulWorkload
    lists: Lists

    def call(self, dense: relax.Call) -> relax.Call:
        """Return the call that replaces the dense one."""
        arrays = (self.lists.values, self.lists.places, self.lists.starts)
        arguments = [dense.args[0], *map(constant, arrays), *dense.args[2:]]
        shape = [int(extent) for extent in dense.attrs["shape"]]
        dtype_and_label = str(dense.attrs["dtype"]), str(dense.attrs["label"])
        return kernel_call(
            self.operator, arguments, to_text(self.workload), shape, *dtype_and_label
        )


@dataclass(frozen=True)
class SparseChoice:
    """A sparse choice describes how an operator with zeros among its weights is computed.

    Attributes:
        label: the value that it computes, for people.
        weight: its weights, as the packed module has them.
        kernel: the sparse one; None: the dense one stays.
        reason: for people.
    """

    label: str
    weight: NDArray[Any]
    kernel: SparseKernel | None
    reason: str


@dataclass(frozen=True)
class ChooseSparse(Pass):
    """Rewrite calls of dense templates in a packed `main`.

    Attributes:
        choices: the choices of that module, see `sparse_choices`.
    """

    choices: Mapping[Any, SparseChoice] = field(repr=False)

    def apply(self, module: IRModule) -> IRModule:
        """Replace the calls; the same module if none is replaced."""
        chosen = {v: c.kernel for v, c in self.choices.items() if c.kernel is not None}
        if not chosen:
            return module

        def change(
            _builder: relax.BlockBuilder, variable: Any, value: Any, _current: Callable[[Any], Any]
        ) -> Any:
            kernel = chosen.get(variable)
            return value if kernel is None else kernel.call(value)

        return Graph(module, {}).map_values(change)


def sparse_choices(module: IRModule, target: Target) -> dict[Any, SparseChoice]:
    """Return a choice for each operator of a packed module with many zeros among its weights.

    By its variable.

    None in a module of shapes that only a run can tell.
    """
    found: dict[Any, SparseChoice] = {}
    if not is_static(module):
        return found
    for block in module["main"].body.blocks:
        for binding in block.bindings:
            choice = _choice(binding.value, target)
            if choice is not None:
                found[binding.var] = choice
    return found


def _has_zeros(weight: NDArray[Any]) -> bool:
    """Return whether a weight has enough of them to look for a sparse kernel."""
    nonzeros = int(np.count_nonzero(weight))
    return weight.ndim > 1 and nonzeros <= (1 - FEW_ZEROS) * weight.size


def _choice(call: Any, target: Target) -> SparseChoice | None:
    name = op_name(call)
    template = TEMPLATES.get(name)
    if template is None or not (template.sparse or template.why_dense) or len(call.args) < 2:
        return None
    weight = value_of(call.args[1])
    # Bytes hold two quantized values of four bits: their zeros say nothing.
    if weight is None or weight.dtype == np.uint8 or not _has_zeros(weight):
        return None
    workload = from_text(template.workload, str(call.attrs["workload"]))
    label = str(call.attrs["label"])
    why_none = template.why_dense
    if weight.dtype != np.float32 and not why_none:
        why_none = "there are no sparse kernels for packed weights"
    elif name == "edgec.matmul" and not workload.packed:
        why_none = "there is no sparse kernel for a matrix of each product in a batch"
    elif name == "edgec.conv" and workload.groups > 1:
        why_none = "there is no sparse kernel for convolutions of groups"
    elif name == "edgec.conv" and workload.plain_input:
        why_none = "there is no sparse kernel for the few channels of a model's input"
    if why_none:
        return SparseChoice(label, weight, None, why_none)
    best = min(
        _kernels(workload, weight, target), key=lambda k: _cycles(k.operator, k.workload, target)
    )
    ratio = _cycles(best.operator, best.workload, target) / _cycles(name, workload, target)
    left = best.workload.macs / workload.macs
    reason = f"{left:.0%} of the multiplications are left, {ratio:.0%} of the estimated time"
    if ratio <= WORTHWHILE:
        return SparseChoice(label, weight, best, reason)
    width = best.workload.width
    why = f"few inputs are zero for {width} neighbouring outputs: " if left > 0.5 else ""
    return SparseChoice(label, weight, None, why + reason)


def _kernels(
    workload: ConvWorkload | MatmulWorkload, weight: NDArray[Any], target: Target
) -> Iterator[SparseKernel]:
    """Yield a kernel for each number of vectors of outputs that may share a list."""
    c = target.float_lanes
    outputs = workload.n if isinstance(workload, MatmulWorkload) else workload.out_channels
    for vectors in range(1, min(MAX_VECTORS, math.ceil(outputs / c)) + 1):
        width = vectors * c
        if isinstance(workload, MatmulWorkload):
            lists = lists_of_matrix(weight, width)
            sparse = SparseMatmulWorkload(workload, width, lists.entries)
            yield SparseKernel("edgec.sparse_matmul", sparse, lists)
        else:
            lists = lists_of_weight(workload, weight, width, c)
            of_conv = SparseConvWorkload(workload, width, lists.entries)
            yield SparseKernel("edgec.sparse_conv", of_conv, lists)


def _cycles(name: str, workload: Any, target: Target) -> float:
    decision = default_decide(name, workload, target)
    return TEMPLATES[name].estimate(workload, decision, target)
