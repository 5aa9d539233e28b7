"""Replace operators by kernel templates, in the layouts that they want.

Images become channel-blocked, [N, C, H, W] -> [N, ceil(C / c), H, W, c] with c lanes of the
target's vectors, from the first convolution on; matrices stay row-major. A value is converted
only where an operator needs the other layout. Elementwise operators go into the epilogue of the
kernel that computes their input, where nothing else reads that; what no template covers stays as
it is, on plain layouts, for the generic path.

In a quantized graph values stay quantized between kernels, where the target multiplies them:
`dequantize` only says what they stand for, and `quantize` is the last step of the epilogue of the
kernel before it. What takes floats dequantizes first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from tvm import IRModule, relax

from edgec.compiler.ir.relax_helpers import (
    count_uses,
    dtype_of,
    op_name,
    shape_of,
    substitute,
    value_of,
)
from edgec.compiler.kernels.emit.requantize import Requantization, decided_requantizations
from edgec.compiler.kernels.isa import Dot
from edgec.compiler.lowering.pack.context import Context, Decline
from edgec.compiler.lowering.pack.data_movement import match_rows, match_split
from edgec.compiler.lowering.pack.quantized import match_dequantize, match_quantize
from edgec.compiler.lowering.pack.table import ANY_DTYPE, MATCHERS, WITH_INDICES
from edgec.compiler.lowering.pack.values import PackedValue
from edgec.compiler.numerics.support import Declined
from edgec.compiler.passes.base import Pass

# An attribute of `main`: names of parameters that are brought into blocks at once. Kernels that
# read them are then those that read such values inside a graph.
BLOCKED_INPUTS = "edgec.blocked_inputs"
# Parts of layers have it: how accumulators of some channels are requantized, as of all of them.
REQUANTIZATIONS = "edgec.requantizations"

_ROUNDING = {"relax.dequantize": match_dequantize, "relax.quantize": match_quantize}


_NO_TEMPLATE = Declined("no kernel template computes it")


@dataclass
class Notes:
    """Notes describe what a packing tells about its operators.

    Attributes:
        why_in_floats: reason why no operator computes on integers on this target, if there is one.
        declines: every kernel that could not compute an operator, in order.
        on_integers: whether the kernel of an operator reads quantized values, by its label: the
            name of the value that it gives.
        requantizations: by the names of the old function's variables how accumulators become
            quantized in fixed point.
        held: variables of the old function whose values some kernel writes to memory as they are,
            not fused away and not quantized, and whether their channels are in blocks there.
    """

    why_in_floats: str = ""
    declines: list[Decline] = field(default_factory=list)
    on_integers: dict[str, bool] = field(default_factory=dict)
    requantizations: dict[str, Requantization] = field(default_factory=dict)
    held: dict[Any, bool] = field(default_factory=dict)

    def why_floats(self, labels: Sequence[str]) -> str | None:
        """Return why an operator computes on floats; None if it does not.

        Args:
            labels: names of all values that it computes. It computes on integers if a kernel of
                any of them reads quantized values: what follows happens in registers.

        Returns:
            An empty reason if its kernels declined without one, which is a bug.
        """
        known = [self.on_integers[label] for label in labels if label in self.on_integers]
        if not known or any(known):
            return None
        if self.why_in_floats:
            return self.why_in_floats
        reasons = [d.reason for d in self.declines if d.label in labels]
        return "; ".join(dict.fromkeys(reasons))

    def describe(self) -> str:
        """Return a line for each kind of operator that its kernel declined; empty if none did.

        Operators of which there is no kernel are left to `time_estimate.describe_generic`.
        """
        labels: dict[tuple[str, str], list[str]] = {}
        for decline in self.declines:
            if decline.generic and decline.reason != _NO_TEMPLATE.reason:
                labels.setdefault((decline.operator, decline.reason), []).append(decline.label)
        lines = [
            f"  {operator.removeprefix('relax.')}: {reason}: {', '.join(names)}"
            for (operator, reason), names in labels.items()
        ]
        return "\n".join(["generic code, as kernels declined:", *lines]) if lines else ""


@dataclass(frozen=True)
class PackLayouts(Pass):
    """Rewrite `main` to kernel templates.

    Attributes:
        lanes: float32 values in a vector of the target.
        dot: how the target multiplies quantized values; None: it does not.
        names: the names of values by those of variables, for people; others are called as their
            variables.
        notes: filled by the pass.
    """

    lanes: int
    dot: Dot | None = field(default=None, repr=False)
    names: Mapping[str, str] = field(default_factory=dict, repr=False)
    notes: Notes = field(default_factory=Notes, repr=False, compare=False)

    def apply(self, module: IRModule) -> IRModule:
        """Rewrite the one dataflow block of `main`."""
        context = Context(module, self.lanes, self.dot)
        packed = _pack(module["main"], context, self.names)
        self.notes.declines += context.declines
        self.notes.on_integers.update(context.on_integers)
        self.notes.requantizations.update(context.requantizations)
        self.notes.held |= _held(packed["main"], context.values)
        return packed


def _pack(function: relax.Function, context: Context, names: Mapping[str, str]) -> IRModule:
    """Return the module with a new `main`."""
    uses = count_uses(function)
    in_blocks = (function.attrs or {}).get(BLOCKED_INPUTS, ())
    context.is_part = REQUANTIZATIONS in (function.attrs or {})
    context.decided = decided_requantizations((function.attrs or {}).get(REQUANTIZATIONS, ""))
    for parameter in function.params:
        shape = shape_of(parameter)
        if shape is not None:
            context.values[parameter] = PackedValue(parameter, shape, False, uses[parameter])
    (block,) = function.body.blocks
    labels = _labels(block.bindings, names)
    with context.builder.function("main", list(function.params)):
        with context.builder.dataflow():
            for parameter in function.params:
                if parameter.name in in_blocks:
                    context.values[parameter] = context.blocked(context.values[parameter])
            for binding in block.bindings:
                variable = binding.var
                context.old[variable] = binding.value
                context.label, context.operator = labels[variable], op_name(binding.value)
                context.variable = variable.name
                context.values[variable] = _visit(context, binding, uses[variable])
            result = _result(context, function.body.body)
            bound = context.builder.emit_output(result)
        context.builder.emit_func_output(bound)
    return context.builder.get()


def _held(function: relax.Function, values: Mapping[Any, PackedValue]) -> dict[Any, bool]:
    """Return the old variables that stand for a variable that the new function still computes.

    And whether their channels are in blocks.
    """
    (block,) = function.body.blocks
    live: set[Any] = set(function.params)
    relax.analysis.post_order_visit(function.body.body, live.add)
    for binding in reversed(block.bindings):
        if binding.var in live:
            relax.analysis.post_order_visit(binding.value, live.add)
    return {
        old: value.blocked
        for old, value in values.items()
        if value.qparams is None and value.expression in live
    }


def _result(context: Context, expression: Any) -> Any:
    """Return what `main` gives, in plain layouts."""
    bound = context.old.get(expression, expression)
    if isinstance(bound, relax.Tuple):
        return relax.Tuple([context.plain_expression(field) for field in bound.fields])
    return context.plain_expression(expression)


def _visit(context: Context, binding: Any, uses: int) -> PackedValue:
    """Return what a binding of the old function becomes."""
    call = binding.value
    if isinstance(call, relax.Var):
        known = context.values.get(call)
        if known is not None:
            # The alias is no reader of its own, its readers are.
            return replace(known, uses=known.uses - 1 + uses)
    shape = shape_of(binding.var)
    if shape is not None and value_of(call) is not None:
        return PackedValue(call, shape, False, uses)
    kernels = len(context.made)
    found = _matched(context, binding)
    if found is None:
        return _generic(context, binding, uses)
    if isinstance(found, Declined):
        context.decline(found, generic=True)
        return _generic(context, binding, uses)
    if context.operator not in _ROUNDING:
        context.record(context.sources_since(kernels))
    return replace(found, uses=uses)


def _matched(context: Context, binding: Any) -> PackedValue | Declined | None:
    """Return what the matcher of a binding answers; None if no matcher is for it."""
    call, name = binding.value, op_name(binding.value)
    shape = shape_of(binding.var)
    if shape is None:
        return None
    rows = match_rows(context, call) if context.is_part else None
    if rows is not None:
        return rows
    if isinstance(call, relax.TupleGetItem):
        return match_split(context, call, shape)
    if name in _ROUNDING and context.dot is not None:
        return _ROUNDING[name](context, call)
    if not name or name in _ROUNDING:
        return None
    if name not in MATCHERS:
        return _NO_TEMPLATE
    # Operands behind them are codes, or say which.
    arguments = call.args[: WITH_INDICES.get(name, len(call.args))]
    if name not in ANY_DTYPE and not all(_is_float32(x) for x in (binding.var, *arguments)):
        return Declined("kernel templates compute on float32 tensors of known shapes only")
    return MATCHERS[name](context, call)


def _generic(context: Context, binding: Any, uses: int) -> PackedValue:
    """Leave an operator as it is, on plain layouts."""
    substitution: dict[Any, Any] = {}
    call = binding.value

    def visit(expression: Any) -> None:
        if isinstance(expression, relax.Var) and expression in context.values:
            substitution[expression] = context.plain_expression(expression)

    relax.analysis.post_order_visit(call, visit)
    moved = substitute(call, substitution)
    tensors = [x for x in substitution.values() if isinstance(x.ty, relax.TensorType)]
    if op_name(call) and op_name(call) not in _ROUNDING and tensors:
        context.record(tensors)
    variable = context.builder.emit(moved, binding.var.name)
    shape = shape_of(variable)
    if shape is None:
        context.values[binding.var] = PackedValue(variable, (), False, uses)
    return PackedValue(variable, shape or (), False, uses)


def _labels(bindings: Sequence[Any], names: Mapping[str, str]) -> dict[relax.Var, str]:
    """Return what people call each value.

    That is its own name, that of its alias, or that of the floats before a quantize.
    """
    aliases = {b.value: names.get(b.var.name) for b in bindings if isinstance(b.value, relax.Var)}
    labels: dict[relax.Var, str] = {}
    for binding in bindings:
        variable, value = binding.var, binding.value
        label = names.get(variable.name) or aliases.get(variable)
        if label is None and op_name(value) in _ROUNDING:
            label = labels.get(value.args[0])
        labels[variable] = label or variable.name
    return labels


def _are_indices(expression: Any) -> bool:
    array = value_of(expression)
    return array is not None and np.issubdtype(array.dtype, np.integer)


def _is_float32(expression: Any) -> bool:
    """Tell whether an argument is a float32 tensor, constant indices, or no tensor."""
    kind = getattr(expression, "ty", None)
    if isinstance(kind, relax.TupleType):
        tensors = [field for field in kind.fields if isinstance(field, relax.TensorType)]
        return all(str(field.dtype.dtype) == "float32" for field in tensors)
    if not isinstance(kind, relax.TensorType) or _are_indices(expression):
        return True
    return dtype_of(expression) == "float32" and shape_of(expression) is not None
