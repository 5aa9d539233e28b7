"""Choose among plans of one model by the link that was just seen.

Plans that are cut at other places send other amounts and leave other work to the device at hand;
the whole model on this machine sends nothing. The time of a request is estimated as

    computing + links * delay + bytes / bandwidth

where computing is what stages said of late, and delay and bandwidth are those of the requests
before, see `link_estimate.py`.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgec.compiler.distribute.link_estimate import LinkEstimate
from edgec.compiler.errors import UsageError
from edgec.compiler.split.link import Network

# Part of the time of computing that one observation replaces.
NEWEST = 0.3
# Without a request over the link for so long, one goes there as well to see how it is.
PROBE_SECONDS = 1.0


@dataclass
class PlanCost:
    """A plan cost is what is known of a plan.

    Attributes:
        name: of the plan.
        compute_s: of all stages that follow one another [s].
        size_bytes: what a request sends over the link that varies, both ways together.
        links: how many times it does.
    """

    name: str
    compute_s: float
    size_bytes: int
    links: int


class PlanChooser:
    """A plan chooser knows the plans, and how fast the link was.

    Attributes:
        link: what is believed of it.
    """

    def __init__(
        self, plans: Sequence[PlanCost], *, latency: float = 0.0, network: Network | None = None
    ) -> None:
        """Begin with what is known of the plans.

        Args:
            plans: what is chosen from.
            latency: of one link, beside its bytes [s].
            network: the links that there may be: a mean and a deviation to begin with.

        Raises:
            UsageError: there are no plans.
        """
        if not plans:
            raise UsageError("there is no plan to choose")
        self._plans = list(plans)
        self._remote = [n for n, plan in enumerate(plans) if plan.size_bytes]
        self.link = LinkEstimate(latency) if network is None else estimate_of(network)
        self._seen = -float("inf")

    @property
    def bandwidth(self) -> float:
        """Return bytes per second; infinite before anything was seen."""
        rate = self.link.seconds_per_byte
        return 1 / rate if rate else float("inf")

    def estimate(self, number: int) -> float:
        """Return how long a request takes by a plan, by its number [s]."""
        plan = self._plans[number]
        return plan.compute_s + self.link.seconds(plan.links, plan.size_bytes)

    def choose(self) -> int:
        """Return the number of the plan for the next request."""
        return min(range(len(self._plans)), key=self.estimate)

    def probe(self, now: float | None = None) -> int | None:
        """Return the plan that a request goes by as well, to see the link; None: by no other.

        Its answer is not waited for: it says what the link is like by now.
        """
        now = time.monotonic() if now is None else now
        if not self._remote or now - self._seen <= PROBE_SECONDS:
            return None
        self._seen = now
        return min(self._remote, key=self.estimate)

    def note(
        self, number: int, compute_s: float, outside_s: float, now: float | None = None
    ) -> None:
        """Note a request that a plan answered.

        Args:
            number: of the plan.
            compute_s: when some stage computed, together.
            outside_s: the rest of its time.
            now: on the monotonic clock; None: now.
        """
        plan = self._plans[number]
        plan.compute_s += NEWEST * (compute_s - plan.compute_s)
        if not plan.size_bytes:
            return
        self._seen = time.monotonic() if now is None else now
        self.link.note(plan.links, plan.size_bytes, outside_s, self._seen)

    def note_loss(self, number: int, waited_s: float, now: float | None = None) -> None:
        """Note that a plan did not answer in so many seconds: the link is that slow or slower."""
        plan = self._plans[number]
        self._seen = time.monotonic() if now is None else now
        waited_s = max(0.0, waited_s - plan.compute_s)
        self.link.note_loss(plan.links, plan.size_bytes, waited_s, self._seen)


def estimate_of(network: Network) -> LinkEstimate:
    """Return what to believe of a link before anything was seen of it."""
    delays = np.array([link.delay_ms / 1e3 for link in network.links])
    rates = np.array([8 / link.bits_per_second for link in network.links])
    return LinkEstimate(
        float(delays.mean()), float(rates.mean()), float(delays.std()), float(rates.std())
    )
