"""Provide the compile, from an ONNX file to a bundle, in one place.

`compile_model` is the pipeline: read it from top to bottom. Each phase calls functions of its own
room; the names in `PHASES` are what progress, dumps and the table of times call them.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import onnx

from edgec.compiler.backend import build, evaluate_here
from edgec.compiler.bundle.bundle import Bundle, write_bundle
from edgec.compiler.bundle.generation_files import generation_files
from edgec.compiler.bundle.governor_files import governor_files
from edgec.compiler.bundle.manifest import (
    ENCRYPTED,
    LIBRARY,
    ExecutionRecord,
    Manifest,
    ParityRecord,
)
from edgec.compiler.bundle.runner import runner_files
from edgec.compiler.calibration.samples import SampleOptions
from edgec.compiler.codegen.emit_c import model_identifier
from edgec.compiler.describe import (
    describe_compilation,
    prediction_record,
    state_digest,
    state_parts,
    state_records,
    vector_files,
)
from edgec.compiler.errors import ShapeError, UsageError
from edgec.compiler.frontend.model_argument import as_path, write_model
from edgec.compiler.frontend.model_source import is_language_model, read_model
from edgec.compiler.generation.calibration import TextQuantization
from edgec.compiler.ir.dump import Dump
from edgec.compiler.kernels.isa import isa_of
from edgec.compiler.language.language_model import DEFAULT_CHUNK, LanguageModel, chunk_programs
from edgec.compiler.lowering.time_estimate import tuned_share
from edgec.compiler.options import CompileOptions
from edgec.compiler.outputs import check_before_work
from edgec.compiler.parity.check import ParityCheck
from edgec.compiler.parity.compare import three_digits, worst_of
from edgec.compiler.program_compiler import CompiledProgram, ProgramCompiler, phase_of
from edgec.compiler.runtime.executor import Executor
from edgec.compiler.runtime.session import open_session, why_not_here
from edgec.compiler.support.files import scratch_folder
from edgec.compiler.support.phases import Phases
from edgec.compiler.support.progress import Progress, Silent
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
    "exits",  # early exits trained and calibrated, if asked for
    "expect",  # what TVM's own code makes of a graph that was changed
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
    chunked = in_chunks(path, options)
    if chunked:
        # What is counted; the model says how many tokens fit.
        options = replace(options, programs=_chunks(options, None))
    elif options.streams > 1:
        raise UsageError("--streams is for language models whose programs are not given by --shape")
    progress = progress or Silent()
    dump = Dump(options.dump, options.dump_weights) if options.dump is not None else None
    phase = Phases(progress, _phases(options), dump.write if dump is not None else None)
    with scratch_folder() as scratch:
        with phase("read") as show:
            change = None if by_text is None else by_text.apply
            source = show(
                read_model(
                    path,
                    options.limits,
                    options.context,
                    scratch,
                    change,
                    options.cache,
                    options.adapters,
                    options.kept_states or (),
                )
            )
        if source.language is not None and options.context is not None:
            # Its caches have the names that are known now.
            options = replace(options, states=None)
        if chunked and source.language is not None:
            options = replace(options, programs=_chunks(options, source.language))
        compiler = ProgramCompiler(target, options, progress, phase, path.name, scratch)
        language, tokenizer = source.language, source.tokenizer
        # Nobody reads the file's weights when the last program has its reference.
        sources = [source]
        del source
        programs: list[CompiledProgram] = []
        several = options.streams > 1
        for variant in options.program_shapes:
            before = programs[-1].compilation.expected.last_states if programs else None
            # Programs of several texts keep other states each.
            before = None if several or options.variants else before
            programs.append(compiler.compiled(compiler.changed(variant, sources, before)))
            check_states(programs, parts=several)
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
            tuned_share=three_digits(tuned_share(first.scheduled, compiler.decide.used, target)),
            predicted=prediction_record(first.scheduled, target, compiler.records),
        )
        weights = "" if by_text is None else by_text.describe()
        manifest = describe_compilation(compilations, execution, parity, options.variants, weights)
        files: dict[str, bytes | Path] = {LIBRARY: library, **vector_files(compilations)}
        if options.variants:
            files |= governor_files(manifest, target, scratch)
        if language is not None and tokenizer:
            files |= generation_files(language, tokenizer, digest, target, scratch, progress)
        with phase("bundle"):
            bundle = package(output, manifest, files, options)
    if dump is not None:
        dump.write_times(phase.seconds)
    return bundle


def in_chunks(path: Path, options: CompileOptions) -> bool:
    """Tell whether a model is a language model, whose programs nobody named."""
    is_language = options.context is not None or is_language_model(path)
    return is_language and not options.shapes and not options.programs


def _chunks(
    options: CompileOptions, language: LanguageModel | None
) -> dict[str, dict[str, tuple[int, ...]]]:
    """Return programs of a language model; None if it has not been read."""
    if language is None:
        chunk, verified = options.prefill_chunk or DEFAULT_CHUNK, options.verify_chunk
    else:
        chunk = language.chunk(options.prefill_chunk)
        verified = options.verify_chunk if options.verify_chunk < language.context else 0
    return chunk_programs(chunk, options.streams, verified)


def check_states(programs: Sequence[CompiledProgram], *, parts: bool = False) -> None:
    """Refuse programs whose states are not the same.

    Args:
        programs: of one model.
        parts: whether one may keep a part of what the last one keeps.

    Raises:
        ShapeError: says how they differ.
    """
    widest = state_records(programs[-1].compilation.expected)
    if parts and state_parts(programs[0].compilation, widest) is not None:
        return
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
    programs: Sequence[CompiledProgram], library: Path, executor: Executor, target: Target
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


def package(
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
    first, last = PHASES.index("specialize"), PHASES.index("build")
    each: list[str] = []
    for program in options.program_shapes:
        own = options.of_variant(program.name)
        asked = {
            "compress": own.compression is not None,
            "quantize": own.quantization is not None,
            "exits": own.exits is not None,
            "expect": own.changes_numbers,
        }
        each += [phase_of(n, program) for n in PHASES[first:last] if asked.get(n, True)]
    return [*PHASES[:first], *each, *PHASES[last:]]
