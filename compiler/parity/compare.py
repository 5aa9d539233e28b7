"""Does the compiled model compute what the original graph computes?

Only NumPy: the same comparison serves the compiler, `verify`, and reports from a board.

A float output passes if no element is further from the expected one than

    allowed = relative * scale + absolute

`scale` is the largest expected magnitude among the values that the element stands with. An
output may mix magnitudes (a detector's boxes in pixels beside its scores below 1), so this is
not taken over the whole tensor but over the smallest slice along any axis that has at least
`MIN_SLICE` values. Integers and booleans must be equal. Where NaN is expected there
must be NaN, and nowhere else.

A graph that quantizes activations while it runs rounds each of them to one of 256 quantized values.
Where a value lies between two quantized values, sums in another order decide otherwise, and all
that follows
differs: the original graph itself moves by 25 dB when one value of its input flips. Outputs of
such a graph that are not within the tolerance pass if their signal-to-noise ratio is at least
`quantized_sqnr_db`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from edgec.compiler.errors import ParityError
from edgec.compiler.ir.signature import Tensors
from edgec.compiler.ir.storage import is_float

MIN_SLICE = 64

# A sum of K float products is off by about sqrt(K) units in the last place of its scale; 64
# stands for K = 4096, the size of a large convolution or matrix product.
ULPS_PER_LAYER = 64

# ONNX Runtime computes sigmoid, tanh and erf by rational approximations whose absolute error
# reaches 2**-22; two of them in a row may add up.
ORACLE_ABSOLUTE_ERROR = 2.0**-21

# What a library must reach against the quantized graph that it was made of, if the graph is near
# enough to the floats that its roundings are small.
QUANTIZED_SQNR_DB = 20.0

# Where two computations round everything differently, their difference holds the noise of both.
TWO_ROUNDINGS_DB = 3.0

# Outputs of zeros have 0 dB: no bar is so low that a library passes which computes nothing.
LOWEST_SQNR_DB = 3.0


@dataclass(frozen=True)
class Tolerance:
    """A tolerance describes how far a float output may be off.

    `allowed = relative * scale + absolute`.

    Attributes:
        relative: to the scale of the values beside it.
        absolute: for all.
        sqnr_db: signal-to-noise ratio that is enough as well, None if none is.
    """

    relative: float
    absolute: float
    sqnr_db: float | None = None


def quantized_sqnr_db(own_db: float) -> float:
    """Return the signal-to-noise ratio that is enough for the library of a quantized graph.

    A deep network makes one rounding more or less grow to the size of its quantization noise. The
    library may be as far from the graph as another rounding of it would be, and no further.

    Args:
        own_db: ratio of the worst output of the quantized graph to the float model's [dB].

    >>> quantized_sqnr_db(40.0), quantized_sqnr_db(16.0), quantized_sqnr_db(1.0)
    (20.0, 13.0, 3.0)
    """
    return max(LOWEST_SQNR_DB, min(QUANTIZED_SQNR_DB, own_db - TWO_ROUNDINGS_DB))


def allowed_rounding_sqnr_db(own_db: float) -> float:
    """Return the signal-to-noise ratio that is enough where a file lets activations be rounded.

    A library may be off as far as ONNX Runtime is when it takes the same permission; of few
    values, and rounded in other places, as far again.

    Args:
        own_db: ratio of ONNX Runtime's worst output with rounding to exact products [dB].

    >>> allowed_rounding_sqnr_db(42.0), allowed_rounding_sqnr_db(18.0)
    (20.0, 12.0)
    """
    return max(LOWEST_SQNR_DB, min(QUANTIZED_SQNR_DB, own_db - 2 * TWO_ROUNDINGS_DB))


def tolerance_for(dtype: str, depth: int, quantizes: bool = False) -> Tolerance:
    """Return tolerance from the least precise float dtype in the graph and its depth.

    The errors of layers are independent, so they grow with the square root of their number:
    `relative = 64 * eps(dtype) * sqrt(depth)`.

    Args:
        dtype: NumPy or ml_dtypes name of a float type.
        depth: operators on the longest path from an input to an output, at least 1.
        quantizes: whether the graph rounds activations to quantized values.

    >>> f"{tolerance_for('float32', 100).relative:.1e}"
    '7.6e-05'
    """
    eps = float(ml_dtypes.finfo(dtype).eps)
    relative = ULPS_PER_LAYER * eps * max(1, depth) ** 0.5
    enough = QUANTIZED_SQNR_DB if quantizes else None
    return Tolerance(relative, max(ORACLE_ABSOLUTE_ERROR, eps / 4), enough)


@dataclass(frozen=True)
class OutputParity:
    """An output parity describes the comparison of one output.

    Attributes:
        name: output name.
        max_error: largest |actual - expected|; infinite if shapes differ or NaN appears.
        max_expected: largest |expected|.
        allowed_share: largest error as a share of what is allowed there; above 1 fails.
        sqnr_db: signal to quantization-noise ratio in dB, infinite if equal.
        problem: why it fails, else empty.
    """

    name: str
    max_error: float
    max_expected: float
    allowed_share: float
    sqnr_db: float
    problem: str = ""

    @property
    def passed(self) -> bool:
        """Return whether the output is within its tolerance."""
        return not self.problem


@dataclass(frozen=True)
class ParityReport:
    """A parity report describes the comparison of all outputs of one run."""

    outputs: tuple[OutputParity, ...]

    @property
    def passed(self) -> bool:
        """Return whether every output is within its tolerance."""
        return all(output.passed for output in self.outputs)

    def problems(self) -> str:
        """Return all failures in one line."""
        return "; ".join(f"{o.name}: {o.problem}" for o in self.outputs if not o.passed)

    def check(self, where: str) -> None:
        """Raise if an output failed.

        Raises:
            ParityError: names `where` and each failing output.
        """
        if not self.passed:
            raise ParityError(f"parity failed {where}: {self.problems()}")


def compare(expected: Tensors, actual: Tensors, tolerance: Tolerance) -> ParityReport:
    """Compare outputs by name.

    Names must be the same set, shapes and dtypes the same exactly.
    """
    reports = [_compare_one(name, expected[name], actual, tolerance) for name in expected]
    extra = sorted(set(actual) - set(expected))
    reports += [_failed(name, "is not an output of the original graph") for name in extra]
    return ParityReport(tuple(reports))


def worst_of(reports: Iterable[ParityReport]) -> ParityReport:
    """Return each output's worst comparison, with the worst noise ratio."""
    outputs: dict[str, OutputParity] = {}
    for report in reports:
        for output in report.outputs:
            known = outputs.setdefault(output.name, output)
            worse = max(known, output, key=lambda o: (not o.passed, o.allowed_share))
            outputs[output.name] = replace(worse, sqnr_db=min(known.sqnr_db, output.sqnr_db))
    return ParityReport(tuple(outputs.values()))


