"""Verify a bundle: its files, then its results.

Opening a bundle checks every digest. Here its own test vectors are run and compared, with the
tolerance of its manifest; given the original ONNX file, fresh inputs are compared as well, or those
that the user gives.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.bundle.manifest import ProgramRecord
from edgec.compiler.errors import BundleError, TensorInputError, UsageError, did_you_mean
from edgec.compiler.frontend.model_source import read_model
from edgec.compiler.ir.signature import Tensors
from edgec.compiler.parity.choose_inputs import choose_inputs, nan_advice
from edgec.compiler.parity.compare import (
    OutputParity,
    ParityReport,
    Tolerance,
    compare,
    worst_of,
)
from edgec.compiler.parity.oracle import OriginalModel
from edgec.compiler.parity.prepared_images import prepared
from edgec.compiler.parity.stream import STEPS, Stream
from edgec.compiler.parity.vectors import Runs, compare_vectors, run_vector, tolerance_of
from edgec.compiler.runtime.programs import Programs
from edgec.compiler.support.limits import check_seed

# Another order of sums moves a value to the next quantized value here and there.
NOISE_MARGIN_DB = 1.0

# A changed model's noise is not the same for other inputs than those of its test vectors.
OTHER_INPUTS_MARGIN_DB = 6.0


def verify_bundle(
    bundle: Bundle | str | Path,
    *,
    model: str | Path | None = None,
    seeds: tuple[int, ...] = (1,),
    inputs: Tensors | None = None,
    expected: Tensors | None = None,
    session: Runs | None = None,
) -> ParityReport:
    """Run a bundle on known inputs and compare.

    Args:
        bundle: an opened bundle, or its path; its files are what its manifest says.
        model: the ONNX file it was compiled from, to compare on fresh inputs too.
        seeds: one set of fresh inputs each, where no `inputs` are given.
        inputs: inputs of the bundle by name, to compare on these in place of fresh ones.
        expected: what the outputs, or some of them, must be for `inputs`; None asks the model.
        session: computes the outputs; else the bundle is run here.

    Returns:
        Per output the worst of all runs.

    Raises:
        BundleError: the bundle is for another machine, or `model` is another model.
        TensorInputError: the inputs do not fit, or an expected output is none of the bundle's.
        UsageError: inputs without anything to compare with, or expected outputs without inputs.
    """
    bundle = Bundle.of(bundle)
    for seed in seeds:
        check_seed(seed)
    _check_given(bundle, inputs, expected, model is not None)
    manifest = bundle.manifest
    tolerance = Tolerance(**manifest.tolerance.model_dump())
    runs = session or bundle.open()
    reports = compare_vectors(bundle, runs)
    original = None if model is None else _Original.read(bundle, model)
    states = [record.state for record in manifest.states]
    changed = manifest.exits or manifest.quantization or manifest.compression
    reached: Mapping[str, float] = {} if changed is None else changed.sqnr_db

    def with_noise(
        wanted: Tensors, found: Tensors, margin_db: float, of: Mapping[str, float] = reached
    ) -> ParityReport:
        return _with_noise(wanted, found, tolerance, of, margin_db)

    if inputs is not None:
        runs.reset()
        if expected is None:
            assert original is not None
            signatures = Programs(manifest.signatures)
            number, _ = signatures.fitting(inputs)
            stream = original.stream(manifest.programs[number])
            expected = stream.step(inputs).called(states).outputs
        actual = runs.run(inputs)
        if changed is None:
            found = {name: actual[name] for name in expected}
            reports.append(compare(expected, found, tolerance))
        else:
            reports.append(with_noise(expected, actual, OTHER_INPUTS_MARGIN_DB))
    elif original is not None and (changed is not None or manifest.variants):
        # Random values are not what it was calibrated for: its own inputs, against the floats.
        programs = {program.name: program for program in manifest.programs}
        stream = original.stream(manifest.programs[0])
        for number, (fed, _) in enumerate(bundle.vectors()):
            if bundle.begins(number):
                stream = original.stream(programs[manifest.vectors[number].program])
                runs.reset()
            wanted = stream.step(fed).called(states).outputs
            variant = manifest.variant(manifest.vectors[number].program)
            given = run_vector(bundle, runs, number, fed)
            if variant is not None and not variant.reached_db:
                reports.append(compare(wanted, given, tolerance_of(bundle, number)))
            else:
                of = reached if variant is None else variant.reached_db
                reports.append(with_noise(wanted, given, NOISE_MARGIN_DB, of))
    elif original is not None:
        bounds = manifest.settings.index_bounds
        for program, seed in product(manifest.programs, seeds):
            runs.reset()
            fresh, signature = original.stream(program), program.signature
            for number in range(STEPS if states else 1):
                chosen, wanted = choose_inputs(signature.inputs, seed + number, bounds, fresh.peek)
                wanted = fresh.keep(chosen, wanted).called(states).outputs
                report = compare(wanted, runs.run(chosen), tolerance)
                reports.append(_with_advice(report, nan_advice(signature.inputs, wanted)))
    return worst_of(reports)


def _check_given(
    bundle: Bundle, inputs: Tensors | None, expected: Tensors | None, model: bool
) -> None:
    signature, settings = bundle.manifest.signature, bundle.manifest.settings
    if inputs is None:
        if expected is not None:
            raise UsageError("--expected belongs to --input, which is not given")
        return
    Programs(bundle.manifest.signatures).fitting(inputs, settings.index_bounds)
    if expected is None and not model:
        raise UsageError(
            "--input needs what to compare with: --model FILE.onnx, the original, or "
            "--expected FILE.npz, the outputs"
        )
    known = [spec.name for spec in signature.outputs]
    unknown = [f"{name}{did_you_mean(name, known)}" for name in expected or {} if name not in known]
    if unknown:
        raise TensorInputError(
            f"--expected names {', '.join(unknown)} (outputs: {', '.join(known)})"
        )


@dataclass(frozen=True)
class _Original:
    """The original model, fed with the inputs of a bundle."""

    bundle: Bundle
    opened: OriginalModel

    @classmethod
    def read(cls, bundle: Bundle, file: str | Path) -> "_Original":
        settings, known = bundle.manifest.settings, bundle.manifest.model.sha256
        merged = ", ".join(f"{adapter.name} merged" for adapter in settings.lora)
        if settings.weights or merged:
            raise UsageError(
                f"the weights of {bundle.path} are no longer those of a file "
                f"({', '.join(filter(None, (merged, settings.weights)))}); "
                "verify it without the model"
            )
        source = read_model(Path(file), context=settings.context, cache=settings.cache)
        if source.sha256 != known:
            raise BundleError(
                f"{bundle.path} was compiled from another file than {file}: its source has "
                f"SHA-256 {known[:12]}…, this one {source.sha256[:12]}…"
            )
        return cls(bundle, OriginalModel(source.original))

    def stream(self, program: ProgramRecord) -> Stream:
        """Return the original as a session runs a program of the bundle."""
        records = self.bundle.manifest.states
        specs = [record.spec_of(program) for record in records]
        return Stream(self.run, [record.state for record in records], specs)

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        settings = self.bundle.manifest.settings
        fed = {**prepared(inputs, settings.embedded), **settings.frozen_values}
        return self.opened.run(fed)


def _chance_db(count: int) -> float:
    """Return how far the noise of so many values may be off where roundings fall otherwise.

    The noise is another sample of the same power, and the power of `count` values deviates by
    `sqrt(2 / count)` of itself; three times that.

    >>> f"{_chance_db(10):.1f} {_chance_db(1000):.1f}"
    '3.7 0.5'
    """
    return 10 * math.log10(1 + 3 * math.sqrt(2 / max(1, count)))


def _with_noise(
    original: Tensors,
    actual: Tensors,
    tolerance: Tolerance,
    reached: Mapping[str, float],
    margin_db: float,
) -> ParityReport:
    """Return a changed model against the original, by the noise that it had when compiled."""
    outputs: list[OutputParity] = []
    for name, expected in original.items():
        # Without a ratio it is no float output: quantized values decide, and they were compared
        # already.
        if name in reached:
            margin = max(margin_db, _chance_db(expected.size))
            enough = replace(tolerance, sqnr_db=reached[name] - margin)
            outputs += compare({name: expected}, {name: actual[name]}, enough).outputs
    return ParityReport(tuple(outputs))


def _with_advice(report: ParityReport, advice: str) -> ParityReport:
    """Return a report whose failures say what may be done about them."""
    if not advice:
        return report
    return ParityReport(
        tuple(
            output if output.passed else replace(output, problem=f"{output.problem}; {advice}")
            for output in report.outputs
        )
    )
