"""Let programs that share weights read them in the same order: a library holds them once then."""

import hashlib
from typing import Any

from numpy.typing import NDArray

from edgec.compiler.kernels.template import Template
from edgec.targets.target import Target

# How much slower a kernel may be, by the cost model, for weights that are there already.
SLOWER = 1.2
# Decisions that are looked at: packing takes time.
MOST_TRIED = 48


class SharedPacking:
    """Shared packing remembers how the weights of the programs before were packed."""

    def __init__(self) -> None:
        self._packed: dict[bytes, bytes] = {}

    def decision(
        self,
        template: Template,
        workload: Any,
        decision: Any,
        target: Target,
        weight: NDArray[Any],
    ) -> Any:
        """Return the decision, or one nearly as fast that reads the weight as it was packed before.

        Args:
            template: the kernel.
            workload: what it computes.
            decision: the best one for this workload alone.
            target: where.
            weight: its constant operand 1.
        """
        raw = _digest(weight)

        def packed(candidate: Any) -> bytes:
            return _digest(template.pack(workload, candidate, target, 1, weight))

        wanted = self._packed.setdefault(raw, packed(decision))
        if packed(decision) == wanted:
            return decision
        most = SLOWER * template.estimate(workload, decision, target)
        costs = [
            (template.estimate(workload, d, target), d) for d in template.space(workload, target)
        ]
        near = sorted((pair for pair in costs if pair[0] <= most), key=lambda pair: pair[0])
        return next((d for _, d in near[:MOST_TRIED] if packed(d) == wanted), decision)


def _digest(array: NDArray[Any]) -> bytes:
    return hashlib.sha256(array.tobytes()).digest()
