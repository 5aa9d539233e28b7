"""Provide the middle of the pipeline: what compression and quantization make of a module.

A compile and a tuning run go through it, so that both see the same kernels.
"""

from dataclasses import dataclass, replace
from functools import partial

import onnx
from tvm import IRModule

from edgec.compiler.backend import HostModel, evaluate_here
from edgec.compiler.calibration.accuracy import MAX_MEASURED, load_metric, measure
from edgec.compiler.calibration.context import ModelContext
from edgec.compiler.calibration.samples import Samples
from edgec.compiler.compress.compressor import CompressedModel, compress_model
from edgec.compiler.errors import UsageError
from edgec.compiler.exits.add_exits import ExitedModel, add_exits
from edgec.compiler.frontend.canonical import CanonicalModel, Phase
from edgec.compiler.frontend.onnx_facts import quantizes_activations
from edgec.compiler.frontend.preprocessing import Preprocess
from edgec.compiler.ir.signature import Signature, Tensors
from edgec.compiler.lowering.schedule import Decide, default_decide
from edgec.compiler.options import CompileOptions
from edgec.compiler.quantize.quantizer import QuantizedModel, quantize_model
from edgec.compiler.runtime.session import why_not_here
from edgec.compiler.support.phases import untold
from edgec.compiler.support.progress import Progress
from edgec.targets import Target


@dataclass(frozen=True)
class TransformedModel:
    """A transformed model is a canonical module after compression and quantization.

    Attributes:
        module: the module; the canonical one where neither was asked for.
        compressed: what compression did; None where it was not asked for.
        quantized: what quantization did; None likewise.
        exited: its early exits; None likewise.
    """

    module: IRModule
    compressed: CompressedModel | None = None
    quantized: QuantizedModel | None = None
    exited: ExitedModel | None = None

    def signature(self, original: Signature) -> Signature:
        """Return inputs and outputs: those of the original, and which exit answered."""
        return original if self.exited is None else self.exited.signature


def transform_model(
    canonical: CanonicalModel,
    target: Target,
    options: CompileOptions,
    samples: Samples | None,
    inputs: Tensors,
    model_sha256: str,
    progress: Progress,
    phase: Phase = untold,
    decide: Decide = default_decide,
) -> TransformedModel:
    """Compress and quantize a canonical model and add exits, as far as the options ask for it.

    Args:
        canonical: the model.
        target: the target that it is compiled for.
        options: what is compressed and quantized.
        samples: what `open_samples` gave.
        inputs: one input by name, for timing.
        model_sha256: digest of the ONNX file, which cached ranges belong to.
        progress: reports what takes long.
        phase: notified of each phase; by default nothing is.
        decide: chooses among a template's decisions, as for the library.

    Raises:
        EdgecError: see `compress_model` and `quantize_model`.
    """
    as_built = partial(HostModel, progress=progress, target=target, decide=decide)
    context = ModelContext(
        signature=canonical.signature,
        target=target,
        evaluate=partial(evaluate_here, progress=progress),
        evaluate_as_built=None if why_not_here(target) else as_built,
        value_names=canonical.value_names,
        samples=samples,
        inputs=inputs,
        metric=load_metric(options.samples.metric),
        progress=progress,
    )
    transformed = TransformedModel(canonical.module)
    if options.compression is not None:
        with phase("compress") as show:
            compressed = show(compress_model(transformed.module, options.compression, context))
        transformed = replace(transformed, module=compressed.module, compressed=compressed)
    if options.quantization is not None:
        with phase("quantize") as show:
            quantized = show(
                quantize_model(transformed.module, options.quantization, context, model_sha256)
            )
        transformed = replace(transformed, module=quantized.module, quantized=quantized)
    if options.exits is not None:
        with phase("exits") as show:
            exited = show(add_exits(transformed.module, options.exits, context))
        transformed = replace(transformed, module=exited.module, exited=exited)
    return transformed


def accuracy_of(
    canonical: CanonicalModel,
    transformed: TransformedModel,
    samples: Samples | None,
    options: CompileOptions,
    progress: Progress,
) -> float:
    """Return how well a transformed model agrees with the original one on the samples, 0 to 1.

    Args:
        canonical: the original.
        transformed: what was made of it.
        samples: batches; none are needed where nothing was changed.
        options: the metric, and what was asked for.
        progress: reports what takes long.
    """
    if not options.changes_numbers:
        return 1.0
    compressed, quantized = transformed.compressed, transformed.quantized
    # Both have measured themselves against what they began with.
    only = quantized if compressed is None else None
    if only is not None and only.accuracy is not None:
        return only.accuracy.score
    if compressed is not None and quantized is None and compressed.steps[-1].accuracy is not None:
        return compressed.steps[-1].accuracy.score
    assert samples is not None
    original = evaluate_here(canonical.module, canonical.signature, progress)
    changed = evaluate_here(transformed.module, canonical.signature, progress)
    metric = load_metric(options.samples.metric)
    few = samples.limited(MAX_MEASURED)
    return measure(original.run, changed.run, few, metric, progress)[0].score


def open_samples(
    options: CompileOptions, graph: onnx.ModelProto, signature: Signature
) -> Samples | None:
    """Return the samples that change a model's numbers, opened before anything takes long.

    Args:
        options: what is compressed and quantized, and by what samples.
        graph: the model.
        signature: its inputs and outputs.

    Raises:
        UsageError: the model is quantized already, or the options need other samples.
        CalibrationError: the samples do not fit.
    """
    options_given = [o for o in (options.compression, options.quantization) if o is not None]
    if not options_given and options.exits is None:
        return None
    if quantizes_activations(graph.graph):
        raise UsageError(
            "this model is quantized already (it has QuantizeLinear nodes); compile it without "
            "--compress and --quantize, or start from the float model"
        )
    chosen = options.samples
    if options.images is not None:
        # The model prepares them: samples are the images themselves.
        bare = Preprocess(resize=options.images.preprocess.resize, scale=1, layout="nhwc")
        chosen = replace(chosen, preprocess=bare)
    samples = chosen.open(signature.inputs)
    for given in options_given:
        given.check_samples(samples is not None)
    if options.exits is not None and samples is None:
        raise UsageError(
            "--exits learn the answers of the model on samples (no labels): add --calibration DATA"
        )
    if options.quantization is not None and samples is not None and samples.count is not None:
        own_metric = options.samples.metric is not None
        options.quantization.check_resolution(samples.count, signature.outputs, own_metric)
    return samples
