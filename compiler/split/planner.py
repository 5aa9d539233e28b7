"""Choose who computes which part of a model: the shortest way from its inputs to its outputs.

A way goes from cut to cut, each step computed by one device; no device takes two steps. With
`y[d, i, j]` = 1 where device d computes what lies between cuts i and j, HiGHS finds

    latency      the smallest sum of computing and sending, as a mixed-integer program
    throughput   the smallest time of the slowest device or link
    memory       the smallest share of its memory that the fullest device needs

The last two are the smallest limit that some way keeps to. Under a limit each device best goes as
far as it may, as what is left only gets less; so few steps are to be chosen from, and the limit is
found by bisection.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from edgec.compiler.errors import UnsupportedModelError

Objective = Literal["latency", "throughput", "memory"]
OBJECTIVES: tuple[str, ...] = get_args(Objective)

# Steps of a bisection: after these a limit is known to a millionth of itself.
_BISECTIONS = 24


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
        return self.ms.shape[0]

    @property
    def last(self) -> int:
        """Return the cut behind everything."""
        return self.ms.shape[1] - 1

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
    """
    allowed = problem.allowed()
    if objective == "latency":
        cost = np.where(allowed, problem.compute_ms() + problem.sent_ms(), np.inf)
        found = _shortest(cost)
    elif objective == "throughput":
        found = _narrowest(np.where(allowed, problem.compute_ms(), np.inf), problem.sent_ms())
    else:
        share = problem.step_bytes() / problem.memory[:, None, None]
        found = _narrowest(np.where(allowed, share, np.inf), np.zeros_like(share))
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


def _shortest(cost: NDArray[np.float64]) -> list[Step] | None:
    """Return the steps of the smallest sum; no device twice."""
    ahead, back = _distances(cost)
    if not np.isfinite(ahead[-1]):
        return None
    # Ways through a step are no shorter than if devices could be used twice.
    bound = ahead[None, :, None] + cost + back[None, None, :]
    alone = cost[:, 0, -1].min()
    return _chosen(cost, bound <= alone * (1 + 1e-9))


def _distances(cost: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the shortest ways to each cut and from it, if devices may be used twice."""
    best = cost.min(axis=0)
    count = best.shape[0]
    ahead, back = np.full(count, np.inf), np.full(count, np.inf)
    ahead[0] = back[-1] = 0
    for cut in range(1, count):
        ahead[cut] = (ahead[:cut] + best[:cut, cut]).min()
    for cut in range(count - 2, -1, -1):
        back[cut] = (best[cut, cut + 1 :] + back[cut + 1 :]).min()
    return ahead, back


def _narrowest(size: NDArray[np.float64], other: NDArray[np.float64]) -> list[Step] | None:
    """Return the steps whose largest `size` or `other` is smallest; both only grow with a step.

    `other` is what a step costs beside its size; it depends on its ends, not on what it computes.
    """
    need = np.maximum(size, other)
    finite = need[np.isfinite(need)]
    if not finite.size:
        return None
    low, high = 0.0, float(finite.max())
    best = _within(need, high)
    if best is None:
        return None
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        found = _within(need, middle)
        if found is None:
            low = middle
        else:
            best = found
            high = float(max(need[s.device, s.begin, s.end] for s in found))
    return best


def _within(need: NDArray[np.float64], limit: float) -> list[Step] | None:
    """Return steps that all keep to a limit, each as far as it can; None if there are none."""
    fits = need <= limit
    farthest = np.zeros_like(fits)
    device, begin = np.nonzero(fits.any(axis=2))
    end = fits.shape[2] - 1 - np.argmax(fits[device, begin, ::-1], axis=1)
    farthest[device, begin, end] = True
    return _chosen(np.ones_like(need), farthest)


def _chosen(cost: NDArray[np.float64], steps: NDArray[np.bool_]) -> list[Step] | None:
    """Return the cheapest way through some steps, by HiGHS; None if there is none."""
    device, begin, end = np.nonzero(steps & np.isfinite(cost))
    cuts = cost.shape[1]
    # What comes to a cut leaves it; one way begins at cut 0.
    rows = np.concatenate([begin, end, cuts + device])
    columns = np.tile(np.arange(device.size), 3)
    signs = np.concatenate([np.ones(device.size), -np.ones(device.size), np.ones(device.size)])
    balance = np.zeros(cuts)
    balance[0], balance[-1] = 1, -1
    lower = np.concatenate([balance, np.zeros(cost.shape[0])])
    upper = np.concatenate([balance, np.ones(cost.shape[0])])
    picked = _binary_program(cost[device, begin, end], rows, columns, signs, lower, upper)
    if picked is None:
        return None
    way = [Step(int(device[k]), int(begin[k]), int(end[k])) for k in np.nonzero(picked)[0]]
    return sorted(way, key=lambda step: step.begin)


def _binary_program(
    cost: NDArray[np.float64],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    values: NDArray[np.float64],
    lower: NDArray[np.float64],
    upper: NDArray[np.float64],
) -> NDArray[np.bool_] | None:
    """Return the variables of 0 or 1 that are 1 in the cheapest solution; None if there is none.

    Args:
        cost: of each variable.
        rows: of the entries of the matrix.
        columns: likewise.
        values: likewise.
        lower: bounds of each row.
        upper: likewise.
    """
    # Imported here: only who plans needs it.
    import highspy

    if not cost.size:
        return None
    order = np.argsort(columns, kind="stable")
    program = highspy.HighsLp()
    program.num_col_, program.num_row_ = cost.size, lower.size
    program.col_cost_ = cost
    program.col_lower_, program.col_upper_ = np.zeros(cost.size), np.ones(cost.size)
    program.row_lower_, program.row_upper_ = lower, upper
    program.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    program.a_matrix_.start_ = np.concatenate(
        [[0], np.cumsum(np.bincount(columns, minlength=cost.size))]
    ).astype(np.int32)
    program.a_matrix_.index_ = rows[order].astype(np.int32)
    program.a_matrix_.value_ = values[order]
    program.integrality_ = [highspy.HighsVarType.kInteger] * cost.size
    solver = highspy.Highs()
    solver.silent()
    solver.setOptionValue("mip_rel_gap", 1e-6)
    solver.passModel(program)
    solver.run()
    if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        return None
    return np.asarray(solver.getSolution().col_value) > 0.5
