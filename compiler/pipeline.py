"""Provide the compile, from an ONNX file to a bundle, in one place.

`compile_model` is the pipeline: read it from top to bottom. Each phase calls functions of its own
room; the names in `PHASES` are what progress, dumps and the table of times call them.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import onnx
from tvm import IRModule

from edgec.compiler.backend import build, evaluate_here, pack_dense, schedule
from edgec.compiler.bundle.bundle import Bundle, write_bundle
from edgec.compiler.bundle.generation_files import generation_files
from edgec.compiler.bundle.manifest import (
    ENCRYPTED,
    LIBRARY,
    ExecutionRecord,
    Manifest,
    ModelRecord,
    ParityRecord,
)
from edgec.compiler.bundle.runner import runner_files
from edgec.compiler.calibration.samples import SampleOptions
from edgec.compiler.codegen.emit_c import model_identifier
from edgec.compiler.codegen.states import keep_states
from edgec.compiler.compress.compression_report import (
    write_compression_report as write_compression_report,
)
from edgec.compiler.describe import (
    Compilation,
    describe_compilation,
    state_digest,
    state_records,
    vector_files,
)
from edgec.compiler.errors import BadInputError, ShapeError, UnsupportedModelError, UsageError
from edgec.compiler.frontend.canonical import canonical_model
from edgec.compiler.frontend.model_argument import as_path, write_model
from edgec.compiler.frontend.model_source import is_language_model, read_model
from edgec.compiler.frontend.onnx_file import SourceModel
from edgec.compiler.frontend.states import find_states
from edgec.compiler.generation.calibration import TextQuantization
from edgec.compiler.ir.dump import Dump
from edgec.compiler.ir.program import Program
from edgec.compiler.ir.signature import Signature, State, Tensors, without_states
from edgec.compiler.kernels.isa import isa_of
from edgec.compiler.language.language_model import DEFAULT_CHUNK, chunk_programs
from edgec.compiler.lowering.choose_sparse import ChooseSparse, sparse_choices
from edgec.compiler.lowering.legalize import lower
from edgec.compiler.lowering.pack import Notes
from edgec.compiler.lowering.recorded_decisions import RecordedDecisions
from edgec.compiler.lowering.sparse_report import KernelRow, describe_kernels, kernel_rows
from edgec.compiler.lowering.time_estimate import describe_generic, tuned_share, warn_of_generic
from edgec.compiler.lowering.tuning_records import READY, Database, Key, Record, best_records
from edgec.compiler.options import CompileOptions, ProgramShapes
from edgec.compiler.outputs import check_before_work
from edgec.compiler.parity.check import ParityCheck
from edgec.compiler.parity.compare import three_digits, worst_of
from edgec.compiler.parity.expected import Expected
from edgec.compiler.parity.reference import run_reference_steps
from edgec.compiler.parity.stream import Step
from edgec.compiler.quantize.float_fallbacks import FloatFallback, float_fallbacks
from edgec.compiler.quantize.quantization_report import write_quantization_report
from edgec.compiler.runtime.executor import Executor
from edgec.compiler.runtime.session import open_session, why_not_here
from edgec.compiler.support.files import scratch_folder
from edgec.compiler.support.html_report import Subject
from edgec.compiler.support.phases import Phases, Show
from edgec.compiler.support.progress import Progress, Silent
from edgec.compiler.transform import open_samples, transform_model
from edgec.compiler.trust.age import encrypt_file
from edgec.compiler.trust.identities import load_recipient
from edgec.compiler.trust.keys import load_signing_key
from edgec.targets import Target, load_target

PHASES = (
    "read",  # the file, checked
    "specialize",  # static shapes, frozen inputs
    "simplify",  # constants folded
    "import",  # ONNX to Relax
    "canonicalize",  # affines into weights, composites recognized
    "reference",  # what ONNX Runtime says
    "compress",  # fewer weights, channels and layers, if asked for
    "quantize",  # integers instead of floats, if asked for
    "expect",  # what TVM's own code makes of a compressed or quantized graph
    "pack",  # layouts of the target's kernels, epilogues fused
    "lower",  # the rest to fused loop nests
    "schedule",  # decisions, code of every kernel
    "build",  # machine code, linked
    "verify",  # parity with the reference
    "bundle",  # written, atomically
)


def compile_model(
    model: str | Path | onnx.ModelProto,
    target: str | Path | Target = "native",
    options: CompileOptions | None = None,
    *,
    output: str | Path | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Compile an ONNX model for a target into a verified bundle.

    Args:
        model: the ONNX file, or what was read from one.
        target: a target, its name, or the path of a target file.
        options: shapes, frozen inputs, checks; the defaults compile a static model.
        output: bundle folder, or a file that ends in `.tar`; by default
            `<model>-<target>.edgec` in the current folder.
        progress: reports each phase.

    Returns:
        The bundle, read back from disk.

    Raises:
        EdgecError: see `edgec.compiler.errors`; nothing is written then.
    """
    options = options or CompileOptions()
    target = target if isinstance(target, Target) else load_target(target)
    if isinstance(model, onnx.ModelProto):
        with scratch_folder() as scratch:
            path = write_model(model, scratch)
            output = output or f"{path.stem}-{target.name}.edgec"
            return compile_model(path, target, options, output=output, progress=progress)
    path = as_path(model, "compile_model")
    output = Path(output) if output else Path(f"{path.stem}-{target.name}.edgec")
    check_before_work(output, options, target)
    if options.cache == "float16" and not isa_of(target).converts_float16:
        raise UsageError(
            f"--cache float16: {target.name} has no instructions that convert it; leave it out"
        )
    by_text: TextQuantization | None = None
    if is_language_model(path) and options.quantization is not None:
        by_text = TextQuantization.of(options.quantization, options.samples)
        options = replace(options, quantize=None, samples=SampleOptions())
    is_language = options.context is not None or is_language_model(path)
    chunked = is_language and not options.shapes and not options.programs
    if chunked:
        options = replace(options, programs=chunk_programs(options.prefill_chunk or DEFAULT_CHUNK))
    progress = progress or Silent()
    dump = Dump(options.dump, options.dump_weights) if options.dump is not None else None
    phase = Phases(progress, _phases(options), dump.write if dump is not None else None)
    with scratch_folder() as scratch:
        with phase("read") as show:
            change = None if by_text is None else by_text.apply
            source = show(
                read_model(path, options.limits, options.context, scratch, change, options.cache)
            )
        if chunked and source.language is not None:
            chunk = source.language.chunk(options.prefill_chunk)
            options = replace(options, programs=chunk_programs(chunk))
        compile_ = _Compile(target, options, progress, phase, path.name)
        language, tokenizer = source.language, source.tokenizer
        # Nobody reads the file's weights when the last program has its reference.
        sources = [source]
        del source
        programs: list[_CompiledProgram] = []
        for variant in options.variants:
            before = programs[-1].compilation.expected.last_states if programs else None
            programs.append(compile_.program(variant, sources, before))
            _check_states(programs)
        library = scratch / LIBRARY
        name = model_identifier(options.name or path.stem)
        compilations = [program.compilation for program in programs]
        with phase("build"):
            scheduled = [program.scheduled for program in programs]
            digest = state_digest(compilations)
            executor, arena_bytes = build(scheduled, target, library, name, digest, progress)
        with phase("verify"):
            parity = _verify(programs, library, executor, target)
        first = programs[0]
        execution = ExecutionRecord(
            executor=executor,
            arena_bytes=arena_bytes,
            c_name=name if executor == "static" else "",
            tuned_share=three_digits(tuned_share(first.scheduled, compile_.decide.used, target)),
        )
        weights = "" if by_text is None else by_text.describe()
        manifest = describe_compilation(compilations, execution, parity, weights)
        files: dict[str, bytes | Path] = {LIBRARY: library, **vector_files(compilations)}
        if language is not None and tokenizer:
            files |= generation_files(language, tokenizer, digest, target, scratch, progress)
        with phase("bundle"):
            bundle = _package(output, manifest, files, options)
    if dump is not None:
        dump.write_times(phase.seconds)
    return bundle


