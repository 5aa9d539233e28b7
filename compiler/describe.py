"""Describe what the manifest says of a compile: the model.

The settings, what was done and what it costs.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from tvm import IRModule

from edgec.compiler.bundle.manifest import (
    CompressionRecord,
    CompressionStepRecord,
    ExecutionRecord,
    FrozenRecord,
    Manifest,
    ModelRecord,
    ParityRecord,
    PredictionRecord,
    PreprocessRecord,
    ProgramRecord,
    QuantizationRecord,
    SettingsRecord,
    StateRecord,
    TensorRecord,
    ToleranceRecord,
    VariantRecord,
    VectorRecord,
)
from edgec.compiler.bundle.npy import save_vector
from edgec.compiler.calibration.ranges_file import read_ranges_file
from edgec.compiler.calibration.samples import Samples
from edgec.compiler.compress.compressor import CompressedModel
from edgec.compiler.exits.add_exits import ExitedModel
from edgec.compiler.exits.exits_record import ExitRecord, ExitsRecord
from edgec.compiler.frontend.canonical import CanonicalModel
from edgec.compiler.governor.variants import Variant
from edgec.compiler.ir.program import Program
from edgec.compiler.ir.signature import TensorSpec
from edgec.compiler.lowering.tuning_records import Key, Record
from edgec.compiler.options import CompileOptions, ProgramShapes
from edgec.compiler.parity.compare import Tolerance, three_digits
from edgec.compiler.parity.expected import Expected
from edgec.compiler.parity.stream import Step
from edgec.compiler.predict.predict import predict_program
from edgec.compiler.quantize.float_fallbacks import FloatFallback
from edgec.compiler.quantize.quantizer import QuantizedModel
from edgec.compiler.support.versions import tool_versions
from edgec.targets import Target


@dataclass(frozen=True, kw_only=True)
class Compilation:
    """A compilation describes a compile up to code generation.

    Attributes:
        program: which program, and its shapes.
        model: the file.
        target: the target that the model is compiled for.
        options: the settings.
        canonical: the model.
        samples: what compression and quantization looked at.
        compressed: the compressed model, if it was compressed.
        quantized: the quantized model, if it was quantized.
        exited: the model with early exits, if it has any.
        fallbacks: what computes on floats in the packed program of a quantized model.
        original: what the original graph computes.
        expected: what the library must compute.
        accuracy: agreement with the original model; only measured for a variant.
        estimated_ms: latency on one core by the cost model; only for a variant.
    """

    program: ProgramShapes
    model: ModelRecord
    target: Target
    options: CompileOptions
    canonical: CanonicalModel
    samples: Samples | None
    compressed: CompressedModel | None
    quantized: QuantizedModel | None
    fallbacks: tuple[FloatFallback, ...]
    original: Expected
    expected: Expected
    exited: ExitedModel | None = None
    accuracy: float = 1.0
    estimated_ms: float = 0.0
    sqnr_db: Mapping[str, float] = field(init=False)

    def __post_init__(self) -> None:
        """Measure how far the transformed graph is from the original."""
        same = self.expected is self.original
        object.__setattr__(self, "sqnr_db", {} if same else self.original.sqnr_db(self.expected))


def describe_compilation(
    programs: Sequence[Compilation],
    execution: ExecutionRecord,
    parity: ParityRecord,
    variants: Mapping[str, Variant] = MappingProxyType({}),
    weights: str = "",
) -> Manifest:
    """Write the manifest of a bundle, without its files.

    Programs differ in their shapes alone, unless they are variants, by their names.

    Args:
        programs: what was compiled.
        execution: what runs it.
        parity: how near it is.
        variants: what each variant was asked to be, by name.
        weights: what a language model's weights became when they were read.
    """
    compilation = programs[0]
    options = compilation.options
    return Manifest(
        model=compilation.model,
        target=compilation.target,
        programs=tuple(_program_record(program, widest_states(programs)) for program in programs),
        variants=tuple(_variant_record(p, variants) for p in programs) if variants else (),
        states=widest_states(programs),
        settings=SettingsRecord(
            shapes=dict(options.shapes),
            frozen={
                name: FrozenRecord(dtype=str(array.dtype), values=array.tolist())
                for name, array in compilation.canonical.frozen.items()
            },
            seed=options.seed,
            index_bounds=dict(compilation.expected.index_bounds),
            preprocess=_preprocess_record(compilation),
            context=options.context,
            cache=options.cache,
            weights=weights,
            lora=tuple(adapter.record() for adapter in options.adapters),
        ),
        execution=execution,
        tolerance=_tolerance([program.expected.tolerance for program in programs]),
        parity=parity,
        compression=None if variants else _compression_record(compilation),
        quantization=None if variants else _quantization_record(compilation),
        exits=_exits_record(compilation),
        vectors=tuple(
            VectorRecord(
                program=program.program.name,
                goes_on=goes_on,
                inputs=tuple(_vector_path(n, "input", i) for i in range(len(step.inputs))),
                outputs=tuple(_vector_path(n, "output", i) for i in range(len(step.outputs))),
            )
            for n, (program, step, goes_on) in enumerate(_steps(programs))
        ),
        tools=tool_versions(),
        files={},
    )


def prediction_record(
    program: Program | IRModule, target: Target, records: Mapping[Key, Record]
) -> PredictionRecord | None:
    """Return what a program is predicted to cost; None for the virtual machine."""
    if not isinstance(program, Program):
        return None
    found = predict_program(program, target, records)
    return PredictionRecord(
        latency_ms=three_digits(found.latency.value),
        low_ms=three_digits(found.latency.low),
        high_ms=three_digits(found.latency.high),
        energy_mj=three_digits(found.energy.millijoules),
        instructions=float(round(found.instructions)),
    )


def state_records(expected: Expected) -> tuple[StateRecord, ...]:
    """Return what a session keeps."""
    specs = {spec.name: spec for spec in expected.signature.inputs}
    records = []
    for state in expected.states:
        spec = specs[state.input]
        shape = tuple(extent or 0 for extent in spec.shape)
        size = math.prod(shape) * np.dtype(spec.dtype).itemsize
        records.append(
            StateRecord(
                input=state.input,
                output=state.output,
                shape=shape,
                dtype=spec.dtype,
                size_bytes=size,
            )
        )
    return tuple(records)


def widest_states(programs: Sequence[Compilation]) -> tuple[StateRecord, ...]:
    """Return the states of the program that keeps the most."""
    found = (state_records(program.expected) for program in programs)
    return max(found, key=lambda records: sum(record.size_bytes for record in records))


def state_parts(program: Compilation, widest: Sequence[StateRecord]) -> int | None:
    """Return into how many equal parts the first dimension of all states is cut for a program.

    It keeps one of them. None if its states are no such part.
    """
    found = state_records(program.expected)
    if list(found) == list(widest):
        return 1
    parts = set()
    for part, whole in zip(found, widest, strict=True):
        if (part.shape[1:], part.dtype) != (whole.shape[1:], whole.dtype) or not part.shape:
            return None
        if not part.shape[0] or whole.shape[0] % part.shape[0]:
            return None
        parts.add(whole.shape[0] // part.shape[0])
    return parts.pop() if len(parts) == 1 else None


def state_digest(programs: Sequence[Compilation]) -> bytes:
    """Return what tells the state of this model from that of others: 32 bytes.

    Its source, what was made of it and the states; not the target, nor the shapes of inputs.
    """
    first = programs[0]
    parts = [first.model.sha256, *(str(record) for record in widest_states(programs))]
    changes = dict.fromkeys(_recipes(program) for program in programs)
    parts += [text for texts in changes for text in texts]
    return hashlib.sha256("\0".join(parts).encode()).digest()


def _recipes(compilation: Compilation) -> tuple[str, str]:
    given = (compilation.options.compression, compilation.options.quantization)
    compression, quantization = (
        "" if options is None else options.recipe.model_dump_json() for options in given
    )
    return compression, quantization


def vector_files(programs: Sequence[Compilation]) -> dict[str, bytes]:
    """Return the files of the test vectors by their paths in the bundle."""
    files = {}
    for number, (program, step, _) in enumerate(_steps(programs)):
        signature = program.expected.called
        for kind, specs, tensors in (
            ("input", signature.inputs, step.inputs),
            ("output", signature.outputs, step.outputs),
        ):
            for index, spec in enumerate(specs):
                files[_vector_path(number, kind, index)] = save_vector(tensors[spec.name])
    return files


def _steps(programs: Sequence[Compilation]) -> list[tuple[Compilation, Step, bool]]:
    """Return programs with their runs, and whether these begin with the state that there is."""
    return [
        (program, step, number > 0 or program.expected.goes_on)
        for program in programs
        for number, step in enumerate(program.expected.called_steps)
    ]


def _vector_path(number: int, kind: str, index: int) -> str:
    return f"vectors/{number}/{kind}-{index}.npy"


def _program_record(compilation: Compilation, widest: Sequence[StateRecord]) -> ProgramRecord:
    signature, shapes = compilation.expected.called, compilation.program.shapes
    common = compilation.options.shapes
    return ProgramRecord(
        name=compilation.program.name,
        shapes={n: shape for n, shape in shapes.items() if common.get(n) != shape},
        inputs=_tensor_records(signature.inputs),
        outputs=_tensor_records(signature.outputs),
        state_parts=state_parts(compilation, widest) or 1,
    )


def _variant_record(compilation: Compilation, variants: Mapping[str, Variant]) -> VariantRecord:
    name = compilation.program.name
    given = variants[name].accuracy
    changed = variants[name].changes_numbers
    return VariantRecord(
        program=name,
        accuracy=round(compilation.accuracy if given is None else given, 6),
        accuracy_of="given" if given is not None else "calibration" if changed else "unchanged",
        estimated_ms=three_digits(compilation.estimated_ms),
        tolerance=_tolerance([compilation.expected.tolerance]),
        compression=_compression_record(compilation),
        quantization=_quantization_record(compilation),
    )


def _tolerance(tolerances: Sequence[Tolerance]) -> ToleranceRecord:
    """Return what is enough for every program."""
    ratios = [t.sqnr_db for t in tolerances if t.sqnr_db is not None]
    return ToleranceRecord(
        relative=max(t.relative for t in tolerances),
        absolute=max(t.absolute for t in tolerances),
        sqnr_db=min(ratios, default=None),
    )


def _preprocess_record(compilation: Compilation) -> PreprocessRecord | None:
    embedded = compilation.canonical.embedded
    return None if embedded is None else PreprocessRecord(**vars(embedded))


def _compression_record(compilation: Compilation) -> CompressionRecord | None:
    model, options = compilation.compressed, compilation.options.compression
    if model is None or options is None:
        return None
    samples = compilation.samples
    return CompressionRecord(
        recipe=options.recipe.model_dump(mode="json"),
        calibration=samples.source if samples is not None else "",
        macs_before=model.before.macs,
        weights_before=model.before.weights,
        sqnr_db=_all_three_digits(compilation.sqnr_db),
        samples=model.measured,
        steps=tuple(
            CompressionStepRecord(
                kind=result.step.kind,
                macs=result.costs.macs,
                weights=result.costs.weights,
                nonzeros=result.costs.nonzeros,
                score=result.accuracy and round(result.accuracy.score, 6),
                samples_sqnr_db=_all_three_digits(
                    result.accuracy.by_output if result.accuracy else {}
                ),
            )
            for result in model.steps
        ),
        metric=compilation.options.samples.metric or "",
        positions=max((r.accuracy.positions for r in model.steps if r.accuracy), default=0),
    )


def _quantization_record(compilation: Compilation) -> QuantizationRecord | None:
    model, options = compilation.quantized, compilation.options.quantization
    if model is None or options is None:
        return None
    samples, recipe, accuracy = compilation.samples, options.recipe, model.accuracy
    ranges = None if options.ranges is None else read_ranges_file(options.ranges)
    return QuantizationRecord(
        recipe=recipe.model_dump(mode="json"),
        quantized_types=model.quantization.resolved.why,
        calibration=samples.source if samples is not None else "",
        observer=(ranges or options).observer if recipe.needs_samples else "",
        repaired=options.repair,
        rounding=options.rounding if options.repair else "nearest",
        quantized=len(model.quantization.plan.quantized()),
        kept_float=model.kept_float,
        float_fallbacks={f.name: f"{f.operator}: {f.why}" for f in compilation.fallbacks},
        sqnr_db=_all_three_digits(compilation.sqnr_db),
        samples=model.measured,
        samples_sqnr_db=_all_three_digits(accuracy.by_output) if accuracy else {},
        score=round(accuracy.score, 6) if accuracy else None,
        metric=compilation.options.samples.metric or "",
        positions=accuracy.positions if accuracy else 0,
        clients=None if ranges is None else ranges.source,
    )


def _exits_record(compilation: Compilation) -> ExitsRecord | None:
    model, options = compilation.exited, compilation.options.exits
    if model is None or options is None:
        return None
    return ExitsRecord(
        exits=tuple(
            ExitRecord(
                work=three_digits(one.place.work),
                threshold=round(one.threshold, 6),
                share=round(one.share, 6),
                agreement=round(one.agreement, 6),
            )
            for one in model.exits
        ),
        drop=options.drop,
        agreement=round(model.agreement, 6),
        samples=model.samples,
        work=three_digits(model.work),
        sqnr_db=_all_three_digits(compilation.sqnr_db),
    )


def _all_three_digits(values: Mapping[str, float]) -> dict[str, float]:
    return {name: three_digits(value) for name, value in values.items()}


def _tensor_records(specs: tuple[TensorSpec, ...]) -> tuple[TensorRecord, ...]:
    return tuple(TensorRecord(name=s.name, shape=s.shape, dtype=s.dtype) for s in specs)
