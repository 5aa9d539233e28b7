"""Make a cascade of two bundles: the threshold from which on the small one's answer is enough.

It is found on half of the data, as that of an early exit; what it is worth is measured
on the other half.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.cascade.cascade import Cascade, check_cascade_destination, write_cascade
from edgec.compiler.cascade.session import class_output
from edgec.compiler.errors import BadInputError, CalibrationError, UsageError
from edgec.compiler.evaluate.data import open_data
from edgec.compiler.evaluate.metrics import classes_of
from edgec.compiler.exits.heads import (
    agreement_of,
    are_probabilities,
    calibrate_thresholds,
    confidence_of,
    parts,
)
from edgec.compiler.frontend.preprocessing import Preprocess
from edgec.compiler.support.limits import check_threads
from edgec.compiler.support.progress import Progress, Silent

Array = NDArray[Any]


def make_cascade(
    small: Bundle | str | Path,
    large: Bundle | str | Path,
    data: str | Path,
    *,
    drop: float = 0.01,
    output: str | Path | None = None,
    preprocess: Preprocess | None = None,
    limit: int | None = None,
    threads: int = 1,
    progress: Progress | None = None,
) -> Cascade:
    """Find the threshold of a cascade, and write the folder.

    Args:
        small: the bundle that is asked first; it runs here.
        large: the bundle whose answers count; it runs here, too.
        data: folder or NPZ, with labels or without.
        drop: share of other answers than those of the large one that the cascade may give.
        output: the folder; by default `<name of the small bundle>.cascade`.
        preprocess: of images.
        limit: batches that are looked at, at most.
        threads: for each model.
        progress: reports what takes long.

    Returns:
        The cascade; its figures are of data that the threshold was not found on.

    Raises:
        UsageError: the bundles take different inputs, or give other classes.
        CalibrationError: there are too few samples, or the small model is never sure enough.
        EdgecError: see `edgec.compiler.errors`; nothing is written then.
    """
    if not 0 < drop < 1:
        raise UsageError(f"--drop {drop:g} is no share; write 1% or 0.01")
    check_threads(threads)
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: at least 1 batch is needed")
    small, large = Bundle.of(small), Bundle.of(large)
    folder = Path(output or f"{small.path.stem}.cascade")
    check_cascade_destination(folder)
    _check_alike(small, large)
    scores, answers, labels = _answers(
        small, large, data, preprocess, limit, threads, progress or Silent()
    )
    batch = class_output(large.manifest.signature).shape[0] or 1
    probabilities, large_probabilities = map(are_probabilities, (scores, answers))
    sure = confidence_of(scores, probabilities, batch)
    agrees = agreement_of(scores, answers, batch)
    seen = parts(len(sure), 2) == 0
    (threshold,) = calibrate_thresholds([sure[seen]], [agrees[seen]], drop)
    if threshold > 1:
        raise CalibrationError(
            f"{small.path} never gives the answers of {large.path} with a drop of {drop:g}: allow "
            "more with --drop, or take a better small model"
        )
    test = ~seen
    kept = sure >= threshold
    given, wanted = (rows.argmax(axis=1).reshape(-1, batch) for rows in (scores, answers))
    final = np.where(kept[:, None], given, wanted)
    accuracy = {}
    if labels is not None:
        accuracy = {
            name: float((found == labels.reshape(-1, batch))[test].mean())
            for name, found in (("small", given), ("large", wanted), ("cascade", final))
        }
    cascade = Cascade(
        threshold=threshold,
        probabilities=probabilities,
        large_probabilities=large_probabilities,
        drop=drop,
        samples=int(test.sum()) * batch,
        agreement=round(float((final == wanted)[test].mean()), 6),
        escalated=round(float((~kept)[test].mean()), 6),
        accuracy=accuracy,
    )
    write_cascade(folder, cascade, small, large)
    return cascade


def _check_alike(small: Bundle, large: Bundle) -> None:
    one, other = small.manifest.signature, large.manifest.signature
    if [(s.name, s.shape, s.dtype) for s in one.inputs] != [
        (s.name, s.shape, s.dtype) for s in other.inputs
    ]:
        raise UsageError(
            f"both models of a cascade take the same inputs: {small.path} takes "
            f"{', '.join(map(str, one.inputs))}, {large.path} {', '.join(map(str, other.inputs))}"
        )
    if class_output(one).shape != class_output(other).shape:
        raise UsageError(
            f"both models of a cascade know the same classes: {small.path} gives "
            f"{class_output(one)}, {large.path} {class_output(other)}"
        )
    if small.manifest.states or large.manifest.states:
        raise UsageError("a model of a cascade has no state: the large one would miss what it saw")


def _answers(
    small: Bundle,
    large: Bundle,
    source: str | Path,
    preprocess: Preprocess | None,
    limit: int | None,
    threads: int,
    progress: Progress,
) -> tuple[Array, Array, Array | None]:
    """Return what both models give for each sample, and the labels."""
    data = open_data(source, small.manifest.signature.inputs, preprocess)
    runs = [(b.open(threads), class_output(b.manifest.signature).name) for b in (small, large)]
    found: list[tuple[Array, ...]] = []
    labels: list[Array] = []
    with progress.parts("answers", data.samples.count) as advance:
        for inputs, true in data.batches(limit):
            found.append(tuple(session.run(inputs)[name] for session, name in runs))
            if true is not None:
                labels.append(np.asarray(true).reshape(-1))
            advance()
    if not found:
        raise BadInputError(f"--data {data.source} holds no whole batch of {data.batch} samples")
    scores, answers = (np.concatenate(column) for column in zip(*found, strict=True))
    truth = np.concatenate(labels) if labels else None
    if truth is not None and (len(truth) != len(scores) or truth.dtype.kind not in "iu"):
        raise BadInputError(f"--data {data.source}: a label for each sample is a class number")
    if truth is not None:
        classes_of(truth, scores.shape[1])
    return scores, answers, truth
