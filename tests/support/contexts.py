"""What steps of compression and quantization are handed, for a model of a test."""

from collections.abc import Mapping
from types import MappingProxyType

from edgec.compiler.backend import evaluate_here
from edgec.compiler.calibration.accuracy import Metric, same_top1
from edgec.compiler.calibration.context import ModelContext
from edgec.compiler.calibration.samples import Samples
from edgec.compiler.compress.step import StepContext
from edgec.compiler.ir.graph import Graph
from edgec.compiler.ir.signature import Signature
from edgec.compiler.runtime.inputs import generate_inputs
from edgec.compiler.support.progress import Progress, Silent
from edgec.targets import load_target


def model_context(
    signature: Signature,
    samples: Samples | None = None,
    *,
    target: str = "native",
    value_names: Mapping[str, str] = MappingProxyType({}),
    metric: Metric = same_top1,
    progress: Progress | None = None,
) -> ModelContext:
    """Return the context of a model that this machine evaluates."""
    return ModelContext(
        signature=signature,
        target=load_target(target),
        evaluate=evaluate_here,
        value_names=value_names,
        samples=samples,
        inputs=generate_inputs(signature.inputs, 0, {}),
        metric=metric,
        progress=progress or Silent(),
    )


def work_on(
    graph: Graph, signature: Signature, samples: Samples | None = None, target: str = "native"
) -> StepContext:
    """Return what a step is handed for a graph."""
    return StepContext.of(model_context(signature, samples, target=target), graph)
