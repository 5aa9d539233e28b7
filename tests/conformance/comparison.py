"""Outputs against what a case expects, as ONNX's own test runner compares them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from conformance.cases import Case, Failed

# What ONNX's runner allows bfloat16: two units in the last place.
BFLOAT16_RTOL = 2.0**-6


def unknown_to_numpy(value: Any) -> bool:
    """Return whether an array is of a type of ml_dtypes."""
    # Types that a package registers with NumPy, as ml_dtypes does, are marked by 2.
    return isinstance(value, np.ndarray) and value.dtype.isbuiltin == 2


def compare(case: Case, actual: Sequence[Any]) -> None:
    """As `onnx.backend.test.runner` does: shape and dtype equal, values close.

    Raises:
        Failed: an output is wrong.
    """
    if len(actual) != len(case.expected):
        raise Failed("wrong", f"{len(actual)} outputs, expected {len(case.expected)}")
    for index, (found, expected) in enumerate(zip(actual, case.expected, strict=True)):
        problem = difference(found, expected, case.rtol, case.atol)
        if problem:
            raise Failed("wrong", f"output {index}: {problem}")


def difference(found: Any, expected: Any, rtol: float, atol: float) -> str:
    """Return how two outputs differ, empty if they do not; sequences are compared by element."""
    if isinstance(expected, list | tuple):
        if not isinstance(found, list | tuple) or len(found) != len(expected):
            return "not the expected sequence"
        pairs = zip(found, expected, strict=True)
        return next(filter(None, (difference(f, e, rtol, atol) for f, e in pairs)), "")
    found, expected = np.asarray(found), np.asarray(expected)
    if found.shape != expected.shape:
        return f"shape {list(found.shape)}, expected {list(expected.shape)}"
    if found.dtype != expected.dtype:
        return f"dtype {found.dtype}, expected {expected.dtype}"
    if expected.dtype == object:
        return "" if np.array_equal(found, expected) else "text differs"
    if expected.dtype.name == "bfloat16":
        rtol = max(rtol, BFLOAT16_RTOL)
    if unknown_to_numpy(expected):
        # NumPy cannot mix the types of ml_dtypes with numbers; all of them fit float32.
        found, expected = found.astype(np.float32), expected.astype(np.float32)
    close = np.isclose(found, expected, rtol=rtol, atol=atol, equal_nan=True)
    if close.all():
        return ""
    at = np.unravel_index(int(np.argmin(close)), close.shape)
    return (
        f"{np.count_nonzero(~close)} of {close.size} values differ, "
        f"{found[at]!s} instead of {expected[at]!s} at {[int(i) for i in at]}"
    )


def last_line(error: Exception) -> str:
    """Return the last line of an error's text, at most 300 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else "")[:300]
