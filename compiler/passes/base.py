"""What a pass is, and the rewriting that all of them share.

A pass is a frozen dataclass: its fields are its options, its `repr` is what logs, dumps and
manifests show. It takes a module whose only Relax function is `main` and gives another of the
same signature. Variables keep their names as long as they keep their values, so that the
result can be compared with the original graph value by value.
"""

import logging
from abc import ABC, abstractmethod
from collections import Counter
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from numpy.typing import NDArray
from tvm import IRModule, relax
from tvm.ir import GenericConst

log = logging.getLogger("edgec.passes")


class Pass(ABC):
    """Rewrites a module."""

    def __call__(self, module: IRModule) -> IRModule:
        """Apply the pass, drop what became dead and check the result."""
        result = relax.transform.DeadCodeElimination(["main"])(self.apply(module))
        relax.analysis.well_formed(result)
        if not tvm_ffi.structural_equal(module["main"].ty, result["main"].ty):
            raise AssertionError(f"{self!r} changed the signature of main")
        log.debug("%r: %s", self, _difference(module, result))
        return result

    @abstractmethod
    def apply(self, module: IRModule) -> IRModule:
        """The rewritten module."""


class CallRewriter(relax.PyExprMutator):
    """Visits every call of `main` in order and replaces those that `rewrite` answers.

    Subclasses are decorated with `@relax.expr_functor.mutator`.

    Attributes:
        uses: how often each variable of the old `main` is read.
        binding: variable of the old `main` whose value is being visited.
    """

    def __init__(self, module: IRModule) -> None:
        super().__init__(module)
        self.uses = count_uses(module["main"])
        self.binding: relax.Var | None = None

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        """Remember which value it is."""
        self.binding = binding.var
        super().visit_var_binding_(binding)

    def rewrite(self, call: relax.Call) -> relax.Expr | None:
        """What a call becomes; None, as here, leaves it."""
        return None

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        """Rewrite one call whose arguments are rewritten already."""
        visited = super().visit_call_(call)
        replacement = self.rewrite(visited)
        return visited if replacement is None else replacement

    def definition(self, expression: relax.Expr, *operators: str) -> relax.Call | None:
        """The call of one of these operators that a variable holds, else None."""
        if not isinstance(expression, relax.Var):
            return None
        bound = self.lookup_binding(expression)
        if isinstance(bound, relax.Call) and op_name(bound) in operators:
            return bound
        return None

    def sole_definition(self, expression: relax.Expr, *operators: str) -> relax.Call | None:
        """Like `definition`, but only if nothing else uses the variable.

        Rewriting into the producer of a value that is used twice would compute it twice.
        """
        if isinstance(expression, relax.Var) and self.uses.get(expression, 1) > 1:
            return None
        return self.definition(expression, *operators)

    def emit(self, expression: relax.Expr) -> relax.Var:
        """Bind a new intermediate value."""
        return self.builder_.emit(expression)

    def run(self) -> IRModule:
        """The module with `main` rewritten."""
        module = self.builder_.get()
        for variable, function in module.functions_items():
            if isinstance(function, relax.Function):
                self.builder_.update_func(variable, self.visit_expr(function))
        return self.builder_.get()


def count_uses(function: relax.Function) -> Counter[relax.Var]:
    """How often each variable is read; reading it twice in one call counts twice.

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
    """Whether all of `main` has shapes that are known when compiling."""
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
    """Operator of a call, `relax.add` for example; empty if it is no call of an operator."""
    if isinstance(expression, relax.Call) and isinstance(expression.op, tvm.ir.Op):
        return str(expression.op.name)
    return ""


def constant(array: NDArray[Any]) -> GenericConst:
    """An array as a Relax constant."""
    return relax.const(np.ascontiguousarray(array).reshape(array.shape), str(array.dtype))


def value_of(expression: Any) -> NDArray[Any] | None:
    """The array behind a constant, None for anything else."""
    return expression.value.numpy() if isinstance(expression, GenericConst) else None


def scalar_of(expression: Any) -> float | None:
    """The number behind a constant with one element, None for anything else."""
    if isinstance(expression, GenericConst):
        value = expression.value.numpy()
        if value.size == 1:
            return float(value.reshape(()))
    return None


def shape_of(expression: relax.Expr) -> tuple[int, ...] | None:
    """Static shape of an expression, None if it is not static."""
    kind = expression.ty
    shape = kind.shape if isinstance(kind, relax.TensorType) else None
    if not isinstance(shape, relax.ShapeExpr):
        return None
    if not all(isinstance(extent, tvm.tirx.IntImm) for extent in shape.values):
        return None
    return tuple(int(extent) for extent in shape.values)


def dtype_of(expression: relax.Expr) -> str:
    """Dtype name of a tensor expression."""
    return str(expression.ty.dtype.dtype)


def substitute(expression: Any, values: dict[Any, Any]) -> Any:
    """The expression with its variables replaced."""

    @relax.expr_functor.mutator
    class Replace(relax.PyExprMutator):
        def visit_var_(self, variable: relax.Var) -> relax.Expr:
            return values.get(variable, variable)

        def visit_dataflow_var_(self, variable: relax.Var) -> relax.Expr:
            return values.get(variable, variable)

    return Replace().visit_expr(expression)


def _difference(before: IRModule, after: IRModule) -> str:
    if tvm_ffi.structural_equal(before, after):
        return "no change"
    counts = [
        Counter(
            op_name(binding.value) or type(binding.value).__name__
            for block in module["main"].body.blocks
            for binding in block.bindings
        )
        for module in (before, after)
    ]
    removed, added = counts[0] - counts[1], counts[1] - counts[0]
    return f"removed {dict(removed)}, added {dict(added)}"
