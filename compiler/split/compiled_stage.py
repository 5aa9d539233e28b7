"""Provide a stage that is compiled for its device, and the chain of all stages in this process."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgec.compiler.backend import evaluate_here
from edgec.compiler.bundle.manifest import ExecutionRecord
from edgec.compiler.ir.evaluate import Runnable
from edgec.compiler.ir.signature import Signature, Tensors
from edgec.compiler.parity.stream import Step
from edgec.compiler.program_compiler import ChangedProgram, CompiledProgram
from edgec.compiler.runtime.session import open_session, why_not_here
from edgec.compiler.split.make_stages import Stage
from edgec.compiler.support.progress import Progress
from edgec.targets import Target


@dataclass(frozen=True)
class CompiledStage:
    """A compiled stage is a part of every program, compiled for its device.

    Attributes:
        device: who computes it; `whole` for the fallback.
        target: what it was compiled for.
        bundle: the name of its bundle.
        stages: the stage of each program.
        programs: the same, compiled.
        library: the linked file.
        execution: how it runs.
    """

    device: str
    target: Target
    bundle: str
    stages: tuple[Stage, ...]
    programs: tuple[CompiledProgram, ...]
    library: Path
    execution: ExecutionRecord

    def runnable(self, number: int, progress: Progress) -> Runnable:
        """Return what runs one program of it here: the library, or a build for this machine."""
        if why_not_here(self.target):
            stage = self.stages[number]
            return evaluate_here(stage.module, stage.signature, progress, stage.states)
        called = {
            program.compilation.program.name: program.compilation.expected.called
            for program in self.programs
        }
        return open_session(self.library, self.target, called, self.execution.executor)

    def called(self, number: int) -> Signature:
        """Return what callers pass and get, of one program."""
        return self.programs[number].compilation.expected.called


def run_chain(
    stages: Sequence[tuple[Runnable, Signature]], inputs: Sequence[Tensors]
) -> list[list[Step]]:
    """Run stages one after the other, each on what those before it gave.

    Args:
        stages: what runs each, and its inputs and outputs.
        inputs: those of the model, for each run; states are kept from run to run.

    Returns:
        For each run what each stage took and gave.
    """
    runs = []
    for given in inputs:
        values: dict[str, NDArray[Any]] = dict(given)
        steps = []
        for runnable, signature in stages:
            taken = {spec.name: values[spec.name] for spec in signature.inputs}
            made = runnable.run(taken)
            steps.append(Step(taken, made))
            values |= made
        runs.append(steps)
    return runs


def staged(program: ChangedProgram, stage: Stage) -> ChangedProgram:
    """Return a stage as if it were the program; what it must compute is not known yet."""
    inputs = {spec.name for spec in stage.signature.inputs}
    bounds = {n: rows for n, rows in program.expected.index_bounds.items() if n in inputs}
    expected = replace(
        program.expected,
        signature=stage.signature,
        steps=(),
        index_bounds=bounds,
        states=stage.states,
    )
    canonical = program.canonical
    embedded = canonical.embedded
    if embedded is not None and embedded.name not in inputs:
        embedded = None
    imported = replace(
        canonical.imported,
        module=stage.module,
        signature=stage.signature,
        value_names=dict(stage.names),
    )
    return replace(
        program,
        canonical=replace(canonical, imported=imported, module=stage.module, embedded=embedded),
        transformed=replace(program.transformed, module=stage.module),
        original=expected,
        expected=expected,
    )


def uncut(program: ChangedProgram) -> Stage:
    """Return the whole program as its only stage."""
    expected = program.expected
    return Stage(program.module, expected.signature, expected.states, program.canonical.value_names)
