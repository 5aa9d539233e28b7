"""The compile, from an ONNX file to a bundle, in one place.

`compile_model` is the pipeline: read it from top to bottom. Each phase is a function of its own
module; the names in `PHASES` are what progress, dumps and the table of times call them.
"""

import dataclasses
import importlib.metadata
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import onnx
from numpy.typing import NDArray
from tvm import IRModule

from edgec.compiler.backend import build, compile_module, pack_dense, schedule
from edgec.compiler.bundle.bundle import (
    LIBRARY,
    Bundle,
    CompressionRecord,
    CompressionStepRecord,
    ExecutionRecord,
    Executor,
    FrozenRecord,
    Manifest,
    ModelRecord,
    ParityRecord,
    QuantizationRecord,
    SettingsRecord,
    TensorRecord,
    ToleranceRecord,
    VectorRecord,
    save_vector,
    scratch_folder,
    write_bundle,
)
from edgec.compiler.bundle.runner import runner_files
from edgec.compiler.calibration.accuracy import Comparison, load_metric, same_top1
from edgec.compiler.calibration.samples import Samples
from edgec.compiler.compress.compressor import CompressedModel, compress_model
from edgec.compiler.compress.report import write_report as write_compression_report
from edgec.compiler.errors import (
    BadInputError,
    OutputError,
    ParityError,
    UnsupportedModelError,
    UsageError,
)
from edgec.compiler.frontend.import_graph import import_model
from edgec.compiler.frontend.onnx_facts import (
    graph_depth,
    index_bounds,
    least_precise_float,
    quantizes_activations,
)
from edgec.compiler.frontend.onnx_file import SourceModel, read_model
from edgec.compiler.frontend.simplify import simplify
from edgec.compiler.frontend.specialize import SpecializedModel, specialize
from edgec.compiler.ir.program import Program
from edgec.compiler.ir.signature import Signature, TensorSpec
from edgec.compiler.lowering.choose_sparse import ChooseSparse, sparse_choices
from edgec.compiler.lowering.legalize import lower
from edgec.compiler.lowering.recorded_decisions import RecordedDecisions
from edgec.compiler.lowering.sparse_report import KernelRow, describe_kernels, kernel_rows
from edgec.compiler.lowering.time_estimate import describe_generic, tuned_share
from edgec.compiler.lowering.tuning_records import READY, Database, Key, Record, best_records
from edgec.compiler.options import CompileOptions
from edgec.compiler.parity.choose_inputs import choose_inputs
from edgec.compiler.parity.compare import (
    QUANTIZED_SQNR_DB,
    ParityReport,
    Tensors,
    Tolerance,
    compare,
    tolerance_for,
)
from edgec.compiler.parity.locate import first_divergence
from edgec.compiler.parity.oracle import run_original
from edgec.compiler.parity.reference import run_reference
from edgec.compiler.passes import CANONICALIZE, Pass
from edgec.compiler.quantize.options import QuantizeOptions
from edgec.compiler.quantize.quantizer import QuantizedModel, quantize_model
from edgec.compiler.quantize.report import write_report
from edgec.compiler.runtime.inputs import check_inputs, rounded_to_half
from edgec.compiler.runtime.session import open_session, why_not_here
from edgec.compiler.support.progress import Progress, Silent
from edgec.targets import Target, load_target

PHASES = (
    "read",  # the file, checked
    "specialize",  # static shapes, frozen inputs
    "simplify",  # constants folded
    "import",  # ONNX to Relax
    "reference",  # what ONNX Runtime says
    "canonicalize",  # affines into weights, composites recognized
    "compress",  # fewer weights, channels and layers, if asked for
    "quantize",  # codes instead of floats, if asked for
    "expect",  # what TVM's own code makes of a compressed or quantized graph
    "pack",  # layouts of the target's kernels, epilogues fused
    "lower",  # the rest to fused loop nests
    "schedule",  # decisions, code of every kernel
    "build",  # machine code, linked
    "verify",  # parity with the reference
    "bundle",  # written, atomically
)

TOOLS = ("apache-tvm", "apache-tvm-ffi", "edgec", "numpy", "onnx", "onnxruntime", "onnxscript")

_P = ParamSpec("_P")
_T = TypeVar("_T")


