"""Make the ranges file of a sum."""

from collections.abc import Sequence

from edgec.compiler.calibration.ranges_file import ClientsRecord, PrivacyRecord, RangesFile
from edgec.compiler.numerics.observers import ObserverName, Range
from edgec.compiler.private_calibration.masks import Words
from edgec.compiler.private_calibration.session import Session
from edgec.compiler.private_calibration.statistics import (
    Counts,
    range_of,
    range_of_units,
)


def make_ranges_file(
    session: Session, total: Words, summed: int, observer: ObserverName
) -> RangesFile:
    """Return the ranges of a sum over clients; adds the noise if the server is to.

    Args:
        session: what was summed.
        total: the sum, modulo 2^64.
        summed: the number of clients in it.
        observer: chooses the ranges of histograms.

    Raises:
        CalibrationError: a value has no range.
    """
    sums: Counts = total.view("int64")
    privacy = None
    if session.noise is not None:
        sums, privacy = _private(session, sums)
    rows = sums.reshape(len(session.values), -1)
    return RangesFile(
        model=session.model_sha256,
        observer=observer if session.noise is None else "extremes",
        source=ClientsRecord(
            clients=session.clients,
            threshold=session.threshold,
            summed=summed,
            privacy=privacy,
        ),
        ranges=dict(zip(session.values, _ranges(session, rows, summed, observer), strict=True)),
    )


def _ranges(session: Session, rows: Counts, summed: int, observer: ObserverName) -> Sequence[Range]:
    if session.noise is not None:
        return [range_of_units(row, session.noise, summed) for row in rows]
    pairs = zip(session.values, rows, strict=True)
    return [range_of(row, observer, name) for name, row in pairs]


def _private(session: Session, sums: Counts) -> tuple[Counts, PrivacyRecord]:
    from edgec.compiler.private_calibration.noise import accounting, add_noise, deviation

    noise, scale = session.noise, deviation(session)
    assert noise is not None
    if noise.added_by == "server":
        sums = add_noise(sums, scale)
    return sums, PrivacyRecord(
        epsilon=noise.epsilon,
        delta=noise.delta,
        noise_by=noise.added_by,
        deviation=round(scale, 1),
        clipped_log2=(noise.low_log2, noise.high_log2),
        accounting=accounting(),
    )
