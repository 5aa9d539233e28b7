"""Provide questions about Relax expressions, and constants of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import IRModule, relax
from tvm.ir import GenericConst

# Types that NumPy has, whose values it reads where they are.
_INTEGERS = (f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
_SHARED = frozenset(("bool", "float16", "float32", "float64", *_INTEGERS))


def count_uses(function: relax.Function) -> Counter[relax.Var]:
    """Return how often each variable is read; reading it twice in one call counts twice.

    Keyed by the variable itself: different variables may have the same name.
    """
    uses: Counter[relax.Var] = Counter()

    def visit(expression: Any) -> None:
        if isinstance(expression, relax.Var):
            uses[expression] += 1

    for block in function.body.blocks:
        for binding in block.bindings:
            relax.analysis.post_order_visit(binding.value, visit)
            _count_repeats(binding.value, uses)
    visit(function.body.body)
    return uses


def _count_repeats(value: Any, uses: Counter[relax.Var]) -> None:
    """`post_order_visit` sees x only once in `multiply(x, x)`."""
    if isinstance(value, relax.Call):
        arguments = Counter(arg for arg in value.args if isinstance(arg, relax.Var))
        for argument, count in arguments.items():
            uses[argument] += count - 1


def is_static(module: IRModule) -> bool:
    """Return whether all of `main` has shapes that are known when compiling."""
    function = module["main"]
    bindings = [binding for block in function.body.blocks for binding in block.bindings]
    return all(isinstance(binding, relax.VarBinding) for binding in bindings) and all(
        _has_static_type(variable.ty)
        for variable in [*function.params, *(binding.var for binding in bindings)]
    )


def _has_static_type(kind: Any) -> bool:
    if isinstance(kind, relax.TupleType):
        return all(map(_has_static_type, kind.fields))
    if not isinstance(kind, relax.TensorType) or not isinstance(kind.shape, relax.ShapeExpr):
        return False
    return all(isinstance(extent, tvm.tirx.IntImm) for extent in kind.shape.values)


def op_name(expression: Any) -> str:
    """Return operator of a call, `relax.add` for example; empty if it is no call of an operator."""
    if isinstance(expression, relax.Call) and isinstance(expression.op, tvm.ir.Op):
        return str(expression.op.name)
    return ""


def constant(array: NDArray[Any]) -> GenericConst:
    """Return an array as a Relax constant."""
    return relax.const(np.ascontiguousarray(array).reshape(array.shape), str(array.dtype))


def value_of(expression: Any) -> NDArray[Any] | None:
    """Return the array behind a constant, None for anything else.

    It is the constant's own memory, which nobody may change: weights are in memory once.
    """
    if not isinstance(expression, GenericConst):
        return None
    tensor = expression.value
    if str(tensor.dtype) not in _SHARED:
        return np.asarray(tensor.numpy())
    array = np.from_dlpack(tensor)
    array.flags.writeable = False
    return array


def scalar_of(expression: Any) -> float | None:
    """Return the number behind a constant with one element, None for anything else."""
    if isinstance(expression, GenericConst):
        value = expression.value.numpy()
        if value.size == 1:
            return float(value.reshape(()))
    return None


def shape_of(expression: relax.Expr) -> tuple[int, ...] | None:
    """Return static shape of an expression, None if it is not static."""
    kind = expression.ty
    shape = kind.shape if isinstance(kind, relax.TensorType) else None
    if not isinstance(shape, relax.ShapeExpr):
        return None
    if not all(isinstance(extent, tvm.tirx.IntImm) for extent in shape.values):
        return None
    return tuple(int(extent) for extent in shape.values)


def dtype_of(expression: relax.Expr) -> str:
    """Return dtype name of a tensor expression."""
    return str(expression.ty.dtype.dtype)


def with_bindings(
    module: IRModule,
    bindings: Sequence[tuple[relax.Var, Any]],
    known: Mapping[Any, Any] = MappingProxyType({}),
    parameters: Sequence[relax.Var] = (),
) -> IRModule:
    """Return a module in which `main` computes other values; its other functions stay.

    Args:
        module: of one dataflow block.
        bindings: variables of `main` and what they are now, in terms of variables of `main`.
        known: what stands in the place of variables that are computed no longer.
        parameters: parameters behind those that `main` has.
    """
    function = module["main"]
    others = {v: f for v, f in module.functions_items() if v.name_hint != "main"}
    builder, made = relax.BlockBuilder(IRModule(others)), dict(known)
    with builder.function("main", [*function.params, *parameters], dict(function.attrs or {})):
        with builder.dataflow():
            for variable, value in bindings:
                made[variable] = builder.emit(substitute(value, made), variable.name)
            result = builder.emit_output(substitute(function.body.body, made))
        builder.emit_func_output(result)
    return builder.get()


def substitute(expression: Any, values: dict[Any, Any]) -> Any:
    """Return the expression with its variables replaced."""

    @relax.expr_functor.mutator
    class Replace(relax.PyExprMutator):
        def visit_var_(self, variable: relax.Var) -> relax.Expr:
            return values.get(variable, variable)

        def visit_dataflow_var_(self, variable: relax.Var) -> relax.Expr:
            return values.get(variable, variable)

    return Replace().visit_expr(expression)
