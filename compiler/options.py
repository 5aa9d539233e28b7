"""The settings of a compile, checked before anything runs."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.calibration.samples import SampleOptions
from edgec.compiler.errors import UsageError
from edgec.compiler.frontend.limits import DEFAULT_LIMITS, Limits
from edgec.compiler.quantize.options import QuantizeOptions

if TYPE_CHECKING:
    # Its steps load TVM.
    from edgec.compiler.compress.options import CompressOptions


@dataclass(frozen=True, kw_only=True)
class CompileOptions:
    """What shapes the result of a compile, and what is checked and shown on the way.

    Attributes:
        shapes: full shape by input name, for inputs that the model leaves open.
        limits: of what the model file may ask for.
        freeze: value by input name; the input becomes a constant and leaves the interface.
        inputs: test inputs by name, instead of generated ones.
        seed: of the generated test inputs.
        samples: what compression and quantization look at.
        compress: what is pruned or factorized; None compiles all weights.
        quantize: what becomes an integer; None compiles the floats as they are.
        parity: compare with the original graph; switching it off marks the bundle.
        runner: put a program that runs the model without Python into the bundle.
        records: database of tuning records whose decisions are used.
        ready_records: use the records that come with edgec where the database has none.
        records_threads: only those tuned for so many threads; by default for the most there are.
        check_stages: compare after every stage that gives a model, not only at the end.
        dump: folder for the IR after each phase; written even if a later phase fails.
    """

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    freeze: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    limits: Limits = DEFAULT_LIMITS
    inputs: Mapping[str, NDArray[Any]] | None = None
    seed: int = 0
    samples: SampleOptions = field(default_factory=SampleOptions)
    compress: "CompressOptions | None" = None
    quantize: QuantizeOptions | None = None
    parity: bool = True
    runner: bool = False
    records: Path | None = None
    ready_records: bool = True
    records_threads: int | None = None
    check_stages: bool = False
    dump: Path | None = None


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Read `name=1,3,224,224`; `name=` is a scalar.

    Raises:
        UsageError: it is not of that form.

    >>> parse_shape("x=1,3,48,192")
    ('x', (1, 3, 48, 192))
    """
    name, equals, extents = text.rpartition("=")
    try:
        shape = tuple(int(part) for part in extents.split(",")) if extents else ()
    except ValueError:
        shape, equals = (), ""
    if not name or not equals:
        raise UsageError(f"{text!r} is no shape; write NAME=1,3,224,224")
    return name, shape


def parse_value(text: str) -> tuple[str, NDArray[Any]]:
    """Read `name=16000` or `name=1,2,3`; true and false are booleans.

    Raises:
        UsageError: it is not of that form.

    >>> parse_value("sr=16000")
    ('sr', array(16000))
    """
    name, equals, values = text.rpartition("=")
    words = {"true": True, "false": False}
    try:
        numbers = [
            words[part] if part in words else float(part) if _is_fraction(part) else int(part)
            for part in values.lower().split(",")
        ]
    except ValueError:
        numbers, equals = [], ""
    if not name or not equals:
        raise UsageError(f"{text!r} is no value; write NAME=16000 or NAME=1,2,3")
    return name, np.array(numbers[0] if len(numbers) == 1 else numbers)


def parse_limits(texts: Sequence[str]) -> Limits:
    """Read `value=1G`, `file=4G` and `nodes=500000`.

    Raises:
        UsageError: one is not of that form.

    >>> parse_limits(["value=1G", "nodes=500000"])
    Limits(file_bytes=2147483648, value_bytes=1073741824, nodes=500000)
    """
    given: dict[str, int] = {}
    for text in texts:
        match = re.fullmatch(r"(value|file|nodes)=(\d{1,12})([kMGT]?)", text)
        if not match:
            raise UsageError(f"{text!r} is no limit; write value=1G, file=4G or nodes=500000")
        name, digits, unit = match.groups()
        field_name = name if name == "nodes" else f"{name}_bytes"
        given[field_name] = int(digits) * 1024 ** " kMGT".index(unit or " ")
    return Limits(**given)


def _is_fraction(text: str) -> bool:
    return any(mark in text for mark in (".", "e", "inf", "nan"))
