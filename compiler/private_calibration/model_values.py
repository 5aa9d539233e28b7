"""Find the values of a model whose ranges are wanted, and what a client's data make of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgec.compiler.backend import evaluate_here
from edgec.compiler.calibration.float_model import FloatModel, observe
from edgec.compiler.calibration.ranges import check_finite
from edgec.compiler.calibration.samples import SampleOptions, Samples
from edgec.compiler.errors import CalibrationError, UsageError
from edgec.compiler.frontend.canonical import CanonicalModel, canonical_model
from edgec.compiler.frontend.onnx_file import SourceModel, read_onnx
from edgec.compiler.ir.graph import Graph
from edgec.compiler.private_calibration.masks import Words, words
from edgec.compiler.private_calibration.session import Session
from edgec.compiler.private_calibration.statistics import (
    BINS,
    Counts,
    LargestValues,
    count,
)
from edgec.compiler.quantize.plan import plan_quantization
from edgec.compiler.quantize.quantization_recipe import QuantizationRecipe, resolve
from edgec.compiler.support.progress import Progress
from edgec.targets import Target


def wanted_values(
    model: SourceModel,
    shapes: Mapping[str, tuple[int, ...]],
    recipe: QuantizationRecipe,
    target: Target,
) -> tuple[str, ...]:
    """Return the names of the values whose ranges a recipe needs.

    Raises:
        UsageError: it needs none, or none without samples.
        EdgecError: the model cannot be compiled.
    """
    if recipe.equalize:
        raise UsageError(
            f"recipe {recipe.name} has equalize = true, which changes the values of the model; "
            "private calibration takes recipes without"
        )
    canonical = canonical_model(model, shapes)
    graph = Graph(canonical.module, canonical.value_names)
    plan = plan_quantization(graph, resolve(recipe, target).recipe)
    names = tuple(dict.fromkeys(graph.names[variable] for variable in plan.tensors))
    if not names:
        raise UsageError(f"recipe {recipe.name} needs no ranges of this model's values")
    return names


class ClientModel:
    """A client model counts what its values are on a client's data."""

    def __init__(self, path: Path, session: Session) -> None:
        """Read and compile the model.

        Raises:
            CalibrationError: it is another model than the session's, or has not its values.
            EdgecError: it cannot be compiled.
        """
        source = read_onnx(path)
        if source.sha256 != session.model_sha256:
            raise CalibrationError(
                f"{path} has SHA-256 {source.sha256[:12]}…, the session is about "
                f"{session.model_sha256[:12]}…: take the same file, or leave --model out"
            )
        canonical: CanonicalModel = canonical_model(source, session.shapes)
        graph = Graph(canonical.module, canonical.value_names)
        variables = {name: variable for variable, name in graph.names.items()}
        missing = [name for name in session.values if name not in variables]
        if missing:
            raise CalibrationError(
                f"the model has no value {missing[0]}, which the server asks for; use the same "
                "version of edgec on both sides"
            )
        wanted = [variables[name] for name in session.values]
        self._session, self._inputs = session, canonical.signature.inputs
        self._model = FloatModel(graph, canonical.signature, wanted, evaluate_here)

    def open(self, options: SampleOptions) -> Samples:
        """Return a client's samples.

        Raises:
            CalibrationError: they do not fit.
        """
        samples = options.open(self._inputs)
        assert samples is not None
        return samples

    def histograms(self, samples: Samples, progress: Progress | None = None) -> Counts:
        """Return the counts of each value, one after the other."""
        names: Sequence[str] = self._session.values
        counts = np.zeros((len(names), BINS), np.int64)
        for values in observe(self._model, samples, "histograms", progress):
            for row, name in zip(counts, names, strict=True):
                check_finite(name, values[name], samples)
                row += count(values[name])
        return counts.ravel()

    def extremes(self, samples: Samples, progress: Progress | None = None) -> Counts:
        """Return the clipped logarithms of the largest values, two for each value."""
        noise = self._session.noise
        assert noise is not None
        names = self._session.values
        seen = {name: LargestValues() for name in names}
        for values in observe(self._model, samples, "extremes", progress):
            for name, largest in seen.items():
                check_finite(name, values[name], samples)
                largest.see(values[name])
        return np.concatenate([seen[name].units(noise) for name in names])

    def vector(self, samples: Samples, progress: Progress | None = None) -> Words:
        """Return what the client adds to the sum, with its share of the noise if it adds one."""
        session = self._session
        if session.noise is None:
            return words(self.histograms(samples, progress))
        return words(noisy_share(session, self.extremes(samples, progress)))


def noisy_share(session: Session, units: Counts) -> Counts:
    """Return a client's vector with its share of the noise, if clients add it."""
    from edgec.compiler.private_calibration.noise import add_noise, client_deviation, deviation

    if session.noise is None or session.noise.added_by == "server":
        return units
    return add_noise(units, client_deviation(session, deviation(session)))
