"""Provide ranges of values from samples, and the file that keeps them.

Observers keep numbers or histograms, never the values.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.calibration.float_model import FloatModel, observe
from edgec.compiler.calibration.samples import Samples
from edgec.compiler.errors import CalibrationError
from edgec.compiler.ir.signature import Tensors
from edgec.compiler.numerics.affine import Floats
from edgec.compiler.numerics.observers import (
    Histogram,
    ObserverName,
    Range,
    RangeObserver,
    make_observer,
    percentile_range,
)
from edgec.compiler.support.files import write_atomically
from edgec.compiler.support.progress import Progress

CACHE_FORMAT = 1


def calibrate(
    model: FloatModel,
    names: Sequence[str],
    samples: Samples,
    observer: ObserverName,
    progress: Progress | None = None,
    also: Callable[[Tensors], None] | None = None,
) -> dict[str, Range]:
    """Return the range of each value over all samples, by name.

    Args:
        model: gives the values.
        names: which values.
        samples: what is run.
        observer: how ranges are found.
        progress: is told of each batch.
        also: is handed the values of each batch, for what else is to be learned of them.

    Raises:
        CalibrationError: no samples, or a value is not finite.
    """
    observers: dict[str, RangeObserver] = {name: make_observer(observer) for name in names}
    for values in observe(model, samples, "calibrate", progress):
        for name, watcher in observers.items():
            check_finite(name, values[name], samples)
            watcher.see(values[name])
        if also is not None:
            also(values)
    return {name: watcher.range() for name, watcher in observers.items()}


def check_finite(name: str, array: NDArray[Any], samples: Samples) -> None:
    """Refuse values that no range holds.

    Raises:
        CalibrationError: one is infinite or not a number.
    """
    if not np.isfinite(array).all():
        raise CalibrationError(
            f"{name} is not finite for a sample of {samples.source}; "
            "check the samples and their preprocessing"
        )


def count_values(
    model: FloatModel, names: Sequence[str], samples: Samples, progress: Progress | None = None
) -> dict[str, Histogram]:
    """Return a histogram of each value over all samples, by name."""
    counted = {name: Histogram(percentile_range) for name in names}
    for values in observe(model, samples, "histograms", progress):
        for name, histogram in counted.items():
            histogram.see(values[name])
    return counted


def write_ranges(
    path: Path,
    ranges: dict[str, Range],
    model: str,
    observer: str,
    divisors: Mapping[str, Floats] = MappingProxyType({}),
) -> None:
    """Save ranges, to be read or edited by people; `divisors` are those that values of them have.

    Raises:
        OutputError: it cannot be written.
    """
    fields: dict[str, Any] = {
        "format": CACHE_FORMAT,
        "model": model,
        "observer": observer,
        "ranges": {name: list(ends) for name, ends in ranges.items()},
    }
    if divisors:
        fields["divisors"] = {name: [float(x) for x in by] for name, by in divisors.items()}
    lines = json.dumps(fields, indent=1, ensure_ascii=False)
    # One value, one line.
    for low, high in ranges.values():
        lines = lines.replace(f"[\n   {low!r},\n   {high!r}\n  ]", f"[{low!r}, {high!r}]")
    write_atomically(path, lines + "\n")


def read_ranges(path: Path, model: str) -> tuple[dict[str, Range], dict[str, Floats]]:
    """Load ranges and, for values that are smoothed, their divisors by channel.

    Args:
        path: the path of the file.
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
    divisors = {}
    given = fields.get("divisors", {})
    for name, by in given.items() if isinstance(given, dict) else [("the file", given)]:
        if not isinstance(by, list) or not all(_is_number(x) and x > 0 for x in by):
            raise CalibrationError(
                f"calibration cache {path}: {name} has divisors that are no positive numbers; "
                "delete the file and calibrate again"
            )
        divisors[name] = np.array(by, np.float32)
    return ranges, divisors


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and bool(np.isfinite(value))
