"""Provide the plan of a split model: which device computes which stage, and which values travel.

```text
model.plan/
├── plan.json      this plan
├── a.edgec/       an ordinary bundle for each stage, called as its device
├── b.edgec/
└── whole.edgec/   the whole model on one device, if it was asked for: the fallback
```

The inputs and outputs of a stage's bundle are the values of the plan by name; states stay inside
their stage. Reading a plan needs no TVM.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgec.compiler.errors import BundleError, UsageError
from edgec.compiler.ir.signature import Signature, TensorSpec
from edgec.compiler.support.files import write_atomically

PLAN = "plan.json"
# Who gives the inputs of the model and takes its outputs.
HOST = "host"

# A name of a device or of a bundle beside the plan; no path leaves the folder.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Encoding = Literal["none", "float16", "int8", "int4"]


class _Record(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_by_name=True, serialize_by_alias=True
    )


class PlannedModel(_Record):
    """A planned model names the file that was split.

    Attributes:
        name: its name.
        sha256: digest of the file, as in a bundle's manifest.
    """

    name: str
    sha256: str


class PlannedTensor(_Record):
    """A planned tensor describes an input or output of the whole model."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def spec(self) -> TensorSpec:
        """Return the same without pydantic."""
        return TensorSpec(self.name, self.shape, self.dtype)


class PlannedStage(_Record):
    """A planned stage is one call of one bundle.

    Attributes:
        device: the name of the device that computes it.
        target: what its bundle was compiled for.
        bundle: the bundle beside the plan.
        program: which program of that bundle; empty for a bundle's only one.
        inputs: names of values, in the order of the bundle's inputs.
        outputs: likewise.
    """

    device: Name
    target: str
    bundle: Name
    program: str = ""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class PlannedValue(_Record):
    """A planned value is a tensor that travels between devices, or from and to the host.

    Attributes:
        name: as in the bundles that give and take it.
        dtype: NumPy name.
        shape: extents.
        source: the device that computes it, or `host`; `from` in the file.
        to: the devices that read it, and `host` if it is an output of the model.
        encoding: what the stage that computes it rounded the floats to; `dtype` is what travels,
            and the stages that read it bring it back.
        zstd: whether its bytes travel compressed.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: str = Field(alias="from")
    to: tuple[str, ...]
    encoding: Encoding = "none"
    zstd: bool = False


class PlannedExit(_Record):
    """A planned exit is an early exit of the first stage.

    Attributes:
        decided: the value that says by one int32 whether its answer is enough.
        answer: the value that takes the place of the model's first output then.
    """

    decided: str
    answer: str


class PlannedProgram(_Record):
    """A planned program is the model for one set of shapes, over all its stages.

    Attributes:
        name: what tells it from others; empty if it is the only one and has no name.
        inputs: of the model, without states.
        outputs: likewise.
        stages: in an order in which they can run; stages that need nothing of each other may run
            at the same time.
        values: every tensor that travels.
        exits: those of the first stage, in order.
    """

    name: str
    inputs: tuple[PlannedTensor, ...]
    outputs: tuple[PlannedTensor, ...]
    stages: tuple[PlannedStage, ...]
    values: tuple[PlannedValue, ...]
    exits: tuple[PlannedExit, ...] = ()

    @property
    def signature(self) -> Signature:
        """Return inputs and outputs of the whole model."""
        return Signature(tuple(t.spec for t in self.inputs), tuple(t.spec for t in self.outputs))

    def value(self, name: str) -> PlannedValue:
        """Return the value of this name."""
        return next(value for value in self.values if value.name == name)

    @model_validator(mode="after")
    def _every_value_is_there(self) -> Self:
        known = {tensor.name for tensor in self.inputs}
        for stage in self.stages:
            missing = [name for name in stage.inputs if name not in known]
            if missing:
                raise ValueError(f"a stage on {stage.device} reads {missing[0]} before it is there")
            known |= set(stage.outputs)
        for name in (tensor.name for tensor in self.outputs):
            if name not in known:
                raise ValueError(f"no stage gives the output {name}")
        travelling = [value.name for value in self.values]
        if len(set(travelling)) < len(travelling):
            raise ValueError("two values have one name")
        return self


class Plan(_Record):
    """A plan says how a model runs over several devices; `plan.json`.

    Attributes:
        version: of this format.
        model: what was split.
        programs: one for each set of shapes, cut the same way.
        whole: the bundle of the whole model beside the plan; None without a fallback.
        sqnr_db: by output, of the test inputs against what the model gives [dB]; empty where
            nothing that travels is rounded.
    """

    version: Literal[1] = 1
    model: PlannedModel
    programs: tuple[PlannedProgram, ...] = Field(min_length=1)
    whole: Name | None = None
    sqnr_db: dict[str, float] = {}

    @property
    def devices(self) -> tuple[str, ...]:
        """Return the names of the devices, in the order of their first stage."""
        return tuple(dict.fromkeys(s.device for p in self.programs for s in p.stages))

    @property
    def bundles(self) -> dict[str, str]:
        """Return the device by the name of each stage's bundle."""
        return {s.bundle: s.device for p in self.programs for s in p.stages}

    def program(self, name: str | None = None) -> PlannedProgram:
        """Return the program of this name; None is the first.

        Raises:
            UsageError: there is none.
        """
        for program in self.programs:
            if name is None or program.name == name:
                return program
        names = ", ".join(p.name for p in self.programs)
        raise UsageError(f"no program is named {name!r}; the plan's are: {names}")

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read the plan of a folder that `edgec compile --devices` wrote.

        Raises:
            BundleError: there is none, or it is no plan that this edgec reads.
        """
        file = Path(folder) / PLAN
        try:
            fields = json.loads(file.read_bytes())
        except OSError as error:
            raise BundleError(f"{folder} is no plan: {PLAN}: {error.strerror}") from None
        except ValueError:
            raise BundleError(
                f"{file} is damaged: it is no JSON; compile the model again"
            ) from None
        version = fields.get("version") if isinstance(fields, Mapping) else None
        if version != 1:
            raise BundleError(f"{file} is of version {version!r}; this edgec reads version 1")
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise BundleError(f"{file} is damaged: {_first(error)}; compile it again") from None

    def write(self, folder: Path) -> None:
        """Write `plan.json` into a folder.

        Raises:
            OutputError: it cannot be written.
        """
        fields: dict[str, Any] = self.model_dump(mode="json")
        write_atomically(folder / PLAN, json.dumps(fields, indent=1, ensure_ascii=True) + "\n")


def _first(error: ValidationError) -> str:
    """Return where and what the first error is."""
    details = error.errors()[0]
    where = ".".join(map(str, details["loc"]))
    return f"{where}: {details['msg']}" if where else str(details["msg"])
