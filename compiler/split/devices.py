"""Provide who computes what: devices by name, and a file that says where to cut.

```toml
[[stage]]
device = "a"
until = ["/layer2/Relu_output_0"]   # values or operators; what they hand over is found from them

[[stage]]
device = "b"
```
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgec.compiler.errors import BadInputError, UsageError, did_you_mean
from edgec.compiler.support.toml_file import explain, read_toml
from edgec.targets import Target, load_target

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,47}")
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
        device: the name of the device.
        until: values, or operators, that the stage ends with; empty for the last stage.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str
    until: tuple[str, ...] = ()


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
        if stage.device not in known:
            raise BadInputError(
                f"split file {path}: stage {number} is for device {stage.device!r}"
                f"{did_you_mean(stage.device, known)} (--devices: {', '.join(known)})"
            )
        if bool(stage.until) == (number == len(stages)):
            needs = "ends the model: leave `until`" if stage.until else "needs `until`"
            raise BadInputError(f"split file {path}: stage {number} {needs}")
    return stages


def strictest(targets: Sequence[Target]) -> Target:
    """Return the target whose quantized values every other one multiplies exactly, too.

    Where products of pairs saturate, weights are kept small enough for that: all targets get
    these weights, so that every device computes the same numbers.
    """
    saturating = [t for t in targets if t.integer_dot in t.instruction_set.pairs_saturate]
    return (saturating or list(targets))[0]
