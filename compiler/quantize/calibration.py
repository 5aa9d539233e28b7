"""Ranges of values from samples, and the file that keeps them.

The canonical graph runs on this machine with the values in question as further outputs, compiled
by the pipeline that the model itself goes through. One batch is in memory at a time; observers
keep numbers or histograms.
"""

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.backend import compile_module
from edgec.compiler.errors import CalibrationError, OutputError
from edgec.compiler.parity import Tensors
from edgec.compiler.passes.base import dtype_of, shape_of
from edgec.compiler.progress import Progress, Silent
from edgec.compiler.quantize.graph import Graph
from edgec.compiler.quantize.observers import Observer, ObserverName, Range, make_observer
from edgec.compiler.quantize.samples import Samples
from edgec.compiler.runtime import Session, open_session
from edgec.compiler.signature import Signature, TensorSpec
from edgec.targets import load_target

CACHE_FORMAT = 1


class HostModel:
    """A canonical module, compiled for this machine and loaded."""

    def __init__(self, module: Any, signature: Signature) -> None:
        host = load_target("native")
        with tempfile.TemporaryDirectory(prefix="edgec-quantize-") as folder:
            library = Path(folder) / "model.so"
            executor = compile_module(module, signature, host, library)
            self._session: Session = open_session(library, host, signature, executor)

    def run(self, inputs: Tensors) -> Tensors:
        """Outputs by name."""
        return self._session.run(inputs)


class FloatModel:
    """The canonical model on this machine, with some of its values as further outputs.

    Attributes:
        graph: the canonical module.
    """

    def __init__(self, graph: Graph, signature: Signature, variables: Iterable[Any]) -> None:
        self.graph = graph
        inputs = dict(zip(graph.parameters, signature.inputs, strict=True))
        wanted = list(dict.fromkeys(variables))
        computed = [v for v in wanted if v not in inputs]
        self._given = {graph.names[v]: inputs[v].name for v in wanted if v in inputs}
        self._results = [output.name for output in signature.outputs]
        specs = [TensorSpec(graph.names[v], shape_of(v) or (), dtype_of(v)) for v in computed]
        # Under names that no value of the graph has.
        results = [TensorSpec(f"result {o.name}", o.shape, o.dtype) for o in signature.outputs]
        outputs = (*results, *specs)
        module = graph.rebuilt(keep, shown=computed) if computed else graph.module
        self._model = HostModel(module, Signature(signature.inputs, outputs))

    def values(self, sample: Tensors) -> dict[str, NDArray[Any]]:
        """The values by name, for one batch."""
        values = dict(self._model.run(sample))
        values.update({name: sample[source] for name, source in self._given.items()})
        return values

    def results(self, sample: Tensors) -> Tensors:
        """What the model gives, for one batch."""
        values = self._model.run(sample)
        return {name: values[f"result {name}"] for name in self._results}


def keep(builder: Any, variable: Any, value: Any, _now: Any) -> Any:
    """The rewriting that changes nothing; see `Graph.rebuilt`."""
    return variable if value is None else builder.emit(value, variable.name)


def calibrate(
    model: FloatModel,
    names: Sequence[str],
    samples: Samples,
    observer: ObserverName,
    progress: Progress | None = None,
) -> dict[str, Range]:
    """The range of each value over all samples, by name.

    Raises:
        CalibrationError: no samples, or a value is not finite.
    """
    observers: dict[str, Observer] = {name: make_observer(observer) for name in names}
    for values in observe(model, samples, "calibrate", progress):
        for name, watcher in observers.items():
            array = values[name]
            if not np.isfinite(array).all():
                raise CalibrationError(
                    f"{name} is not finite for a sample of {samples.source}; "
                    "check the samples and their preprocessing"
                )
            watcher.see(array)
    return {name: watcher.range() for name, watcher in observers.items()}


def observe(
    model: FloatModel, samples: Samples, title: str, progress: Progress | None = None
) -> Iterator[Tensors]:
    """The values of a model by name, for one batch after another.

    Raises:
        CalibrationError: there are no samples.
    """
    seen = False
    with (progress or Silent()).parts(title, samples.count) as advance:
        for sample in samples:
            seen = True
            yield model.values(sample)
            advance()
    if not seen:
        raise CalibrationError(f"calibration data {samples.source} hold no samples")


def write_ranges(path: Path, ranges: dict[str, Range], model: str, observer: str) -> None:
    """Save ranges, to be read or edited by people.

    Raises:
        OutputError: it cannot be written.
    """
    fields = {
        "format": CACHE_FORMAT,
        "model": model,
        "observer": observer,
        "ranges": {name: list(ends) for name, ends in ranges.items()},
    }
    lines = json.dumps(fields, indent=1, ensure_ascii=False)
    # One value, one line.
    for low, high in ranges.values():
        lines = lines.replace(f"[\n   {low!r},\n   {high!r}\n  ]", f"[{low!r}, {high!r}]")
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(lines + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from None


def read_ranges(path: Path, model: str) -> dict[str, Range]:
    """Load ranges.

    Args:
        path: of the file.
        model: SHA-256 of the ONNX file that they must be of.

    Raises:
        CalibrationError: not such a file, of another model, or a range is no range.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CalibrationError(
            f"calibration cache {path} cannot be read: {error.strerror}"
        ) from None
    except ValueError as error:
        raise CalibrationError(f"calibration cache {path} is not valid JSON: {error}") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("ranges"), dict):
        raise CalibrationError(f"{path} is no calibration cache: it has no ranges")
    if fields.get("format") != CACHE_FORMAT:
        raise CalibrationError(
            f"calibration cache {path} has format {fields.get('format')!r}, expected {CACHE_FORMAT}"
        )
    if fields.get("model") != model:
        raise CalibrationError(
            f"calibration cache {path} is of another model (SHA-256 "
            f"{str(fields.get('model'))[:12]}…, this one has {model[:12]}…); "
            "delete it or name another file"
        )
    ranges = {}
    for name, ends in fields["ranges"].items():
        numbers = isinstance(ends, list) and len(ends) == 2
        if not numbers or not all(_is_number(end) for end in ends) or ends[0] > ends[1]:
            raise CalibrationError(
                f"calibration cache {path}: {name} has {ends!r}, expected [low, high]"
            )
        ranges[name] = (float(ends[0]), float(ends[1]))
    return ranges


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and bool(np.isfinite(value))
