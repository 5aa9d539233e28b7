"""Score one bundle on data, and measure it on a board; called where work is done, see `jobs`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgec.compiler.boards.remote_timing import BoardTimes
from edgec.compiler.boards.run import bench_on, model_on
from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.bundle.manifest import Manifest
from edgec.compiler.cascade.cascade import is_cascade
from edgec.compiler.cascade.cascade_bundle import CascadeBundle
from edgec.compiler.errors import BadInputError
from edgec.compiler.evaluate.data import open_data
from edgec.compiler.evaluate.metrics import Metric, TopK, class_scores, make_metric
from edgec.compiler.frontend.model_source import read_model
from edgec.compiler.frontend.preprocessing import Preprocess
from edgec.compiler.ir.signature import Tensors
from edgec.compiler.jobs.shared_path import SharedPath
from edgec.compiler.parity.prepared_images import prepared
from edgec.compiler.predict.prediction import Estimate
from edgec.compiler.runtime.session import why_not_here
from edgec.compiler.support.onnx_runtime import open_onnx_session, run_onnx_session
from edgec.compiler.support.progress import Progress, Silent

# Half of the times lie between these percentiles.
LOW, HIGH = 25, 75


@dataclass(frozen=True, kw_only=True)
class Examination:
    """An examination describes what bundles are scored on.

    Attributes:
        data: folder or file.
        source: what the data are called in messages.
        metric: name, or `module:function`.
        preprocess: of images.
        limit: batches that are looked at, at most.
        threads: for a bundle.
        model: the ONNX file whose answers stand in for labels.
        bundle: the bundle whose answers do; of neither, the data have labels.
        board: where bundles run; empty: where they are scored.
    """

    data: SharedPath
    source: str
    metric: str
    preprocess: Preprocess | None
    limit: int | None
    threads: int
    model: SharedPath | None = None
    bundle: SharedPath | None = None
    board: str = ""


@dataclass(frozen=True)
class Scored:
    """What was scored has these figures.

    Attributes:
        accuracy: figures by name, the metric first; empty where none was measured.
        why_not: why not.
        samples: how many were looked at.
    """

    accuracy: dict[str, float]
    why_not: str = ""
    samples: int = 0


@dataclass(frozen=True)
class BoardSpeed:
    """A board speed says how fast a bundle is there.

    Attributes:
        latency: median and quartiles [ms]; None where QEMU plays the board.
        instructions: of one inference; 0 of a real board.
    """

    latency: Estimate | None
    instructions: int


class _Runs(Protocol):
    def run(self, inputs: Tensors) -> Tensors: ...


def open_bundle(bundle: Bundle | str | Path) -> Bundle | CascadeBundle:
    """Return a bundle, or a cascade of two, by its path."""
    if not isinstance(bundle, Bundle) and is_cascade(bundle):
        return CascadeBundle(Path(bundle))
    return Bundle.of(bundle)


@contextmanager
def _model_of(bundle: Bundle | CascadeBundle, examination: Examination) -> Iterator[_Runs]:
    """Provide what runs, here or on the board."""
    if isinstance(bundle, CascadeBundle):
        yield bundle.open(examination.threads)
        return
    with model_on(bundle, examination.board or None, examination.threads) as model:
        yield model


def score(examination: Examination, bundle: SharedPath, progress: Progress | None = None) -> Scored:
    """Return how good a bundle is, or why that cannot be measured here.

    Raises:
        BadInputError: data, labels and outputs do not fit one another.
        BoardError: the board cannot be reached, or failed.
    """
    opened = open_bundle(bundle.open())
    manifest = opened.manifest
    if not examination.board and why_not_here(manifest.target):
        return Scored({}, f"{manifest.target.name} code does not run here")
    data = open_data(examination.data.open(), manifest.signature.inputs, examination.preprocess)
    metric = make_metric(examination.metric)
    count = 0
    with (
        _model_of(opened, examination) as model,
        _truth(examination, manifest) as answers,
        (progress or Silent()).parts("accuracy", data.samples.count) as advance,
    ):
        for inputs, labels in data.batches(examination.limit):
            count += data.batch
            truth: Any = labels
            if answers is not None:
                truth = metric.truth_of(answers(inputs))
            outputs = _run(model, manifest, inputs)
            _check_counts(metric, outputs, truth)
            metric.add(outputs, truth)
            advance()
    if not count:
        raise BadInputError(
            f"--data {examination.source} holds no whole batch of {data.batch} samples"
        )
    return Scored(metric.result(), samples=count)


@contextmanager
def _truth(
    examination: Examination, manifest: Manifest
) -> Iterator[Callable[[Tensors], Tensors] | None]:
    """Provide what gives the answers that stand in for labels; None where there are labels."""
    if examination.model is not None:
        yield _original(examination.model.open(), manifest)
    elif examination.bundle is not None:
        first = open_bundle(examination.bundle.open())
        with _model_of(first, examination) as model:
            yield lambda inputs: _run(model, first.manifest, inputs)
    else:
        yield None


def _original(model: Path, manifest: Manifest) -> Callable[[Tensors], Tensors]:
    """Return what runs the original ONNX file on the inputs of a bundle."""
    source = read_model(model, context=manifest.settings.context, cache=manifest.settings.cache)
    if source.sha256 != manifest.model.sha256:
        raise BadInputError(f"--model {model} is another file than the bundles were compiled from")
    try:
        session = open_onnx_session(str(model))
    except Exception as error:
        # ONNX Runtime's exceptions have no common base but this one.
        raise BadInputError(f"--model {model}: ONNX Runtime cannot load it: {error}") from None
    settings = manifest.settings
    frozen = settings.frozen_values

    def run(inputs: Tensors) -> Tensors:
        return run_onnx_session(session, {**prepared(inputs, settings.embedded), **frozen})

    return run


def _check_counts(metric: Metric, outputs: Tensors, truth: Any) -> None:
    """Refuse outputs that hold another number of answers than there are labels."""
    if not isinstance(metric, TopK):
        return
    scores = class_scores(outputs)
    if len(scores) != len(np.asarray(truth).reshape(-1)):
        raise BadInputError(
            f"--metric {metric.name}: the model gives {len(scores)} answers where "
            f"{len(truth)} are labelled; give --metric cer, map, or module:function"
        )


def _run(session: _Runs, manifest: Manifest, inputs: Tensors) -> Tensors:
    specs = manifest.signature.inputs
    wrong = [s for s in specs if s.name not in inputs or tuple(inputs[s.name].shape) != s.shape]
    if wrong:
        raise BadInputError(
            f"the bundles take different inputs: {wrong[0]} of {manifest.model.name} for "
            f"{manifest.target.name} does not fit the data"
        )
    return session.run(inputs)


def measure_on_board(bundle: SharedPath, board: str, threads: int, seconds: float) -> BoardSpeed:
    """Return how fast a bundle is on a board: its time, or instructions where QEMU plays it.

    Raises:
        BundleError: it does not run there.
        BoardError: the board cannot be reached, or failed.
    """
    found = bench_on(board, bundle.open(), threads=threads, seconds=seconds)
    if not isinstance(found, BoardTimes):
        return BoardSpeed(None, found.total)
    low, high = np.percentile(found.latency.times_ms, [LOW, HIGH])
    return BoardSpeed(Estimate(found.latency.median_ms, float(low), float(high)), 0)
