"""Take states out of a program's inputs and outputs: its sessions keep them from run to run.

A state is an input whose next value is an output. In memory it is one of three kinds:

1. An operator that only replaces a part of the input computes the output (its template has
   `in_place`), and no step reads the input after it: the output is the input's memory, and the
   operator's kernel in place writes nothing but that part.
2. The output is the input as it is: nothing is left to do.
3. Any other output has memory of its own, and the two change places after the run.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from edgec.compiler.ir.program import Program, Value
from edgec.compiler.ir.signature import State
from edgec.compiler.kernels.template import from_text, to_text
from edgec.compiler.kernels.templates import TEMPLATES
from edgec.compiler.lowering.schedule import kernel_name
from edgec.targets.target import Target


def keep_states(program: Program, states: Sequence[State], target: Target) -> None:
    """Make states of inputs and outputs, in the order of `states`."""
    inputs = {value.label: value for value in program.inputs}
    outputs = {value.label: value for value in program.outputs}
    for number, state in enumerate(states):
        value, result = inputs[state.input], outputs[state.output]
        in_place = _write_in_place(program, value, result, target)
        kept = any(o is result and s.root is value for o, s in program.copies)
        if kept:
            program.copies = [(o, s) for o, s in program.copies if o is not result]
        elif not in_place:
            for root in _roots(program, result):
                root.role, root.number = "state", 2 * number + 1
            program.swaps.append(number)
        program.states.append(value)
    program.inputs = [v for v in program.inputs if v not in program.states]
    gone = {state.output for state in states}
    program.outputs = [v for v in program.outputs if v.label not in gone]
    for number, value in enumerate(program.states):
        value.role, value.number = "state", 2 * number
    _renumber(program)


def _roots(program: Program, result: Value) -> list[Value]:
    """Return the output, and what steps write for it."""
    roots = [value.root for value in _values(program)]
    return [result, *(r for r in roots if r.role == "output" and r.number == result.number)]


def _values(program: Program) -> Iterator[Value]:
    for step in program.steps:
        yield from step.arguments
    for _, source in program.copies:
        yield source


def _renumber(program: Program) -> None:
    """Give the inputs and outputs that are left the numbers of their new places."""
    seen: dict[int, Value] = {id(v.root): v.root for v in _values(program)}
    for role, values in (("input", program.inputs), ("output", program.outputs)):
        places = {value.number: place for place, value in enumerate(values)}
        roots = [root for root in seen.values() if root.role == role]
        for value in {id(v): v for v in (*values, *roots)}.values():
            value.number = places[value.number]


def _write_in_place(program: Program, value: Value, result: Value, target: Target) -> bool:
    """Let the step that computes a result write into a state, if it is of the first kind."""
    roots = _roots(program, result)
    writing = [n for n, step in enumerate(program.steps) if step.arguments[-1].root in roots]
    if len(writing) != 1:
        return False
    number = writing[0]
    step = program.steps[number]
    template = TEMPLATES.get(f"edgec.{step.template}")
    if template is None or not template.in_place or step.arguments[0].root is not value:
        return False
    later = [v for other in program.steps[number + 1 :] for v in other.arguments]
    later += [*step.arguments[1:], *(source for _, source in program.copies)]
    if any(v.root is value for v in later):
        return False
    workload = from_text(template.workload, step.workload)
    workload = replace(workload, **{template.in_place: True})
    text, decision = to_text(workload), template.default(workload, target)
    name = kernel_name(step.template, f"{text} {to_text(decision)}")
    kernel = template.emit(workload, decision, target, name)
    program.functions[name] = kernel.function
    program.steps[number] = replace(
        step, kernel=name, tasks=kernel.tasks, workload=text, flops=2 * workload.macs
    )
    if all(other.kernel != step.kernel for other in program.steps):
        del program.functions[step.kernel]
    step.arguments[-1].root.base = value
    return True