def scale_of(expected: NDArray[Any]) -> NDArray[np.float64]:
    """Return magnitude that an error of each element is measured by; broadcasts to `expected`.

    >>> boxes, scores = np.full((1, 1, 100), 320.0), np.full((1, 1, 100), 0.5)
    >>> scale_of(np.concatenate([boxes, scores], axis=1)).ravel().tolist()
    [320.0, 0.5]
    """
    magnitude = np.abs(expected.astype(np.float64))
    finite = np.where(np.isfinite(magnitude), magnitude, 0.0)
    scale = np.full((1,) * expected.ndim, finite.max(initial=0.0))
    for axis, extent in enumerate(expected.shape):
        if extent > 1 and expected.size // extent >= MIN_SLICE:
            others = tuple(i for i in range(expected.ndim) if i != axis)
            scale = np.minimum(scale, finite.max(axis=others, keepdims=True))
    return scale


def _compare_one(
    name: str, expected: NDArray[Any], outputs: Tensors, tolerance: Tolerance
) -> OutputParity:
    if name not in outputs:
        return _failed(name, "is missing")
    actual = outputs[name]
    if actual.shape != expected.shape:
        return _failed(name, f"shape {list(actual.shape)}, expected {list(expected.shape)}")
    if actual.dtype != expected.dtype:
        return _failed(name, f"dtype {actual.dtype}, expected {expected.dtype}")
    if not is_float(expected.dtype):
        differing = int(np.count_nonzero(actual != expected))
        problem = f"{differing} of {expected.size} values differ" if differing else ""
        wide = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
        error = float(wide.max(initial=0.0))
        return OutputParity(
            name,
            error,
            _peak(expected),
            float(differing > 0) * 2,
            _sqnr_db(expected, actual),
            problem,
        )
    none = np.isnan(expected.astype(np.float64))
    differs = none != np.isnan(actual.astype(np.float64))
    if differs.any():
        at = np.unravel_index(int(differs.argmax()), differs.shape)
        return _failed(
            name,
            f"{actual[at]!s} instead of {expected[at]!s} at {[int(i) for i in at]}; "
            f"{int(differs.sum())} values are NaN on one side only",
        )
    if none.any():
        zero = np.zeros((), expected.dtype)
        expected, actual = np.where(none, zero, expected), np.where(none, zero, actual)
    return _compare_floats(name, expected, actual, tolerance)


