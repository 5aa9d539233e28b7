"""Compile programs of one model up to code generation: its front half, then code for a target.

`pipeline.py` makes one bundle of them; a split model makes one for each stage.
"""

import gc
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tvm import IRModule

from edgec.compiler.backend import pack_dense, schedule
from edgec.compiler.bundle.manifest import ModelRecord
from edgec.compiler.calibration.samples import Samples
from edgec.compiler.codegen.states import keep_states
from edgec.compiler.compress.compression_report import write_compression_report
from edgec.compiler.describe import Compilation
from edgec.compiler.errors import UnsupportedModelError, UsageError
from edgec.compiler.frontend.canonical import CanonicalModel, Phase, canonical_model
from edgec.compiler.frontend.onnx_file import SourceModel
from edgec.compiler.frontend.states import find_states
from edgec.compiler.ir.program import Program
from edgec.compiler.ir.shared_constants import SharedConstants
from edgec.compiler.ir.signature import Signature, State, Tensors, without_states
from edgec.compiler.lowering.choose_sparse import ChooseSparse, sparse_choices
from edgec.compiler.lowering.legalize import lower
from edgec.compiler.lowering.pack import Notes
from edgec.compiler.lowering.recorded_decisions import RecordedDecisions, tuned_records
from edgec.compiler.lowering.shared_packing import SharedPacking
from edgec.compiler.lowering.sparse_report import KernelRow, describe_kernels, kernel_rows
from edgec.compiler.lowering.time_estimate import (
    describe_generic,
    estimated_ms,
    warn_of_generic,
)
from edgec.compiler.options import CompileOptions, ProgramShapes
from edgec.compiler.parity.expected import Expected
from edgec.compiler.parity.reference import run_reference_steps
from edgec.compiler.parity.stream import Step
from edgec.compiler.quantize.float_fallbacks import FloatFallback, float_fallbacks
from edgec.compiler.quantize.quantization_report import write_quantization_report
from edgec.compiler.support.free_memory import return_free_memory
from edgec.compiler.support.html_report import Subject
from edgec.compiler.support.phases import Show
from edgec.compiler.support.progress import Progress
from edgec.compiler.transform import (
    TransformedModel,
    accuracy_of,
    open_samples,
    transform_model,
)
from edgec.targets import Target


@dataclass(frozen=True)
class ChangedProgram:
    """A changed program is a model for one set of shapes, compressed and quantized, not yet packed.

    Attributes:
        shapes: which program, and its shapes.
        model: the file.
        canonical: the model as it was imported.
        samples: what compression and quantization looked at.
        transformed: what they made of it.
        original: what the original graph computes.
        expected: what the library must compute.
        accuracy: agreement with the original model; only measured for a variant.
    """

    shapes: ProgramShapes
    model: ModelRecord
    canonical: CanonicalModel
    samples: Samples | None
    transformed: TransformedModel
    original: Expected
    expected: Expected
    accuracy: float = 1.0

    @property
    def module(self) -> IRModule:
        """Return what is packed."""
        return self.transformed.module


@dataclass(frozen=True)
class CompiledProgram:
    """A compiled program is ready to be built.

    Attributes:
        compilation: what the manifest says of it.
        module: its module before it was packed.
        scheduled: the program, or a module for the virtual machine.
    """

    compilation: Compilation
    module: IRModule
    scheduled: Program | IRModule


