"""Provide calibration samples, one batch at a time.

Sources:

- `FILE.npy`, `[N, ...]`: samples of the only input along the first axis;
- `FILE.npz`: the same for several inputs, by name;
- a folder of images, prepared as `Preprocess` says, or of .npy and .npz files;
- `module:function`: a Python callable without arguments that gives arrays, or dicts of arrays by
  input name.
"""

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.errors import CalibrationError, ToolchainError, UsageError
from edgec.compiler.frontend.preprocessing import Preprocess
from edgec.compiler.ir.signature import Tensors, TensorSpec
from edgec.compiler.support.npy_files import NpyError, read_arrays

IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp")

Sample = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Samples:
    """Samples describe batches that fit the model's inputs.

    Attributes:
        source: what was named.
        count: number of batches, None if only reading tells.
        read: starts from the beginning.
    """

    source: str
    count: int | None
    read: Callable[[], Iterator[Sample]]

    def __iter__(self) -> Iterator[Sample]:
        return self.read()

    def limited(self, limit: int) -> "Samples":
        """Return the first `limit` batches."""
        count = limit if self.count is None else min(limit, self.count)

        def read() -> Iterator[Sample]:
            for _, sample in zip(range(limit), self.read(), strict=False):
                yield sample

        return Samples(self.source, count, read)


