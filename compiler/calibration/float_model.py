"""Provide the canonical float model, and its values for samples.

The values in question become further outputs of the model. One batch is in memory at a time.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from typing import Any

from numpy.typing import NDArray

from edgec.compiler.calibration.samples import Samples
from edgec.compiler.errors import CalibrationError
from edgec.compiler.ir.evaluate import Evaluate
from edgec.compiler.ir.graph import Graph
from edgec.compiler.ir.relax_helpers import dtype_of, shape_of
from edgec.compiler.ir.signature import Signature, Tensors, TensorSpec
from edgec.compiler.numerics.affine import Floats
from edgec.compiler.support.progress import Progress, Silent

# What the model gave for samples, kept for those who ask again.
MAX_KEPT_BYTES = 64 * 2**20


class FloatModel:
    """A float model is the canonical model on this machine.

    With some of its values as further outputs.

    Attributes:
        graph: the canonical module.
        kept: results by the digest of their sample, up to `MAX_KEPT_BYTES`.
    """

    def __init__(
        self, graph: Graph, signature: Signature, variables: Iterable[Any], evaluate: Evaluate
    ) -> None:
        self.graph = graph
        inputs = dict(zip(graph.parameters, signature.inputs, strict=True))
        wanted = list(dict.fromkeys(variables))
        computed = [v for v in wanted if v not in inputs]
        self._quotients: Mapping[str, tuple[str, Floats]] = {}
        self._given = {graph.names[v]: inputs[v].name for v in wanted if v in inputs}
        self._results = [output.name for output in signature.outputs]
        self.kept: dict[bytes, dict[str, NDArray[Any]]] = {}
        specs = [TensorSpec(graph.names[v], shape_of(v) or (), dtype_of(v)) for v in computed]
        # Under names that no value of the graph has.
        results = [TensorSpec(f"result {o.name}", o.shape, o.dtype) for o in signature.outputs]
        outputs = (*results, *specs)
        module = graph.module
        if computed:
            module = graph.map_values(
                lambda _builder, _variable, value, _current: value, extra_outputs=computed
            )
        self._model = evaluate(module, Signature(signature.inputs, outputs))

    def with_quotients(
        self, graph: Graph, quotients: Mapping[str, tuple[str, Floats]]
    ) -> "FloatModel":
        """Return the model of a graph that divides some of the values; nothing is compiled.

        Args:
            graph: computes the same but for these divisions.
            quotients: by name of each quotient, the name of a value that is seen and its divisor.
        """
        model = copy(self)
        model.graph, model._quotients = graph, quotients
        return model

    def values(self, sample: Tensors) -> dict[str, NDArray[Any]]:
        """Return the values by name, for one batch."""
        return self._with_others(self._model.run(sample), sample)

    def values_shared(self, sample: Tensors) -> dict[str, NDArray[Any]]:
        """Return the same, in arrays that the next run may overwrite: memory holds one batch."""
        values = self._model.run_shared(sample)
        if _digest(sample) not in self.kept:
            self._results_of(values, sample)
        return self._with_others(values, sample)

    def _with_others(self, values: Tensors, sample: Tensors) -> dict[str, NDArray[Any]]:
        """Return the values with inputs and quotients, which the compiled model does not give."""
        seen = {**values, **{name: sample[source] for name, source in self._given.items()}}
        quotients = {name: seen[source] / by for name, (source, by) in self._quotients.items()}
        return {**seen, **quotients}

    def results(self, sample: Tensors) -> Tensors:
        """Return what the model gives, for one batch."""
        kept = self.kept.get(_digest(sample))
        return kept or self._results_of(self._model.run_shared(sample), sample)

    def _results_of(self, values: Tensors, sample: Tensors) -> dict[str, NDArray[Any]]:
        """Return copies of the results among shared values, and keep them while there is room."""
        results = {name: values[f"result {name}"].copy() for name in self._results}
        size = sum(array.nbytes for array in results.values())
        if (len(self.kept) + 1) * size <= MAX_KEPT_BYTES:
            self.kept[_digest(sample)] = results
        return results


def _digest(sample: Tensors) -> bytes:
    """Return what tells batches apart by their values, in whatever order they are read."""
    digest = hashlib.sha256()
    for name in sorted(sample):
        digest.update(f"{name} {sample[name].dtype} {sample[name].shape} ".encode())
        digest.update(sample[name].tobytes())
    return digest.digest()


def observe(
    model: FloatModel, samples: Samples, title: str, progress: Progress | None = None
) -> Iterator[Tensors]:
    """Yield the values of a model by name, for one batch after another, which overwrites them.

    Raises:
        CalibrationError: there are no samples.
    """
    seen = False
    with (progress or Silent()).parts(title, samples.count) as advance:
        for sample in samples:
            seen = True
            yield model.values_shared(sample)
            advance()
    if not seen:
        raise CalibrationError(f"calibration data {samples.source} hold no samples")