class ProgramCompiler:
    """Compiles programs of one model, up to code generation.

    Attributes:
        records: tuning records by kernel.
        decide: chooses among a template's decisions, by them.
    """

    def __init__(
        self,
        target: Target,
        options: CompileOptions,
        progress: Progress,
        phases: Phase,
        name: str,
        scratch: Path | None = None,
    ) -> None:
        """Read what was tuned before.

        Args:
            target: the machine.
            options: the settings.
            progress: hears of what is worth knowing.
            phases: opens each phase.
            name: of the model, for reports.
            scratch: folder that the weights of several programs are kept in until they are built;
                None keeps them in memory.
        """
        self._target = target
        self._options = options
        self._progress = progress
        self._phases = phases
        self._subject = Subject(name, target.name)
        self._sharing = SharedPacking()
        self._constants = SharedConstants(scratch)
        self.records = tuned_records(
            target, options.records, options.records_threads, options.ready_records, progress
        )
        self.decide = RecordedDecisions(self.records)

    def changed(
        self,
        variant: ProgramShapes,
        sources: list[SourceModel],
        before: Tensors | None = None,
    ) -> ChangedProgram:
        """Return the model for one set of shapes, compressed and quantized as it was asked for.

        Args:
            variant: the shapes.
            sources: the file; the last program takes it out.
            before: states that the program before left in its check, by input.
        """
        asked, options, target, progress, decide = (
            self._options,
            self._options.of_variant(variant.name),
            self._target,
            self._progress,
            self.decide,
        )

        def phase(name: str) -> AbstractContextManager[Show]:
            return self._phases(phase_of(name, variant))

        source = sources[0]
        record = ModelRecord(name=source.name, sha256=source.sha256, opset=source.opset)
        canonical = canonical_model(
            source, variant.shapes, options.freeze, options.limits, phase, options.images
        )
        several = len(asked.program_shapes) > 1
        if several and not options.check_stages:
            canonical = canonical.with_module(self._constants.of_module(canonical.module))
            # The reference is run on what this leaves free.
            gc.collect()
            return_free_memory()
        signature = canonical.signature
        states = find_states(signature, options.kept_states)
        several = len(asked.program_shapes) > 1
        samples = open_samples(options, canonical.graph, signature)
        if options.exits is not None and (states or several):
            raise UsageError("--exits are for one program without state")
        with phase("reference"):
            given = fitting_inputs(asked, variant, signature, states)
            if given is None and source.language is not None:
                given = source.language.test_inputs(signature, options.seed)
            # What is transformed is run from zeros.
            before = None if options.changes_numbers else before
            original = Expected.of_original(
                source.original, canonical, given, samples, options.seed, states, before
            )
        del source
        if variant == asked.program_shapes[-1]:
            sources.clear()
        if not options.check_stages and (options.changes_numbers or several):
            canonical = canonical.without_origin()
        if original.advice:
            progress.warn(original.advice)
        # The phases compress and quantize.
        transformed = transform_model(
            canonical,
            target,
            options,
            samples,
            original.inputs,
            record.sha256,
            progress,
            phase,
            decide,
        )
        module, quantized = transformed.module, transformed.quantized
        expected = original
        if options.changes_numbers:
            on_integers = (
                options.quantization is not None
                and options.quantization.recipe.activations != "float"
            )
            with phase("expect"):
                exited = transformed.exited
                outputs = None if quantized is None or exited is not None else quantized.outputs
                signature = transformed.signature(signature)
                # By code that is not ours, if it is to be compared.
                if options.parity or states or outputs is None:
                    inputs = [step.inputs for step in original.called_steps]
                    steps = run_reference_steps(module, signature, inputs, states, progress)
                else:
                    steps = (Step(original.inputs, outputs),)
                expected = original.of_transformed(steps, on_integers)
                expected = replace(expected, signature=signature)
                if exited is not None and quantized is not None:
                    # An exit's answer is far from the original's; roundings must not be.
                    expected = original.rounded_as(expected, quantized.outputs, on_integers)
        accuracy = 1.0
        if asked.variants and asked.variants[variant.name].accuracy is None:
            accuracy = accuracy_of(canonical, transformed, samples, options, progress)
        return ChangedProgram(
            variant, record, canonical, samples, transformed, original, expected, accuracy
        )

    def compiled(self, program: ChangedProgram) -> CompiledProgram:
        """Pack a program for the target, lower it and choose the code of its operators."""
        asked, target, progress = self._options, self._target, self._progress
        canonical, expected, variant = program.canonical, program.expected, program.shapes
        options = asked.of_variant(variant.name)
        compressed, quantized = program.transformed.compressed, program.transformed.quantized
        module, signature, states = program.module, expected.signature, expected.states
        metric = options.samples.metric or ""

        def phase(name: str) -> AbstractContextManager[Show]:
            return self._phases(phase_of(name, variant))

        with phase("pack") as show:
            packed = show(PackedProgram.make(module, target, canonical.value_names))
        fallbacks: tuple[FloatFallback, ...] = ()
        if quantized is not None and options.quantization is not None:
            fallbacks = float_fallbacks(
                quantized.quantization, packed.notes.why_floats, quantized.kept_float
            )
            if options.quantization.report is not None:
                write_quantization_report(
                    options.quantization.report, quantized, self._subject, fallbacks, metric
                )
        compilation = Compilation(
            program=variant,
            model=program.model,
            target=target,
            options=options,
            canonical=canonical,
            samples=program.samples,
            compressed=compressed,
            quantized=quantized,
            fallbacks=fallbacks,
            exited=program.transformed.exited,
            original=program.original,
            expected=expected,
            accuracy=program.accuracy,
        )
        if packed.rows:
            progress.detail(describe_kernels(packed.rows))
        if compressed is not None and options.compression and options.compression.report:
            rows = [asdict(row) for row in packed.rows]
            write_compression_report(
                options.compression.report, compressed, self._subject, rows, metric
            )
        with phase("lower") as show:
            lowered = show(lower(packed.module, target))
        with phase("schedule") as show:
            sharing = self._sharing if asked.variants else None
            scheduled = show(
                schedule(lowered, module, target, signature, self.decide, progress, sharing)
            )
        progress.detail(describe_generic(scheduled, target))
        slow = warn_of_generic(scheduled, target)
        if slow:
            progress.warn(slow)
        if packed.notes.describe():
            progress.detail(packed.notes.describe())
        if isinstance(scheduled, Program):
            scheduled.forget_unpacked()
            if len(asked.program_shapes) > 1:
                self._constants.of_program(scheduled)
            scheduled.name, scheduled.index_bounds = variant.name, expected.index_bounds
            keep_states(scheduled, states, target)
            time = estimated_ms(scheduled, target)
            compilation = replace(compilation, estimated_ms=time)
        elif options.runner or states or len(asked.program_shapes) > 1:
            raise UnsupportedModelError(_NO_RUNNER if options.runner else _NOT_STATIC)
        if len(asked.program_shapes) > 1 and not options.check_stages:
            original = program.original.with_few_states()
            kept = original if expected is program.original else expected.with_few_states()
            compilation = replace(compilation, original=original, expected=kept)
        return CompiledProgram(compilation, module, scheduled)


