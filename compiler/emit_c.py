"""Write a program's tables as C, the form in which the executor reads them.

The generated file is small and meant to be read: inputs and outputs, then one line per kernel
call with its buffers.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from edgec.compiler.memory import MemoryPlan
from edgec.compiler.program import Program, Step, Value
from edgec.compiler.signature import TensorSpec
from edgec.targets.target import Target

# Handing a task to a thread costs about a microsecond: give it more than that to do.
GRAIN_FLOPS = 100_000
# Bytes that count like one operation, for kernels that only move values.
BYTES_PER_FLOP = 1


@dataclass(frozen=True)
class Weights:
    """Where constants are in the blob.

    Attributes:
        offsets: byte offset by `id` of the value.
    """

    offsets: Mapping[int, int]


def program_source(
    program: Program,
    plan: MemoryPlan,
    weights: Weights,
    outputs: tuple[TensorSpec, ...],
    target: Target,
) -> str:
    """The C source of a program's tables."""
    most_buffers = max((len(step.arguments) for step in program.steps), default=0)
    parts = [
        "/* Written by edgec; see program.h for the types. */",
        '#include "program.h"',
        "",
        *_declarations(program),
        "",
        *_tensors("input", [(v.label, v.dtype, v) for v in program.inputs]),
        *_tensors(
            "output",
            [(s.name, s.dtype, v) for s, v in zip(outputs, program.outputs, strict=True)],
        ),
        *_steps(program, plan, weights),
        *_copies(program, plan, weights),
        "",
        "extern const unsigned char edgec_weights[];",
        "",
        "const edgec_program edgec_the_program = {",
        f"  {len(program.inputs)}, {len(program.outputs)}, {len(program.steps)}, "
        f"{len(program.copies)}, {most_buffers},",
        "  edgec_inputs, edgec_outputs, edgec_steps, edgec_copies, edgec_weights,",
        f"  {plan.arena_bytes},",
        "};",
        "",
    ]
    return "\n".join(parts)


def _declarations(program: Program) -> Iterable[str]:
    arity = {step.kernel: len(step.arguments) for step in program.steps}
    for name, count in arity.items():
        pointers = ", ".join(["void*"] * count)
        arguments = ", ".join(f"b[{index}]" for index in range(count))
        result = "int32_t" if name.startswith("generic_") else "void"
        yield f"{result} {name}({pointers}, int32_t, int32_t);"
        yield (
            f"static void call_{name}(void* const* b, int32_t begin, int32_t end) "
            f"{{ {name}({arguments}, begin, end); }}"
        )


def _tensors(kind: str, values: list[tuple[str, str, Value]]) -> Iterable[str]:
    for number, (_, _, value) in enumerate(values):
        extents = ", ".join(map(str, value.shape)) or "1"
        yield f"static const int64_t {kind}_shape_{number}[] = {{{extents}}};"
    yield f"static const edgec_tensor edgec_{kind}s[] = {{"
    for number, (name, dtype, value) in enumerate(values):
        yield (
            f"  {{{_text(name)}, {_text(dtype)}, {len(value.shape)}, "
            f"{kind}_shape_{number}, {value.size_bytes}}},"
        )
    yield "};"
    yield ""


def _steps(program: Program, plan: MemoryPlan, weights: Weights) -> Iterable[str]:
    for number, step in enumerate(program.steps):
        buffers = ", ".join(_buffer(value, plan, weights) for value in step.arguments)
        yield f"static const edgec_buffer buffers_{number}[] = {{{buffers}}};"
    yield "static const edgec_step_entry edgec_steps[] = {"
    for number, step in enumerate(program.steps):
        yield (
            f"  {{{{{_text(step.label)}, {_text(step.template)}, {step.flops}}}, "
            f"call_{step.kernel}, {step.tasks}, {grain(step)}, {len(step.arguments)}, "
            f"buffers_{number}}},"
        )
    if not program.steps:
        yield "  {{0}}"
    yield "};"
    yield ""


def grain(step: Step) -> int:
    """Tasks that one thread takes at a time."""
    moved = sum(value.size_bytes for value in step.arguments) // BYTES_PER_FLOP
    work = max(step.flops, moved, 1)
    if work < 2 * GRAIN_FLOPS:
        return step.tasks
    return max(1, min(step.tasks, step.tasks * GRAIN_FLOPS // work))


def _copies(program: Program, plan: MemoryPlan, weights: Weights) -> Iterable[str]:
    yield "static const edgec_copy edgec_copies[] = {"
    for output, source in program.copies:
        yield f"  {{{_buffer(source, plan, weights)}, {output.number}}},"
    if not program.copies:
        yield "  {{0}}"
    yield "};"


def _buffer(value: Value, plan: MemoryPlan, weights: Weights) -> str:
    root = value.root
    if root.role == "constant":
        return f"{{EDGEC_WEIGHT, 0, {weights.offsets[id(root)]}}}"
    if root.role == "temporary":
        return f"{{EDGEC_ARENA, 0, {plan.offsets[id(root)]}}}"
    return f"{{EDGEC_{root.role.upper()}, {root.number}, 0}}"


def _text(value: str) -> str:
    r"""A C string.

    >>> _text('a"b')
    '"a\\"b"'
    """
    escaped = re.sub(r'(["\\])', r"\\\1", value)
    return '"' + re.sub(r"[^\x20-\x7e]", "?", escaped) + '"'