@dataclass(frozen=True)
class _CompiledProgram:
    """A compiled program is ready to be built.

    Attributes:
        compilation: what the manifest says of it.
        module: its module before it was packed.
        scheduled: the program, or a module for the virtual machine.
    """

    compilation: Compilation
    module: IRModule
    scheduled: Program | IRModule


class _Compile:
    """Compiles programs of one model, up to code generation.

    Attributes:
        decide: chooses among a template's decisions.
    """

    def __init__(
        self,
        target: Target,
        options: CompileOptions,
        progress: Progress,
        phases: Phases,
        name: str,
    ) -> None:
        self._target = target
        self._options = options
        self._progress = progress
        self._phases = phases
        self._subject = Subject(name, target.name)
        self.decide = RecordedDecisions(_tuned(options, target, progress))

    def program(
        self, variant: ProgramShapes, sources: list[SourceModel], before: Tensors | None
    ) -> _CompiledProgram:
        """Compile the model for one set of shapes.

        Args:
            variant: the shapes.
            sources: the file; the last program takes it out.
            before: states that the program before left in its check, by input.
        """
        options, target, progress, decide = (
            self._options,
            self._target,
            self._progress,
            self.decide,
        )

        def phase(name: str) -> AbstractContextManager[Show]:
            return self._phases(_phase_of(name, variant))

        source = sources[0]
        record = ModelRecord(name=source.name, sha256=source.sha256, opset=source.opset)
        canonical = canonical_model(
            source, variant.shapes, options.freeze, options.limits, phase, options.images
        )
        signature = canonical.signature
        states = find_states(signature, options.kept_states)
        samples = open_samples(options, canonical.graph, signature)
        with phase("reference"):
            given = _fitting(options, variant, signature, states)
            if given is None and source.language is not None:
                tokens = next(s.shape[1] for s in signature.inputs if s.name == "input_ids")
                given = source.language.test_inputs(tokens or 1, options.seed)
            # What is transformed is run from zeros.
            before = None if options.changes_numbers else before
            original = Expected.of_original(
                source.original, canonical, given, samples, options.seed, states, before
            )
        del source
        if variant == options.variants[-1]:
            sources.clear()
        if not options.check_stages and (options.changes_numbers or len(options.variants) > 1):
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
        module = transformed.module
        compressed, quantized = transformed.compressed, transformed.quantized
        metric = options.samples.metric or ""
        expected = original
        if options.changes_numbers:
            on_integers = (
                options.quantization is not None
                and options.quantization.recipe.activations != "float"
            )
            with phase("expect"):
                outputs = quantized.outputs if quantized is not None else None
                # By code that is not ours, if it is to be compared.
                if options.parity or states or outputs is None:
                    inputs = [step.inputs for step in original.called_steps]
                    steps = run_reference_steps(module, signature, inputs, states, progress)
                else:
                    steps = (Step(original.inputs, outputs),)
                expected = original.of_transformed(steps, on_integers)
        with phase("pack") as show:
            packed = show(_Packed.make(module, target, canonical.value_names))
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
            model=record,
            target=target,
            options=options,
            canonical=canonical,
            samples=samples,
            compressed=compressed,
            quantized=quantized,
            fallbacks=fallbacks,
            original=original,
            expected=expected,
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
            scheduled = show(schedule(lowered, module, target, signature, decide, progress))
        progress.detail(describe_generic(scheduled, target))
        slow = warn_of_generic(scheduled, target)
        if slow:
            progress.warn(slow)
        if packed.notes.describe():
            progress.detail(packed.notes.describe())
        if isinstance(scheduled, Program):
            scheduled.forget_unpacked()
            scheduled.name, scheduled.index_bounds = variant.name, expected.index_bounds
            keep_states(scheduled, states, target)
        elif options.runner or states or len(options.variants) > 1:
            raise UnsupportedModelError(_NO_RUNNER if options.runner else _NOT_STATIC)
        return _CompiledProgram(compilation, module, scheduled)


