"""Write a model's tables as C, the form in which the executor reads them.

The generated file is small and meant to be read: inputs and outputs, then one line per kernel
call with its buffers. The tables of several programs follow one another.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from edgec.compiler.codegen.memory import ALIGNMENT_BYTES, MemoryPlan
from edgec.compiler.ir.program import KernelCall, Program, Value

# Handing a task to a thread costs about a microsecond: give it more than that to do.
GRAIN_FLOPS = 100_000
# Places in the weights and in the arena are counted in these: EDGEC_UNIT of program.h.
UNIT_BYTES = 16
# What is left of a buffer's 32 bits beside its place: 8 GiB.
MOST_UNITS = 2**29
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
    programs: Sequence[Program],
    plans: Sequence[MemoryPlan],
    weights: Weights,
    name: str,
    digest: bytes = bytes(32),
) -> str:
    """Return the C source of a model's tables, which the executor reads.

    Args:
        programs: the scheduled programs of the model.
        plans: the plan of the memory of each.
        weights: where their constants are.
        name: the name of the model, as `model_identifier` gives it.
        digest: 32 bytes that tell the model's saved state from that of others.
    """
    steps = [step for program in programs for step in program.steps]
    most_buffers = max((len(step.arguments) for step in steps), default=0)
    inputs = [value for program in programs for value in program.inputs]
    outputs = [value for program in programs for value in program.outputs]
    parts = [
        "/* Written by edgec; see program.h for the types. */",
        '#include "program.h"',
        "",
        *_tensors("input", inputs),
        *_tensors("output", outputs),
        *_tensors("state", widest(programs).states),
        _index_bounds(programs),
        *_steps(programs, plans, weights),
        *_copies(programs, plans, weights),
        _numbers("edgec_swaps", [number for program in programs for number in program.swaps]),
        *_exits(programs),
        *_parts(programs),
        f"const int32_t edgec_input_count = {len(inputs)};",
        f"const int32_t edgec_output_count = {len(outputs)};",
        f"const int32_t edgec_step_count = {len(steps)};",
        f"const int32_t edgec_most_buffers = {most_buffers};",
        f"const unsigned char edgec_digest[32] = {{{', '.join(map(str, digest))}}};",
        "",
        *_call(steps),
        *_model(programs, plans, name),
        "",
    ]
    return "\n".join(parts)


def widest(programs: Sequence[Program]) -> Program:
    """Return the program that keeps the most state; others run on a part of it."""
    return max(programs, key=state_bytes)


def state_bytes(program: Program) -> int:
    """Return the size of the states of a program."""
    return sum(value.size_bytes for value in program.states)


def _state_parts(program: Program, programs: Sequence[Program]) -> int:
    """Return into how many parts the states are cut for a program."""
    return state_bytes(widest(programs)) // state_bytes(program) if program.states else 1


def _model(programs: Sequence[Program], plans: Sequence[MemoryPlan], name: str) -> Iterable[str]:
    count = sum(len(program.steps) for program in programs)
    yield f'_Static_assert({count} < 1 << EDGEC_STEP_BITS, "steps of a model");'
    yield "static const edgec_program programs[] = {"
    inputs = outputs = 0
    for program in programs:
        yield (
            f"  {{{_text(program.name)}, {len(program.inputs)}, {len(program.outputs)}, "
            f"edgec_inputs + {inputs}, edgec_outputs + {outputs}, edgec_index_bounds + {inputs}, "
            f"{len(program.steps)}}},"
        )
        inputs += len(program.inputs)
        outputs += len(program.outputs)
    yield "};"
    yield "const edgec_model model = {"
    first = programs[0]
    fields = {
        "abi": "EDGEC_ABI",
        "input_count": len(first.inputs),
        "output_count": len(first.outputs),
        "inputs": "edgec_inputs",
        "outputs": "edgec_outputs",
        "arena_bytes": max(plan.arena_bytes for plan in plans),
        "open": "session_open",
        "close": "session_close",
        "threads": "session_threads",
        "run": "run",
        "run_timed": "run_timed",
        "step_count": len(first.steps),
        "step": "step_info",
        "index_bounds": "edgec_index_bounds",
        "error": "last_error",
        "program_count": len(programs),
        "programs": "programs",
        "run_program": "run_program",
        "program_step": "program_step",
        "state_count": len(first.states),
        "states": "edgec_states",
        "state": "state_of",
        "reset": "reset_state",
        "saved_bytes": f"EDGEC_SAVED_HEADER + {state_bytes(widest(programs))}",
        "save": "save_state",
        "restore": "restore_state",
        "use_threads": "use_threads",
        "state_parts": max(_state_parts(program, programs) for program in programs),
        "run_part": "run_part",
    }
    yield from (f"  .{field} = {value}," for field, value in fields.items())
    yield "};"
    yield f"const edgec_model* edgec_model_{name}(void) {{ return &model; }}"


def _exits(programs: Sequence[Program]) -> Iterable[str]:
    """Yield the steps behind which a program may go on with a later one."""
    yield "const edgec_exit edgec_exits[] = {"
    first = 0
    for program in programs:
        for step, following in program.exits:
            skipped = sum(len(s.arguments) for s in program.steps[step + 1 : following])
            yield f"  {{{first + step}, {first + following}, {skipped}}},"
        first += len(program.steps)
    yield "  {INT32_MAX, 0, 0}"
    yield "};"


def _parts(programs: Sequence[Program]) -> Iterable[str]:
    """Yield where each program's steps, buffers, copies and swaps begin."""
    yield "const edgec_part edgec_parts[] = {"
    step = buffer = copy = swap = 0
    for program in programs:
        copies, swaps = len(program.copies), len(program.swaps)
        parts = _state_parts(program, programs)
        yield f"  {{{step}, {buffer}, {copy}, {copies}, {swap}, {swaps}, {parts}}},"
        step += len(program.steps)
        buffer += sum(len(step.arguments) for step in program.steps)
        copy += copies
        swap += swaps
    yield "};"


