"""Choose the code of every call in a lowered module, and list the calls as a program."""

import hashlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import tvm_ffi
from numpy.typing import NDArray
from tvm import IRModule, relax, tirx
from tvm.s_tir.analysis import estimate_tir_flops

from edgec.compiler.ir.program import KernelCall, Program, Value, input_value
from edgec.compiler.ir.relax_helpers import dtype_of, op_name, shape_of, value_of
from edgec.compiler.ir.signature import Signature
from edgec.compiler.kernels.template import Template, from_text, to_text
from edgec.compiler.kernels.templates import TEMPLATES
from edgec.compiler.lowering.generic_schedule import schedule_generic, to_kernel
from edgec.compiler.lowering.shared_packing import SharedPacking
from edgec.compiler.support.progress import Progress, Silent, counted
from edgec.targets.target import Target

Decide = Callable[[str, Any, Target], Any]
"""Gives the decision for an operator's workload: from records, or the default."""


# Fused functions are called after all of their operators.
_LABEL_CHARACTERS = 48


class NotStatic(Exception):  # noqa: N818 - an answer, not a malfunction
    """The module needs shapes or memory at run time, or calls into TVM's runtime."""


@lru_cache(maxsize=4096)
def default_decide(operator: str, workload: Any, target: Target) -> Any:
    """Return the decision that the template's analytic model prefers.

    A network repeats its layers, and a compile that quantizes or compresses schedules it several
    times: each workload is decided once in a process.
    """
    return TEMPLATES[operator].default(workload, target)


def schedule_program(
    module: IRModule,
    target: Target,
    signature: Signature,
    decide: Decide = default_decide,
    progress: Progress | None = None,
    sharing: SharedPacking | None = None,
) -> Program:
    """Turn a lowered module into a program.

    Args:
        module: its `main` holds kernel operators, reshapes, and calls of fused functions.
        target: what to write code for.
        signature: inputs and outputs of `main`.
        decide: chooses among a template's decisions.
        progress: is told of each operator.
        sharing: makes weights those of the programs before, where that costs little.

    Raises:
        NotStatic: the module holds something that only a virtual machine can run.
    """
    return _Scheduler(module, target, decide, sharing).run(signature, progress or Silent())


