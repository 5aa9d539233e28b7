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
from edgec.compiler.exits.heads import calibrate_thresholds, parts, softmax
from edgec.compiler.frontend.preprocessing import Preprocess
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
    small, large = Bundle.of(small), Bundle.of(large)
    folder = Path(output or f"{small.path.stem}.cascade")
    check_cascade_destination(folder)
    _check_alike(small, large)
    scores, answers, labels = _answers(
        small, large, data, preprocess, limit, threads, progress or Silent()
    )
    probabilities = bool(scores.min() >= 0 and np.allclose(scores.sum(axis=1), 1, atol=1e-3))
    sure = (scores if probabilities else softmax(scores)).max(axis=1)
    given, wanted = scores.argmax(axis=1), answers.argmax(axis=1)
    agrees = given == wanted
    seen = parts(len(sure), 2) == 0
    (threshold,) = calibrate_thresholds([sure[seen]], [agrees[seen]], drop)
    if threshold > 1:
        raise CalibrationError(
            f"{small.path} never gives the answers of {large.path} with a drop of {drop:g}: allow "
            "more with --drop, or take a better small model"
        )
    test = ~seen
    kept = sure >= threshold
    final = np.where(kept, given, wanted)
    accuracy = {}
    if labels is not None:
        accuracy = {
            name: float((found == labels)[test].mean())
            for name, found in (("small", given), ("large", wanted), ("cascade", final))
        }
    cascade = Cascade(
        threshold=round(threshold, 9),
        probabilities=probabilities,
        drop=drop,
        samples=int(test.sum()),
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
    return scores, answers, truth
