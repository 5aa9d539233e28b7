"""Describe what compression and quantization may look at beside the module itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgec.compiler.calibration.accuracy import Metric, same_top1
from edgec.compiler.calibration.samples import Samples
from edgec.compiler.ir.evaluate import Evaluate
from edgec.compiler.ir.signature import Signature, Tensors
from edgec.compiler.support.progress import Progress, Silent
from edgec.targets import Target


@dataclass(frozen=True, kw_only=True)
class ModelContext:
    """A model context describes a model's interface, its data.

    And what evaluates changed versions of it.

    Attributes:
        signature: inputs and outputs of the model.
        target: the target that the model is compiled for.
        evaluate: compiles a module for this machine.
        evaluate_as_built: compiles a module as the target's library is compiled, kernel for kernel,
            and runs it; None where this machine cannot run the target's code.
        value_names: ONNX names by those of Relax variables.
        samples: unlabelled inputs; None if none were given.
        inputs: one input by name, for timing.
        metric: agreement of two models' outputs, 0..1.
        progress: reports what takes long.
    """

    signature: Signature
    target: Target
    evaluate: Evaluate
    evaluate_as_built: Evaluate | None = None
    value_names: Mapping[str, str] = field(default_factory=dict)
    samples: Samples | None = None
    inputs: Tensors = field(default_factory=dict)
    metric: Metric = same_top1
    progress: Progress = field(default_factory=Silent)
