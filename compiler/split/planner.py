"""Choose who computes which part of a model: the best way from its inputs to its outputs.

A way goes from cut to cut, each step computed by one device; no device takes two steps. The best is

    latency      the smallest sum of computing and sending
    throughput   the smallest time of the slowest device or link
    memory       the smallest share of its memory that the fullest device needs

It is found exactly, by dynamic programming over the devices that were used and the cut that was
reached (Held and Karp 1962): 2 ** devices * devices * cuts ** 2 steps, in NumPy. As a mixed-integer
program HiGHS solves the same in many times that, as its relaxation does not see that no device is
used twice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.errors import UnsupportedModelError, UsageError

Objective = Literal["latency", "throughput", "memory"]
OBJECTIVES: tuple[str, ...] = get_args(Objective)

# More would take minutes to plan for.
MAX_DEVICES = 12


@dataclass(frozen=True)
class Step:
    """A step is what one device computes.

    Attributes:
        device: which.
        begin: the cut before it.
        end: the cut behind it.
    """

    device: int
    begin: int
    end: int


@dataclass(frozen=True)
class Problem:
    """A problem is a model between cuts, and devices.

    Cut 0 is before everything, the last one behind everything.

    Attributes:
        ms: time of all before a cut, by device and cut [devices, cuts] [ms].
        weights: bytes of weights likewise.
        activations: bytes that what lies between two cuts computes in [cuts, cuts].
        send_ms: time to hand over what crosses each cut; at the ends from and to the source [ms].
        source: the device where inputs come from and results are wanted; -1 is none of them.
        memory: bytes that each device has for a model.
    """

    ms: NDArray[np.float64]
    weights: NDArray[np.float64]
    activations: NDArray[np.float64]
    send_ms: NDArray[np.float64]
    source: int
    memory: NDArray[np.float64]

    @property
    def devices(self) -> int:
        """Return how many devices there are."""
        return int(self.ms.shape[0])

    @property
    def last(self) -> int:
        """Return the cut behind everything."""
        return int(self.ms.shape[1]) - 1

    def compute_ms(self) -> NDArray[np.float64]:
        """Return the time of each step [devices, cuts, cuts]; endless where it goes nowhere."""
        return self._forward(self.ms[:, None, :] - self.ms[:, :, None])

    def step_bytes(self) -> NDArray[np.float64]:
        """Return the memory of each step likewise."""
        between = self.weights[:, None, :] - self.weights[:, :, None]
        return self._forward(between + self.activations)

    def sent_ms(self) -> NDArray[np.float64]:
        """Return the time that each step sends its results, and gets what is not from a device."""
        sent = np.zeros((self.devices, self.last + 1, self.last + 1))
        sent += self.send_ms[None, None, :]
        sent[:, 0, :] += self.send_ms[0]
        if self.source >= 0:
            sent[self.source, :, self.last] -= self.send_ms[self.last]
            sent[self.source, 0, :] -= self.send_ms[0]
        return sent

    def allowed(self) -> NDArray[np.bool_]:
        """Return the steps whose device has the memory."""
        return self.step_bytes() <= self.memory[:, None, None]

    def _forward(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        ahead = np.triu(np.ones(values.shape[1:], bool), 1)
        return np.where(ahead[None], values, np.inf)


def solve(problem: Problem, objective: Objective) -> list[Step]:
    """Return the best steps from the inputs to the outputs.

    Raises:
        UnsupportedModelError: the model does not fit the devices together.
        UsageError: there are too many devices.
    """
    if problem.devices > MAX_DEVICES:
        raise UsageError(
            f"{problem.devices} devices were given; cuts are planned for {MAX_DEVICES} at most"
        )
    allowed = problem.allowed()
    if objective == "latency":
        cost = np.where(allowed, problem.compute_ms() + problem.sent_ms(), np.inf)
        found = _best_way(cost, np.add)
    elif objective == "throughput":
        slowest = np.maximum(problem.compute_ms(), problem.sent_ms())
        found = _best_way(np.where(allowed, slowest, np.inf), np.maximum)
    else:
        share = problem.step_bytes() / problem.memory[:, None, None]
        found = _best_way(np.where(allowed, share, np.inf), np.maximum)
    if found is None:
        raise UnsupportedModelError(
            "the model fits no cut over these devices: each part is larger than a device's memory"
        )
    return found


def evaluate(problem: Problem, steps: Sequence[Step], objective: Objective) -> float:
    """Return what steps cost: ms, ms of the slowest device or link, or the largest share."""
    at = [(step.device, step.begin, step.end) for step in steps]
    compute, sent = problem.compute_ms(), problem.sent_ms()
    if objective == "latency":
        return float(sum(compute[place] + sent[place] for place in at))
    if objective == "throughput":
        return float(max(max(compute[place], sent[place]) for place in at))
    size = problem.step_bytes()
    return float(max(size[place] / problem.memory[place[0]] for place in at))


def _best_way(
    cost: NDArray[np.float64],
    join: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]],
) -> list[Step] | None:
    """Return the way of the least cost, None if there is none.

    Args:
        cost: of each step [devices, cuts, cuts].
        join: what two parts of a way cost together: their sum, or the larger of both.
    """
    devices, cuts = cost.shape[:2]
    # Of devices that are alike the first is taken first.
    before = [
        sum(1 << e for e in range(d) if np.array_equal(cost[e], cost[d])) for d in range(devices)
    ]
    best = np.full((1 << devices, cuts), np.inf)
    best[0, 0] = 0
    last: dict[tuple[int, int], Step] = {}
    for used in range(1 << devices):
        if not np.isfinite(best[used]).any():
            continue
        for device in range(devices):
            with_it = used | 1 << device
            if used == with_it or before[device] & ~used:
                continue
            ways = join(best[used][:, None], cost[device])
            begin = ways.argmin(axis=0)
            found = ways[begin, np.arange(cuts)]
            for end in map(int, np.nonzero(found < best[with_it])[0]):
                best[with_it, end] = found[end]
                last[with_it, end] = Step(device, int(begin[end]), end)
    used, cut = int(best[:, -1].argmin()), cuts - 1
    if not np.isfinite(best[used, cut]):
        return None
    way: list[Step] = []
    while cut:
        step = last[used, cut]
        way.append(step)
        used, cut = used & ~(1 << step.device), step.begin
    return way[::-1]
