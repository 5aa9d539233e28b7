"""Say why no version of a model keeps the limits."""

import math

from edgec.compiler.errors import BadInputError
from edgec.compiler.fit.limits import quantity_text
from edgec.compiler.fit.search import Search, Trial


def why_not_met(search: Search) -> str:
    """Say which limit cannot be kept, and what the nearest version costs.

    Raises:
        BadInputError: nothing is known of any version: the model or the samples are at fault.
    """
    limits = search.limits
    known = [t for t in search.trials.values() if not t.failure]
    tried = [t for t in known if t.costs is not None] or known
    if not tried:
        failures = {trial.failure for trial in search.trials.values()}
        raise BadInputError(f"no version can be compiled: {'; '.join(sorted(failures)[:3])}")

    def distance(trial: Trial) -> float:
        costs = trial.costs or trial.predicted
        assert costs is not None
        return sum(limits.excess(costs).values())

    nearest = min(tried, key=distance)
    costs = nearest.costs or nearest.predicted
    assert costs is not None
    missed = list(limits.excess(costs))
    misses = ", ".join(
        f"--{q} {quantity_text(q, limits.given[q])} (it has {quantity_text(q, costs[q])})"
        for q in missed
    )
    others = ", ".join(
        f"{q} {quantity_text(q, costs[q])}"
        for q in search.objectives
        if q not in missed and not math.isnan(costs[q])
    )
    count = len(search.evaluated)
    return (
        f"no version keeps the limits, {count} were compiled and {len(search.trials)} predicted; "
        f"the nearest is '{nearest.point.label}', which misses {misses}; {others}"
    )
