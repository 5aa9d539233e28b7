"""Write a program's tables as C, the form in which the executor reads them.

The generated file is small and meant to be read: inputs and outputs, then one line per kernel
call with its buffers.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from edgec.compiler.codegen.memory import ALIGNMENT_BYTES, MemoryPlan
from edgec.compiler.ir.program import KernelCall, Program, Value
from edgec.compiler.ir.signature import TensorSpec

# Handing a task to a thread costs about a microsecond: give it more than that to do.
GRAIN_FLOPS = 100_000
# Places in the weights and in the arena are counted in these: EDGEC_UNIT of program.h.
UNIT_BYTES = 16
# What ONNX allows for indices of Gather.
INDEX_DTYPES = ("int32", "int64")
# Bytes that count like one operation, for kernels that only move values.
BYTES_PER_FLOP = 1


@dataclass(frozen=True)
class Weights:
    """Weights describe where constants are in the blob.

    Attributes:
        offsets: byte offset by `id` of the value.
    """

    offsets: Mapping[int, int]


def program_source(
    program: Program,
    plan: MemoryPlan,
    weights: Weights,
    outputs: tuple[TensorSpec, ...],
    name: str,
    index_bounds: Mapping[str, int] = MappingProxyType({}),
) -> str:
    """Return the C source of a program's tables, which the executor reads.

    Args:
        program: the scheduled model.
        plan: the plan of its memory.
        weights: where its constants are.
        outputs: their names.
        name: the name of the model, as `model_identifier` gives it.
        index_bounds: rows that an input chooses from, by the name of the input.
    """
    most_buffers = max((len(step.arguments) for step in program.steps), default=0)
    parts = [
        "/* Written by edgec; see program.h for the types. */",
        '#include "program.h"',
        "",
        *_tensors("input", [(v.label, v.dtype, v) for v in program.inputs]),
        *_tensors(
            "output",
            [(s.name, s.dtype, v) for s, v in zip(outputs, program.outputs, strict=True)],
        ),
        _index_bounds(program, index_bounds),
        *_steps(program, plan, weights),
        *_copies(program, plan, weights),
        f"const int32_t edgec_copy_count = {len(program.copies)};",
        f"const int32_t edgec_most_buffers = {most_buffers};",
        "",
        *_call(program),
        *_model(program, plan, name),
        "",
    ]
    return "\n".join(parts)


def _model(program: Program, plan: MemoryPlan, name: str) -> Iterable[str]:
    yield f'_Static_assert({len(program.steps)} < 1 << EDGEC_STEP_BITS, "steps of a model");'
    yield "const edgec_model model = {"
    fields = {
        "abi": "EDGEC_ABI",
        "input_count": len(program.inputs),
        "output_count": len(program.outputs),
        "inputs": "edgec_inputs",
        "outputs": "edgec_outputs",
        "arena_bytes": plan.arena_bytes,
        "open": "session_open",
        "close": "session_close",
        "threads": "session_threads",
        "run": "run",
        "run_timed": "run_timed",
        "step_count": len(program.steps),
        "step": "step_info",
        "index_bounds": "edgec_index_bounds",
        "error": "last_error",
    }
    yield from (f"  .{field} = {value}," for field, value in fields.items())
    yield "};"
    yield f"const edgec_model* edgec_model_{name}(void) {{ return &model; }}"


def model_identifier(name: str) -> str:
    """Return a model's name as part of a C identifier: `edgec_model_NAME` is its function.

    >>> model_identifier("yolov8n-320 (1)")
    'yolov8n_320_1'
    """
    return re.sub(r"[^a-zA-Z0-9]+", "_", name).strip("_") or "model"


def constants_source(program: Program, weights: str) -> str:
    """Return the assembly of what C cannot say: a file of weights.

    And distances to kernels' code.
    """
    names = _kernels(program)
    parts = [
        '    .section .rodata.edgec_weights, "a"',
        f"    .balign {ALIGNMENT_BYTES}",
        "    .hidden edgec_weights",
        "    .globl edgec_weights",
        "edgec_weights:",
        f'    .incbin "{weights}"',
        "    .byte 0",
        '    .section .rodata.edgec_kernels, "a"',
        "    .balign 4",
        "    .hidden edgec_kernels",
        "    .globl edgec_kernels",
        "edgec_kernels:",
        *(f"    .hidden {name}\n    .long {name} - edgec_kernels" for name in names),
        '    .section .note.GNU-stack, ""',
        "",
    ]
    return "\n".join(parts)


def _kernels(program: Program) -> list[str]:
    """Return names in the order of their first use."""
    return list(dict.fromkeys(step.kernel for step in program.steps))


def _call(program: Program) -> Iterable[str]:
    """Yield a function that runs tasks of a step: kernels of as many buffers are called alike."""
    yield "void call_kernel(const edgec_step_entry* step, void* const* b, int32_t begin,"
    yield "                 int32_t end) {"
    yield "  const void* kernel = (const char*)edgec_kernels + edgec_kernels[step->kernel];"
    yield "  switch (step->buffer_count) {"
    for count in sorted({len(step.arguments) for step in program.steps}):
        pointers = "void*, " * count
        arguments = "".join(f"b[{index}], " for index in range(count))
        yield (
            f"    case {count}: ((void (*)({pointers}int32_t, int32_t))kernel)"
            f"({arguments}begin, end); break;"
        )
    yield "  }"
    yield "}"
    yield ""


def _tensors(kind: str, values: list[tuple[str, str, Value]]) -> Iterable[str]:
    for number, (_, _, value) in enumerate(values):
        extents = ", ".join(map(str, value.shape)) or "1"
        yield f"static const int64_t {kind}_shape_{number}[] = {{{extents}}};"
    yield f"const edgec_tensor edgec_{kind}s[] = {{"
    for number, (name, dtype, value) in enumerate(values):
        yield (
            f"  {{{_text(name)}, {_text(dtype)}, {len(value.shape)}, "
            f"{kind}_shape_{number}, {value.size_bytes}}},"
        )
    yield "};"
    yield ""


def _index_bounds(program: Program, bounds: Mapping[str, int]) -> str:
    """Return a table of the rows that each input chooses from; 0 for what are no indices."""
    rows = (bounds.get(v.label, 0) if v.dtype in INDEX_DTYPES else 0 for v in program.inputs)
    numbers = ", ".join(map(str, rows)) or "0"
    return f"const int64_t edgec_index_bounds[] = {{{numbers}}};"


def _steps(program: Program, plan: MemoryPlan, weights: Weights) -> Iterable[str]:
    yield "/* Of each step its operators and its template. */"
    yield "const char edgec_texts[] ="
    for step in program.steps:
        yield f'  {_text(step.label)} "\\0" {_text(step.template)} "\\0"'
    yield '  "";'
    yield "const edgec_buffer edgec_buffers[] = {"
    for step in program.steps:
        buffers = ", ".join(_buffer(value, plan, weights) for value in step.arguments)
        yield f"  {buffers},"
    yield "  0" if not program.steps else ""
    yield "};"
    numbers = {name: number for number, name in enumerate(_kernels(program))}
    yield "const edgec_step_entry edgec_steps[] = {"
    for step in program.steps:
        yield (
            f"  {{{step.flops}, {numbers[step.kernel]}, {step.tasks}, {grain(step)}, "
            f"{len(step.arguments)}}}, /* {step.kernel} */"
        )
    if not program.steps:
        yield "  {0}"
    yield "};"
    yield ""


def grain(step: KernelCall) -> int:
    """Return tasks that one thread takes at a time."""
    moved = sum(value.size_bytes for value in step.arguments) // BYTES_PER_FLOP
    work = max(step.flops, moved, 1)
    if work < 2 * GRAIN_FLOPS:
        return step.tasks
    return max(1, min(step.tasks, step.tasks * GRAIN_FLOPS // work))


def _copies(program: Program, plan: MemoryPlan, weights: Weights) -> Iterable[str]:
    yield "const edgec_copy edgec_copies[] = {"
    for output, source in program.copies:
        yield f"  {{{_buffer(source, plan, weights)}, {output.number}}},"
    if not program.copies:
        yield "  {0}"
    yield "};"


def _buffer(value: Value, plan: MemoryPlan, weights: Weights) -> str:
    root = value.root
    if root.role == "constant":
        place, number = "WEIGHT", weights.offsets[id(root)] // UNIT_BYTES
    elif root.role == "temporary":
        offset = plan.offsets[id(root)] + value.offset_in_root
        place, number = "ARENA", offset // UNIT_BYTES
    else:
        place, number = root.role.upper(), root.number
    return f"EDGEC_BUFFER(EDGEC_{place}, {number})"


def _text(value: str) -> str:
    r"""Return a C string.

    >>> _text('a"b')
    '"a\\"b"'
    """
    escaped = re.sub(r'(["\\])', r"\\\1", value)
    return '"' + re.sub(r"[^\x20-\x7e]", "?", escaped) + '"'
