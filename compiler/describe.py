"""Describe what the manifest says of a compile: the model.

The settings, what was done and what it costs.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from edgec.compiler.bundle.manifest import (
    CompressionRecord,
    CompressionStepRecord,
    ExecutionRecord,
    FrozenRecord,
    Manifest,
    ModelRecord,
    ParityRecord,
    PreprocessRecord,
    QuantizationRecord,
    SettingsRecord,
    TensorRecord,
    ToleranceRecord,
    VectorRecord,
)
from edgec.compiler.bundle.npy import save_vector
from edgec.compiler.calibration.samples import Samples
from edgec.compiler.compress.compressor import CompressedModel
from edgec.compiler.frontend.canonical import CanonicalModel
from edgec.compiler.ir.signature import TensorSpec
from edgec.compiler.options import CompileOptions
from edgec.compiler.parity.compare import three_digits
from edgec.compiler.parity.expected import Expected
from edgec.compiler.quantize.float_fallbacks import FloatFallback
from edgec.compiler.quantize.quantizer import QuantizedModel
from edgec.compiler.support.versions import tool_versions
from edgec.targets import Target


@dataclass(frozen=True, kw_only=True)
class Compilation:
    """A compilation describes a compile up to code generation.

    Attributes:
        model: the file.
        target: the target that the model is compiled for.
        options: the settings.
        canonical: the model.
        samples: what compression and quantization looked at.
        compressed: the compressed model, if it was compressed.
        quantized: the quantized model, if it was quantized.
        fallbacks: what computes on floats in the packed program of a quantized model.
        original: what the original graph computes.
        expected: what the library must compute.
    """

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
    sqnr_db: Mapping[str, float] = field(init=False)

    def __post_init__(self) -> None:
        """Measure how far the transformed graph is from the original."""
        same = self.expected is self.original
        object.__setattr__(self, "sqnr_db", {} if same else self.original.sqnr_db(self.expected))


def describe_compilation(
    compilation: Compilation, execution: ExecutionRecord, parity: ParityRecord
) -> Manifest:
    """Write the manifest of a bundle, without its files."""
    options = compilation.options
    expected = compilation.expected
    signature = expected.signature
    return Manifest(
        model=compilation.model,
        target=compilation.target,
        inputs=_tensor_records(signature.inputs),
        outputs=_tensor_records(signature.outputs),
        settings=SettingsRecord(
            shapes=dict(options.shapes),
            frozen={
                name: FrozenRecord(dtype=str(array.dtype), values=array.tolist())
                for name, array in compilation.canonical.frozen.items()
            },
            seed=options.seed,
            index_bounds=dict(expected.index_bounds),
            preprocess=_preprocess_record(compilation),
            context=options.context,
        ),
        execution=execution,
        tolerance=ToleranceRecord(**dataclasses.asdict(expected.tolerance)),
        parity=parity,
        compression=_compression_record(compilation),
        quantization=_quantization_record(compilation),
        vectors=(
            VectorRecord(
                inputs=tuple(_vector_path("input", i) for i in range(len(signature.inputs))),
                outputs=tuple(_vector_path("output", i) for i in range(len(signature.outputs))),
            ),
        ),
        tools=tool_versions(),
        files={},
    )


def vector_files(expected: Expected) -> dict[str, bytes]:
    """Return the files of the test vectors by their paths in the bundle."""
    signature, files = expected.signature, {}
    for kind, specs, tensors in (
        ("input", signature.inputs, expected.inputs),
        ("output", signature.outputs, expected.outputs),
    ):
        for index, spec in enumerate(specs):
            files[_vector_path(kind, index)] = save_vector(tensors[spec.name])
    return files


def _vector_path(kind: str, index: int) -> str:
    return f"vectors/0/{kind}-{index}.npy"


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
    return QuantizationRecord(
        recipe=recipe.model_dump(mode="json"),
        quantized_types=model.quantization.resolved.why,
        calibration=samples.source if samples is not None else "",
        observer=options.observer if recipe.needs_samples else "",
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
    )


def _all_three_digits(values: Mapping[str, float]) -> dict[str, float]:
    return {name: three_digits(value) for name, value in values.items()}


def _tensor_records(specs: tuple[TensorSpec, ...]) -> tuple[TensorRecord, ...]:
    return tuple(TensorRecord(name=s.name, shape=s.shape, dtype=s.dtype) for s in specs)
