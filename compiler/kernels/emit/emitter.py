"""Write TIR loop nests, statement by statement.

Kernels are written at the level at which they run: flat buffers, vector loads, explicit register
tiles. TVM generates the machine code; no schedule stands between what is written here and what
is executed.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tvm
from tvm import tirx
from tvm.ir import PointerType, PrimType, StringImm, TensorLoad

from edgec.compiler.kernels.isa import isa_of
from edgec.compiler.kernels.vectors import lanes_of
from edgec.targets.target import Target

CACHE_LINE_BYTES = 64

# Vectors that are read from memory, about which TVM knows nothing.
_OPAQUE = (TensorLoad, tirx.Broadcast)

Index = Any
"""A TIR integer expression or a Python integer."""


def index(value: Index) -> Any:
    """Return an int32 expression."""
    return tirx.IntImm("int32", value) if isinstance(value, int) else value


def wide(value: Any) -> Any:
    """Return an index in 64 bits; see `Emitter.loop`."""
    return tirx.Cast("int64", index(value))


def hidden(number: int, task: Any) -> Any:
    """Return a number as a value that LLVM cannot see through; tasks are fewer than 2**30."""
    return tirx.IntImm("int32", number) + tirx.shift_right(task, tirx.IntImm("int32", 30))


def _consecutive(at: Index, lanes: int) -> Any:
    first = index(at)
    return tirx.Ramp(first, tirx.IntImm(str(first.ty.dtype), 1), lanes)


class Emitter:
    """Collects statements; loops and branches are context managers.

    The function takes one pointer per buffer, in the order of `buffer`, then `begin` and `end`,
    the range of tasks that a call is to do.

    Attributes:
        target: what the code is for.
        isa: how the target's instructions are written.
    """

    def __init__(self, target: Target) -> None:
        self.target, self.isa = target, isa_of(target)
        self._scopes: list[list[Any]] = [[]]
        self._parameters: list[Any] = []
        self._pointers: dict[Any, Any] = {}
        self._code: dict[str, str] = {}
        self.begin = tirx.Var("begin", "int32")
        self.end = tirx.Var("end", "int32")

    def buffer(self, name: str, size: int, dtype: str) -> Any:
        """Return a parameter: a flat buffer of `size` elements that aliases no other."""
        pointer = tirx.Var(f"{name}_pointer", PointerType(PrimType(dtype)))
        buffer = tirx.decl_buffer((size,), dtype, name=name)
        self._parameters.append(pointer)
        self._pointers[buffer] = pointer
        self.add(tirx.DeclBuffer(buffer, data=pointer))
        return buffer

    def view(self, buffer: Any, size: int, dtype: str) -> Any:
        """Return the memory of a parameter as elements of another dtype."""
        other = tirx.decl_buffer((size,), dtype, name=f"{buffer.name}_{dtype}")
        self.add(tirx.DeclBuffer(other, data=self._pointers[buffer]))
        return other

    def local(self, name: str, size: int, dtype: str) -> Any:
        """Return a buffer on the stack; one that is only indexed by constants becomes registers."""
        buffer = tirx.decl_buffer((size,), dtype, name=name, scope="local")
        self.add(tirx.AllocBuffer(buffer))
        return buffer

    def scratch(self, name: str, size: int, dtype: str) -> Any:
        """Return a buffer on the stack that begins with a cache line.

        A vector that lies in two lines costs two accesses. TVM aligns what it allocates to 16 bytes
        at most, but LLVM aligns vectors to their size.
        """
        lanes = CACHE_LINE_BYTES // np.dtype(dtype).itemsize
        lines = self.local(f"{name}_lines", math.ceil(size / lanes), f"{dtype}x{lanes}")
        buffer = tirx.decl_buffer((size,), dtype, name=name, scope="local")
        self.add(tirx.DeclBuffer(buffer, data=lines.data))
        return buffer

    def add(self, statement: Any) -> None:
        """Append a statement."""
        self._scopes[-1].append(statement)

    def let(self, name: str, value: Any) -> Any:
        """Bind a value to a name; constants are not bound.

        Computed vectors go through a buffer, which becomes a register. TVM's code generator, which
        wants to know about indices, puts what is bound into what is bound later, and simplifies
        that: a chain of vectors that use each other twice takes it seconds.
        """
        if isinstance(value, int | tirx.IntImm):
            return value
        if lanes_of(value) > 1 and not isinstance(value, _OPAQUE):
            buffer = self.local(name, 1, str(value.ty.dtype))
            self.add(tirx.BufferStore(buffer, value, [index(0)]))
            return tirx.BufferLoad(buffer, [index(0)])
        variable = tirx.Var(name, value.ty)
        self.add(tirx.Bind(variable, value))
        return variable

    def load(self, buffer: Any, at: Index, lanes: int = 1) -> Any:
        """Return `lanes` consecutive elements as a vector, or one element."""
        where = index(at) if lanes == 1 else _consecutive(at, lanes)
        return tirx.BufferLoad(buffer, [where])

    def store(self, buffer: Any, at: Index, value: Any) -> None:
        """Write a scalar or a vector of consecutive elements."""
        lanes = lanes_of(value)
        element_lanes = int(buffer.ty.dtype.dtype.lanes)
        single = lanes == element_lanes
        where = index(at) if single else _consecutive(at, lanes // element_lanes)
        self.add(tirx.BufferStore(buffer, value, [where]))

    def load_vectors(self, buffer: Any, at: Index, count: int) -> list[Any]:
        """Return consecutive vectors of int32, by few instructions."""
        lanes, together = self.isa.lanes, self.isa.load_together(count)
        if together is None:
            return [self.let("x", self.load(buffer, at + n * lanes, lanes)) for n in range(count)]
        self._code[together.name] = together.code
        vectors = self.local("vectors", count, f"int32x{lanes}")
        places = [
            tirx.address_of(tirx.BufferLoad(each, [index(first)]))
            for each, first in ((buffer, at), (vectors, 0))
        ]
        self.add(tirx.Evaluate(tirx.call_extern("int32", together.name, *places)))
        return [tirx.BufferLoad(vectors, [index(number)]) for number in range(count)]

    def prefetch(self, buffer: Any, at: Index) -> None:
        """Ask for the cache line of an element; one past the end is no error."""
        address = tirx.address_of(tirx.BufferLoad(buffer, [index(at)]))
        read, second_level, data = 0, 2, 1
        call = tirx.call_intrin("void", "tirx.prefetch", address, read, second_level, data)
        self.add(tirx.Evaluate(call))

    @contextmanager
    def loop(
        self, name: str, extent: Index, start: Index = 0, wide: bool = False, step: Index = 1
    ) -> Iterator[Any]:
        """Provide a serial loop; its variable runs from `start` to below `start + extent`.

        A wide variable has 64 bits: constants added to it become part of an instruction's
        address, where those added to 32 bits take a register each.
        """
        if isinstance(extent, int) and extent == 1:
            yield index(start)
            return
        dtype = "int64" if wide else "int32"
        variable = tirx.Var(name, dtype)
        self._scopes.append([])
        yield variable
        body = self._close()
        first, count, stride = (
            tirx.Cast(dtype, value) if wide else value
            for value in map(index, (start, extent, step))
        )
        plain = isinstance(step, int) and step == 1
        turns = tirx.For(
            variable, first, count, tirx.ForKind.SERIAL, body, step=None if plain else stride
        )
        self.add(turns)

    @contextmanager
    def tasks(self) -> Iterator[Any]:
        """Provide the loop over the tasks of this call."""
        with self.loop("task_offset", self.end - self.begin) as offset:
            yield self.let("task", offset + self.begin)

    @contextmanager
    def branch(self, condition: Any) -> Iterator[None]:
        """Provide statements that run if a condition holds."""
        self._scopes.append([])
        yield
        self.add(tirx.IfThenElse(condition, self._close(), None))

    def function(self, name: str) -> tirx.PrimFunc:
        """Return the finished function."""
        body = self._close()
        for code in self._code.values():
            zero = tirx.IntImm("int32", 0)
            body = tirx.AttrStmt(zero, "pragma_import_llvm", StringImm(code), body)
        function = tirx.PrimFunc([*self._parameters, self.begin, self.end], body)
        return function.with_attrs({"global_symbol": name, "tirx.noalias": True})

    def _close(self) -> Any:
        statements = self._scopes.pop()
        return statements[0] if len(statements) == 1 else tirx.SeqStmt(statements)


def to_object(functions: dict[str, tirx.PrimFunc], target: tvm.target.Target) -> Any:
    """Generate code for functions written with an emitter, or lowered to the same form."""
    module = tvm.IRModule(functions)
    module = tirx.transform.BindTarget(target.with_host(target))(module)
    module = tirx.transform.LowerIntrin()(module)
    return tvm.get_global_func("target.build.llvm")(module, target)