def model_identifier(name: str) -> str:
    """Return a model's name as part of a C identifier: `edgec_model_NAME` is its function.

    >>> model_identifier("yolov8n-320 (1)")
    'yolov8n_320_1'
    """
    return re.sub(r"[^a-zA-Z0-9]+", "_", name).strip("_") or "model"


def constants_source(programs: Sequence[Program], weights: str) -> str:
    """Return the assembly of what C cannot say: a file of weights.

    And distances to kernels' code.
    """
    names = _kernels(programs)
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


def _kernels(programs: Iterable[Program]) -> list[str]:
    """Return names in the order of their first use."""
    return list(dict.fromkeys(step.kernel for program in programs for step in program.steps))


def _call(steps: Sequence[KernelCall]) -> Iterable[str]:
    """Yield a function that runs tasks of a step: kernels of as many buffers are called alike."""
    yield "void call_kernel(const edgec_step_entry* step, void* const* b, int32_t begin,"
    yield "                 int32_t end) {"
    yield "  const void* kernel = (const char*)edgec_kernels + edgec_kernels[step->kernel];"
    yield "  switch (step->buffer_count) {"
    for count in sorted({len(step.arguments) for step in steps}):
        pointers = "void*, " * count
        arguments = "".join(f"b[{index}], " for index in range(count))
        yield (
            f"    case {count}: ((void (*)({pointers}int32_t, int32_t))kernel)"
            f"({arguments}begin, end); break;"
        )
    yield "  }"
    yield "}"
    yield ""


def _tensors(kind: str, values: Sequence[Value]) -> Iterable[str]:
    for number, value in enumerate(values):
        extents = ", ".join(map(str, value.shape)) or "1"
        yield f"static const int64_t {kind}_shape_{number}[] = {{{extents}}};"
    yield f"const edgec_tensor edgec_{kind}s[] = {{"
    for number, value in enumerate(values):
        yield (
            f"  {{{_text(value.label)}, {_text(value.dtype)}, {len(value.shape)}, "
            f"{kind}_shape_{number}, {value.size_bytes}}},"
        )
    if not values:
        yield "  {0}"
    yield "};"
    yield ""


def _index_bounds(programs: Iterable[Program]) -> str:
    """Return a table of the rows that each input chooses from; 0 for what are no indices."""
    rows = [
        program.index_bounds.get(value.label, 0) if value.dtype in INDEX_DTYPES else 0
        for program in programs
        for value in program.inputs
    ]
    return _numbers("edgec_index_bounds", rows, "int64_t")


def _numbers(name: str, numbers: Sequence[int], kind: str = "int32_t") -> str:
    return f"const {kind} {name}[] = {{{', '.join(map(str, numbers)) or '0'}}};"


def _steps(
    programs: Sequence[Program], plans: Sequence[MemoryPlan], weights: Weights
) -> Iterable[str]:
    steps = [step for program in programs for step in program.steps]
    yield "/* Of each step its operators and its template. */"
    yield "const char edgec_texts[] ="
    for step in steps:
        yield f'  {_text(step.label)} "\\0" {_text(step.template)} "\\0"'
    yield '  "";'
    yield "const edgec_buffer edgec_buffers[] = {"
    for program, plan in zip(programs, plans, strict=True):
        for step in program.steps:
            buffers = ", ".join(_buffer(value, plan, weights) for value in step.arguments)
            yield f"  {buffers},"
    yield "  0" if not steps else ""
    yield "};"
    numbers = {name: number for number, name in enumerate(_kernels(programs))}
    yield "const edgec_step_entry edgec_steps[] = {"
    for step in steps:
        yield (
            f"  {{{step.flops}, {numbers[step.kernel]}, {step.tasks}, {grain(step)}, "
            f"{len(step.arguments)}}}, /* {step.kernel} */"
        )
    if not steps:
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


def _copies(
    programs: Sequence[Program], plans: Sequence[MemoryPlan], weights: Weights
) -> Iterable[str]:
    yield "const edgec_copy edgec_copies[] = {"
    for program, plan in zip(programs, plans, strict=True):
        for output, source in program.copies:
            places = (_buffer(value, plan, weights) for value in (source, output))
            yield f"  {{{', '.join(places)}, {output.size_bytes}}},"
    if not any(program.copies for program in programs):
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
    assert number < MOST_UNITS
    return f"EDGEC_BUFFER(EDGEC_{place}, {number})"


def _text(value: str) -> str:
    r"""Return a C string.

    >>> _text('a"b')
    '"a\\"b"'
    """
    escaped = re.sub(r'(["\\])', r"\\\1", value)
    return '"' + re.sub(r"[^\x20-\x7e]", "?", escaped) + '"'
