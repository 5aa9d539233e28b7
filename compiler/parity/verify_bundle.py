"""Verify a bundle: its files, then its results.

Opening a bundle checks every digest. Here its own test vectors are run and compared, with the
tolerance of its manifest; given the original ONNX file, fresh inputs are compared as well.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.errors import BundleError
from edgec.compiler.frontend.onnx_file import SourceModel, read_model
from edgec.compiler.frontend.preprocessing import EmbeddedPreprocessing
from edgec.compiler.ir.signature import Tensors
from edgec.compiler.parity.choose_inputs import choose_inputs
from edgec.compiler.parity.compare import (
    ORACLE_ABSOLUTE_ERROR,
    OutputParity,
    ParityReport,
    Tolerance,
    compare,
)
from edgec.compiler.parity.oracle import run_original
from edgec.compiler.parity.prepared_images import prepared
from edgec.compiler.support.limits import check_seed

# Another order of sums moves a value to the next quantized value here and there.
NOISE_MARGIN_DB = 1.0


def verify_bundle(
    bundle: Bundle | str | Path,
    *,
    model: str | Path | None = None,
    seeds: tuple[int, ...] = (1,),
    run: Callable[[Tensors], Tensors] | None = None,
) -> ParityReport:
    """Run a bundle on known inputs and compare.

    Args:
        bundle: an opened bundle, or its path; its files are what its manifest says.
        model: the ONNX file it was compiled from, to compare on fresh inputs too.
        seeds: one set of fresh inputs each.
        run: computes the outputs; else the bundle is run here.

    Returns:
        Per output the worst of all runs.

    Raises:
        BundleError: the bundle is for another machine, or `model` is another model.
    """
    bundle = Bundle.of(bundle)
    for seed in seeds:
        check_seed(seed)
    manifest = bundle.manifest
    tolerance = Tolerance(**manifest.tolerance.model_dump())
    runs = bundle.vectors()
    floats: list[ParityReport] = []
    if model is not None:
        source = read_model(Path(model))
        if source.sha256 != manifest.model.sha256:
            raise BundleError(
                f"{bundle.path} was compiled from another file than {model}: its source has "
                f"SHA-256 {manifest.model.sha256[:12]}…, this one {source.sha256[:12]}…"
            )
        frozen, record = _frozen(bundle), manifest.settings.preprocess
        embedded = None if record is None else record.embedded
        if manifest.quantization is not None:
            # Random values are not what it was calibrated for: its own inputs, against the floats.
            reached = manifest.quantization.sqnr_db
            compute = run or bundle.run
            for inputs, _ in runs:
                original = _original(source, frozen, embedded, inputs)
                floats.append(_against_floats(original, compute(inputs), reached))
            seeds = ()
        for seed in seeds:
            bounds = manifest.settings.index_bounds
            original_of = partial(_original, source, frozen, embedded)
            runs.append(choose_inputs(manifest.signature.inputs, seed, bounds, original_of))
    compute = run or bundle.run
    reports = [compare(expected, compute(inputs), tolerance) for inputs, expected in runs]
    return _worst([*reports, *floats])


def _original(
    source: SourceModel, frozen: Tensors, embedded: EmbeddedPreprocessing | None, inputs: Tensors
) -> dict[str, np.ndarray]:
    return run_original(source.original, {**prepared(inputs, embedded), **frozen})


def _against_floats(
    original: Tensors, actual: Tensors, reached: Mapping[str, float]
) -> ParityReport:
    """Return a quantized model against the original.

    By the noise that it had when it was compiled.
    """
    outputs: list[OutputParity] = []
    for name, expected in original.items():
        # Without a ratio it is no float output: quantized values decide, and they were compared
        # already.
        if name in reached:
            tolerance = Tolerance(0.0, ORACLE_ABSOLUTE_ERROR, reached[name] - NOISE_MARGIN_DB)
            outputs += compare({name: expected}, {name: actual[name]}, tolerance).outputs
    return ParityReport(tuple(outputs))


def _frozen(bundle: Bundle) -> dict[str, np.ndarray]:
    return {
        name: np.asarray(value.values, value.dtype)
        for name, value in bundle.manifest.settings.frozen.items()
    }


def _worst(reports: list[ParityReport]) -> ParityReport:
    """Return each output's worst comparison, with the worst noise ratio."""
    outputs: dict[str, OutputParity] = {}
    for report in reports:
        for output in report.outputs:
            known = outputs.setdefault(output.name, output)
            worse = max(known, output, key=lambda o: (not o.passed, o.allowed_share))
            outputs[output.name] = replace(worse, sqnr_db=min(known.sqnr_db, output.sqnr_db))
    return ParityReport(tuple(outputs.values()))
