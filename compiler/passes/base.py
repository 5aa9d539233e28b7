"""Describe what a pass is, and the rewriting that all of them share.

A pass is a frozen dataclass: its fields are its options, its `repr` is what logs, dumps and
manifests show. It takes a module whose only Relax function is `main` and gives another of the
same signature. Variables keep their names as long as they keep their values, so that the
result can be compared with the original graph value by value.
"""

import logging
from abc import ABC, abstractmethod
from collections import Counter

import numpy as np
import tvm_ffi
from tvm import IRModule, relax

from edgec.compiler.ir.relax_helpers import count_uses, op_name

log = logging.getLogger("edgec.passes")


class Pass(ABC):
    """Rewrites a module."""

    def __call__(self, module: IRModule) -> IRModule:
        """Apply the pass, drop what became dead and check the result."""
        result = relax.transform.DeadCodeElimination(["main"])(self.apply(module))
        relax.analysis.well_formed(result)
        if not tvm_ffi.structural_equal(module["main"].ty, result["main"].ty):
            raise AssertionError(f"{self!r} changed the signature of main")
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%r: %s", self, _difference(module, result))
        return result

    @abstractmethod
    def apply(self, module: IRModule) -> IRModule:
        """Return the rewritten module."""


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
        """Return what a call becomes; None, as here, leaves it."""
        return None

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        """Rewrite one call whose arguments are rewritten already."""
        visited = super().visit_call_(call)
        replacement = self.rewrite(visited)
        return visited if replacement is None else replacement

    def definition(self, expression: relax.Expr, *operators: str) -> relax.Call | None:
        """Return the call of one of these operators that a variable holds, else None."""
        if not isinstance(expression, relax.Var):
            return None
        bound = self.lookup_binding(expression)
        if isinstance(bound, relax.Call) and op_name(bound) in operators:
            return bound
        return None

    def sole_definition(self, expression: relax.Expr, *operators: str) -> relax.Call | None:
        """Return the `definition`, but only if nothing else uses the variable.

        Rewriting into the producer of a value that is used twice would compute it twice.
        """
        if isinstance(expression, relax.Var) and self.uses.get(expression, 1) > 1:
            return None
        return self.definition(expression, *operators)

    def emit(self, expression: relax.Expr) -> relax.Var:
        """Bind a new intermediate value."""
        return self.builder_.emit(expression)

    def run(self) -> IRModule:
        """Return the module with `main` rewritten."""
        module = self.builder_.get()
        for variable, function in module.functions_items():
            if isinstance(function, relax.Function):
                self.builder_.update_func(variable, self.visit_expr(function))
        return self.builder_.get()


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


def apply_passes(module: IRModule, passes: tuple[Pass, ...]) -> IRModule:
    """Apply passes in order."""
    # Infinities and NaN in weights are values like others; NumPy warns of them.
    with np.errstate(all="ignore"):
        for rewrite in passes:
            module = rewrite(module)
    return module
