"""Provide the file of ranges that private calibration writes and the quantizer reads."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgec.compiler.errors import CalibrationError
from edgec.compiler.numerics.observers import Range


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PrivacyRecord(_Record):
    """A privacy record says what differential privacy holds of ranges, for all data of a client.

    Attributes:
        epsilon: ε.
        delta: δ.
        noise_by: `clients`: each added a share before its vector was masked; `server`: it added
            all, and saw the sum without.
        deviation: standard deviation of the noise of each sum, in 1/65,536 of an octave.
        clipped_log2: logarithms to base 2 of the largest values were clipped at these.
        accounting: what computed ε.
    """

    epsilon: float
    delta: float
    noise_by: Literal["clients", "server"]
    deviation: float
    clipped_log2: tuple[float, float]
    accounting: str


class ClientsRecord(_Record):
    """A clients record says whose data ranges are of.

    Attributes:
        clients: how many were to take part.
        threshold: how many had to remain.
        summed: how many did: their data are in the ranges.
        privacy: None without differential privacy.
    """

    clients: int
    threshold: int
    summed: int
    privacy: PrivacyRecord | None = None


class RangesFile(_Record):
    """A ranges file holds the ranges of a model's values over the data of several clients.

    Attributes:
        format: of the file.
        model: SHA-256 of the ONNX file.
        observer: what found the ranges; `extremes` with differential privacy.
        source: whose data they are of.
        ranges: lowest and highest, by name of the value.
    """

    format: Literal["edgec-ranges-1"] = "edgec-ranges-1"
    model: str = Field(pattern=r"^[0-9a-f]{64}$")
    observer: str
    source: ClientsRecord
    ranges: dict[str, Range]


def read_ranges_file(path: Path) -> RangesFile:
    """Read a file of ranges.

    Raises:
        CalibrationError: it cannot be read, or is none.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise CalibrationError(f"ranges {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CalibrationError(f"ranges {path} are no JSON") from None
    try:
        file = RangesFile.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise CalibrationError(
            f"ranges {path}: {where}: {first['msg']}; edgec calibrate serve writes such files"
        ) from None
    for name, (low, high) in file.ranges.items():
        if not -3e38 < low <= high < 3e38:
            raise CalibrationError(f"ranges {path}: {name} has {low}, {high}: that is no range")
    return file


def ranges_of_model(path: Path, model: str) -> dict[str, Range]:
    """Return the ranges of a file that must be of a model, by its SHA-256.

    Raises:
        CalibrationError: see `read_ranges_file`, or they are of another model.
    """
    file = read_ranges_file(path)
    if file.model != model:
        raise CalibrationError(
            f"ranges {path} are of another model (SHA-256 {file.model[:12]}…, this one has "
            f"{model[:12]}…); calibrate this model, or compile that one"
        )
    return dict(file.ranges)