def _fitting(
    options: CompileOptions,
    variant: ProgramShapes,
    signature: Signature,
    states: Sequence[State],
) -> Tensors | None:
    """Return the test inputs that the user gave, if they are of this program's shapes."""
    if options.inputs is None or len(options.variants) == 1:
        return options.inputs
    shapes = {s.name: s.shape for s in without_states(signature, states).inputs}
    given = {name: array.shape for name, array in options.inputs.items()}
    return options.inputs if given == shapes else None


def _check_states(programs: Sequence[_CompiledProgram]) -> None:
    """Refuse programs whose states are not the same.

    Raises:
        ShapeError: says how they differ.
    """
    first, last = (state_records(p.compilation.expected) for p in (programs[0], programs[-1]))
    for before, after in zip(first, last, strict=True):
        if before != after:
            names = [p.compilation.program.name for p in (programs[0], programs[-1])]
            raise ShapeError(
                f"state {before.input} is {list(before.shape)} {before.dtype} in program "
                f"{names[0]} and {list(after.shape)} {after.dtype} in {names[1]}; programs share "
                "their state, so it has one shape (--no-state makes it an input)"
            )


def _verify(
    programs: Sequence[_CompiledProgram], library: Path, executor: Executor, target: Target
) -> ParityRecord:
    """Compare what the library computes with what it must.

    Raises:
        ParityError: they differ; says where that begins.
    """
    options = programs[0].compilation.options
    if not options.parity:
        return ParityRecord(checked_on="nothing")
    here, session = not why_not_here(target), None
    if here:
        called = {p.compilation.program.name: p.compilation.expected.called for p in programs}
        session = open_session(library, target, called, executor)
    reports = []
    for program in programs:
        expected = program.compilation.expected
        check = ParityCheck(
            program.compilation.canonical,
            program.compilation.original,
            expected,
            evaluate_here,
            partial(evaluate_here, states=expected.states),
            program.compilation.program.name,
        )
        if options.check_stages:
            check.check_stages()
        reports.append(check.check_library(session, program.module))
    report = worst_of(reports)
    return ParityRecord(
        checked_on="target" if here else "host",
        max_error={o.name: three_digits(o.max_error) for o in report.outputs},
        allowed_share={o.name: three_digits(o.allowed_share) for o in report.outputs},
    )


