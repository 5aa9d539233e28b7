"""Verify a split model: what its stages compute together, beside the original graph."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgec.compiler.distribute.plan_session import PlanSession
from edgec.compiler.errors import UsageError
from edgec.compiler.parity.compare import ParityReport, Tolerance, compare, worst_of
from edgec.compiler.parity.verify_bundle import verify_bundle
from edgec.compiler.split.plan import PlannedProgram

Tensors = dict[str, NDArray[Any]]


def verify_plan(
    session: PlanSession, *, model: str | Path | None = None, seeds: tuple[int, ...] = (1,)
) -> ParityReport:
    """Run the stages on known inputs and compare.

    Args:
        session: with the stages.
        model: the ONNX file, to compare on fresh inputs too; the plan needs its whole model then.
        seeds: one set of fresh inputs each.

    Returns:
        Per output the worst of all runs.

    Raises:
        UsageError: the plan has no whole model, or answers came from it.
        StageLostError: a stage is lost.
    """
    reports = []
    for program in session.plan.programs:
        for begins, inputs, expected, tolerance in _vectors(session, program):
            if begins:
                session.reset()
            reports.append(compare(expected, session.run(inputs, program.name or None), tolerance))
    if model is not None:
        if session.whole is None:
            raise UsageError(
                "--model compares by the manifest of the whole model, and this plan has none: "
                "compile it with --whole TARGET"
            )
        reports.append(verify_bundle(session.whole, model=model, seeds=seeds, session=session))
    if session.losses:
        raise UsageError(
            f"the stages did not answer everything: {session.losses[0]}; answers of the whole "
            "model here say nothing of them"
        )
    return worst_of(reports)


def _vectors(
    session: PlanSession, program: PlannedProgram
) -> Iterator[tuple[bool, Tensors, Tensors, Tolerance]]:
    """Yield the test vectors of a program, put together from those of its stages.

    Whether state is zeros, inputs, expected outputs and the tolerance.
    """
    columns = []
    last = session.bundles[program.stages[-1].bundle].manifest
    tolerance = Tolerance(**last.tolerance.model_dump())
    for stage in program.stages:
        bundle = session.bundles[stage.bundle]
        rows = zip(bundle.manifest.vectors, bundle.vectors(), strict=True)
        columns.append([vector for record, vector in rows if record.program == stage.program])
    wanted = [tensor.name for tensor in program.outputs]
    given = [tensor.name for tensor in program.inputs]
    for number, vectors in enumerate(zip(*columns, strict=True)):
        known: Tensors = {}
        for inputs, outputs in vectors:
            known |= {**inputs, **outputs}
        yield (
            number == 0,
            {name: known[name] for name in given},
            {name: known[name] for name in wanted},
            tolerance,
        )
