"""Provide speed where no board is: instructions that an inference executes, counted under QEMU.

An emulator's time says nothing of a real machine's. The number of instructions says something: it
is exact, the same in every run, and compares two versions of the same kernel. It knows nothing of
caches, nor of how many instructions a processor executes at once. What a kernel reads and writes
beyond the level-2 cache can be counted beside it, on a cache of the target's size with 16 ways and
lines of 64 bytes that drops what was used longest ago: other caches and prefetching are not there.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgec.compiler.boards.artifacts import counter_parts
from edgec.compiler.errors import ToolchainError
from edgec.compiler.support.processes import run_program
from edgec.compiler.support.progress import Progress, Silent
from edgec.targets.target import Target

COUNT_SECONDS = 1800
# Marks around the steps; see counter/count.c.
_MARKS_BEFORE, _MARKS_AFTER = 4, 1
_LINE_BYTES = 64


@dataclass(frozen=True)
class StepCount:
    """A step count describes one kernel call of a model.

    Attributes:
        label: the operators it computes.
        template: its kernel template, or `generic`.
        flops: floating-point operations.
        instructions: executed, on one thread.
        far_bytes: read and written beyond the level-2 cache; None if they were not counted.
    """

    label: str
    template: str
    flops: int
    instructions: int
    far_bytes: int | None = None

    def seconds(self, target: Target) -> float:
        """Return what it takes if each instruction took a cycle, and nothing hid the memory."""
        far = (self.far_bytes or 0) / target.memory_gb_per_s if target.memory_gb_per_s else 0.0
        return 1e-9 * (max(1, self.instructions) / target.clock_ghz + far)


@dataclass(frozen=True)
class InstructionCount:
    """An instruction count describes instructions of one inference, on one thread.

    Attributes:
        cpu: QEMU's name of the processor.
        total: all of them, with what is between the steps.
        steps: in the order of execution.
    """

    cpu: str
    total: int
    steps: tuple[StepCount, ...]


def count_instructions(
    library: Path,
    target: Target,
    inputs: Sequence[NDArray[Any]],
    progress: Progress | None = None,
    program: int = 0,
    traffic: bool = False,
) -> InstructionCount:
    """Count the instructions of one inference under QEMU.

    Args:
        library: a model for the static executor, that `edgec.compiler.codegen.build` made.
        target: what it is to run on; it names an emulator.
        inputs: in the model's order, of its shapes and dtypes.
        progress: reports what is set up the first time.
        program: which program of the model.
        traffic: count what is read and written beyond the level-2 cache, too; takes longer.

    Raises:
        ToolchainError: QEMU cannot be fetched or has no plugins, or the model fails.
        OutputError: the cache folder cannot be written.
    """
    assert target.emulator is not None
    parts = counter_parts(target, progress or Silent())
    with tempfile.TemporaryDirectory(prefix="edgec-count-") as name:
        # The plugin's arguments are separated by commas.
        folder = Path(name)
        (folder / "plugin.so").symlink_to(parts.plugin)
        (folder / "inputs").write_bytes(b"".join(array.tobytes() for array in inputs))
        clock = ",".join(f"mark={number}" for number in target.instruction_set.clock_calls)
        cache = f",cache={target.l2_kib}" if traffic else ""
        command = [
            *(*parts.command, "-plugin", f"{folder}/plugin.so,out={folder}/marks,{clock}{cache}"),
            *(str(parts.program), str(library.resolve()), str(folder / "inputs")),
            str(program),
        ]
        failure = f"{library.name} does not run under QEMU"
        output = run_program(command, failure, COUNT_SECONDS)
        lines = (folder / "marks").read_text().splitlines()
        marks = [tuple(map(int, line.split())) for line in lines]
    *fields, _ = output.decode(errors="replace").split("\0")
    steps = list(zip(fields[::3], fields[1::3], fields[2::3], strict=True))
    if len(marks) != _MARKS_BEFORE + len(steps) + _MARKS_AFTER:
        raise ToolchainError(
            f"QEMU's plugin set {len(marks)} marks in a run of {len(steps)} steps: this version "
            "of QEMU reads the clock in another way"
        )
    return _report(target.emulator.cpu, marks, steps)


def _report(
    cpu: str, counts: list[tuple[int, ...]], steps: list[tuple[str, str, str]]
) -> InstructionCount:
    marks = [executed for executed, *_ in counts]
    # What a mark itself costs; the count never falls below nothing where compilers differ.
    mark = marks[2] - marks[1]
    between = [max(0, after - before - mark) for before, after in pairwise(marks[3:-1])]
    total = marks[-1] - marks[2] - mark * (len(steps) + 2)
    lines = [
        _LINE_BYTES * (after[1] - before[1]) if len(after) > 1 else None
        for before, after in pairwise(counts[3:-1])
    ]
    found = tuple(
        StepCount(label, template, int(flops), instructions, far_bytes)
        for (label, template, flops), instructions, far_bytes in zip(
            steps, between, lines, strict=True
        )
    )
    return InstructionCount(cpu, total, found)
