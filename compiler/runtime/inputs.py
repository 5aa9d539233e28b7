"""Test vectors: inputs and the original graph's outputs, carried in the bundle.

With them a board can verify itself, without ONNX Runtime and without the original file.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.errors import TensorInputError, did_you_mean
from edgec.compiler.ir.signature import Tensors, TensorSpec
from edgec.compiler.ir.storage import E8M0, is_float
from edgec.compiler.support.files import write_atomically
from edgec.compiler.support.limits import check_seed
from edgec.compiler.support.npy_files import NpyError, npz_bytes, read_arrays

DOMAINS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "any": lambda values: values,
    # Of square roots and logarithms.
    "positive": lambda values: np.abs(values) + np.float16(0.0625),
    # Of arc sines, and of what grows.
    "small": lambda values: np.abs(values) / np.float16(16),
}
"""What is made of standard normal numbers for models that are not defined for all of them."""


def generate_inputs(
    specs: Sequence[TensorSpec],
    seed: int,
    index_bounds: Mapping[str, int],
    domain: str = "any",
) -> dict[str, NDArray[Any]]:
    """Return seeded inputs that any model accepts.

    Floats are standard normal, as normalized images and features are, and rounded to float16:
    a bundle then takes half the bytes for them. Integers are below the
    input's bound, which is 2 where `index_bounds` has none: 0 and 1 are in range for anything.
    `domain` is a name in `DOMAINS`.

    Raises:
        UsageError: the seed is negative.
    """
    check_seed(seed)
    random = np.random.default_rng(seed)
    return {
        spec.name: _generate(spec, random, index_bounds.get(spec.name, 2), domain) for spec in specs
    }


def _generate(
    spec: TensorSpec, random: np.random.Generator, bound: int, domain: str
) -> NDArray[Any]:
    shape = tuple(extent or 0 for extent in spec.shape)
    dtype = np.dtype(spec.dtype)
    if not is_float(dtype):
        return random.integers(0, bound, shape).astype(dtype)
    values = np.asarray(random.standard_normal(shape, np.float32)).astype(np.float16)
    values = DOMAINS[domain](values)
    return (np.abs(values) if spec.dtype == E8M0 else values).astype(dtype)


def rounded_to_half(inputs: Tensors) -> dict[str, NDArray[Any]]:
    """Return inputs whose float32 values a bundle can store in half the bytes.

    Those beyond the range of float16 stay as they are.
    """
    largest = float(np.finfo(np.float16).max)
    rounded = {}
    for name, array in inputs.items():
        fits = array.dtype == np.float32 and bool((np.abs(array) <= largest).all())
        rounded[name] = array.astype(np.float16).astype(np.float32) if fits else array
    return rounded


def check_inputs(
    specs: Sequence[TensorSpec], inputs: Tensors | NDArray[Any]
) -> dict[str, NDArray[Any]]:
    """Return the inputs in the order of the signature.

    Args:
        specs: what the model takes.
        inputs: by name; of a model of one input the array itself will do.

    Raises:
        TensorInputError: names every input that is missing, unknown, or of the wrong shape or
            dtype, and what was expected.
    """
    known = [spec.name for spec in specs]
    if isinstance(inputs, np.ndarray) and len(specs) == 1:
        inputs = {known[0]: inputs}
    if not isinstance(inputs, Mapping):
        raise TensorInputError(
            f"inputs are given by name, {{{', '.join(f'{name!r}: array' for name in known)}}}; "
            f"{type(inputs).__name__} was given"
        )
    problems = [
        f"{name} is no input{did_you_mean(name, known)}" for name in inputs if name not in known
    ]
    for spec in specs:
        if spec.name not in inputs:
            problems.append(f"{spec} is missing")
            continue
        array = np.asarray(inputs[spec.name])
        if array.shape != spec.shape or str(array.dtype) != spec.dtype:
            found = TensorSpec(spec.name, array.shape, str(array.dtype))
            problems.append(f"{found} was given, {spec} is expected")
    if problems:
        raise TensorInputError("inputs do not fit the model: " + "; ".join(problems))
    return {name: np.asarray(inputs[name]) for name in known}


def check_indices(inputs: Tensors, bounds: Mapping[str, int]) -> None:
    """Refuse an index that is in no row of the table that it is looked up in.

    A compiled Gather takes the nearest row for it; ONNX defines it from -rows to rows - 1.

    Args:
        inputs: by name; what is missing or holds no integers is refused elsewhere.
        bounds: rows by the name of the input, as in the manifest.

    Raises:
        TensorInputError: names the input, the index and the bounds.
    """
    for name, rows in bounds.items():
        array = np.asarray(inputs.get(name, ()))
        if array.size == 0 or array.dtype.kind not in "iu":
            continue
        lowest, highest = int(array.min()), int(array.max())
        if lowest < -rows or highest >= rows:
            wrong = lowest if lowest < -rows else highest
            raise TensorInputError(
                f"input {name} holds the index {wrong}; it chooses from {rows} rows, so "
                f"{-rows} to {rows - 1} are expected"
            )


def read_tensors(sources: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return tensors from `NAME=file.npy` and `file.npz` arguments, later ones winning.

    Raises:
        TensorInputError: a file is missing or is no NumPy file.
    """
    tensors: dict[str, NDArray[Any]] = {}
    for source in sources:
        name, _, file = source.rpartition("=")
        if not name and not file.endswith(".npz"):
            raise TensorInputError(f"{source!r} is no input; write NAME=FILE.npy or FILE.npz")
        try:
            loaded = read_arrays(Path(file))
        except NpyError as error:
            raise TensorInputError(f"input file {file} {error}") from None
        if isinstance(loaded, dict):
            tensors.update({f"{name}{key}": array for key, array in loaded.items()})
        else:
            tensors[name] = loaded
    return tensors


def write_tensors(path: Path, tensors: Tensors) -> None:
    """Save tensors by name as one .npz file, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    write_atomically(path, npz_bytes(tensors))