class _Scheduler:
    def __init__(
        self, module: IRModule, target: Target, decide: Decide, sharing: SharedPacking | None
    ) -> None:
        self.module = module
        self.target = target
        self.decide = decide
        self.sharing = sharing
        self.values: dict[relax.Var, Value | list[Value]] = {}
        self.constants: dict[tuple[int, str], Value] = {}
        self.tasks: dict[str, int] = {}

    def run(self, signature: Signature, progress: Progress) -> Program:
        function = self.module["main"]
        inputs = [input_value(spec, i) for i, spec in enumerate(signature.inputs)]
        self.program = Program(inputs, [])
        for parameter, value in zip(function.params, inputs, strict=True):
            self.values[parameter] = value
        bindings = [binding for block in function.body.blocks for binding in block.bindings]
        for binding in counted(bindings, progress, "operators", len(bindings)):
            self.values[binding.var] = self._visit(binding)
        self._outputs(function.body.body, signature)
        return self.program

    def _outputs(self, result: Any, signature: Signature) -> None:
        found = self._value(result)
        values = found if isinstance(found, list) else [found]
        for number, (value, spec) in enumerate(zip(values, signature.outputs, strict=True)):
            output = Value("output", value.shape, spec.dtype, number=number, label=spec.name)
            self.program.outputs.append(output)
            root = value.root
            if root.role == "temporary":
                # Kernels write it where the caller wants it.
                root.role, root.number = "output", number
            else:
                self.program.copies.append((output, value))

    def _value(self, expression: Any) -> Value | list[Value]:
        if isinstance(expression, relax.Var):
            return self.values[expression]
        if isinstance(expression, relax.Tuple):
            fields = [self._value(field) for field in expression.fields]
            return [field for field in fields if isinstance(field, Value)]
        array = value_of(expression)
        if array is None:
            raise NotStatic(f"{type(expression).__name__} as an operand")
        return Value("constant", array.shape, str(array.dtype), array=array)

    def _single(self, expression: Any) -> Value:
        value = self._value(expression)
        if isinstance(value, list):
            raise NotStatic("a tuple as an operand")
        return value

    def _visit(self, binding: Any) -> Value | list[Value]:
        value = binding.value
        if isinstance(value, relax.TupleGetItem):
            fields = self._value(value.tuple_value)
            assert isinstance(fields, list)
            return fields[value.index]
        if not isinstance(value, relax.Call):
            return self._value(value)
        name = op_name(value)
        if name in TEMPLATES:
            return self._template(binding.var, value, TEMPLATES[name])
        if name == "relax.reshape":
            source = self._single(value.args[0])
            shape = shape_of(binding.var)
            if shape is None:
                raise NotStatic("a reshape to an unknown shape")
            array = None if source.array is None else source.array.reshape(shape)
            return Value(source.role, shape, source.dtype, array=array, base=source)
        if name == "relax.call_tir":
            return self._generic(binding.var, value)
        raise NotStatic(f"operator {name or value.op}")

    def _new(self, variable: relax.Var) -> Value:
        shape = shape_of(variable)
        if shape is None:
            raise NotStatic(f"the shape of {variable.name}")
        return Value("temporary", shape, dtype_of(variable), label=variable.name)

    def _template(self, variable: relax.Var, call: relax.Call, template: Template) -> Value:
        operator = op_name(call)
        text = str(call.attrs["workload"])
        workload = from_text(template.workload, text)
        decision = self.decide(operator, workload, self.target)
        weight = value_of(call.args[1]) if len(call.args) > 1 else None
        if weight is not None:
            if self.sharing is not None:
                decision = self.sharing.decision(template, workload, decision, self.target, weight)
            decision = template.for_weights(workload, decision, self.target, weight)
        short = operator.removeprefix("edgec.")
        chosen = to_text(decision)
        name = kernel_name(short, f"{text} {chosen}")
        if name not in self.tasks:
            kernel = template.emit(workload, decision, self.target, name)
            self.program.functions[name] = kernel.function
            self.tasks[name] = kernel.tasks
        arguments = []
        constants = {}
        for position, argument in enumerate(call.args):
            value = self._single(argument)
            if value.array is not None:
                constants[position] = value.array
                value = self._packed(template, workload, decision, position, value)
            arguments.append(value)
        result = self._new(variable)
        step = KernelCall(
            name,
            (*arguments, result),
            self.tasks[name],
            str(call.attrs["label"]) or variable.name,
            short,
            flops=2 * workload.macs,
            workload=text,
            constants=constants,
            decision=chosen,
        )
        self.program.steps.append(step)
        return result

    def _packed(
        self,
        template: Template,
        workload: Any,
        decision: Any,
        position: int,
        value: Value,
    ) -> Value:
        assert value.array is not None
        packed = without_subnormals(
            template.pack(workload, decision, self.target, position, value.array)
        )
        return Value("constant", packed.shape, str(packed.dtype), array=packed)

    def _generic(self, variable: relax.Var, call: relax.Call) -> Value | list[Value]:
        global_var = call.args[0]
        function = self.module[global_var]
        if not isinstance(function, tirx.PrimFunc):
            raise NotStatic(f"a call of {global_var}")
        name = kernel_name("generic", str(tvm_ffi.structural_hash(function)))
        if name not in self.tasks:
            scheduled = schedule_generic(function, self.target)
            kernel = to_kernel(scheduled, self.target, name)
            self.program.functions[name] = kernel.function
            self.tasks[name] = kernel.tasks
        fields = call.args[1].fields if isinstance(call.args[1], relax.Tuple) else [call.args[1]]
        arguments = [self._single(field) for field in fields]
        kind = variable.ty
        if isinstance(kind, relax.TupleType):
            results = [
                Value("temporary", _shape(item), str(item.dtype.dtype), label=variable.name)
                for item in kind.fields
            ]
        else:
            results = [self._new(variable)]
        step = KernelCall(
            name,
            (*arguments, *results),
            self.tasks[name],
            global_var.name_hint[:_LABEL_CHARACTERS],
            "generic",
            flops=int(estimate_tir_flops(IRModule({"main": function}))),
        )
        self.program.steps.append(step)
        return results if isinstance(kind, relax.TupleType) else results[0]


def kernel_name(template: str, content: str) -> str:
    """Return a name that only kernels of the same code have, in whatever model.

    Args:
        template: name of the template, or `generic`.
        content: what the code depends on, beside the target.
    """
    return f"{template}_{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def without_subnormals(array: NDArray[Any]) -> NDArray[Any]:
    """Float32 values below the smallest normal number become 0.

    Training with weight decay leaves many such weights. They are worth nothing, and a multiply-add
    with one takes a hundred cycles on most processors.
    """
    if array.dtype != np.float32:
        return array
    subnormal = (np.abs(array) < np.finfo(np.float32).tiny) & (array != 0)
    return np.where(subnormal, np.float32(0), array) if subnormal.any() else array


def _shape(kind: Any) -> tuple[int, ...]:
    if not isinstance(kind.shape, relax.ShapeExpr):
        raise NotStatic("a tuple of unknown shapes")
    return tuple(int(extent) for extent in kind.shape.values)