def samples_from_tensors(tensors: Tensors, specs: Sequence[TensorSpec]) -> Samples:
    """Return samples along the first axis of arrays by input name; an odd rest is left out."""
    return _from_arrays("arrays", dict(tensors), specs)


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """Sample options describe which samples a compile looks at, and how it judges answers.

    Attributes:
        source: the source of samples, see the module, or the samples themselves; None if there are
            none.
        preprocess: the preprocessing of images.
        limit: batches that are looked at, at most.
        metric: `module:function`, called with the original and the changed model's outputs of one
            batch, dicts by name; gives 0..1. By default `same_top1` of accuracy.py.
    """

    source: "str | Samples | None" = None
    preprocess: Preprocess = field(default_factory=Preprocess)
    limit: int = 300
    metric: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            UsageError: says which setting.
        """
        if self.limit < 1:
            raise UsageError(f"--calibration-limit {self.limit}: at least 1 batch is needed")
        if self.metric is not None and ":" not in self.metric:
            raise UsageError(f"--metric {self.metric!r}: write module:function")

    def open(self, inputs: Sequence[TensorSpec]) -> "Samples | None":
        """Return the samples, None if there are none.

        Raises:
            CalibrationError: they do not fit.
        """
        source = self.source
        if isinstance(source, str):
            source = open_samples(source, inputs, self.preprocess)
        return source.limited(self.limit) if source is not None else None


def open_samples(
    source: str, specs: Sequence[TensorSpec], preprocess: Preprocess | None = None
) -> Samples:
    """Return samples of a source; see the module.

    Raises:
        CalibrationError: nothing there, or it does not fit the inputs.
        UsageError: a callable that does not exist.
    """
    path = Path(source)
    if path.is_dir():
        return _from_folder(path, specs, preprocess or Preprocess())
    if path.suffix in (".npy", ".npz"):
        return _from_arrays(source, _load(path, specs), specs)
    module, colon, function = source.partition(":")
    if colon and module and function and not path.exists():
        return _from_callable(source, load_callable(source), specs)
    if path.exists():
        raise CalibrationError(
            f"calibration data {source}: expected .npy, .npz, a folder, or module:function"
        )
    raise CalibrationError(f"calibration data {source} does not exist")


def check_source(source: str) -> None:
    """Refuse a source of samples that is not there, before there are inputs for `open_samples`.

    Raises:
        CalibrationError: no such file or folder.
        UsageError: a callable that does not exist.
    """
    if Path(source).exists():
        return
    module, colon, function = source.partition(":")
    if not (colon and module and function):
        raise CalibrationError(f"calibration data {source} does not exist")
    load_callable(source)


def load_callable(name: str) -> Callable[..., Any]:
    """Return the function of `module:function`; modules of the current folder are found too.

    Raises:
        UsageError: there is no such thing, or it cannot be called.
    """
    module, _, function = name.partition(":")
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        found: Any = getattr(importlib.import_module(module), function, None)
    except Exception as error:
        why = str(error) or type(error).__name__
        raise UsageError(f"{name}: module {module} cannot be imported: {why}") from None
    finally:
        if added:
            sys.path.remove(here)
    if not callable(found):
        raise UsageError(f"{name}: module {module} has no function {function}")
    call: Callable[..., Any] = found
    return call


def _load(path: Path, specs: Sequence[TensorSpec]) -> Sample:
    try:
        loaded = read_arrays(path)
    except NpyError as error:
        raise CalibrationError(f"calibration data {path} {error}") from None
    if isinstance(loaded, dict):
        return loaded
    return _named(str(path), loaded, specs)


def _named(source: str, value: Any, specs: Sequence[TensorSpec]) -> Sample:
    """Return a value of the only input, or values by name."""
    if isinstance(value, dict):
        return {name: np.asarray(array) for name, array in value.items()}
    if len(specs) != 1:
        names = ", ".join(spec.name for spec in specs)
        raise CalibrationError(
            f"calibration data {source} has no names, but the model has the inputs {names}; "
            "give them by name (.npz, or a dict)"
        )
    return {specs[0].name: np.asarray(value)}


def _from_arrays(source: str, arrays: Sample, specs: Sequence[TensorSpec]) -> Samples:
    _check_names(source, arrays, specs)
    counts = {}
    for spec in specs:
        array, shape = arrays[spec.name], _shape(spec)
        batch = shape[0] if shape else 1
        if array.shape[1:] != shape[1:] or not shape or len(array) < batch:
            wanted = ",".join(map(str, ("N", *shape[1:])))
            raise CalibrationError(
                f"calibration data {source} do not fit: {_described(spec.name, array)} was given, "
                f"{spec.name} [{wanted}] with N of at least {batch} is expected"
            )
        counts[spec.name] = len(array) // batch
    count = min(counts.values())
    if len(set(counts.values())) > 1:
        raise CalibrationError(
            f"calibration data {source}: inputs have different numbers of samples: "
            + ", ".join(f"{name} {number}" for name, number in counts.items())
        )

    def read() -> Iterator[Sample]:
        for index in range(count):
            batch = {}
            for spec in specs:
                size = _shape(spec)[0]
                batch[spec.name] = arrays[spec.name][index * size : (index + 1) * size]
            yield _fitted(source, batch, specs)

    next(read())
    return Samples(source, count, read)


def _from_callable(
    source: str, function: Callable[..., Any], specs: Sequence[TensorSpec]
) -> Samples:
    def read() -> Iterator[Sample]:
        for value in function():
            yield _fitted(source, _named(source, value, specs), specs)

    return Samples(source, None, read)


def _from_folder(folder: Path, specs: Sequence[TensorSpec], preprocess: Preprocess) -> Samples:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    images = [path for path in files if path.suffix.lower() in IMAGES]
    arrays = [path for path in files if path.suffix in (".npy", ".npz")]
    if not images and not arrays:
        raise CalibrationError(
            f"calibration folder {folder} has neither images ({', '.join(IMAGES)}) nor "
            ".npy or .npz files"
        )
    if arrays and images:
        raise CalibrationError(
            f"calibration folder {folder} has images and arrays; keep one kind in it"
        )
    if arrays:

        def read_arrays() -> Iterator[Sample]:
            for path in arrays:
                yield _fitted(str(path), _load(path, specs), specs)

        return Samples(str(folder), len(arrays), read_arrays)
    if len(specs) != 1:
        names = ", ".join(spec.name for spec in specs)
        raise CalibrationError(f"images calibrate models of one input, this one has {names}")
    spec = specs[0]
    batch = _image_geometry(spec, preprocess)[0]
    if len(images) < batch:
        raise CalibrationError(
            f"calibration folder {folder} has {len(images)} images, one batch needs {batch}"
        )

    def read_images() -> Iterator[Sample]:
        for start in range(0, len(images) - batch + 1, batch):
            chosen = images[start : start + batch]
            stacked = np.stack([read_image(path, spec, preprocess) for path in chosen])
            yield _fitted(str(folder), {spec.name: stacked}, specs)

    return Samples(str(folder), len(images) // batch, read_images)


def _image_geometry(spec: TensorSpec, preprocess: Preprocess) -> tuple[int, int, int, int, bool]:
    """Return batch, channels, height, width, whether channels come first."""
    shape = _shape(spec)
    if len(shape) == 4:
        first = preprocess.layout == "nchw" or (
            preprocess.layout == "auto" and (shape[1] in (1, 3) or shape[3] not in (1, 3))
        )
        batch, channels, height, width = shape if first else (shape[0], shape[3], *shape[1:3])
        if channels in (1, 3):
            return batch, channels, height, width, first
    raise CalibrationError(
        f"images do not fit {spec}: an input of 4 axes with 1 or 3 channels is expected"
    )


def read_image(path: Path, spec: TensorSpec, preprocess: Preprocess) -> NDArray[Any]:
    """Return one image as one item of the input's batch.

    Raises:
        CalibrationError: no image.
        ToolchainError: the package that reads images is missing.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise ToolchainError(
            "calibration with images needs the package pillow: pip install pillow"
        ) from None
    _, channels, height, width, first = _image_geometry(spec, preprocess)
    size = (width, height)
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("L" if channels == 1 else "RGB")
    except (OSError, ValueError) as error:
        raise CalibrationError(f"image {path} cannot be read: {error}") from None
    bilinear = Image.Resampling.BILINEAR
    if preprocess.resize == "crop":
        image = ImageOps.fit(image, size, bilinear)
    elif preprocess.resize == "pad":
        image = ImageOps.pad(image, size, bilinear)
    else:
        image = image.resize(size, bilinear)
    pixels = np.asarray(image, np.float32).reshape(height, width, channels)
    if preprocess.color == "bgr":
        pixels = pixels[:, :, ::-1]
    for name, values in (("mean", preprocess.mean), ("std", preprocess.std)):
        if len(values) not in (1, channels):
            raise CalibrationError(
                f"--preprocess {name} has {len(values)} values, {spec.name} has {channels} channels"
            )
    mean, std = (np.array(values, np.float32) for values in (preprocess.mean, preprocess.std))
    pixels = (pixels * preprocess.scale - mean) / std
    if spec.dtype == "uint8":
        pixels = np.clip(np.rint(pixels), 0, 255)
    return (pixels.transpose(2, 0, 1) if first else pixels).astype(spec.dtype)


