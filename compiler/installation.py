"""Install a bundle of variants on this machine: verify and measure each, once.

What was measured is kept beside the bundle's digest, so that whoever opens it next chooses from
the first inference on by what this very machine can do.
"""

from dataclasses import dataclass
from pathlib import Path

from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.errors import CheckFailed, OutputError, UsageError
from edgec.compiler.governor.governor import (
    GOVERNOR,
    GovernorLibrary,
    GovernorSettings,
    Option,
)
from edgec.compiler.governor.session import (
    GovernedSession,
    measure_options,
    read_measured,
    state_file,
)
from edgec.compiler.parity.compare import Tolerance, compare
from edgec.compiler.runtime.session import Session
from edgec.compiler.runtime.static_session import StaticSession


@dataclass(frozen=True)
class Installation:
    """An installation says what each variant needs on this machine.

    Attributes:
        options: what can be chosen, measured.
        names: the variant of each option.
        refused: why, by the name of a variant that does not compute here what it should.
        path: the file that keeps it.
    """

    options: tuple[Option, ...]
    names: tuple[str, ...]
    refused: dict[str, str]
    path: Path


def govern_bundle(
    bundle: Bundle | str | Path, settings: GovernorSettings | float, threads: int = 0
) -> GovernedSession:
    """Load the variants of a bundle, to run the one that meets a deadline each time.

    How long each takes here is what `install_bundle` measured, or is measured now, in ten runs.

    Args:
        bundle: the bundle or its path.
        settings: what is to be kept; a number is the deadline of an inference [ms].
        threads: at most so many; 0 is one for each core that this process may use.

    Raises:
        UsageError: the bundle has no variants, or a setting cannot be.
        BundleError: it is for another machine.
    """
    bundle = Bundle.of(bundle)
    if not isinstance(settings, GovernorSettings):
        settings = GovernorSettings(deadline_ms=settings)
    library, session = _open(bundle, threads)
    options = read_measured(library, bundle.manifest.digest, session.threads)
    options = options or _measure(bundle, library, session)
    names = [program.name for program in bundle.manifest.programs]
    return GovernedSession(session, names, library, options, settings)


def install_bundle(bundle: Bundle | str | Path, threads: int = 0) -> Installation:
    """Verify each variant by its test vectors and measure it, and keep that for this machine.

    A variant whose outputs are not what they should be is never chosen here.

    Args:
        bundle: the bundle or its path.
        threads: at most so many; 0 is one for each core that this process may use.

    Raises:
        UsageError: the bundle has no variants.
        CheckFailed: no variant computes what it should.
        OutputError: the result cannot be written.
    """
    bundle = Bundle.of(bundle)
    library, session = _open(bundle, threads)
    refused = _refused(bundle, session)
    names = [program.name for program in bundle.manifest.programs]
    measured = _measure(bundle, library, session)
    options = [option for option in measured if names[option.program] not in refused]
    if not options:
        raise CheckFailed(
            f"{bundle.path}: no variant computes what it should: "
            + "; ".join(f"{name}: {why}" for name, why in refused.items())
        )
    digest = bundle.manifest.digest
    path = state_file(digest)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        written = library.write_options(path, digest, options)
    except OSError:
        written = False
    if not written:
        raise OutputError(f"cannot write {path}; set XDG_STATE_HOME to a folder that can be")
    chosen = tuple(names[option.program] for option in options)
    return Installation(tuple(options), chosen, refused, path)


def _open(bundle: Bundle, threads: int) -> tuple[GovernorLibrary, StaticSession]:
    if not bundle.manifest.variants:
        raise UsageError(
            f"{bundle.path} has no variants to choose among; compile it with --variant fast=int8 "
            "--variant full=float"
        )
    session: Session = bundle.open(threads)
    assert isinstance(session, StaticSession)
    return GovernorLibrary(bundle.loadable(GOVERNOR)), session


def _measure(bundle: Bundle, library: GovernorLibrary, session: StaticSession) -> list[Option]:
    signatures = bundle.manifest.signatures
    of = [vector.program for vector in bundle.manifest.vectors]
    vectors = bundle.vectors()
    first = [vectors[of.index(name)][0] for name in signatures]
    accuracies = [variant.accuracy for variant in bundle.manifest.variants]
    return measure_options(session, library, first, signatures, accuracies)


def _refused(bundle: Bundle, session: StaticSession) -> dict[str, str]:
    """Return what is wrong with variants, by their names."""
    refused: dict[str, str] = {}
    vectors = zip(bundle.manifest.vectors, bundle.vectors(), strict=True)
    for number, (record, (inputs, outputs)) in enumerate(vectors):
        if bundle.begins(number):
            session.reset()
        variant = bundle.manifest.variant(record.program)
        assert variant is not None
        tolerance = Tolerance(**variant.tolerance.model_dump())
        report = compare(outputs, session.run(inputs, record.program), tolerance)
        if not report.passed:
            refused.setdefault(record.program, report.problems())
    return refused
