"""Provide who computes what: devices by name, and a file that says where to cut.

```toml
[[stage]]
device = "a"
until = ["/layer2/Relu_output_0"]   # values or operators; what they hand over is found from them

[[stage]]
devices = ["a", "b"]    # both at the same time
along = "channels"      # rows, channels or sums
until = ["/layer4/Relu_output_0"]

[[stage]]
device = "b"
```
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgec.compiler.errors import BadInputError, UsageError, did_you_mean
from edgec.compiler.split.segments import Along, Segment
from edgec.compiler.support.toml_file import explain, read_toml
from edgec.targets import Target, load_target

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,47}")
_MEMORY = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]{0,47})=(\d{1,9})([kMG]?)")
# What a plan calls others.
_TAKEN = ("host", "whole")


@dataclass(frozen=True)
class Device:
    """A device computes stages.

    Attributes:
        name: what the plan calls it.
        target: what it is.
    """

    name: str
    target: Target


class StageRequest(BaseModel):
    """A stage request says who computes a stage, and where it ends.

    Attributes:
        device: the name of the device; of a stage that several compute together, empty.
        devices: names of these.
        along: how they share it: `rows`, `channels` or `sums`; see `segments.Segment`.
        shares: of the work, by device; by default they are equal.
        until: values, or operators, that the stage ends with; empty for the last stage.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str = ""
    devices: tuple[str, ...] = ()
    along: Along | None = None
    shares: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = ()
    until: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Return who computes it."""
        return self.devices or (self.device,)

    @model_validator(mode="after")
    def _one_or_several(self) -> Self:
        if bool(self.device) == bool(self.devices):
            raise ValueError("a stage has a `device`, or several `devices`")
        if (self.along is None) != (len(self.devices) < 2):
            raise ValueError("`devices` are several, and share their stage `along` something")
        if len(set(self.devices)) < len(self.devices):
            raise ValueError("`devices` names one twice")
        if self.shares and len(self.shares) != len(self.devices):
            raise ValueError("`shares` has a number for each of `devices`")
        return self

    def segment(self, known: Sequence[str]) -> Segment:
        """Return the same with the numbers of devices."""
        shares = self.shares or (1.0,) * len(self.names)
        return Segment(tuple(map(known.index, self.names)), self.along, shares)


class _SplitFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: tuple[StageRequest, ...] = Field(min_length=1)


def parse_devices(text: str) -> list[Device]:
    """Read `a=rpi4,b=rpi5,c=x86-64-v3`.

    Raises:
        UsageError: it is not of that form, or names a device twice.
        TargetError: there is no such target.
    """
    devices: list[Device] = []
    for part in text.split(","):
        name, equals, target = part.strip().partition("=")
        if not equals or not _NAME.fullmatch(name) or not target:
            raise UsageError(f"{part!r} is no device; write --devices a=rpi4,b=rpi5")
        if name in _TAKEN:
            raise UsageError(f"a device is named {name}, as the plan calls something else")
        if name in [device.name for device in devices]:
            raise UsageError(f"--devices names {name} twice")
        devices.append(Device(name, load_target(target)))
    return devices


def read_split_file(path: Path, devices: Sequence[Device]) -> tuple[StageRequest, ...]:
    """Read where to cut, and who computes what.

    Raises:
        BadInputError: the file is wrong, or names a device that is not there.
    """
    fields = read_toml(path, "split file", BadInputError)
    try:
        stages = _SplitFile.model_validate(fields).stage
    except ValidationError as error:
        what = explain(error, lambda at: StageRequest if at else _SplitFile)
        raise BadInputError(f"split file {path}: {what}") from None
    known = [device.name for device in devices]
    for number, stage in enumerate(stages, 1):
        for name in stage.names:
            if name not in known:
                raise BadInputError(
                    f"split file {path}: stage {number} is for device {name!r}"
                    f"{did_you_mean(name, known)} (--devices: {', '.join(known)})"
                )
        if bool(stage.until) == (number == len(stages)):
            needs = "ends the model: leave `until`" if stage.until else "needs `until`"
            raise BadInputError(f"split file {path}: stage {number} {needs}")
    return stages


def split_file_text(stages: Sequence[StageRequest]) -> str:
    """Return the file that `read_split_file` reads as these stages."""
    parts = []
    for stage in stages:
        lines = ["[[stage]]"]
        if stage.devices:
            lines += [f"devices = {json.dumps(stage.devices)}", f'along = "{stage.along}"']
            lines += [f"shares = {json.dumps(stage.shares)}"] if stage.shares else []
        else:
            lines.append(f"device = {json.dumps(stage.device)}")
        if stage.until:
            lines.append(f"until = {json.dumps(list(stage.until))}")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def parse_memory(text: str) -> dict[str, int]:
    """Read `a=64M,b=1G`.

    Raises:
        UsageError: it is not of that form.

    >>> parse_memory("a=64M,b=1G")
    {'a': 67108864, 'b': 1073741824}
    """
    found = {}
    for part in text.split(","):
        match = _MEMORY.fullmatch(part.strip())
        if not match:
            raise UsageError(f"{part!r} is no memory; write --memory a=64M,b=1G")
        name, number, unit = match.groups()
        found[name] = int(number) * 1024 ** " kMG".index(unit or " ")
    return found


def strictest(targets: Sequence[Target]) -> Target:
    """Return the target whose quantized values every other one multiplies exactly, too.

    Where products of pairs saturate, weights are kept small enough for that: all targets get
    these weights, so that every device computes the same numbers.
    """
    saturating = [t for t in targets if t.integer_dot in t.instruction_set.pairs_saturate]
    return (saturating or list(targets))[0]