@dataclass(frozen=True)
class _Packed:
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
    def make(cls, module: IRModule, target: Target, names: Mapping[str, str]) -> "_Packed":
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


def _tuned(options: CompileOptions, target: Target, progress: Progress) -> dict[Key, Record]:
    """Return the tuning record of each kernel: of a database before those that come with edgec.

    Raises:
        BadInputError: the database cannot be read, or holds nothing for this target.
    """
    best: dict[Key, Record] = {}
    if options.ready_records:
        ready = Database.read(READY / f"{target.name}.jsonl", missing_ok=True)
        best = best_records(ready.fitting(target))
    if options.records is None:
        return best
    database = Database.read(options.records)
    if database.warning():
        progress.warn(database.warning())
    records = database.fitting(target)
    threads = options.records_threads or max((r.threads for r in records), default=0)
    records = [record for record in records if record.threads == threads]
    if not records:
        why = database.why_unfit(target) or f"{options.records} has none for {threads} threads"
        raise BadInputError(f"no tuning record fits: {why}")
    if any(record.emulated for record in records):
        progress.warn(f"{options.records} was measured in an emulator, which knows no caches")
    return best | best_records(records)


def _package(
    output: Path, manifest: Manifest, files: dict[str, bytes | Path], options: CompileOptions
) -> Bundle:
    """Write the bundle, with what was asked for: the runner, encryption, signatures."""
    library = files[LIBRARY]
    assert isinstance(library, Path)
    encrypted = bool(options.encrypt_for)
    if options.runner:
        files = {**files, **runner_files(manifest, library, embed=not encrypted)}
    if encrypted:
        recipients = [load_recipient(given) for given in options.encrypt_for]
        files[ENCRYPTED] = target = library.with_name(ENCRYPTED)
        encrypt_file(library, target, recipients)
        del files[LIBRARY]
    keys = [load_signing_key(key) for key in options.sign]
    return write_bundle(output, manifest, files, keys)


def _phases(options: CompileOptions) -> list[str]:
    """Return those that a compile goes through."""
    asked = {
        "compress": options.compression is not None,
        "quantize": options.quantization is not None,
    }
    asked["expect"] = any(asked.values())
    phases = [phase for phase in PHASES if asked.get(phase, True)]
    first, last = phases.index("specialize"), phases.index("build")
    each = [_phase_of(name, v) for v in options.variants for name in phases[first:last]]
    return [*phases[:first], *each, *phases[last:]]


def _phase_of(name: str, variant: ProgramShapes) -> str:
    """Return what a phase of a program is called where there are several."""
    return f"{name}-{variant.name}" if variant.name else name