def _fitted(source: str, sample: Sample, specs: Sequence[TensorSpec]) -> Sample:
    """Return a sample in the inputs' dtypes; floats may be given for floats of another width.

    Raises:
        CalibrationError: says what was found and what is expected.
    """
    _check_names(source, sample, specs)
    fitted = {}
    for spec in specs:
        array = sample[spec.name]
        floats = np.issubdtype(array.dtype, np.floating) and spec.dtype.startswith("float")
        if array.shape != spec.shape or (str(array.dtype) != spec.dtype and not floats):
            raise CalibrationError(
                f"calibration data {source} do not fit: {_described(spec.name, array)} was given, "
                f"{spec} is expected"
            )
        if floats and not np.isfinite(array).all():
            raise CalibrationError(f"calibration data {source}: {spec.name} has NaN or infinity")
        fitted[spec.name] = np.ascontiguousarray(array, spec.dtype)
    return fitted


def _check_names(source: str, sample: Sample, specs: Sequence[TensorSpec]) -> None:
    known = [spec.name for spec in specs]
    missing = [name for name in known if name not in sample]
    extra = [name for name in sample if name not in known]
    if missing or extra:
        raise CalibrationError(
            f"calibration data {source}: inputs {', '.join(sample)} were given, "
            f"{', '.join(known)} are expected"
        )


def _shape(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(extent or 0 for extent in spec.shape)


def _described(name: str, array: NDArray[Any]) -> str:
    return str(TensorSpec(name, array.shape, str(array.dtype)))