def compile_model(
    path: str | Path,
    target: str | Path | Target = "native",
    options: CompileOptions | None = None,
    *,
    output: str | Path | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Compile an ONNX model for a target into a verified bundle.

    Args:
        path: the ONNX file.
        target: a target, its name, or the path of a target file.
        options: shapes, frozen inputs, checks; the defaults compile a static model.
        output: bundle folder, or a file that ends in `.tar`; by default
            `<model>-<target>.edgec` in the current folder.
        progress: shown each phase.

    Returns:
        The bundle, read back from disk.

    Raises:
        EdgecError: see `edgec.compiler.errors`; nothing is written then.
    """
    options = options or CompileOptions()
    target = target if isinstance(target, Target) else load_target(target)
    path = Path(path)
    output = Path(output) if output else Path(f"{path.stem}-{target.name}.edgec")
    run = _Run(progress or Silent(), options.dump, _phases(options))
    with scratch_folder() as scratch:
        library = scratch / LIBRARY
        source = run("read", read_model, path, options.limits)
        special = run("specialize", specialize, source.proto, options.shapes, options.freeze)
        graph = run("simplify", simplify, special.proto, options.limits)
        imported = run("import", import_model, graph)
        signature = imported.signature
        samples = _samples(options, graph, signature)
        reference = run(
            "reference", _Reference.compute, source, special, graph, signature, options, samples
        )
        canonical = run("canonicalize", apply_passes, imported.module, CANONICALIZE)
        module, metric = canonical, load_metric(options.samples.metric)
        compressed: CompressedModel | None = None
        quantized: QuantizedModel | None = None
        if options.compress is not None:
            compressed = run(
                "compress",
                compress_model,
                module,
                imported,
                target,
                options.compress,
                samples,
                metric,
                run.progress,
            )
            module = compressed.module
        if options.quantize is not None:
            quantized = run(
                "quantize",
                quantize_model,
                module,
                imported.value_names,
                signature,
                target,
                options.quantize,
                samples,
                metric,
                source.sha256,
                run.progress,
            )
            module = quantized.module
            if options.quantize.report is not None:
                write_report(options.quantize.report, quantized)
        changed = None
        if compressed is not None or quantized is not None:
            make = _Changed.make
            changed = run(
                "expect", make, module, compressed, quantized, reference, options, samples
            )
        packed = run("pack", _Packed.make, module, target, imported.value_names)
        if packed.rows:
            run.progress.detail(describe_kernels(packed.rows))
        if compressed is not None and options.compress and options.compress.report:
            write_compression_report(options.compress.report, compressed, packed.rows)
        lowered = run("lower", lower, packed.module, target)
        decide = RecordedDecisions(_tuned(options, target, run.progress))
        scheduled = run("schedule", schedule, lowered, module, target, signature, decide)
        run.progress.detail(describe_generic(scheduled, target))
        if options.runner and not isinstance(scheduled, Program):
            raise UnsupportedModelError(_NO_RUNNER)
        executor, arena_bytes = run("build", build, scheduled, signature, target, library)

        check = _Check(reference, graph, imported.value_names, scratch, options)
        stages = {"import": imported.module, "canonicalize": canonical}
        parity = run("verify", check, library, executor, target, stages, module, changed)
        execution = ExecutionRecord(
            executor=executor,
            arena_bytes=arena_bytes,
            tuned_share=_rounded(tuned_share(scheduled, decide.used, target)),
        )
        manifest = _manifest(
            source, special, target, options, reference, execution, parity, changed
        )
        vectors = _vector_files(reference, changed)
        files: dict[str, bytes | Path] = {LIBRARY: library, **vectors}
        bundle = run("bundle", _package, output, manifest, files, options)
    run.finish()
    return bundle


@dataclasses.dataclass(frozen=True)
class _Packed:
    """The module in the target's layouts, and why its operators run sparse or dense."""

    module: IRModule
    rows: tuple[KernelRow, ...]

    @classmethod
    def make(cls, module: IRModule, target: Target, names: Mapping[str, str]) -> "_Packed":
        dense = pack_dense(module, target, names)
        choices = sparse_choices(dense, target)
        return cls(ChooseSparse(choices)(dense), kernel_rows(choices.values()))


_NO_RUNNER = (
    "the runner cannot run this model: shapes in it depend on data, so it needs TVM's virtual "
    "machine, and the runner has only the static executor; compile without --runner"
)


def _tuned(options: CompileOptions, target: Target, progress: Progress) -> dict[Key, Record]:
    """The tuning record of each kernel: of a database before those that come with edgec.

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
    if options.runner:
        library = files[LIBRARY]
        assert isinstance(library, Path)
        files = {**files, **runner_files(manifest, library)}
    return write_bundle(output, manifest, files)


def _phases(options: CompileOptions) -> list[str]:
    """Those that a compile goes through."""
    asked = {"compress": options.compress is not None, "quantize": options.quantize is not None}
    asked["expect"] = any(asked.values())
    return [phase for phase in PHASES if asked.get(phase, True)]


def apply_passes(module: IRModule, passes: tuple[Pass, ...]) -> IRModule:
    """Apply passes in order."""
    for rewrite in passes:
        module = rewrite(module)
    return module


class _Run:
    """Calls phases: shows them, times them and dumps what they give."""

    def __init__(self, progress: Progress, dump: Path | None, phases: Sequence[str]) -> None:
        self.progress = progress
        self.dump = dump
        self.phases = phases
        self.seconds: dict[str, float] = {}

    def __call__(
        self, phase: str, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        number = self.phases.index(phase) + 1
        start = time.monotonic()
        with self.progress.step(number, len(self.phases), phase):
            result = function(*args, **kwargs)
        self.seconds[phase] = time.monotonic() - start
        if self.dump is not None:
            self._write(f"{number:02}-{phase}", result)
        return result

    def finish(self) -> None:
        """Write the table of times, slowest last."""
        if self.dump is not None:
            total = sum(self.seconds.values())
            rows = [f"{phase:<14}{seconds:8.2f} s" for phase, seconds in self.seconds.items()]
            self._write_text("times.txt", "\n".join([*rows, f"{'total':<14}{total:8.2f} s"]) + "\n")

    def _write(self, stem: str, result: object) -> None:
        proto = getattr(result, "proto", result)
        module = getattr(result, "module", result)
        if isinstance(result, Program):
            module = IRModule(result.functions)
        if isinstance(proto, onnx.ModelProto):
            self._write_text(f"{stem}.txt", onnx.printer.to_text(proto))
        elif isinstance(module, IRModule):
            self._write_text(f"{stem}.py", module.script())

    def _write_text(self, name: str, text: str) -> None:
        assert self.dump is not None
        try:
            self.dump.mkdir(parents=True, exist_ok=True)
            (self.dump / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write {self.dump / name}: {error.strerror}") from None


class _Reference:
    """Test inputs, and what the original graph makes of them."""

    def __init__(
        self,
        signature: Signature,
        inputs: Tensors,
        expected: Tensors,
        tolerance: Tolerance,
        bounds: Mapping[str, int],
    ) -> None:
        self.signature = signature
        self.inputs = inputs
        self.expected = expected
        self.tolerance = tolerance
        self.bounds = bounds

    @classmethod
    def compute(
        cls,
        source: SourceModel,
        special: SpecializedModel,
        graph: onnx.ModelProto,
        signature: Signature,
        options: CompileOptions,
        samples: Samples | None,
    ) -> "_Reference":
        specs = signature.inputs
        given = options.inputs
        if not given and samples is not None:
            # Random values are not what ranges were calibrated for.
            given = rounded_to_half(next(iter(samples)))
        bounds = index_bounds(graph.graph)

        def run(inputs: Tensors) -> dict[str, NDArray[Any]]:
            return run_original(source.original, {**inputs, **special.frozen})

        if given:
            inputs = check_inputs(specs, given)
            expected = run(inputs)
        else:
            inputs, expected = choose_inputs(specs, options.seed, bounds, run)
        depth = graph_depth(graph.graph)
        dtype = least_precise_float(graph.graph)
        tolerance = tolerance_for(dtype, depth, quantizes_activations(graph.graph))
        return cls(signature, inputs, expected, tolerance, bounds)


def _samples(
    options: CompileOptions, graph: onnx.ModelProto, signature: Signature
) -> Samples | None:
    """Of a quantized compile, opened before anything takes long."""
    options_given = [o for o in (options.compress, options.quantize) if o is not None]
    if not options_given:
        return None
    if quantizes_activations(graph.graph):
        raise UsageError(
            "this model is quantized already (it has QuantizeLinear nodes); compile it without "
            "--compress and --quantize, or start from the float model"
        )
    samples = options.samples.open(signature.inputs)
    for given in options_given:
        given.check_samples(samples is not None)
    return samples


@dataclasses.dataclass(frozen=True)
class _Changed:
    """What a compressed or quantized model shall compute.

    Attributes:
        expected: what its graph gives for the test inputs, by code that is not ours.
        tolerance: for the library against `expected`.
        compression: for the manifest.
        quantization: for the manifest.
    """

    expected: Tensors
    tolerance: Tolerance
    compression: CompressionRecord | None
    quantization: QuantizationRecord | None

    @classmethod
    def make(
        cls,
        module: IRModule,
        compressed: CompressedModel | None,
        quantized: QuantizedModel | None,
        reference: "_Reference",
        options: CompileOptions,
        samples: Samples | None,
    ) -> "_Changed":
        expected = run_reference(module, reference.signature, reference.inputs)
        comparison = Comparison(same_top1)
        comparison.add(reference.expected, expected)
        sqnr_db = comparison.result().by_output
        tolerance, compression, quantization = reference.tolerance, None, None
        if compressed is not None:
            compression = _compression_record(compressed, options, samples, sqnr_db)
        if quantized is not None:
            assert options.quantize is not None
            quantization = _quantization_record(quantized, options.quantize, samples, sqnr_db)
            if options.quantize.recipe.activations != "float":
                # A kernel sums in another order: what lies between two codes moves.
                tolerance = dataclasses.replace(tolerance, sqnr_db=QUANTIZED_SQNR_DB)
        return cls(expected, tolerance, compression, quantization)


def _compression_record(
    model: CompressedModel,
    options: CompileOptions,
    samples: Samples | None,
    sqnr_db: Mapping[str, float],
) -> CompressionRecord:
    assert options.compress is not None
    return CompressionRecord(
        recipe=options.compress.recipe.model_dump(mode="json"),
        calibration=samples.source if samples is not None else "",
        macs_before=model.before.macs,
        weights_before=model.before.weights,
        sqnr_db=_rounded_all(sqnr_db),
        samples=model.measured,
        steps=tuple(
            CompressionStepRecord(
                kind=result.step.kind,
                macs=result.costs.macs,
                weights=result.costs.weights,
                nonzeros=result.costs.nonzeros,
                score=result.accuracy and _rounded(result.accuracy.score),
                samples_sqnr_db=_rounded_all(result.accuracy.by_output if result.accuracy else {}),
            )
            for result in model.steps
        ),
    )


def _quantization_record(
    model: QuantizedModel,
    options: QuantizeOptions,
    samples: Samples | None,
    sqnr_db: Mapping[str, float],
) -> QuantizationRecord:
    recipe, accuracy = options.recipe, model.accuracy
    operators = model.quantization.plan.operators
    return QuantizationRecord(
        recipe=recipe.model_dump(mode="json"),
        codes=model.quantization.resolved.why,
        calibration=samples.source if samples is not None else "",
        observer=options.observer if recipe.needs_samples else "",
        repaired=options.repair,
        rounding=options.rounding if options.repair else "nearest",
        quantized=sum(o.keep != "float" and not o.shares_scale for o in operators),
        kept_float=model.kept_float,
        islands={i.name: f"{i.operator}: {i.why}" for i in model.islands},
        sqnr_db=_rounded_all(sqnr_db),
        samples=model.measured,
        samples_sqnr_db=_rounded_all(accuracy.by_output) if accuracy else {},
        score=_rounded(accuracy.score) if accuracy else None,
    )


class _Check:
    """Parity of the library, and of earlier stages where it fails or on request."""

    def __init__(
        self,
        reference: _Reference,
        graph: onnx.ModelProto,
        value_names: Mapping[str, str],
        scratch: Path,
        options: CompileOptions,
    ) -> None:
        self.reference = reference
        self.graph = graph
        self.value_names = value_names
        self.scratch = scratch
        self.options = options

    def __call__(
        self,
        library: Path,
        executor: Executor,
        target: Target,
        stages: Mapping[str, IRModule],
        module: IRModule,
        changed: _Changed | None,
    ) -> ParityRecord:
        if not self.options.parity:
            return ParityRecord(checked_on="nothing")
        if self.options.check_stages:
            self._stages(stages)
        here = not why_not_here(target)
        if not here:
            # The target's code cannot run here: the same module, compiled for this machine.
            target, library, executor = self._host_build(module)
        report = self._run(target, library, executor, changed)
        if not report.passed and changed is not None:
            raise ParityError(
                f"the library does not compute the changed graph: {report.problems()}"
            )
        if not report.passed:
            where = self._where(stages)
            raise ParityError(f"parity with the original graph failed: {report.problems()}{where}")
        return ParityRecord(
            checked_on="target" if here else "host",
            max_error={o.name: _rounded(o.max_error) for o in report.outputs},
            allowed_share={o.name: _rounded(o.allowed_share) for o in report.outputs},
        )

    def _run(
        self, target: Target, library: Path, executor: Executor, changed: _Changed | None = None
    ) -> ParityReport:
        session = open_session(library, target, self.reference.signature, executor)
        actual = session.run(self.reference.inputs)
        wanted = changed or self.reference
        return compare(wanted.expected, actual, wanted.tolerance)

    def _host_build(self, module: IRModule) -> tuple[Target, Path, Executor]:
        host, library = load_target("native"), self.scratch / "host.so"
        executor = compile_module(module, self.reference.signature, host, library)
        return host, library, executor

    def _stages(self, stages: Mapping[str, IRModule]) -> None:
        simplified = run_original(self.graph, self.reference.inputs)
        report = compare(self.reference.expected, simplified, self.reference.tolerance)
        report.check("after simplify")
        for name, module in stages.items():
            report = self._run(*self._host_build(module))
            if not report.passed:
                where = self._where({name: module})
                raise ParityError(f"parity failed after {name}: {report.problems()}{where}")

    def _where(self, stages: Mapping[str, IRModule]) -> str:
        """A clause that names the stage and the first operator that is off."""
        host = load_target("native")
        for name, module in stages.items():
            first = first_divergence(
                module,
                self.value_names,
                self.graph,
                self.reference.inputs,
                self.reference.tolerance,
                host,
                self.scratch,
            )
            if first is not None:
                return f"; the first value that is off after {name} is {first}"
        return "; all stages up to canonicalize agree, code generation does not"


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _rounded_all(values: Mapping[str, float]) -> dict[str, float]:
    return {name: _rounded(value) for name, value in values.items()}


def _vector_files(reference: _Reference, changed: _Changed | None) -> dict[str, bytes]:
    signature, files = reference.signature, {}
    expected = (changed or reference).expected
    for kind, specs, tensors in (
        ("input", signature.inputs, reference.inputs),
        ("output", signature.outputs, expected),
    ):
        for index, spec in enumerate(specs):
            files[_vector_path(kind, index)] = save_vector(tensors[spec.name])
    return files


def _vector_path(kind: str, index: int) -> str:
    return f"vectors/0/{kind}-{index}.npy"


def _manifest(
    source: SourceModel,
    special: SpecializedModel,
    target: Target,
    options: CompileOptions,
    reference: _Reference,
    execution: ExecutionRecord,
    parity: ParityRecord,
    changed: _Changed | None,
) -> Manifest:
    signature = reference.signature
    tolerance = (changed or reference).tolerance
    return Manifest(
        model=ModelRecord(name=source.name, sha256=source.sha256, opset=source.opset),
        target=target,
        inputs=_records(signature.inputs),
        outputs=_records(signature.outputs),
        settings=SettingsRecord(
            shapes=dict(options.shapes),
            frozen={
                name: FrozenRecord(dtype=str(array.dtype), values=array.tolist())
                for name, array in special.frozen.items()
            },
            seed=options.seed,
            index_bounds=dict(reference.bounds),
        ),
        execution=execution,
        tolerance=ToleranceRecord(**dataclasses.asdict(tolerance)),
        parity=parity,
        compression=changed.compression if changed is not None else None,
        quantization=changed.quantization if changed is not None else None,
        vectors=(
            VectorRecord(
                inputs=tuple(_vector_path("input", i) for i in range(len(signature.inputs))),
                outputs=tuple(_vector_path("output", i) for i in range(len(signature.outputs))),
            ),
        ),
        tools={name: importlib.metadata.version(name) for name in TOOLS},
        files={},
    )


def _records(specs: tuple[TensorSpec, ...]) -> tuple[TensorRecord, ...]:
    return tuple(TensorRecord(name=s.name, shape=s.shape, dtype=s.dtype) for s in specs)
