"""Keep the few plans that matter over a network whose links change, for a choice at run time.

What a request takes by some steps is, over every link,

    computing + transfers * delay + bytes / rate

so steps are three numbers. The best steps of links all over the network are found exactly; of these
a few are kept, greedily: each time those that bring requests nearest to what the best steps of each
link would take. What a trace saw is not all that will be: links of half and of twice each rate
count as much as those that it saw.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.split.link import Network
from edgec.compiler.split.planner import Problem, Step, solve

Floats = NDArray[np.float64]

# So many are kept at most, and as long as one more brings the mean request nearer by so much.
MOST_PLANS = 4
_GAIN = 0.001
# Links that steps are found for: quantiles of the network.
_SOLVED = 48
# Of the rates that were seen.
_RATES = (1.0, 0.5, 2.0)


@dataclass(frozen=True)
class KeptSteps:
    """Kept steps are one of the plans that matter.

    Attributes:
        steps: from the inputs to the outputs.
        compute_ms: of all of them [ms].
        transfers: over links.
        sent_bytes: in all transfers.
        share: of the links over which they are the fastest of what is kept.
    """

    steps: tuple[Step, ...]
    compute_ms: float
    transfers: float
    sent_bytes: float
    share: float = 0.0

    def ms(self, delay_ms: Floats, ms_per_byte: Floats) -> Floats:
        """Return the time of a request over some links [ms]."""
        return self.compute_ms + self.transfers * delay_ms + self.sent_bytes * ms_per_byte


def plans_over(
    problem: Problem, sizes: Sequence[int], network: Network, most: int = MOST_PLANS
) -> list[KeptSteps]:
    """Return the plans that matter, the one that is best on its own first.

    Args:
        problem: the model and the devices.
        sizes: bytes that cross each cut.
        network: the links that there may be.
        most: plans.

    Raises:
        UnsupportedModelError: the model does not fit the devices together.
    """
    delay_ms = np.array([link.delay_ms for link in network.links] * len(_RATES))
    ms_per_byte = np.array(
        [8e3 / (link.bits_per_second * rate) for rate in _RATES for link in network.links]
    )
    found = _best_steps(problem, sizes, delay_ms, ms_per_byte)
    times = np.stack([steps.ms(delay_ms, ms_per_byte) for steps in found])
    ratios = times / times.min(axis=0)
    kept: list[int] = []
    while len(kept) < min(most, len(found)):
        now = ratios[kept].min(axis=0) if kept else np.full(len(delay_ms), np.inf)
        means = np.minimum(ratios, now).mean(axis=1)
        best = int(means.argmin())
        if kept and now.mean() - means[best] < _GAIN:
            break
        kept.append(best)
    fastest = times[kept].argmin(axis=0)[: len(network.links)]
    return [
        replace(found[index], share=float((fastest == number).mean()))
        for number, index in enumerate(kept)
    ]


def _best_steps(
    problem: Problem, sizes: Sequence[int], delay_ms: Floats, ms_per_byte: Floats
) -> list[KeptSteps]:
    """Return the best steps of links all over the network, each once."""
    order = np.argsort(delay_ms + ms_per_byte * max(1, int(np.median(sizes))))
    chosen = order[np.linspace(0, len(order) - 1, min(_SOLVED, len(order))).astype(int)]
    crossing = np.array(sizes, float)
    found: dict[tuple[Step, ...], KeptSteps] = {}
    for link in dict.fromkeys(map(int, chosen)):
        send_ms = np.where(crossing > 0, delay_ms[link] + crossing * ms_per_byte[link], 0)
        steps = tuple(solve(replace(problem, send_ms=send_ms), "latency"))
        found.setdefault(steps, cost_of(problem, crossing, steps))
    return list(found.values())


def cost_of(problem: Problem, crossing: Floats, steps: tuple[Step, ...]) -> KeptSteps:
    """Return what steps cost over whatever link."""
    at = [(step.device, step.begin, step.end) for step in steps]
    compute = problem.compute_ms()
    transfers = replace(problem, send_ms=(crossing > 0).astype(float)).sent_ms()
    sent = replace(problem, send_ms=crossing).sent_ms()
    return KeptSteps(
        steps,
        float(sum(compute[place] for place in at)),
        float(sum(transfers[place] for place in at)),
        float(sum(sent[place] for place in at)),
    )
