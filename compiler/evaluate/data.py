"""Read what models are evaluated on: samples, with labels or without.

| source | samples | labels |
|---|---|---|
| folder of folders of images | the images | the folder's class |
| folder of images, .npy or .npz files | each file | none |
| FILE.npz | arrays by input name | its array `labels`, if there is one |

A class folder is called by its number, or else folders are numbered in the order of their names.
Labels that are texts (`cer`) need an array `characters`, whose element i is class i, 0 the blank.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.calibration.samples import (
    Sample,
    Samples,
    open_samples,
    read_image,
    samples_from_tensors,
)
from edgec.compiler.errors import BadInputError
from edgec.compiler.frontend.preprocessing import Preprocess
from edgec.compiler.ir.signature import TensorSpec
from edgec.compiler.support.npy_files import NpyError, read_arrays

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
LABELS, CHARACTERS = "labels", "characters"

Array = NDArray[Any]


@dataclass(frozen=True)
class EvaluationData:
    """Evaluation data are batches of samples in order, and what is true of them.

    Attributes:
        source: what they were called.
        samples: batches of the model's size.
        labels: one for each sample of each batch; None where there are none.
        batch: samples in a batch.
    """

    source: str
    samples: Samples
    labels: Array | None
    batch: int

    def batches(self, limit: int | None = None) -> Iterator[tuple[Sample, Array | None]]:
        """Yield inputs and labels of each batch, at most so many."""
        for number, sample in enumerate(self.samples):
            if limit is not None and number >= limit:
                return
            start = number * self.batch
            labels = self.labels
            yield sample, None if labels is None else labels[start : start + self.batch]


def open_data(
    source: str | Path, specs: Sequence[TensorSpec], preprocess: Preprocess | None = None
) -> EvaluationData:
    """Return the data of a source, checked against the inputs of a model.

    Raises:
        BadInputError: nothing there, labels that do not fit, or samples that do not.
    """
    path = Path(source)
    batch = batch_of(specs)
    if path.is_dir():
        folders = sorted(item for item in path.iterdir() if item.is_dir())
        if folders and not any(item.is_file() for item in path.iterdir()):
            return _from_classes(path, folders, specs, preprocess or Preprocess())
    elif path.suffix == ".npz":
        return _from_npz(path, specs)
    elif not path.exists():
        raise BadInputError(f"--data {source} does not exist")
    return EvaluationData(str(source), open_samples(str(source), specs, preprocess), None, batch)


def batch_of(specs: Sequence[TensorSpec]) -> int:
    """Return how many samples the inputs of a model hold."""
    shape = specs[0].shape if specs else ()
    return (shape[0] or 1) if shape else 1


def labels_of(source: str | Path) -> Array | None:
    """Return the labels of data before there is a model; None where there are none.

    Raises:
        BadInputError: they cannot be read.
    """
    path = Path(source)
    if path.is_dir():
        folders = [item for item in path.iterdir() if item.is_dir()]
        classes = folders and not any(item.is_file() for item in path.iterdir())
        return np.zeros(0, np.int64) if classes else None
    if path.suffix != ".npz":
        return None
    arrays = _read(path)
    labels = arrays.get(LABELS)
    if labels is not None and labels.dtype.kind == "U":
        return _as_classes(path, labels, arrays.get(CHARACTERS))
    return labels


def _read(path: Path) -> dict[str, Array]:
    try:
        arrays = read_arrays(path)
    except NpyError as error:
        raise BadInputError(f"--data {path} {error}") from None
    except OSError as error:
        raise BadInputError(f"--data {path}: {error.strerror}") from None
    assert isinstance(arrays, dict)
    return arrays


def _from_npz(path: Path, specs: Sequence[TensorSpec]) -> EvaluationData:
    arrays = _read(path)
    names = {spec.name for spec in specs}
    labels = arrays.pop(LABELS, None) if LABELS not in names else None
    characters = arrays.pop(CHARACTERS, None) if CHARACTERS not in names else None
    samples, batch = samples_from_tensors(arrays, specs), batch_of(specs)
    if labels is not None:
        count = len(arrays[specs[0].name])
        if not labels.ndim or len(labels) != count:
            raise BadInputError(
                f"--data {path}: {count} samples and labels {list(labels.shape)} were given; one "
                "label for each sample is expected"
            )
        if labels.dtype.kind == "U":
            labels = _as_classes(path, labels, characters)
    return EvaluationData(str(path), samples, labels, batch)


def _as_classes(path: Path, texts: Array, characters: Array | None) -> Array:
    """Return texts as classes [N, L], filled up with -1."""
    if characters is None or characters.dtype.kind != "U":
        raise BadInputError(
            f"--data {path}: labels are texts; an array `characters` must say which class each "
            "character is: element i is class i, element 0 the blank"
        )
    known = {str(character): number for number, character in enumerate(characters.ravel())}
    rows = [[known.get(character, -2) for character in str(text)] for text in texts.ravel()]
    unknown = sorted({c for text in texts.ravel() for c in str(text) if c not in known})
    if unknown:
        raise BadInputError(
            f"--data {path}: {unknown[0]!r} of the labels is not among `characters`"
        )
    longest = max(map(len, rows), default=0)
    return np.array([row + [-1] * (longest - len(row)) for row in rows], np.int64)


def _from_classes(
    path: Path, folders: Sequence[Path], specs: Sequence[TensorSpec], preprocess: Preprocess
) -> EvaluationData:
    numbered = all(item.name.isdigit() for item in folders)
    images, labels = [], []
    for position, folder in enumerate(folders):
        for file in sorted(folder.iterdir()):
            if file.suffix.lower() in IMAGES:
                images.append(file)
                labels.append(int(folder.name) if numbered else position)
    batch = batch_of(specs)
    if len(images) < batch:
        raise BadInputError(
            f"--data {path} holds {len(images)} images in {len(folders)} class folders, one batch "
            f"needs {batch}"
        )
    if len(specs) != 1:
        names = ", ".join(spec.name for spec in specs)
        raise BadInputError(f"--data {path}: images are for models of one input, not of {names}")
    (spec,) = specs

    def read() -> Iterator[Sample]:
        for start in range(0, len(images) - batch + 1, batch):
            chosen = images[start : start + batch]
            yield {spec.name: np.stack([read_image(file, spec, preprocess) for file in chosen])}

    samples = Samples(str(path), len(images) // batch, read)
    return EvaluationData(str(path), samples, np.array(labels), batch)