def fitting_inputs(
    options: CompileOptions,
    variant: ProgramShapes,
    signature: Signature,
    states: Sequence[State],
) -> Tensors | None:
    """Return the test inputs that the user gave, if they are of this program's shapes."""
    if options.inputs is None or len(options.program_shapes) == 1:
        return options.inputs
    shapes = {s.name: s.shape for s in without_states(signature, states).inputs}
    given = {name: array.shape for name, array in options.inputs.items()}
    return options.inputs if given == shapes else None


@dataclass(frozen=True)
class PackedProgram:
    """A packed module is in the target's layouts, with why its operators run as they do.

    Attributes:
        module: the packed module.
        rows: why operators run sparse or dense.
        notes: why operators run on integers, on floats, or in generic code.
    """

    module: IRModule
    rows: tuple[KernelRow, ...]
    notes: Notes

    @classmethod
    def make(cls, module: IRModule, target: Target, names: Mapping[str, str]) -> "PackedProgram":
        """Pack a module."""
        notes = Notes()
        dense = pack_dense(module, target, names, notes)
        choices = sparse_choices(dense, target)
        return cls(ChooseSparse(choices)(dense), kernel_rows(choices.values()), notes)


_NO_RUNNER = (
    "the runner cannot run this model: shapes in it depend on data, so it needs TVM's virtual "
    "machine, and the runner has only the static executor; compile without --runner"
)


_NOT_STATIC = (
    "shapes in this model depend on data, so it needs TVM's virtual machine, which has neither "
    "programs nor state; compile it for one set of shapes, without --state"
)


def phase_of(name: str, variant: ProgramShapes) -> str:
    """Return what a phase of a program is called where there are several."""
    return f"{name}-{variant.name}" if variant.name else name
