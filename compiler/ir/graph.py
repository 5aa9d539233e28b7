"""Provide a canonical module as quantization sees it: values by name, and who reads them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from tvm import IRModule, relax

from edgec.compiler.ir.relax_helpers import dtype_of, shape_of, value_of


@dataclass(frozen=True)
class Reader:
    """A reader describes one operator that reads a value.

    Attributes:
        result: variable that holds what it computes.
        call: the operator.
    """

    result: Any
    call: Any


class Graph:
    """A graph is the one dataflow block of `main`.

    Attributes:
        module: it stands for.
        value_names: ONNX names by the name of a variable.
        bindings: variable and expression, in order.
        names: the names of each variable, unique; the ONNX name where one is known.
        readers: the readers of each variable, in order; a reader that reads twice is there twice.
        results: variables that the model returns, and constants.
    """

    def __init__(self, module: IRModule, value_names: Mapping[str, str]) -> None:
        self.module = module
        self.value_names = value_names
        function = module["main"]
        (block,) = function.body.blocks
        self.parameters = list(function.params)
        self.bindings = [(binding.var, binding.value) for binding in block.bindings]
        self.definitions = dict(self.bindings)
        self.results = self._results(function.body.body)
        self.names = self._unique_names(value_names)
        self.readers: dict[Any, list[Reader]] = {}
        for variable, value in self.bindings:
            for argument in operands(value):
                if isinstance(argument, relax.Var):
                    self.readers.setdefault(argument, []).append(Reader(variable, value))

    def _results(self, body: Any) -> list[Any]:
        """Return what the variable that `main` returns stands for.

        Which stands for another one or for a tuple.
        """
        value = self.definitions.get(body)
        while isinstance(value, relax.Var):
            body, value = value, self.definitions.get(value)
        if isinstance(value, relax.Tuple):
            return list(value.fields)
        return [body]

    def _unique_names(self, value_names: Mapping[str, str]) -> dict[Any, str]:
        names: dict[Any, str] = {}
        taken: set[str] = set()
        for variable in [*self.parameters, *self.definitions]:
            base = value_names.get(variable.name, variable.name)
            name, number = base, 1
            while name in taken:
                number += 1
                name = f"{base}#{number}"
            taken.add(name)
            names[variable] = name
        return names

    def operand(self, expression: Any) -> Any:
        """Return the expression behind variables that only stand for others."""
        while isinstance(expression, relax.Var):
            value = self.definitions.get(expression)
            if not isinstance(value, relax.Var):
                break
            expression = value
        return expression

    def constant(self, expression: Any) -> NDArray[Any] | None:
        """Return the array that an expression stands for, None if it is none."""
        expression = self.operand(expression)
        if isinstance(expression, relax.Var):
            expression = self.definitions.get(expression)
        return value_of(expression)

    def is_float(self, expression: Any) -> bool:
        """Return whether an expression is a float32 tensor of known shape."""
        return shape_of(expression) is not None and dtype_of(expression) == "float32"

    def sole_reader(self, variable: Any) -> Reader | None:
        """Return the only reader of a variable that is no result."""
        readers = self.readers.get(variable, [])
        if len(readers) != 1 or any(self.operand(r) is variable for r in self.results):
            return None
        return readers[0]

    def is_result(self, variable: Any) -> bool:
        """Return whether the model returns a variable."""
        return any(self.operand(result) is variable for result in self.results)

    def rebuilt(
        self,
        rewrite: Callable[[relax.BlockBuilder, Any, Any, Callable[[Any], Any]], Any],
        parameters: Sequence[Any] = (),
        extra_outputs: Sequence[Any] = (),
    ) -> IRModule:
        """Return a new module, binding by binding.

        Args:
            rewrite: called with the builder, each variable (parameters first, their expression
                being None), its expression with substituted operands, and a function that gives
                the present stand-in of an old variable; gives what readers shall read.
            parameters: the parameters that the new `main` takes beside the old ones.
            extra_outputs: old variables that `main` shall return beside its results; with any,
                `main` returns a tuple.
        """
        others = {
            v: f for v, f in self.module.functions_items() if not isinstance(f, relax.Function)
        }
        builder = relax.BlockBuilder(IRModule(others))
        made: dict[Any, Any] = {}

        def current(variable: Any) -> Any:
            return made.get(variable, variable)

        with builder.function("main", [*self.parameters, *parameters]):
            with builder.dataflow():
                for parameter in self.parameters:
                    made[parameter] = rewrite(builder, parameter, None, current)
                for variable, value in self.bindings:
                    made[variable] = rewrite(builder, variable, substituted(value, made), current)
                results = [self._returned(result, current) for result in self.results]
                fields = [*results, *(current(variable) for variable in extra_outputs)]
                single = len(fields) == 1 and not extra_outputs and not self._returns_tuple()
                bound = builder.emit_output(fields[0] if single else relax.Tuple(fields))
            builder.emit_func_output(bound)
        return builder.get()

    def _returned(self, result: Any, current: Callable[[Any], Any]) -> Any:
        """Return what stands for a result: an input that is returned stays as it came in."""
        source = self.operand(result)
        return source if source in self.parameters else current(result)

    def map_values(
        self,
        change: Callable[[relax.BlockBuilder, Any, Any, Callable[[Any], Any]], Any],
        parameters: Sequence[Any] = (),
        extra_outputs: Sequence[Any] = (),
    ) -> IRModule:
        """Return a new module in which values are computed in another way.

        Args:
            change: called with the builder, each computed variable, its expression with
                substituted operands, and a function that gives the present stand-in of an old
                variable; gives the expression that takes its place.
            parameters: see `rebuilt`.
            extra_outputs: see `rebuilt`.
        """

        def rewrite(
            builder: relax.BlockBuilder, variable: Any, value: Any, current: Callable[[Any], Any]
        ) -> Any:
            if value is None:
                return variable
            return builder.emit(change(builder, variable, value, current), variable.name)

        return self.rebuilt(rewrite, parameters, extra_outputs)

    def _returns_tuple(self) -> bool:
        return isinstance(self.module["main"].ret_ty, relax.TupleType)


def operands(value: Any) -> list[Any]:
    """Return operands of a call or tuple access, those inside tuples included."""
    if isinstance(value, relax.Call):
        arguments = []
        for argument in value.args:
            arguments += operands(argument) if isinstance(argument, relax.Tuple) else [argument]
        return arguments
    if isinstance(value, relax.Tuple):
        return list(value.fields)
    if isinstance(value, relax.TupleGetItem):
        return [value.tuple_value]
    return [value] if isinstance(value, relax.Var) else []


def substituted(value: Any, made: Mapping[Any, Any]) -> Any:
    """Return an expression with its variables replaced, its type left open: shapes may change."""
    if isinstance(value, relax.Var):
        return made.get(value, value)
    if isinstance(value, relax.Tuple):
        return relax.Tuple([substituted(item, made) for item in value.fields])
    if isinstance(value, relax.TupleGetItem):
        return relax.TupleGetItem(substituted(value.tuple_value, made), value.index)
    if isinstance(value, relax.Call):
        arguments = [substituted(item, made) for item in value.args]
        return relax.Call(value.op, arguments, value.attrs, value.ty_args)
    return value
