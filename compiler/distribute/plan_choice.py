"""Choose among plans of one model by the bandwidth that was just seen.

Plans that are cut at other places send other amounts and leave other work to the device at hand;
the whole model on this machine sends nothing. The time of a request is estimated as

    computing + links * latency + bytes / bandwidth

where computing is the median of what stages said, and latency and bandwidth are those of the
requests before, newer ones counting more.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from edgec.compiler.errors import UsageError

# Part of an estimate that one observation replaces.
NEWEST = 0.3
# Without a request over the link for so long, the next one goes there to see how it is.
PROBE_SECONDS = 5.0


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
        bandwidth: bytes per second; infinite before anything was seen.
        latency: of one link, beside its bytes [s].
    """

    def __init__(self, plans: Sequence[PlanCost], *, latency: float = 0.0) -> None:
        """Begin with what is known of the plans.

        Raises:
            UsageError: there are none.
        """
        if not plans:
            raise UsageError("there is no plan to choose")
        self._plans = list(plans)
        self._local = [n for n, plan in enumerate(plans) if not plan.size_bytes]
        self._least = min(
            (n for n in range(len(plans)) if plans[n].size_bytes),
            key=lambda n: plans[n].size_bytes,
            default=0,
        )
        self.latency = latency
        self.bandwidth = float("inf")
        self._seen = -PROBE_SECONDS

    def estimate(self, number: int) -> float:
        """Return how long a request takes by a plan, by its number [s]."""
        plan = self._plans[number]
        return (
            plan.compute_s
            + plan.links * self.latency
            + (plan.size_bytes / self.bandwidth if plan.size_bytes else 0.0)
        )

    def choose(self, now: float | None = None) -> int:
        """Return the number of the plan for the next request."""
        now = time.monotonic() if now is None else now
        best = min(range(len(self._plans)), key=self.estimate)
        stale = now - self._seen > PROBE_SECONDS
        return self._least if stale and best in self._local else best

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
        sending = max(outside_s - plan.links * self.latency, 1e-6)
        seen = plan.size_bytes / sending
        # Times add up, speeds do not: the mean is that of seconds for a byte.
        if self.bandwidth == float("inf"):
            self.bandwidth = seen
        else:
            self.bandwidth = 1 / ((1 - NEWEST) / self.bandwidth + NEWEST / seen)

    def note_loss(self, number: int, waited_s: float, now: float | None = None) -> None:
        """Note that a plan did not answer in so many seconds: the link is that slow or slower."""
        plan = self._plans[number]
        self._seen = time.monotonic() if now is None else now
        self.bandwidth = min(self.bandwidth, plan.size_bytes / max(waited_s, 1e-6))
