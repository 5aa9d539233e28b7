"""Keep one copy of constants that are the same in several modules and programs of one model."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import IRModule, relax
from tvm.ir import GenericConst

from edgec.compiler.ir.program import Program, Value
from edgec.compiler.ir.relax_helpers import value_of

# Smaller ones are not worth looking at.
LEAST_BYTES = 4096
FILE = "packed.bin"
ALIGNMENT = 64


class SharedConstants:
    """Shared constants remember constants by their content, as long as they live.

    Args:
        folder: where arrays of programs are kept, mapped; None keeps them in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._file = None if folder is None else folder / FILE
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
        digest = content_digest(value.array)
        if digest not in self._arrays:
            self._arrays[digest] = self._kept(value.array)
        value.array = self._arrays[digest]

    def _kept(self, array: NDArray[Any]) -> NDArray[Any]:
        if self._file is None:
            return array
        with self._file.open("ab") as stream:
            place = stream.tell() + -stream.tell() % ALIGNMENT
            stream.write(bytes(place - stream.tell()))
            stream.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return np.memmap(self._file, array.dtype, "r", place, array.shape)


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
