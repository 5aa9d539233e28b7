"""Describe what a compiled model must compute: test inputs, and the outputs that they must give.

A model with state is run several times.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx
from numpy.typing import NDArray

from edgec.compiler.calibration.accuracy import Comparison, same_top1
from edgec.compiler.calibration.samples import Samples
from edgec.compiler.errors import ModelFileError
from edgec.compiler.frontend.canonical import CanonicalModel
from edgec.compiler.frontend.onnx_facts import (
    graph_depth,
    index_bounds,
    least_precise_float,
    quantizes_activations,
)
from edgec.compiler.ir.signature import Signature, State, Tensors, without_states
from edgec.compiler.parity.choose_inputs import choose_inputs, liveliest_sample, nan_advice
from edgec.compiler.parity.compare import (
    Tolerance,
    allowed_rounding_sqnr_db,
    compare,
    quantized_sqnr_db,
    tolerance_for,
)
from edgec.compiler.parity.oracle import OriginalModel, RoundedModel
from edgec.compiler.parity.prepared_images import prepared
from edgec.compiler.parity.stream import STEPS, Step, Stream
from edgec.compiler.runtime.inputs import check_inputs, rounded_to_half

# Samples that the test input is chosen of.
MAX_TRIED = 4

# Values of a pixel.
PIXELS = 256


@dataclass(frozen=True)
class Expected:
    """Test inputs, and what a model makes of them.

    Attributes:
        signature: inputs and outputs, states among them.
        steps: runs one after the other; one if there is no state.
        tolerance: how far a library's outputs may be from these.
        index_bounds: for inputs that are indices, the number of rows that they choose from.
        states: what a session keeps from run to run.
        advice: what to do about generated inputs that show little; empty if they are good.
        goes_on: whether the first run begins with what another program left, not with zeros.
    """

    signature: Signature
    steps: tuple[Step, ...]
    tolerance: Tolerance
    index_bounds: Mapping[str, int]
    states: tuple[State, ...] = ()
    advice: str = ""
    goes_on: bool = False

    @property
    def inputs(self) -> Tensors:
        """Return the inputs of the first run, states among them."""
        return self.steps[0].inputs

    @property
    def outputs(self) -> Tensors:
        """Return the outputs of the first run, states among them."""
        return self.steps[0].outputs

    @property
    def first_states(self) -> Tensors:
        """Return the states of the first run, by input."""
        return {s.input: self.inputs[s.input] for s in self.states}

    @property
    def last_states(self) -> Tensors:
        """Return the states that the last run leaves, by input."""
        return {s.input: self.steps[-1].outputs[s.output] for s in self.states}

    @property
    def called(self) -> Signature:
        """Return inputs and outputs without states."""
        return without_states(self.signature, self.states)

    @property
    def called_steps(self) -> tuple[Step, ...]:
        """Return the runs without states."""
        return tuple(step.called(self.states) for step in self.steps)

    @classmethod
    def of_original(
        cls,
        original: onnx.ModelProto,
        canonical: CanonicalModel,
        given: Tensors | None,
        samples: Samples | None,
        seed: int,
        states: tuple[State, ...] = (),
        before: Tensors | None = None,
    ) -> "Expected":
        """Run the original graph.

        Args:
            original: the model as the file has it.
            canonical: the same, canonical.
            given: test inputs; None takes a sample, or generates some.
            samples: what a compressed or quantized model was calibrated with.
            seed: the seed of generated inputs.
            states: what is kept from run to run.
            before: states that another program left, by input: a cache with something in it says
                more. If they are full, and where there are none, all begin as zeros.

        Raises:
            EdgecError: the inputs do not fit, or the original cannot be run on them.
        """
        graph, signature = canonical.graph.graph, canonical.signature
        bounds = index_bounds(graph)
        if canonical.embedded is not None:
            bounds[canonical.embedded.name] = PIXELS

        opened = OriginalModel(original)

        def run(inputs: Tensors) -> dict[str, NDArray[Any]]:
            fed = prepared(inputs, canonical.embedded)
            return opened.run({**fed, **canonical.frozen})

        specs = without_states(signature, states).inputs
        if not given and samples is not None:
            # Random values are not what ranges were calibrated for.
            tried = map(rounded_to_half, samples.limited(1 if states else MAX_TRIED))
            given = liveliest_sample(tried, run)
        if given:
            names = {state.input for state in states}
            given = check_inputs(specs, {n: a for n, a in given.items() if n not in names})

        def runs(values: Tensors) -> list[Step]:
            stream = Stream(run, states, signature.inputs, values)
            steps: list[Step] = []
            for number in range(STEPS if states else 1):
                try:
                    if given:
                        steps.append(stream.step(given))
                    else:
                        chosen = choose_inputs(specs, seed + number, bounds, stream.peek)
                        steps.append(stream.keep(*chosen))
                except ModelFileError:
                    # A cache may be full by then.
                    if not steps and not values:
                        raise
                    break
            return steps

        steps = runs(before) if before else []
        goes_on = bool(steps)
        steps = steps or runs({})
        opened.close()
        advice = "" if given else nan_advice(specs, steps[0].outputs)
        tolerance = tolerance_for(
            least_precise_float(graph), graph_depth(graph), quantizes_activations(graph)
        )
        if tolerance.sqnr_db is None:
            own_db = _rounding_sqnr_db(original, canonical, steps, states, tolerance)
            if own_db is not None:
                tolerance = replace(tolerance, sqnr_db=allowed_rounding_sqnr_db(own_db))
        return cls(signature, tuple(steps), tolerance, bounds, states, advice, goes_on)

    def of_transformed(self, steps: tuple[Step, ...], quantized_activations: bool) -> "Expected":
        """Return what the library of a compressed or quantized module must compute.

        Args:
            steps: what the module gives for the same inputs.
            quantized_activations: whether it rounds activations.
        """
        transformed = replace(self, steps=steps)
        if not quantized_activations:
            return transformed
        # A kernel sums in another order: what lies between two quantized values moves.
        own_db = min(self.sqnr_db(transformed).values(), default=math.inf)
        tolerance = replace(self.tolerance, sqnr_db=quantized_sqnr_db(own_db))
        return replace(transformed, tolerance=tolerance)

    def rounded_as(
        self, other: "Expected", outputs: Tensors | None, quantized_activations: bool
    ) -> "Expected":
        """Return what else a module computes, with the tolerance of these outputs.

        Args:
            other: of a module that may answer otherwise than this one.
            outputs: of the module that it was made of, for the same inputs; None: not known.
            quantized_activations: whether it rounds activations.
        """
        if outputs is None:
            strictest = replace(self.tolerance, sqnr_db=quantized_sqnr_db(math.inf))
            return replace(other, tolerance=strictest if quantized_activations else self.tolerance)
        before = self.of_transformed((Step(self.inputs, outputs),), quantized_activations)
        return replace(other, tolerance=before.tolerance)

    def with_few_states(self) -> "Expected":
        """Return it without states but those that it begins with and ends with.

        A cache of a language model, twice for each run, takes more than its weights.
        """
        kept, updated = ({s.input for s in self.states}, {s.output for s in self.states})
        steps = []
        for number, step in enumerate(self.steps):
            begins, ends = number == 0, number == len(self.steps) - 1
            inputs = {n: a for n, a in step.inputs.items() if begins or n not in kept}
            outputs = {n: a for n, a in step.outputs.items() if ends or n not in updated}
            steps.append(Step(inputs, outputs))
        return replace(self, steps=tuple(steps))

    def sqnr_db(self, other: "Expected") -> dict[str, float]:
        """Return the signal-to-noise ratio of another model's outputs, by name [dB]."""
        comparison = Comparison(same_top1)
        comparison.add(self.outputs, other.outputs)
        return dict(comparison.result().by_output)


def _rounding_sqnr_db(
    original: onnx.ModelProto,
    canonical: CanonicalModel,
    steps: Sequence[Step],
    states: Sequence[State],
    tolerance: Tolerance,
) -> float | None:
    """Return how near the original stays to itself when it rounds activations as it may [dB].

    The worst output of all runs, each with the state that the rounded run before left. None if
    nothing is allowed to be rounded.
    """
    first = steps[0].inputs
    state = {s.input: first[s.input] for s in states}
    ratios = []
    rounded = RoundedModel(original)
    for step in steps:
        fed = {**prepared({**step.inputs, **state}, canonical.embedded), **canonical.frozen}
        found = rounded.run(fed)
        if found is None:
            return None
        exact = step.called(states).outputs
        report = compare(exact, {name: found[name] for name in exact}, tolerance)
        ratios += [output.sqnr_db for output in report.outputs]
        state = {s.input: found[s.output] for s in states}
    return min(ratios, default=math.inf)
