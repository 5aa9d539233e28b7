"""Write down which values travel between the stages of a model."""

from collections.abc import Sequence

from edgec.compiler.ir.signature import Signature, TensorSpec
from edgec.compiler.split.plan import (
    HOST,
    PlannedProgram,
    PlannedStage,
    PlannedTensor,
    PlannedValue,
)


def planned_program(
    name: str,
    called: Signature,
    stages: Sequence[PlannedStage],
    specs: dict[str, TensorSpec],
) -> PlannedProgram:
    """Return a program over its stages.

    Args:
        name: the name of the program.
        called: inputs and outputs of the model, without states.
        stages: in order.
        specs: every value by its name.
    """
    sources = {spec.name: HOST for spec in called.inputs}
    readers: dict[str, list[str]] = {}
    for stage in stages:
        for value in stage.inputs:
            readers.setdefault(value, []).append(stage.device)
        sources |= dict.fromkeys(stage.outputs, stage.device)
    for spec in called.outputs:
        readers.setdefault(spec.name, []).append(HOST)
    values = tuple(
        PlannedValue(
            name=value,
            dtype=specs[value].dtype,
            shape=_static(specs[value]),
            source=source,
            to=tuple(dict.fromkeys(readers[value])),
        )
        for value, source in sources.items()
        if value in readers
    )
    return PlannedProgram(
        name=name,
        inputs=tuple(map(_planned, called.inputs)),
        outputs=tuple(map(_planned, called.outputs)),
        stages=tuple(stages),
        values=values,
    )


def _planned(spec: TensorSpec) -> PlannedTensor:
    return PlannedTensor(name=spec.name, dtype=spec.dtype, shape=_static(spec))


def _static(spec: TensorSpec) -> tuple[int, ...]:
    """Return the shape: every extent is known in a model that can be cut."""
    return tuple(extent or 0 for extent in spec.shape)
