"""Decide which operators a model suffers from, and the fewest that must return to float."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from edgec.compiler.calibration.accuracy import Accuracy, Comparison, Metric
from edgec.compiler.calibration.samples import Sample
from edgec.compiler.ir.anchors import Operator
from edgec.compiler.ir.evaluate import Evaluate
from edgec.compiler.ir.signature import Signature, Tensors, TensorSpec
from edgec.compiler.quantize.encode import Quantization
from edgec.compiler.quantize.switch_qdq import SWITCHES, SwitchQuantization
from edgec.compiler.support.progress import Progress, Silent

# Batches that an operator's rank is measured on; each operator takes that many runs.
MAX_RANKED = 16


@dataclass(frozen=True)
class Sensitivity:
    """A sensitivity describes what quantizing one operator alone does.

    Attributes:
        operator: which.
        accuracy: the accuracy of the model whose other operators are float.
    """

    operator: Operator
    accuracy: Accuracy


class SwitchedModel:
    """A switched model is a model whose operators are quantized at will, run on fixed samples.

    Attributes:
        operators: the operators that have a switch.
    """

    def __init__(
        self,
        quantization: Quantization,
        signature: Signature,
        samples: Sequence[Sample],
        metric: Metric,
        evaluate: Evaluate,
    ) -> None:
        self.operators = quantization.plan.quantized()
        module = SwitchQuantization(quantization, self.operators)()
        switches = TensorSpec(SWITCHES, (len(self.operators),), "float32")
        inputs = (*signature.inputs, switches)
        self._model = evaluate(module, Signature(inputs, signature.outputs))
        self._samples = samples
        self._metric = metric
        self._float = [self._run(sample, ()) for sample in samples]

    def _run(self, sample: Sample, on: Collection[str]) -> Tensors:
        switches = np.array([o.name in on for o in self.operators], np.float32)
        return self._model.run({**sample, SWITCHES: switches})

    def accuracy(self, on: Collection[str], limit: int | None = None) -> Accuracy:
        """Return the accuracy with these operators quantized.

        By name, over the first `limit` samples.
        """
        comparison = Comparison(self._metric)
        pairs = list(zip(self._samples, self._float, strict=True))
        for sample, expected in pairs[:limit]:
            comparison.add(expected, self._run(sample, on))
        return comparison.result()

    def rank(self, progress: Progress | None = None) -> list[Sensitivity]:
        """Return each operator alone, the one that costs most first."""
        found = []
        with (progress or Silent()).parts("sensitivity", len(self.operators)) as advance:
            for operator in self.operators:
                alone = self.accuracy({operator.name}, MAX_RANKED)
                found.append(Sensitivity(operator, alone))
                advance()
        return sorted(found, key=lambda s: s.accuracy.sqnr_db)


def operators_to_keep_float(
    model: SwitchedModel,
    ranked: Sequence[Sensitivity],
    max_drop: float | None,
    min_sqnr_db: float | None,
) -> int:
    """Return how many of the worst operators must be float for the bars to hold.

    By bisection: fewer quantized operators are taken to be no worse. All of them if that is what
    it takes.
    """
    names = [s.operator.name for s in ranked]
    low, high = 0, len(names)
    while low < high:
        middle = (low + high) // 2
        if model.accuracy(set(names[middle:])).reaches(max_drop, min_sqnr_db):
            high = middle
        else:
            low = middle + 1
    return low
