"""Tell kernel calls of one template apart by the text of their workload."""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Numbers of workloads, where they have them; those of lists have their place in the name.
NUMBERS = (
    *("in_channels", "out_channels", "in_h", "in_w", "out_h", "out_w", "groups", "plain_input"),
    *("kernel_0", "kernel_1", "stride_0", "stride_1", "padding_0"),
    *("channels", "plane", "inner", "outer", "lanes", "m", "n", "k", "batch", "packed"),
    *("rows", "columns", "inputs_count", "picks_count", "epilogue_count", "steps_count"),
    *("shape_0", "shape_1", "shape_last", "axes_0", "axes_1", "axes_last", "shape_count"),
    *("taps_0", "operands", "planes"),
)
_PLACES = {name: place for place, name in enumerate(NUMBERS)}
# What a template does in one way or another.
_WAYS = ("mode", "operation")
_BYTES = ("uint8", "int8")


@lru_cache(maxsize=4096)
def _read(text: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(text) if text else {}
    return found


def kind_of(template: str, workload: str, winograd: bool) -> str:
    """Return what kernels are told apart by: the template, and what it does in one way or another.

    Args:
        template: its name.
        workload: its text.
        winograd: whether it is computed by Winograd's algorithm.

    >>> kind_of("pool", '{"mode": "max", "data": "uint8"}', False)
    'pool max bytes'
    """
    fields = _read(workload)
    words = [template, *(["winograd"] if winograd else [])]
    words += [str(fields[name]) for name in _WAYS if name in fields]
    if fields.get("unpack"):
        words.append("unpack")
    if fields.get("groups", 1) != 1:
        words.append("grouped")
    narrow = fields.get("dtype", fields.get("data")) in _BYTES or fields.get("bytes") == 1
    return " ".join([*words, "bytes"] if narrow else words)


def families_of(kind: str) -> tuple[str, ...]:
    """Return what a kind is taken for where nothing is known of it: its template, or any."""
    return kind, kind.partition(" ")[0], "any"


def workload_numbers(workload: str) -> NDArray[np.float64]:
    """Return the numbers of a workload by `NUMBERS`; 0 for what it has not.

    >>> row = workload_numbers('{"conv": {"in_h": 7, "kernel": [3, 5]}}')
    >>> [float(row[NUMBERS.index(name)]) for name in ("in_h", "kernel_1", "m")]
    [7.0, 5.0, 0.0]
    """
    row = np.zeros(len(NUMBERS))
    _fill(_read(workload), row)
    return row


def _fill(fields: Mapping[str, Any], row: NDArray[np.float64]) -> None:
    for name, value in fields.items():
        if isinstance(value, dict):
            _fill(value, row)
            continue
        parts = {name: value}
        if isinstance(value, list):
            parts = {f"{name}_{place}": item for place, item in enumerate(value[:2])}
            parts |= {f"{name}_last": value[-1]} if value else {}
            parts[f"{name}_count"] = len(value)
        for key, number in parts.items():
            if key in _PLACES and isinstance(number, int | float):
                row[_PLACES[key]] = max(0.0, float(number))
