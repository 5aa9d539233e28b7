"""Count what a kernel executes, by its code in TIR: vectors multiplied, loaded, stored, and so on.

The code of a kernel is known before any machine sees it, and so are the extents of its loops. What
a processor executes for it follows from these counts nearly alone (`correction.py` holds the
factors). Where the extent of a loop depends on the variable of one around it, as at the rim of a
padded image, some values of that variable stand for all.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from types import CodeType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import ir, tirx

KINDS = (
    "multiply_add",  # of vectors of floats
    "float",  # any other arithmetic on vectors or numbers that are floats
    "divide",  # quotients and roots
    "function",  # a function of the C library, for each value
    "integer",  # arithmetic on vectors of integers, conversions, shuffles
    "intrinsic",  # one instruction by its name: dot products, rounding, widening
    "load",  # of a vector or a number
    "gather",  # of single values into a vector
    "store",
    "scalar",  # arithmetic on indices
    "loop",  # turns of loops
    "task",  # calls of the kernel's outer loop
)
INDEX = {kind: number for number, kind in enumerate(KINDS)}

# Values of a loop's variable that stand for all: of the loop over tasks, and of others.
TASK_SAMPLES = 16
LOOP_SAMPLES = 6

Counts = NDArray[np.float64]
Code = CodeType | int


class NotCountable(Exception):  # noqa: N818 - an answer, not a malfunction
    """The extents of loops depend on data."""


@dataclass
class _Block:
    """A block describes statements that follow one another without a jump."""

    counts: Counts = field(default_factory=lambda: np.zeros(len(KINDS)))


@dataclass
class _Bind:
    name: str
    value: Code
    names: frozenset[str]


@dataclass
class _Loop:
    """A loop describes its variable, bounds and body, and whether the body depends on it."""

    name: str
    start: Code
    extent: Code
    body: list[Any]
    varies: bool
    names: frozenset[str]
    samples: int


@dataclass
class _Branch:
    condition: Code
    then: list[Any]
    otherwise: list[Any]
    names: frozenset[str]


def count_operations(function: tirx.PrimFunc, tasks: int, vector_bits: int) -> Counts:
    """Count the operations of all tasks of a kernel, by `KINDS`.

    Args:
        function: the kernel; its last two parameters are the first task and the end of the tasks.
        tasks: how many there are.
        vector_bits: width of a vector register; 0 where there are none.

    Raises:
        NotCountable: loops depend on data.
    """
    reader = _Reader(vector_bits)
    names = [reader.name(parameter) for parameter in function.params]
    body = reader.read(function.body)
    env = {names[-2]: 0, names[-1]: tasks} if len(names) >= 2 else {}
    counts = _evaluate(body, env)
    counts[INDEX["task"]] = tasks
    return counts


def _evaluate(items: list[Any], env: dict[str, int]) -> Counts:
    total = np.zeros(len(KINDS))
    for item in items:
        if isinstance(item, _Block):
            total += item.counts
        elif isinstance(item, _Bind):
            env[item.name] = _value(item.value, env)
        elif isinstance(item, _Branch):
            total += _evaluate(item.then if _value(item.condition, env) else item.otherwise, env)
        else:
            start, extent = _value(item.start, env), _value(item.extent, env)
            if extent <= 0:
                continue
            number = min(extent, item.samples if item.varies else 1)
            inner = np.zeros(len(KINDS))
            for sample in range(number):
                env[item.name] = start + (2 * sample + 1) * extent // (2 * number)
                inner += _evaluate(item.body, env)
            total += inner * (extent / number)
            total[INDEX["loop"]] += extent
    return total


@lru_cache(maxsize=4096)
def _compiled(text: str) -> Code:
    """Return an expression so that it can be evaluated often; a number as it is."""
    return int(text) if text.isdigit() else compile(text, "extent", "eval")


def _value(code: Code, env: dict[str, int]) -> int:
    if isinstance(code, int):
        return code
    try:
        return int(eval(code, _GLOBALS, env))
    except NameError as error:
        raise NotCountable(str(error)) from None


_GLOBALS: dict[str, Any] = {"__builtins__": {}, "min": min, "max": max}

_BINARY: Mapping[type[Any], str] = {
    tirx.Add: "({} + {})",
    tirx.Sub: "({} - {})",
    tirx.Mul: "({} * {})",
    tirx.FloorDiv: "({} // {})",
    tirx.FloorMod: "({} % {})",
    # Of what is not negative, as indices are.
    tirx.Div: "({} // {})",
    tirx.Mod: "({} % {})",
    tirx.Min: "min({}, {})",
    tirx.Max: "max({}, {})",
    tirx.LT: "({} < {})",
    tirx.LE: "({} <= {})",
    tirx.GT: "({} > {})",
    tirx.GE: "({} >= {})",
    tirx.EQ: "({} == {})",
    tirx.NE: "({} != {})",
    tirx.And: "({} and {})",
    tirx.Or: "({} or {})",
    tirx.LShift: "({} << {})",
    tirx.RShift: "({} >> {})",
    tirx.BitwiseAnd: "({} & {})",
    tirx.BitwiseOr: "({} | {})",
    tirx.BitwiseXor: "({} ^ {})",
}
_CALLS = {
    "tirx.shift_right": "({} >> {})",
    "tirx.shift_left": "({} << {})",
    "tirx.bitwise_and": "({} & {})",
    "tirx.likely": "({})",
    "tirx.if_then_else": "({1} if {0} else {2})",
}
_LEAVES = frozenset([int, float, str, tirx.IntImm, tirx.FloatImm, tirx.Var])
_FREE_CALLS = ("address_of", "reinterpret", "likely", "prefetch", "assume", "ret")
_ROOTS = ("sqrt", "rsqrt")
_FUNCTIONS = frozenset(
    [
        "exp",
        "exp2",
        "exp10",
        "log",
        "log2",
        "log10",
        "log1p",
        "tanh",
        "sinh",
        "cosh",
        "tan",
        "atan",
        "asin",
        "acos",
        "erf",
        "pow",
        "sigmoid",
        "sin",
        "cos",
        "extern",
    ]
)


class _Reader:
    """Reads TIR into a tree of counts, loops and what their extents depend on."""

    def __init__(self, vector_bits: int) -> None:
        self.vector_bits = vector_bits or 32
        self.names: dict[Any, str] = {}
        self.registers: set[Any] = set()
        self.lanes = 1

    def name(self, variable: tirx.Var) -> str:
        return self.names.setdefault(variable, f"v{len(self.names)}")

    # Control: what extents and conditions are, as Python.

    def source(self, expression: Any) -> tuple[str, frozenset[str]]:
        """Return an integer expression as Python, and the variables in it."""
        if isinstance(expression, int | tirx.IntImm):
            return str(int(expression)), frozenset()
        if isinstance(expression, tirx.Var):
            name = self.name(expression)
            return name, frozenset({name})
        if isinstance(expression, tirx.Cast):
            return self.source(expression.value)
        if isinstance(expression, tirx.Not):
            text, names = self.source(expression.a)
            return f"(not {text})", names
        if isinstance(expression, tirx.Select):
            parts = [expression.condition, expression.true_value, expression.false_value]
            return self._filled("({1} if {0} else {2})", parts)
        template = _BINARY.get(type(expression))
        if template is not None:
            return self._filled(template, [expression.a, expression.b])
        if isinstance(expression, ir.Call):
            template = _CALLS.get(str(getattr(expression.op, "name", "")))
            if template is not None:
                return self._filled(template, list(expression.args))
        # What is loaded from memory: unknown.
        return "unknown", frozenset({"unknown"})

    def _filled(self, template: str, parts: list[Any]) -> tuple[str, frozenset[str]]:
        read = [self.source(part) for part in parts]
        names = frozenset().union(*(names for _, names in read))
        return template.format(*(text for text, _ in read)), names

    def code(self, expression: Any) -> tuple[Code, frozenset[str]]:
        text, names = self.source(expression)
        return _compiled(text), names

    # Statements.

    def read(self, statement: Any) -> list[Any]:
        """Return a statement as blocks, loops and branches in order."""
        items: list[Any] = []
        self._read(statement, items)
        return _needed(items)

    def _read(self, statement: Any, items: list[Any]) -> None:
        if isinstance(statement, tirx.SeqStmt):
            for inner in statement.seq:
                self._read(inner, items)
        elif isinstance(statement, tirx.For):
            self._loop(statement, items)
        elif isinstance(statement, tirx.IfThenElse):
            condition, names = self.code(statement.condition)
            self._count(statement.condition, items)
            then = self.read(statement.then_case)
            otherwise = self.read(statement.else_case) if statement.else_case is not None else []
            items.append(_Branch(condition, then, otherwise, names))
        elif isinstance(statement, tirx.Bind):
            self._count(statement.value, items)
            if lanes_of(statement.value) == 1 and is_integer(statement.value):
                value, names = self.code(statement.value)
                items.append(_Bind(self.name(statement.var), value, names))
        elif isinstance(statement, tirx.BufferStore):
            self._count(statement.value, items)
            if not self._in_register(statement.buffer, statement.indices):
                self._memory("store", statement.indices, dtype_of(statement.buffer), items)
        elif isinstance(statement, tirx.Evaluate):
            self._count(statement.value, items)
        elif isinstance(statement, tirx.AllocBuffer):
            self.registers.add(statement.buffer)
            if getattr(statement, "body", None) is not None:
                self._read(statement.body, items)
        elif getattr(statement, "body", None) is not None:
            self._read(statement.body, items)

    def _loop(self, loop: tirx.For, items: list[Any]) -> None:
        start, start_names = self.code(loop.min)
        extent, extent_names = self.code(loop.extent)
        name = self.name(loop.loop_var)
        if loop.kind == tirx.ForKind.VECTORIZED and isinstance(loop.extent, tirx.IntImm):
            outer, self.lanes = self.lanes, self.lanes * int(loop.extent)
            items.append(_Bind(name, 0, frozenset()))
            self._read(loop.body, items)
            self.lanes = outer
            return
        body = self.read(loop.body)
        inside = control_names(body)
        names = (inside - {name}) | start_names | extent_names
        samples = LOOP_SAMPLES if self.names and len(self.names) > 12 else TASK_SAMPLES
        items.append(_Loop(name, start, extent, body, name in inside, names, samples))

    def _in_register(self, buffer: Any, indices: Any) -> bool:
        return buffer in self.registers and all(
            isinstance(index, tirx.IntImm)
            or (isinstance(index, tirx.Ramp) and isinstance(index.base, tirx.IntImm))
            for index in indices
        )

    # Expressions.

    def _add(self, items: list[Any], kind: str, number: float) -> None:
        if not items or not isinstance(items[-1], _Block):
            items.append(_Block())
        items[-1].counts[INDEX[kind]] += number

    def _pieces(self, expression: Any) -> float:
        """Return the registers that a value takes."""
        _, bits, lanes = parsed(dtype_of(expression))
        return pieces(lanes * self.lanes, bits, self.vector_bits)

    def _memory(self, kind: str, indices: Any, dtype: str, items: list[Any]) -> None:
        index = indices[-1] if len(indices) else None
        lanes = (lanes_of(index) if index is not None else 1) * self.lanes
        _, bits, own = parsed(dtype)
        gathered = (
            index is not None
            and lanes_of(index) > 1
            and not (isinstance(index, tirx.Ramp) and is_one(index.stride))
        )
        if gathered:
            self._add(items, "gather", lanes)
        else:
            self._add(items, kind, pieces(lanes * own, bits, self.vector_bits))

    def _count(self, expression: Any, items: list[Any]) -> None:
        """Add what an expression executes; a value that it uses twice is computed once."""
        seen: set[Any] = set()
        stack = [expression]
        while stack:
            node = stack.pop()
            if type(node) in _LEAVES:
                continue
            if node in seen:
                continue
            seen.add(node)
            stack += self._node(node, items)

    def _node(self, node: Any, items: list[Any]) -> list[Any]:
        """Add one node; return the nodes below that are to be counted, too."""
        kind = type(node).__name__
        if kind == "TensorLoad":
            if not self._in_register(node.source, node.indices):
                self._memory("load", node.indices, dtype_of(node.source), items)
            # Constant distances are part of the address; what is computed is bound to a name.
            return []
        if kind in ("Ramp", "Broadcast"):
            return [node.value] if kind == "Broadcast" else [node.base]
        if kind == "Cast":
            if lanes_of(node) > 1 or not (is_integer(node) and is_integer(node.value)):
                self._add(items, "integer", max(self._pieces(node), self._pieces(node.value)))
            return [node.value]
        if kind == "Select":
            self._add(items, "float" if not is_integer(node) else "integer", self._pieces(node))
            return [node.condition, node.true_value, node.false_value]
        if kind == "Shuffle":
            self._add(items, "integer", self._pieces(node))
            return list(node.vectors)
        if kind == "Call":
            return self._call(node, items)
        if hasattr(node, "a") and hasattr(node, "b"):
            return self._binary(node, kind, items)
        if hasattr(node, "a"):
            return [node.a]
        return []

    def _binary(self, node: Any, kind: str, items: list[Any]) -> list[Any]:
        integer = is_integer(node.a)
        if integer and lanes_of(node) * self.lanes == 1:
            constant = isinstance(node.a, tirx.IntImm) or isinstance(node.b, tirx.IntImm)
            self._add(items, "scalar", 0.5 if constant else 1.0)
            return [node.a, node.b]
        number = self._pieces(node.a)
        if integer:
            self._add(items, "integer", number)
            return [node.a, node.b]
        if kind == "Div":
            self._add(items, "divide", number)
            return [node.a, node.b]
        if kind in ("Add", "Sub"):
            for one, other in ((node.a, node.b), (node.b, node.a)):
                if isinstance(one, tirx.Mul):
                    self._add(items, "multiply_add", number)
                    return [one.a, one.b, other]
        self._add(items, "float", number)
        return [node.a, node.b]

    def _call(self, node: Any, items: list[Any]) -> list[Any]:
        name = str(getattr(node.op, "name", node.op)).rpartition(".")[2]
        arguments = [a for a in node.args if not isinstance(a, int | str)]
        if any(free in name for free in _FREE_CALLS):
            return [] if name in ("address_of", "prefetch") else arguments
        width = max([self._pieces(node), *(self._pieces(a) for a in arguments)])
        if any(name == root or name.endswith(f"_{root}") for root in _ROOTS):
            self._add(items, "divide", width)
        elif any(name == one or name.endswith(f"_{one}") for one in _FUNCTIONS):
            self._add(items, "function", lanes_of(node) * self.lanes)
        elif name in ("fma", "vectorfma"):
            self._add(items, "multiply_add", width)
        elif is_integer(node) and lanes_of(node) == 1 and "intrin" not in name:
            self._add(items, "scalar", 1)
        else:
            self._add(items, "intrinsic", width)
        return arguments


def _needed(items: list[Any]) -> list[Any]:
    """Drop what no extent depends on."""
    needed: frozenset[str] = frozenset()
    kept: list[Any] = []
    for item in reversed(items):
        if isinstance(item, _Bind):
            if item.name not in needed:
                continue
            needed = (needed - {item.name}) | item.names
        elif not isinstance(item, _Block):
            needed |= _names(item)
        kept.append(item)
    return kept[::-1]


def _names(item: Any) -> frozenset[str]:
    if isinstance(item, _Branch):
        return item.names | control_names(item.then) | control_names(item.otherwise)
    names: frozenset[str] = item.names
    return names


def control_names(items: list[Any]) -> frozenset[str]:
    """Return the variables from outside that the extents in a list of statements depend on."""
    needed: frozenset[str] = frozenset()
    for item in reversed(items):
        if isinstance(item, _Bind):
            if item.name in needed:
                needed = (needed - {item.name}) | item.names
        elif not isinstance(item, _Block):
            needed |= _names(item)
    return needed


_DTYPE = re.compile(r"([a-z_]+)(\d*)(?:x(\d+))?")


def dtype_of(node: Any) -> str:
    """Return the dtype of an expression or buffer, `float32x4`; a handle for what has none."""
    return str(getattr(getattr(node, "ty", None), "dtype", None) or "handle64")


@cache
def parsed(dtype: str) -> tuple[str, int, int]:
    """Return code, bits and lanes.

    >>> parsed("float32x4")
    ('float', 32, 4)
    """
    found = _DTYPE.fullmatch(dtype)
    assert found is not None, dtype
    return found[1], int(found[2] or 8), int(found[3] or 1)


def lanes_of(node: Any) -> int:
    """Return the values in a vector."""
    return parsed(dtype_of(node))[2]


def is_integer(node: Any) -> bool:
    """Return whether arithmetic on it is of integers."""
    return parsed(dtype_of(node))[0] in ("int", "uint", "bool")


def is_one(node: Any) -> bool:
    """Return whether a stride is one."""
    return isinstance(node, tirx.IntImm) and int(node) == 1


def pieces(lanes: int, bits: int, vector_bits: int) -> float:
    """Return how many registers so many values take.

    >>> pieces(16, 32, 128)
    4
    """
    return max(1, -(-lanes * bits // vector_bits)) if lanes > 1 else 1
