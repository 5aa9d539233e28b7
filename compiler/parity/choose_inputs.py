"""Test inputs for which the original graph gives numbers, and not almost nothing.

A logarithm or a square root of an input is NaN for half of all random numbers, and a comparison of
NaN with NaN shows little. Neither does one of what a detector gives where there is nothing to be
detected: the rounding noise of its quantized graph is as large as its outputs.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.errors import ModelFileError
from edgec.compiler.ir.signature import Tensors, TensorSpec
from edgec.compiler.ir.storage import is_float
from edgec.compiler.runtime.inputs import DOMAINS, generate_inputs


def choose_inputs(
    specs: Sequence[TensorSpec],
    seed: int,
    index_bounds: Mapping[str, int],
    run: Callable[[Tensors], Tensors],
) -> tuple[dict[str, NDArray[Any]], Tensors]:
    """Return inputs of the first domain without NaN, and the outputs; else those of fewest NaN.

    Args:
        specs: the specs of the inputs.
        seed: the seed of the numbers.
        index_bounds: the index bounds of integer inputs, see `generate_inputs`.
        run: the original graph.

    Raises:
        ModelFileError: it cannot be run on generated inputs.
    """
    tried = []
    for domain in DOMAINS:
        inputs = generate_inputs(specs, seed, index_bounds, domain)
        try:
            outputs = run(inputs)
        except ModelFileError as error:
            raise ModelFileError(f"{error}; {_options(specs)}") from error
        count = sum(map(_nans, outputs.values()))
        if not count:
            return inputs, outputs
        tried.append((count, inputs, outputs))
    _, inputs, outputs = min(tried, key=lambda item: item[0])
    return inputs, outputs


def liveliest_sample(samples: Iterable[Tensors], run: Callable[[Tensors], Tensors]) -> Tensors:
    """Return the sample whose outputs are largest.

    By the root mean square of each float output, as a share of the largest among the samples. The
    first of equals.

    Args:
        samples: some, at least one.
        run: the original graph.
    """
    tried = list(samples)
    if len(tried) == 1:
        return tried[0]
    sizes = np.array([_sizes(run(sample)) for sample in tried])
    largest = sizes.max(axis=0, initial=0.0)
    shares = np.divide(sizes, largest, out=np.zeros_like(sizes), where=largest > 0)
    return tried[int(shares.sum(axis=1).argmax())]


def _sizes(outputs: Tensors) -> list[float]:
    """Return the root mean square of each output; 0 of what are no floats or not finite."""
    found = []
    for array in outputs.values():
        size = np.sqrt(np.square(array.astype(np.float64)).mean()) if is_float(array.dtype) else 0.0
        found.append(float(size) if np.isfinite(size) else 0.0)
    return found


def nan_advice(specs: Sequence[TensorSpec], outputs: Tensors) -> str:
    """Return what to do about generated inputs that give NaN; empty if the outputs hold none."""
    found = [
        f"{_nans(array)} of {array.size} values of {name}"
        for name, array in outputs.items()
        if _nans(array)
    ]
    if not found:
        return ""
    return f"the original model gives NaN for {', '.join(found)}; {_options(specs)}"


def _options(specs: Sequence[TensorSpec]) -> str:
    """Say how to give inputs of one's own."""
    options = " ".join(f"--input {spec.name}=FILE.npy" for spec in specs)
    wanted = ", ".join(map(str, specs))
    return (
        f"these inputs are generated: if it is made for others, give some by {options} ({wanted})"
    )


def _nans(array: NDArray[Any]) -> int:
    return int(np.isnan(array.astype(np.float64)).sum()) if is_float(array.dtype) else 0
