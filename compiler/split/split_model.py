"""Compile one model for several devices: a bundle for each stage, and the plan that joins them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from edgec.compiler.backend import build
from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.bundle.generation_files import generation_files
from edgec.compiler.bundle.manifest import LIBRARY, ExecutionRecord, ParityRecord
from edgec.compiler.codegen.emit_c import model_identifier
from edgec.compiler.describe import Compilation, describe_compilation, state_digest, vector_files
from edgec.compiler.errors import ParityError, UsageError
from edgec.compiler.frontend.model_source import read_model
from edgec.compiler.frontend.onnx_file import SourceModel
from edgec.compiler.language.language_model import DEFAULT_CHUNK, chunk_programs
from edgec.compiler.lowering.time_estimate import tuned_share
from edgec.compiler.options import CompileOptions
from edgec.compiler.outputs import check_before_transform
from edgec.compiler.parity.compare import ParityReport, compare, three_digits, worst_of
from edgec.compiler.pipeline import check_states, in_chunks, package
from edgec.compiler.program_compiler import ChangedProgram, ProgramCompiler
from edgec.compiler.runtime.session import why_not_here
from edgec.compiler.split.choose_stages import choose_stages
from edgec.compiler.split.compiled_stage import CompiledStage, run_chain, staged, uncut
from edgec.compiler.split.cut_graph import CutGraph
from edgec.compiler.split.devices import Device, StageRequest, strictest
from edgec.compiler.split.emulation import check_emulated
from edgec.compiler.split.encode_cuts import encode_cuts
from edgec.compiler.split.exit_cuts import exits_before
from edgec.compiler.split.make_plan import planned_program
from edgec.compiler.split.make_stages import Stage
from edgec.compiler.split.model_values import ModelValues
from edgec.compiler.split.plan import Encoding, Plan, PlannedModel, PlannedStage
from edgec.compiler.split.plan_folder import PlanFolder, check_plan_destination
from edgec.compiler.split.segment_costs import Parallel
from edgec.compiler.split.share_planner import plan_shared
from edgec.compiler.support.files import scratch_folder
from edgec.compiler.support.phases import Phases, untold
from edgec.compiler.support.progress import Progress, Silent
from edgec.targets import Target

WHOLE = "whole"
# That of a quantized model's library, `parity.compare`.
DEFAULT_SQNR_DB = 20.0
# Said of outputs that are equal.
_EQUAL_DB = 200.0


def split_model(
    model: str | Path,
    devices: Sequence[Device],
    options: CompileOptions | None = None,
    *,
    output: str | Path | None = None,
    stages: Sequence[StageRequest] = (),
    parallel: Parallel | None = None,
    whole: Target | None = None,
    encoding: Encoding = "none",
    min_sqnr_db: float = DEFAULT_SQNR_DB,
    emulate: bool = True,
    progress: Progress | None = None,
) -> Plan:
    """Compile a model into a bundle for each device, and a plan that joins them.

    Args:
        model: the ONNX file, or a language model.
        devices: who computes, in the order of the stages where `stages` does not say it.
        options: as for one bundle.
        output: the folder; by default `<model>.plan` in the current folder.
        stages: where to cut, and who computes what; by default stages of equal work.
        parallel: without `stages`: have the devices compute parts of operators at the same time.
        whole: also compile the whole model for this target, as a fallback.
        encoding: what floats that travel between devices are rounded to.
        min_sqnr_db: how near the outputs must then be to the model's [dB].
        emulate: run stages for other instruction sets under QEMU, where there is one.
        progress: reports each phase.

    Returns:
        The plan; it and the bundles are in the folder.

    Raises:
        EdgecError: see `edgec.compiler.errors`; nothing is written then.
    """
    path = Path(model)
    options = options or CompileOptions()
    progress = progress or Silent()
    folder = Path(output) if output else Path(f"{path.stem}.plan")
    if options.variants:
        raise UsageError("--variant and --devices contradict each other: a plan has one model")
    if not math.isfinite(min_sqnr_db):
        raise UsageError(f"--cut-min-sqnr {min_sqnr_db:g} is no ratio; 20 is 20 dB")
    check_plan_destination(folder)
    check_before_transform(options)
    with scratch_folder() as scratch:
        splitter = _Splitter(path, devices, options, stages, whole, progress, scratch)
        splitter.round_cuts(encoding, min_sqnr_db)
        splitter.share(parallel)
        return splitter.run(folder, emulate and options.parity and not options.encrypt_for)


class _Splitter:
    def __init__(
        self,
        path: Path,
        devices: Sequence[Device],
        options: CompileOptions,
        requests: Sequence[StageRequest],
        whole: Target | None,
        progress: Progress,
        scratch: Path,
    ) -> None:
        self._path, self._devices, self._options = path, devices, options
        self._requests, self._whole = requests, whole
        self._progress, self._scratch = progress, scratch
        self._encoding: Encoding = "none"
        self._parallel: Parallel | None = None
        self._least_db: float | None = None
        self._sqnr_db: dict[str, float] = {}

    def round_cuts(self, encoding: Encoding, least_db: float) -> None:
        """Round what travels, as long as outputs stay so near [dB]."""
        self._encoding = encoding
        self._least_db = None if encoding == "none" else least_db

    def share(self, parallel: Parallel | None) -> None:
        """Have devices compute parts of operators at the same time."""
        self._parallel = parallel

    def run(self, folder: Path, emulate: bool) -> Plan:
        """Return the plan, written into the folder with its bundles."""
        asked = self._options
        if asked.streams > 1:
            raise UsageError("--streams: what is cut for several devices goes on with one text")
        source = read_model(
            self._path, asked.limits, asked.context, cache=asked.cache, lora=asked.adapters
        )
        if in_chunks(self._path, self._options):
            chunk = self._options.prefill_chunk or DEFAULT_CHUNK
            if source.language is not None:
                chunk = source.language.chunk(self._options.prefill_chunk)
            self._options = replace(self._options, programs=chunk_programs(chunk, verified=0))
        names = ["change", "cut", "verify", "bundle"]
        self._phases = Phases(self._progress, names)
        sources = [source]
        language, tokenizer = source.language, source.tokenizer
        del source
        with self._phases("change"):
            changed = self._changed(sources)
        with self._phases("cut"):
            graphs = [self._graph(program) for program in changed]
            requests = self._requests
            if self._parallel is not None and not requests:
                shared = plan_shared(graphs[-1], self._devices, self._parallel)
                requests = [stage.request for stage in shared]
            with_exits = self._options.exits is not None
            chosen = choose_stages(graphs, self._devices, requests, with_exits)
            devices = chosen.devices
            self._exits = [
                exits_before(g, c[0]) if c else () for g, c in zip(graphs, chosen.cuts, strict=True)
            ]
            stages = []
            for graph, own, exits in zip(graphs, chosen.stages, self._exits, strict=True):
                # Whoever has the first stage reads the answers of exits as they are.
                kept = [*graph.values.result_of, *(e.answer for e in exits)]
                stages.append(encode_cuts(own, kept, self._encoding))
            rounded = [_with_bar(program, self._least_db) for program in changed]
        names[2:2] = self._compile_phases(devices)
        compiled = [
            self._compile(
                device, rounded, [s[number] for s in stages], _bundle_name(devices, number)
            )
            for number, device in enumerate(devices)
        ]
        fallback = []
        if self._whole is not None:
            parts = [uncut(program) for program in changed]
            device = Device(WHOLE, self._whole)
            fallback = [self._compile(device, changed, parts, f"{WHOLE}.edgec")]
        with self._phases("verify"):
            checked = self._verified(rounded, compiled)
            sqnr_db = {} if self._least_db is None else dict(self._sqnr_db)
            checked += self._verified(changed, fallback) if fallback else []
        with self._phases("bundle"), PlanFolder(folder) as staging:
            for stage, (programs, parity) in zip([*compiled, *fallback], checked, strict=True):
                files: dict[str, bytes | Path] = {}
                if stage.device == WHOLE and language is not None and tokenizer:
                    digest = state_digest(programs)
                    files = generation_files(
                        language, tokenizer, digest, stage.target, self._scratch, self._progress
                    )
                self._write(staging / stage.bundle, stage, programs, parity, files)
            plan = self._plan(changed, compiled).model_copy(update={"sqnr_db": sqnr_db})
            plan.write(staging)
            if emulate:
                expected = {program.shapes.name: program.expected for program in rounded}
                check_emulated(staging, plan, expected, self._progress)
        return plan

    def _plan(self, changed: Sequence[ChangedProgram], compiled: Sequence[CompiledStage]) -> Plan:
        programs = []
        for number, program in enumerate(changed):
            called = program.expected.called
            specs = {spec.name: spec for spec in (*called.inputs, *called.outputs)}
            stages = []
            for stage in compiled:
                own = stage.called(number)
                specs |= {spec.name: spec for spec in (*own.inputs, *own.outputs)}
                stages.append(
                    PlannedStage(
                        device=stage.device,
                        target=stage.target.name,
                        bundle=stage.bundle,
                        program=program.shapes.name,
                        inputs=tuple(spec.name for spec in own.inputs),
                        outputs=tuple(spec.name for spec in own.outputs),
                    )
                )
            planned = planned_program(program.shapes.name, called, stages, specs, self._encoding)
            programs.append(planned.model_copy(update={"exits": self._exits[number]}))
        model = changed[0].model
        return Plan(
            model=PlannedModel(name=model.name, sha256=model.sha256),
            programs=tuple(programs),
            whole=f"{WHOLE}.edgec" if self._whole is not None else None,
        )

    def _compile_phases(self, devices: Sequence[Device]) -> list[str]:
        owners = [_bundle_name(devices, n) for n in range(len(devices))]
        owners += [WHOLE] if self._whole else []
        return [f"compile-{owner.removesuffix('.edgec')}" for owner in owners]

    def _changed(self, sources: list[SourceModel]) -> list[ChangedProgram]:
        """Return the programs, compressed and quantized so that every device computes the same."""
        target = strictest([device.target for device in self._devices])
        compiler = ProgramCompiler(target, self._options, self._progress, untold, self._path.name)
        return [compiler.changed(variant, sources) for variant in self._options.program_shapes]

    def _graph(self, program: ChangedProgram) -> CutGraph:
        targets = {device.target.name: device.target for device in self._devices}
        expected = program.expected
        values = ModelValues(
            program.module, program.canonical.value_names, expected.signature, expected.states
        )
        return CutGraph(values, list(targets.values()))

    def _compile(
        self,
        device: Device,
        changed: Sequence[ChangedProgram],
        stages: Sequence[Stage],
        bundle: str,
    ) -> CompiledStage:
        """Compile a stage of all programs for its device."""
        target, stem = device.target, bundle.removesuffix(".edgec")
        options = replace(self._options, compress=None, quantize=None)
        compiler = ProgramCompiler(target, options, self._progress, untold, self._path.name)
        with self._phases(f"compile-{stem}"):
            programs = [
                compiler.compiled(staged(program, stage))
                for program, stage in zip(changed, stages, strict=True)
            ]
            check_states(programs)
            library = self._scratch / f"{stem}-{LIBRARY}"
            name = model_identifier(f"{self._options.name or self._path.stem}_{stem}")
            digest = state_digest([program.compilation for program in programs])
            scheduled = [program.scheduled for program in programs]
            executor, arena_bytes = build(scheduled, target, library, name, digest, self._progress)
        execution = ExecutionRecord(
            executor=executor,
            arena_bytes=arena_bytes,
            c_name=name if executor == "static" else "",
            tuned_share=three_digits(tuned_share(scheduled[0], compiler.decide.used, target)),
        )
        return CompiledStage(
            device.name,
            target,
            bundle,
            tuple(stages),
            tuple(programs),
            library,
            execution,
        )

    def _verified(
        self, changed: Sequence[ChangedProgram], stages: Sequence[CompiledStage]
    ) -> list[tuple[list[Compilation], ParityRecord]]:
        """Run the chain of stages and compare what comes out with what must.

        Returns:
            For each stage its compilations, with what it took and gave, and its parity.

        Raises:
            ParityError: the outputs are out of tolerance.
        """
        reports: list[ParityReport] = []
        compilations: list[list[Compilation]] = [[] for _ in stages]
        for number, program in enumerate(changed):
            expected = program.expected
            steps = run_chain(
                [(s.runnable(number, self._progress), s.called(number)) for s in stages],
                [step.inputs for step in expected.called_steps],
            )
            for step, chain in zip(expected.called_steps, steps, strict=True):
                found = {k: v for stage in chain for k, v in stage.outputs.items()}
                actual = {name: found[name] for name in step.outputs}
                reports.append(compare(step.outputs, actual, expected.tolerance))
            for place, stage in enumerate(stages):
                compilation = stage.programs[number].compilation
                computed = replace(
                    compilation.expected, steps=tuple(chain[place] for chain in steps)
                )
                compilations[place].append(
                    replace(compilation, original=computed, expected=computed)
                )
        report = worst_of(reports)
        self._sqnr_db |= {o.name: min(o.sqnr_db, _EQUAL_DB) for o in report.outputs}
        if self._options.parity and not report.passed:
            raise ParityError(f"the stages together do not compute the model: {report.problems()}")
        return [
            (compilations[place], self._parity(report, stage)) for place, stage in enumerate(stages)
        ]

    def _parity(self, report: ParityReport, stage: CompiledStage) -> ParityRecord:
        if not self._options.parity:
            return ParityRecord(checked_on="nothing")
        mine = [spec.name for spec in stage.called(0).outputs]
        outputs = [output for output in report.outputs if output.name in mine]
        return ParityRecord(
            checked_on="host" if why_not_here(stage.target) else "target",
            max_error={o.name: three_digits(o.max_error) for o in outputs},
            allowed_share={o.name: three_digits(o.allowed_share) for o in outputs},
        )

    def _write(
        self,
        path: Path,
        stage: CompiledStage,
        programs: Sequence[Compilation],
        parity: ParityRecord,
        files: Mapping[str, bytes | Path],
    ) -> Bundle:
        described = [replace(program, options=self._options) for program in programs]
        manifest = describe_compilation(described, stage.execution, parity)
        content = {LIBRARY: stage.library, **vector_files(described), **files}
        return package(path, manifest, content, self._options)


def _bundle_name(devices: Sequence[Device], number: int) -> str:
    """Return what the bundle of a stage is called; a device may compute several."""
    name = devices[number].name
    before = sum(device.name == name for device in devices[:number])
    return f"{name}-{before + 1}.edgec" if before else f"{name}.edgec"


def _with_bar(program: ChangedProgram, least_db: float | None) -> ChangedProgram:
    """Return a program that may compute with rounded values, as near as this."""
    if least_db is None:
        return program
    tolerance = replace(program.expected.tolerance, sqnr_db=least_db)
    return replace(program, expected=replace(program.expected, tolerance=tolerance))
