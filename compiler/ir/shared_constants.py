"""Keep one copy of constants that are the same in several modules and programs of one model."""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import IRModule, relax
from tvm.ir import GenericConst

from edgec.compiler.ir.program import Program, Value
from edgec.compiler.ir.relax_helpers import value_of

# Smaller ones are not worth looking at.
LEAST_BYTES = 4096


class SharedConstants:
    """Shared constants remember constants by their content, as long as they live."""

    def __init__(self) -> None:
        self._constants: dict[bytes, GenericConst] = {}
        self._arrays: dict[bytes, NDArray[Any]] = {}

    def of_module(self, module: IRModule) -> IRModule:
        """Return a module that has constants of those before."""
        mutator = _Replaced(module, self._constants)
        for variable, function in module.functions_items():
            if isinstance(function, relax.Function):
                mutator.builder_.update_func(variable, mutator.visit_expr(function))
        return mutator.builder_.get()

    def of_program(self, program: Program) -> None:
        """Give a program arrays of those before, in place."""
        for value in program.constants():
            self._share(value)

    def _share(self, value: Value) -> None:
        if value.array is None or value.array.nbytes < LEAST_BYTES:
            return
        value.array = self._arrays.setdefault(content_digest(value.array), value.array)


@relax.expr_functor.mutator
class _Replaced(relax.PyExprMutator):
    def __init__(self, module: IRModule, known: dict[bytes, GenericConst]) -> None:
        super().__init__(module)
        self._known = known

    def visit_generic_const_(self, op: GenericConst) -> relax.Expr:
        array = value_of(op)
        if array is None or array.nbytes < LEAST_BYTES:
            return op
        return self._known.setdefault(content_digest(array), op)


def content_digest(array: NDArray[Any]) -> bytes:
    """Return what tells an array from others: of its values, shape and dtype."""
    digest = hashlib.blake2b(f"{array.dtype} {array.shape}".encode(), digest_size=32)
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.digest()