def _compare_floats(
    name: str, expected: NDArray[Any], actual: NDArray[Any], tolerance: Tolerance
) -> OutputParity:
    wide_expected, wide_actual = expected.astype(np.float64), actual.astype(np.float64)
    # Equal infinities have no difference; an infinity against a number has an infinite one.
    same = wide_expected == wide_actual
    with np.errstate(invalid="ignore"):
        error = np.where(same, 0.0, np.abs(wide_actual - wide_expected))
    allowed = tolerance.relative * scale_of(expected) + tolerance.absolute
    share = error / allowed
    worst = float(share.max(initial=0.0))
    sqnr = _sqnr_db(expected, actual)
    problem = ""
    if worst > 1 and tolerance.sqnr_db is not None and sqnr >= tolerance.sqnr_db:
        worst = 10 ** ((tolerance.sqnr_db - sqnr) / 20)
    elif worst > 1:
        at = np.unravel_index(int(share.argmax()), share.shape)
        problem = (
            f"{actual[at]!s} instead of {expected[at]!s} at {[int(i) for i in at]}, "
            f"{worst:.3g} times the error allowed"
        )
    return OutputParity(
        name,
        float(error.max(initial=0.0)),
        _peak(expected),
        worst,
        sqnr,
        problem,
    )


def _failed(name: str, problem: str) -> OutputParity:
    return OutputParity(name, np.inf, np.nan, np.inf, -np.inf, problem)


def _peak(values: NDArray[Any]) -> float:
    return float(np.abs(values.astype(np.float64)).max(initial=0.0))


def _sqnr_db(expected: NDArray[Any], actual: NDArray[Any]) -> float:
    """Return 10 log10(sum expected^2 / sum (actual - expected)^2) [dB]."""
    signal, result = expected.astype(np.float64), actual.astype(np.float64)
    differing = signal != result
    noise = float(np.square(result[differing] - signal[differing]).sum())
    power = float(np.square(signal[np.isfinite(signal)]).sum())
    if noise == 0:
        return np.inf
    return float(10 * np.log10(power / noise)) if power > 0 and noise < np.inf else -np.inf


def three_digits(value: float) -> float:
    """Round a figure to three significant digits, for manifests.

    >>> three_digits(0.00123456)
    0.00123
    """
    return float(f"{value:.3g}")
